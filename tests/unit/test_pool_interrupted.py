"""The pool killed after each action of takeover, release, reload and resync; then somebody gives back.

A plan is what the pool asks for from one cause. Tor gets its first N actions, for every N; then the agent is
dead. What gives back are the three steps of the guard and of ``circuitloom release``; a new pool finds
its way from what is left, whether they were taken or not.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from circuitloom.model import (
    DOUBT_SECONDS,
    Action,
    Announce,
    DeadlinePassed,
    Disconnected,
    Event,
    GiveBack,
    ReleaseStream,
    StopRequested,
    waits_for_controller,
)
from circuitloom.policy.types import Isolation, Policy, WhenNone
from circuitloom.pool import Pool
from unit.pool_driver import policy_of
from unit.simulated_tor import SimulatedTor

NOW = 1000.0
POLICY = policy_of("a", "b", min_active=2, isolation=Isolation.TOR)
OTHER = policy_of("b", "c", "d", min_active=2, isolation=Isolation.TOR)
HOLD = policy_of("a", "b", min_active=1, when_none=WhenNone.HOLD, isolation=Isolation.TOR)


class World:
    """A Tor, and an agent that is killed when it has carried out so many actions."""

    def __init__(self, policy: Policy) -> None:
        self.tor = SimulatedTor()
        self.policy = policy
        self.left: int | None = None
        self.is_alive = False
        self.now = NOW

    def start(self) -> None:
        """A new agent connects."""
        self.pool = Pool(self.policy, uniform=lambda: 0.5, now=self.now)
        self.is_alive, self.left = True, None
        self.give(self.tor.connected())

    def give(self, event: Event) -> None:
        self.perform(self.pool.handle(event, now=self.now))

    def pass_doubt(self) -> None:
        """The time after which what waits at an option of 0 is known to have been left by somebody."""
        self.now += DOUBT_SECONDS
        self.give(DeadlinePassed())

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            if not self.is_alive:
                return
            if self.left == 0:
                self.is_alive = False
                return
            if self.left is not None and not isinstance(action, Announce):
                self.left -= 1
            for reply in self.tor.perform([action]):
                self.give(reply)
        self.pool.check_invariants()

    def settle(self) -> None:
        """Tor builds what is asked for and tells; the agent hears it, if it lives."""
        while self.tor.events or any(not circuit.is_built for circuit in self.tor.circuits.values()):
            while self.tor.events:
                event = self.tor.events.popleft()
                if self.is_alive:
                    self.give(event)
            for circuit_id in sorted(self.tor.circuits):
                self.tor.finish_build(circuit_id, is_success=True)

    def give_back(self) -> None:
        """The three steps, by somebody else's hand."""
        self.tor.perform([GiveBack()])
        waiting = [stream for stream in self.tor.connected().streams if waits_for_controller(stream)]
        self.tor.perform([ReleaseStream(stream.stream_id, "the agent is dead") for stream in waiting])

    def open_streams(self) -> None:
        for user in ("alice", "alice", "bob"):
            self.tor.open_stream(user=user)
        self.tor.open_stream("abcdefghij.onion:80")
        self.tor.open_stream("name.example:0", purpose="DNS_REQUEST")
        self.tor.open_stream(purpose="DIR_FETCH")

    def assert_given_back(self) -> None:
        assert not self.tor.leave_unattached
        assert not self.tor.waiting()
        late = self.tor.open_stream()
        assert self.tor.streams[late].state == "choosing"

    def assert_balanced(self) -> None:
        assert self.pool.snapshot(now=self.now).state == "balancing"
        assert self.tor.leave_unattached
        assert not self.tor.waiting()
        late = self.tor.open_stream()
        self.settle()
        assert self.tor.streams[late].circuit_id in self.tor.circuits


def take_over(world: World, left: int) -> None:
    """From the start, with the option set and streams waiting, as a killed agent leaves them."""
    world.tor.leave_unattached = True
    world.open_streams()
    world.pool = Pool(world.policy, uniform=lambda: 0.5, now=NOW)
    world.is_alive, world.left = True, left
    world.give(world.tor.connected())
    world.open_streams()
    world.settle()


def stop(world: World, left: int) -> None:
    world.start()
    world.settle()
    world.left = left
    world.open_streams()
    world.give(StopRequested())
    world.settle()


def lose_all_circuits(world: World, left: int) -> None:
    """The other way to give back: nothing is usable."""
    world.start()
    world.settle()
    world.left = left
    for circuit_id in list(world.tor.circuits):
        world.tor.end_circuit(circuit_id)
    world.open_streams()
    world.settle()


def reload(world: World, left: int) -> None:
    world.start()
    world.settle()
    world.open_streams()
    world.left = left
    world.perform(world.pool.replace_policy(OTHER, now=NOW))
    world.policy = OTHER
    world.settle()


def resync(world: World, left: int) -> None:
    """The connection was cut, streams came and a circuit went meanwhile."""
    world.start()
    world.settle()
    world.open_streams()
    world.settle()
    world.give(Disconnected())
    world.open_streams()
    world.tor.end_circuit(min(world.tor.circuits))
    world.left = left
    world.give(world.tor.connected())
    world.settle()


def tor_reloads(world: World, left: int) -> None:
    """A SIGHUP resets the option behind our back."""
    world.start()
    world.settle()
    world.left = left
    world.open_streams()
    world.tor.reload()
    world.settle()
    world.open_streams()
    world.settle()


@pytest.mark.parametrize("policy", [POLICY, HOLD], ids=["tor", "hold"])
@pytest.mark.parametrize("plan", [take_over, stop, lose_all_circuits, reload, resync, tor_reloads])
@pytest.mark.parametrize("is_given_back", [True, False], ids=["given back", "left"])
def test_killed_after_each_action(
    policy: Policy, plan: Callable[[World, int], None], *, is_given_back: bool
) -> None:
    """Fully given back by the three steps; balanced by the next agent, with or without them."""
    for left in range(1000):
        world = World(policy)
        plan(world, left)
        is_killed = not world.is_alive
        world.left = None
        if is_killed and is_given_back:
            world.give_back()
            world.assert_given_back()
            world.settle()
        if is_killed:
            world.start()
            world.settle()
            world.pass_doubt()
        world.settle()
        if is_killed or plan not in {stop, lose_all_circuits}:
            world.assert_balanced()
        if not is_killed:
            break
    assert not is_killed
    assert left >= 2


def test_without_the_three_steps_streams_would_wait() -> None:
    """What the tests above rely on: the simulated Tor strands streams when an agent is killed."""
    world = World(POLICY)
    resync(world, 0)
    assert world.tor.leave_unattached
    assert world.tor.waiting()
