"""The course of a simulation: the core and a simulated Tor, led through time, and what becomes of streams.

Rules of this file:

* The core is the agent's own, word for word: what it decides here it decides there.
* Streams come once every circuit that the policy asks for at the start is built; that moment is 0 of all
  times that are told.
* Nothing is judged: it is written down who was sent where, when and why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import StrEnum

from circuitloom.model import (
    Action,
    AttachStream,
    CircuitEvent,
    CircuitStatus,
    CloseStream,
    Connected,
    DeadlinePassed,
    Event,
    ReleaseStream,
    StreamEvent,
    StreamId,
    StreamStatus,
    dirtiness_seconds,
)
from circuitloom.policy.matching import find_rule
from circuitloom.policy.types import Policy
from circuitloom.pool import Pool
from circuitloom.simulation.arrivals import Arrival, Loss, Traffic
from circuitloom.simulation.relays import made_up_relays
from circuitloom.simulation.tor import Agenda, SimulatedTor

START_SECONDS = 600.0
"""1,000 circuits are built in a fifth of it; what is not there by then does not come."""

TICK_SECONDS = 1e-9

Uniform = Callable[[], float]


class Outcome(StrEnum):
    """What became of a stream. WAITING: nothing yet. GIVEN_UP: its client did, after SocksTimeout."""

    WAITING = "waiting"
    CARRIED = "carried"
    TOR = "tor"
    REJECTED = "rejected"
    GIVEN_UP = "given up"


@dataclass(slots=True, eq=False)
class Fate:
    """One stream and what became of it.

    Attributes:
        at: When it came (seconds from the first moment that streams are served).
        rule: The place of its rule in the policy, from 1; None: none matches.
        outcome: What became of it, by the last decision.
        name: The circuit that it was attached to last.
        why: Of what was not attached.
        waited_seconds: From its coming to the first decision.
        is_cut: Whether it ended with its circuit.
    """

    at: float
    rule: int | None
    outcome: Outcome = Outcome.WAITING
    name: str | None = None
    why: str = ""
    waited_seconds: float = 0.0
    is_cut: bool = False


@dataclass(slots=True, eq=False)
class Crowd:
    """How many streams are on the circuits of one name, and how many were at most."""

    now: int = 0
    most: int = 0


@dataclass(slots=True, eq=False)
class Lost:
    """A circuit that was lost.

    Attributes:
        loss: What was to happen.
        cut: How many streams ended with it.
        back_at: When the next one was there (seconds from the first moment that streams are served).
    """

    loss: Loss
    cut: int = 0
    back_at: float | None = None


@dataclass(frozen=True, slots=True)
class Record:
    """All that happened.

    Attributes:
        fates: Of every stream, in the order of their coming.
        crowds: By a circuit's name.
        most_open: How many streams there were at once, at most.
        seconds: From the first stream that could come to the end of the last one.
        lost: The circuits that were lost, in their order.
        is_served: Whether the agent took over from Tor before the first stream.
    """

    fates: tuple[Fate, ...]
    crowds: dict[str, Crowd]
    most_open: int
    seconds: float
    lost: tuple[Lost, ...]
    is_served: bool


@dataclass(slots=True, eq=False)
class _Ends:
    """What is left to happen."""

    arrivals: int = 0
    losses: int = 0
    undecided: set[StreamId] = field(default_factory=set)


class Course:
    """One simulation.

    Args:
        policy: What the core is to do.
        traffic: What comes.
        core_dice: Gives the core's random numbers in [0, 1).
        tor_dice: Gives those of the simulated Tor.
    """

    def __init__(self, policy: Policy, traffic: Traffic, *, core_dice: Uniform, tor_dice: Uniform) -> None:
        self._policy = policy
        self._traffic = traffic
        self._agenda = Agenda()
        self._tor = SimulatedTor(self._agenda, self._give, tor_dice)
        # No circuit falls silent here, and a pool that probes has no last deadline.
        unprobed = replace(policy, health=replace(policy.health, probe=None))
        self._pool = Pool(unprobed, uniform=core_dice, now=0.0)
        self._start = 0.0
        self._fates: list[Fate] = []
        self._by_stream: dict[StreamId, Fate] = {}
        self._crowds = {slot.name: Crowd() for slot in policy.slots}
        self._lost: list[Lost] = []
        self._most_open = 0
        self._left = _Ends(len(traffic.arrivals), len(traffic.losses))

    def run(self, *, after: Loss | None = None) -> Record:
        """Lead it to its end.

        Args:
            after: The loss that is looked at: the end is when its circuit is back and nobody waits any more;
                None: when the last stream has ended.
        """
        self._prepare()
        is_served = self._pool.is_in_charge
        self._come(0)
        for loss in self._traffic.losses:
            self._agenda.add(self._start + loss.at, lambda loss=loss: self._lose(loss))  # type: ignore[misc]
        while not self._is_over(after) and self._step():
            pass
        return Record(
            tuple(self._fates),
            self._crowds,
            self._most_open,
            self._tor.now - self._start,
            tuple(self._lost),
            is_served,
        )

    def _prepare(self) -> None:
        self._give(Connected(max_dirtiness_seconds=dirtiness_seconds(None)))
        if self._policy.path_rules:
            self._carry_out(self._pool.renew_relays(made_up_relays(self._policy), now=0.0))
        for slot in self._policy.slots:
            if slot.adopt is not None:
                self._give(self._tor.adopted(slot.name))
        while self._agenda.next_at is not None and self._tor.now < START_SECONDS:
            self._step()
        self._start = self._tor.now

    def _is_over(self, after: Loss | None) -> bool:
        if after is not None and not self._left.undecided:
            is_back = any(lost.loss is after and lost.back_at is not None for lost in self._lost)
            return is_back or (self._left.losses == 0 and self._is_quiet)
        return self._left.losses == 0 and self._is_quiet

    @property
    def _is_quiet(self) -> bool:
        """Whether the core has heard of the end of every stream."""
        return self._left.arrivals == 0 and not self._by_stream

    def _step(self) -> bool:
        """Let the next thing happen: the core's deadline, or what is on the agenda; False: there is none."""
        deadline, at = self._pool.next_deadline(), self._agenda.next_at
        if deadline is not None and (at is None or deadline < at):
            # A real clock has moved on when the same is due once more, where a sum rounds to too little.
            self._tor.now = deadline if deadline > self._tor.now else self._tor.now + TICK_SECONDS
            self._give(DeadlinePassed())
        elif at is not None:
            self._tor.now = max(self._tor.now, at)
            self._agenda.take()()
        return deadline is not None or at is not None

    # --- what happens --------------------------------------------------------------------------------------

    def _come(self, number: int) -> None:
        """Have the stream of this number come, in its time, and the next one after it."""
        if number == len(self._traffic.arrivals):
            return
        arrival = self._traffic.arrivals[number]

        def come() -> None:
            self._left.arrivals -= 1
            self._open(arrival)
            self._come(number + 1)

        self._agenda.add(self._start + arrival.at, come)

    def _open(self, arrival: Arrival) -> None:
        rule = find_rule(self._policy.rules, arrival.target, arrival.keywords)
        fate = Fate(arrival.at, None if rule is None else 1 + self._policy.rules.index(rule))
        self._fates.append(fate)
        stream_id = self._tor.open_stream(arrival)
        self._by_stream[stream_id] = fate
        self._most_open = max(self._most_open, len(self._tor.streams))
        if self._tor.streams[stream_id].is_waiting:
            self._left.undecided.add(stream_id)
        else:
            fate.outcome, fate.why = Outcome.TOR, "the agent is not in charge"

    def _lose(self, loss: Loss) -> None:
        cut = self._tor.lose(loss.name, outage_seconds=loss.outage_seconds)
        for stream_id in cut:
            self._by_stream[stream_id].is_cut = True
        self._left.losses -= 1
        self._lost.append(Lost(loss, len(cut)))

    def _give(self, event: Event) -> None:
        """Let the core have an event, and Tor what the core asks for."""
        if isinstance(event, CircuitEvent) and event.status is CircuitStatus.BUILT:
            self._came_back(self._tor.name_of(event.circuit_id))
        elif isinstance(event, StreamEvent) and event.status is StreamStatus.CLOSED:
            # Before the core gives its place to another one.
            self._ended(event.stream_id)
        self._carry_out(self._pool.handle(event, now=self._tor.now))

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            self._note(action)
        self._tor.perform(actions)

    def _came_back(self, name: str | None) -> None:
        for lost in self._lost:
            if lost.loss.name == name and lost.back_at is None:
                lost.back_at = self._tor.now - self._start

    # --- what is written down ------------------------------------------------------------------------------

    def _note(self, action: Action) -> None:
        match action:
            case AttachStream():
                self._decide(action.stream_id, Outcome.CARRIED, name=action.name)
            case ReleaseStream():
                self._decide(action.stream_id, Outcome.TOR, why=action.why)
            case CloseStream():
                self._decide(action.stream_id, Outcome.REJECTED, why=action.why)
            case _:
                pass

    def _decide(
        self, stream_id: StreamId, outcome: Outcome, *, name: str | None = None, why: str = ""
    ) -> None:
        fate = self._by_stream.get(stream_id)
        if fate is None:
            return
        if stream_id in self._left.undecided:
            self._left.undecided.discard(stream_id)
            fate.waited_seconds = self._waited_seconds(fate)
        self._uncrowd(fate)
        fate.outcome, fate.name, fate.why = outcome, name, why
        if name is not None:
            crowd = self._crowds.setdefault(name, Crowd())
            crowd.now += 1
            crowd.most = max(crowd.most, crowd.now)

    def _ended(self, stream_id: StreamId) -> None:
        fate = self._by_stream.pop(stream_id)
        self._uncrowd(fate)
        if stream_id in self._left.undecided:
            self._left.undecided.discard(stream_id)
            fate.outcome, fate.why = Outcome.GIVEN_UP, "its client gave up"
            fate.waited_seconds = self._waited_seconds(fate)

    def _waited_seconds(self, fate: Fate) -> float:
        # Two sums of the same times differ in their last bits.
        return round(self._tor.now - self._start - fate.at, 6)

    def _uncrowd(self, fate: Fate) -> None:
        if fate.name is not None and fate.outcome is Outcome.CARRIED:
            self._crowds[fate.name].now -= 1
