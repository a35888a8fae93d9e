"""Rotation: circuits that served enough are replaced make before break, and end with their streams."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitloom.model import (
    Action,
    AttachStream,
    BuildCircuit,
    CircuitAdopted,
    CircuitBandwidth,
    CircuitId,
    CircuitOrdered,
    DeadlinePassed,
    Disconnected,
    Event,
    Order,
    Purpose,
)
from circuitloom.policy.rotation import Rotation
from circuitloom.policy.types import Adopt, Balance, Isolation, Policy, Rebuild, Slot
from circuitloom.pool import Pool
from circuitloom.pool.rotation import MIN_LOOKS
from circuitloom.wire import parse_circuits
from unit.pool_driver import Driver, balancing, built, closed, isolating, opened, policy_of, sent
from unit.simulated_tor import SimulatedTor

AGED = Rotation(max_age_seconds=60.0, jitter=0.0)
BUILD_A = "EXTENDCIRCUIT 0; a"


def succeed(driver: Driver, stream_id: int, circuit_id: int) -> None:
    driver.tell(sent(stream_id, circuit_id), f"STREAM {stream_id} SUCCEEDED {circuit_id} example.com:80")


def test_a_circuit_serves_until_its_successor_is_built() -> None:
    driver = balancing(policy_of("a", rotation=AGED))
    driver.tell(*opened(1))
    assert driver.wait(59.9) == []
    assert driver.wait(0.1) == [BUILD_A]
    assert driver.said == ["info: circuit a (30) is replaced, make before break: it is 60 s old"]

    (candidate,) = driver.pool.explain(None, now=driver.now).candidates
    assert candidate.why == "takes streams in its turn, until its successor is built"
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 30; a"]
    driver.build(31)
    assert [(c.circuit_id, c.state, c.streams) for c in driver.snapshot().circuits] == [
        ("31", "built", 0),
        ("30", "draining", 2),
    ]
    assert driver.tell(*opened(3)) == ["ATTACHSTREAM 3 31; a"]
    assert driver.tell(closed(1)) == []
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 30 IfUnused"]


def test_one_whose_successor_is_on_its_way_is_not_replaced_twice() -> None:
    driver = balancing(policy_of("a", rotation=AGED))
    driver.wait(59.9)
    assert driver.tell("SIGNAL NEWNYM") == [BUILD_A]

    assert driver.wait(0.1) == []
    driver.build(31)
    assert driver.circuit("a").circuit_id == "31"


def test_a_successor_that_cannot_be_built_leaves_the_old_circuit_in_place() -> None:
    driver = balancing(policy_of("a", rotation=AGED))
    driver.wait(60)
    driver.reply_to_build("551 Couldn't start circuit")

    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 30; a"]
    assert driver.wait(1) == [BUILD_A]
    driver.build(31)
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 31; a"]


def test_each_successor_grows_old_as_well() -> None:
    driver = balancing(policy_of("a", rotation=AGED))
    for circuit_id in (31, 32, 33):
        assert driver.wait(60) == [BUILD_A]
        assert driver.build(circuit_id) == [f"CLOSECIRCUIT {circuit_id - 1} IfUnused"]


def test_so_many_streams_are_enough() -> None:
    driver = balancing(policy_of("a", rotation=Rotation(max_streams_total=3, jitter=0.0)))
    for stream_id in (1, 2):
        driver.tell(*opened(stream_id), closed(stream_id))

    assert driver.tell(*opened(3)) == ["ATTACHSTREAM 3 30; a", BUILD_A]
    assert driver.said == [
        "info: circuit a (30) is replaced, make before break: 3 streams were attached to it"
    ]
    assert driver.tell(*opened(4)) == ["ATTACHSTREAM 4 30; a"]
    driver.build(31)
    assert driver.tell(*opened(5), *opened(6)) == ["ATTACHSTREAM 5 31; a", "ATTACHSTREAM 6 31; a"]


def test_so_many_bytes_are_enough_whoever_wrote_them() -> None:
    driver = balancing(policy_of("a", rotation=Rotation(max_bytes=1000, jitter=0.0)))

    assert driver.tell("CIRC_BW ID=30 READ=400 WRITTEN=599 TIME=2026-11-25T14:20:01.123456") == []
    assert driver.tell("CIRC_BW ID=99 READ=5000 WRITTEN=5000 TIME=2026-11-25T14:20:02.123456") == []
    assert driver.tell("CIRC_BW ID=30 READ=1 WRITTEN=0 TIME=2026-11-25T14:20:02.123456") == [BUILD_A]
    assert driver.said == ["info: circuit a (30) is replaced, make before break: it has carried 1000 bytes"]


def test_jitter_only_brings_a_bound_nearer() -> None:
    for uniform, expected_seconds in ((0.0, 60.0), (0.5, 54.0), (0.99, 48.12)):
        driver = Driver(policy_of("a", rotation=replace(AGED, jitter=0.2)), uniform=uniform)
        driver.connect()
        driver.build(30)
        assert driver.pool.next_deadline() == pytest.approx(driver.now + expected_seconds)


def test_circuits_that_were_built_together_are_not_replaced_together() -> None:
    lots = iter([0.1, 0.9, 0.5])
    driver = Driver(policy_of("a", "b", "c", rotation=Rotation(max_age_seconds=100.0)))
    driver.pool = Pool(
        policy_of("a", "b", "c", rotation=Rotation(max_age_seconds=100.0)),
        uniform=lambda: next(lots),
        now=driver.now,
    )
    driver.connect()
    driver.build(30, 31, 32)

    assert driver.wait(82) == ["EXTENDCIRCUIT 0; b"]
    assert driver.wait(8) == ["EXTENDCIRCUIT 0; c"]
    assert driver.wait(8) == [BUILD_A]


# --- the time to drain -------------------------------------------------------------------------------------


def draining(driver: Driver) -> None:
    """Circuit 30 is past its age and drains since now, 31 serves."""
    driver.wait(60)
    driver.build(31)
    assert driver.circuit("a").circuit_id == "31"


def test_without_a_time_to_drain_streams_last_as_long_as_they_want() -> None:
    driver = balancing(policy_of("a", rotation=AGED))
    driver.tell(*opened(1))
    succeed(driver, 1, 30)
    draining(driver)
    while driver.now < 100_000:
        driver.wait(59)
        driver.wait(1)
    assert [c.streams for c in driver.snapshot().circuits if c.circuit_id == "30"] == [1]


def test_streams_that_are_left_after_the_time_to_drain_end_with_their_circuit() -> None:
    driver = balancing(policy_of("a", rotation=replace(AGED, drain_seconds=30.0)))
    driver.tell(*opened(1))
    succeed(driver, 1, 30)
    driver.now += 5
    draining(driver)

    assert driver.wait(29.9) == []
    assert driver.wait(0.1) == ["CLOSECIRCUIT 30"]
    assert driver.said == ["info: circuit a (30) is closed with 1 stream: its time to drain is over"]
    assert driver.wait(10) == []
    driver.tell("CIRC 30 CLOSED REASON=REQUESTED", closed(1))
    assert [c.circuit_id for c in driver.snapshot().circuits] == ["31"]


def test_a_stream_that_waits_for_an_answer_is_not_cut() -> None:
    driver = balancing(policy_of("a", rotation=replace(AGED, drain_seconds=5.0)))
    driver.now += 60
    driver.tell(*opened(1))
    driver.tell(sent(1, 30))
    driver.give(DeadlinePassed())
    driver.build(31)

    assert driver.wait(5) == []
    assert driver.wait(1) == []
    driver.tell("STREAM 1 SUCCEEDED 30 example.com:80")
    assert driver.wait(1) == ["CLOSECIRCUIT 30"]


def test_the_operator_s_rotation_has_the_same_time_to_drain() -> None:
    driver = balancing(policy_of("a", rotation=Rotation(max_age_seconds=10_000.0, drain_seconds=30.0)))
    driver.tell(*opened(1))
    succeed(driver, 1, 30)
    assert driver.give(CircuitOrdered(Order.ROTATE, "a")) == [BUILD_A]
    driver.now += 3
    driver.build(31)

    assert driver.wait(29) == []
    assert driver.wait(1) == ["CLOSECIRCUIT 30"]


def test_what_drains_for_another_reason_has_it_once_it_is_old() -> None:
    driver = balancing(policy_of("a", "b", rotation=replace(AGED, drain_seconds=30.0)))
    driver.tell(*opened(1))
    succeed(driver, 1, 30)
    driver.reload(policy_of("b", rotation=replace(AGED, drain_seconds=30.0)))

    assert driver.wait(60) == ["EXTENDCIRCUIT 0; b"]
    assert driver.wait(30) == ["CLOSECIRCUIT 30"]


# --- Tor's own bound ---------------------------------------------------------------------------------------


def used_at_1000(max_dirtiness_seconds: float | None = 600.0) -> Driver:
    """Circuit 30 has had a stream."""
    driver = Driver(policy_of("a"))
    driver.connect(max_dirtiness_seconds=max_dirtiness_seconds)
    driver.build(30)
    driver.now += 200
    driver.tell(*opened(1), closed(1))
    return driver


def test_a_used_circuit_is_replaced_before_tor_takes_it_away() -> None:
    driver = used_at_1000()

    assert driver.wait(539.9) == []
    assert driver.wait(0.1) == [BUILD_A]
    assert driver.said == ["info: circuit a (30) is replaced, make before break: Tor would soon take it away"]
    assert driver.build(31) == ["CLOSECIRCUIT 30 IfUnused"]
    # Nobody has used the successor, so Tor does not count yet.
    assert driver.pool.next_deadline() is None


def test_a_stream_that_tor_itself_put_there_counts_as_well() -> None:
    driver = Driver(policy_of("a", "b", min_active=2))
    driver.connect(max_dirtiness_seconds=600.0)
    driver.build(30)
    driver.tell(opened(1)[0], sent(1, 30))

    assert driver.wait(540) == [BUILD_A]


@pytest.mark.parametrize(("value", "seconds"), [("300", 270.0), (None, 540.0)])
def test_tor_s_option_may_change(value: str | None, seconds: float) -> None:
    driver = used_at_1000(max_dirtiness_seconds=86_400.0)
    line = "MaxCircuitDirtiness" if value is None else f"MaxCircuitDirtiness={value}"
    driver.receive(f"650-CONF_CHANGED\r\n650-{line}\r\n650 OK\r\n")

    assert driver.wait(seconds - 0.1) == []
    assert driver.wait(0.1) == [BUILD_A]


def test_what_another_agent_left_counts_from_its_coming() -> None:
    driver = used_at_1000()
    records = driver.pool.records()
    successor = Driver(policy_of("a"))
    successor.connect(circuits=built(30), records=records, max_dirtiness_seconds=600.0)
    assert successor.circuit("a").circuit_id == "30"

    assert successor.wait(539.9) == []
    assert successor.wait(0.1) == [BUILD_A]


# --- who is not replaced -----------------------------------------------------------------------------------


def test_a_circuit_of_another_controller_never_grows_old() -> None:
    driver = balancing(policy_of("a", Slot("theirs", adopt=Adopt(rebuild=True)), rotation=AGED))
    (line,) = parse_circuits(built(77))
    driver.give(CircuitAdopted("theirs", line))
    driver.tell("CIRC_BW ID=77 READ=5000 WRITTEN=5000")

    assert driver.wait(60) == [BUILD_A]
    driver.give(CircuitOrdered(Order.ROTATE, "theirs"))
    assert driver.states()["theirs"] == "built"


def test_the_one_that_is_built_instead_of_it_does() -> None:
    driver = balancing(policy_of("a", Slot("theirs", adopt=Adopt(rebuild=True)), rotation=AGED))
    (line,) = parse_circuits(built(77))
    driver.give(CircuitAdopted("theirs", line))
    driver.now += 5
    driver.tell("CIRC 77 CLOSED REASON=FINISHED")
    driver.build(78)
    driver.wait(55)
    driver.build(79)

    assert driver.wait(5) == ["EXTENDCIRCUIT 0; theirs"]


# --- reload, reconnect, keys -------------------------------------------------------------------------------


def test_one_that_was_spent_on_its_way_out_is_replaced_when_its_name_comes_back() -> None:
    rotation = Rotation(max_streams_total=2, jitter=0.0)
    driver = balancing(policy_of("a", rotation=rotation))
    assert driver.reload(policy_of("b", rotation=rotation)) == ["EXTENDCIRCUIT 0; b"]
    assert driver.tell(*opened(1), *opened(2)) == ["ATTACHSTREAM 1 30; a", "ATTACHSTREAM 2 30; a"]

    assert driver.reload(policy_of("a", rotation=rotation)) == [BUILD_A]


def test_a_reload_brings_the_bounds_into_force_for_what_is_there() -> None:
    driver = balancing(policy_of("a"))
    driver.now += 100
    driver.tell(*opened(1))
    assert driver.pool.next_deadline() is None
    driver.reload(policy_of("a", rotation=AGED))

    assert driver.wait(0) == [BUILD_A]
    driver.reload(policy_of("a"))
    driver.build(31)
    assert driver.pool.next_deadline() is None


def test_what_grows_old_while_tor_is_away_is_replaced_when_it_is_back() -> None:
    driver = balancing(policy_of("a", rotation=AGED))
    driver.give(Disconnected())
    assert driver.wait(60) == []
    assert driver.connect(circuits=built(30)) == [BUILD_A, "SETCONF __LeaveStreamsUnattached=1"]
    driver.build(31)
    assert driver.circuit("a").circuit_id == "31"


def test_a_new_identity_needs_no_rotation() -> None:
    driver = balancing(isolating("a"))
    driver.tell(*opened(1, user="alice"))

    # A new key for all streams to come, and so new circuits, at once.
    assert driver.tell("SIGNAL NEWNYM") == [BUILD_A]
    driver.build(31)
    assert driver.tell(*opened(2, user="alice", epoch=1)) == ["ATTACHSTREAM 2 31; a"]


def test_nothing_is_built_for_a_key_that_ends() -> None:
    driver = balancing(policy_of("a", isolation=Isolation.TOR, rotation=AGED))
    driver.tell(*opened(1, user="alice"))
    driver.tell("SIGNAL NEWNYM")
    driver.build(31)

    # Circuit 30 is as old as 31, and only waits for the end of its stream.
    assert driver.wait(60) == [BUILD_A]
    assert driver.said == ["info: circuit a (31) is replaced, make before break: it is 60 s old"]
    driver.build(32)
    assert driver.tell(closed(1)) == ["CLOSECIRCUIT 30 IfUnused"]


def test_the_agenda_does_not_grow_with_circuits_that_are_gone() -> None:
    driver = balancing(policy_of("a", rotation=Rotation(86_400.0, max_streams_total=1, jitter=0.0)))
    for number in range(1, 4 * MIN_LOOKS):
        driver.tell(*opened(number), closed(number))
        driver.build(30 + number)

    assert len(driver.pool._rotation._looks) <= 2 * MIN_LOOKS


# --- any order of events -----------------------------------------------------------------------------------


class Rotating:
    """A pool that nothing happens to but streams and rotation; Tor builds when and if it likes."""

    def __init__(self, rotation: Rotation, lots: list[float]) -> None:
        self.slots = tuple(Slot(name, purpose=Purpose.GENERAL) for name in "abc")
        policy = Policy(
            self.slots,
            balance=Balance(isolation=Isolation.NONE),
            failover=policy_of("a", rebuild=Rebuild(1.0, 4.0, 0.0)).failover,
            rotation=rotation,
        )
        self.now = 1000.0
        self.tor = SimulatedTor()
        draws = iter(lots * 10_000)
        self.pool = Pool(policy, uniform=lambda: next(draws), now=self.now)
        self.draining: set[CircuitId] = set()
        self.builds = 0
        self.give(replace(self.tor.connected(), max_dirtiness_seconds=40.0))
        self.settle()

    def give(self, event: Event) -> None:
        self.perform(self.pool.handle(event, now=self.now))

    def perform(self, actions: list[Action]) -> None:
        """Nobody is attached to what drains, no more is built than is replaced, and all slots serve on."""
        for action in actions:
            if isinstance(action, AttachStream):
                assert action.circuit_id not in self.draining
            self.builds += isinstance(action, BuildCircuit)
        self.draining = {
            CircuitId(circuit.circuit_id)
            for circuit in self.pool.snapshot(now=self.now).circuits
            if circuit.state == "draining" and circuit.circuit_id is not None
        }
        for reply in self.tor.perform(actions):
            self.give(reply)
        self.pool.check_invariants()

    def deliver(self) -> None:
        while self.tor.events:
            self.give(self.tor.events.popleft())

    def settle(self) -> None:
        self.deliver()
        for circuit_id in sorted(self.tor.circuits):
            self.tor.finish_build(circuit_id, is_success=True)
        self.deliver()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while (at := self.pool.next_deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            self.give(DeadlinePassed())
            self.deliver()
        self.now = end

    def step(self, what: str, number: int) -> None:
        if what in {"build", "fail"}:
            for circuit_id in sorted(self.tor.circuits)[number:]:
                self.tor.finish_build(circuit_id, is_success=what == "build")
        for stream_id in sorted(self.tor.streams)[number : number + 3]:
            if what == "answer":
                self.tor.answer(stream_id, "ok")
            elif what == "end":
                self.tor.end_stream(stream_id)
        if what == "open":
            self.tor.open_stream(purpose="DNS_REQUEST" if number == 4 else "USER")
        elif what == "bytes":
            self.give(CircuitBandwidth(min(self.tor.circuits), number, 1))
        elif what == "rotate":
            self.give(CircuitOrdered(Order.ROTATE, "abc"[number]))
        elif what == "wait":
            self.wait(number)

    def states(self) -> list[str]:
        return [c.state for c in self.pool.snapshot(now=self.now).circuits if c.state != "draining"]


STEPS = st.one_of(
    st.tuples(st.just("open"), st.integers(1, 4)),
    st.tuples(st.just("answer"), st.integers(0, 9)),
    st.tuples(st.just("end"), st.integers(0, 9)),
    st.tuples(st.just("bytes"), st.sampled_from([10, 500])),
    st.tuples(st.just("wait"), st.sampled_from([1, 3, 20, 60])),
    st.tuples(st.just("build"), st.integers(0, 3)),
    st.tuples(st.just("fail"), st.integers(0, 3)),
    st.tuples(st.just("rotate"), st.integers(0, 2)),
)
RULES = st.builds(
    Rotation,
    max_age_seconds=st.sampled_from([None, 5.0, 30.0]),
    max_streams_total=st.sampled_from([None, 1, 4]),
    max_bytes=st.sampled_from([None, 600]),
    drain_seconds=st.sampled_from([None, 1.0, 10.0]),
    jitter=st.sampled_from([0.0, 0.2, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(
    rule=RULES,
    lots=st.lists(st.floats(0, 0.99), min_size=1, max_size=5),
    steps=st.lists(STEPS, max_size=40),
)
def test_no_rotation_costs_a_usable_circuit(
    rule: Rotation, lots: list[float], steps: list[tuple[str, int]]
) -> None:
    world = Rotating(rule, lots)
    assert world.states() == ["built"] * 3
    for what, number in steps:
        world.step(what, number)
        world.deliver()
        # Whatever is replaced, and whether its successor is ever built: every slot serves at every moment.
        assert world.states() == ["built"] * 3
        assert world.pool.snapshot(now=world.now).streams_waiting == 0
