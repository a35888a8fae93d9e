"""The streams of probes: opened one by one, recognised, pinned to their circuit, and what came of each.

Rules of this file:

* A probe's stream is never a user's: it is in no table of streams, no share, no queue, no retry, and goes to
  its own circuit or nowhere.
* It is attached only where Tor takes it for a stream like the others there (tor-facts 7): the key that Tor
  shows for it has to be the circuit's.
* Only one at a time waits to be shown by Tor. Over TCP its source port tells which stream it is. A Unix
  client has none (Tor prints its socket's path): there the first stream to its target with its SOCKS name
  counts, and if another one follows at once nobody knows whose is whose, so the outcome is dropped.
* A circuit is blamed only for a stream that was on it. What reached no SOCKS port, or was not recognised, is
  a problem of the probes.
* No target and no SOCKS name is ever put into words.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from circuitloom.checks import Allowance, Check, cost_of_stream
from circuitloom.kinds import Kind
from circuitloom.model import (
    TOR_CHOOSES,
    Action,
    Announce,
    AttachProbe,
    AttachRefused,
    ProbeCircuit,
    ProbeFinished,
    ProbeOutcome,
    ProbeStarted,
    Severity,
    StopProbe,
    StreamEvent,
    StreamId,
    StreamStatus,
)
from circuitloom.policy.probing import Probe
from circuitloom.pool.attacher import condemns, is_exit_policy
from circuitloom.pool.isolation import ONE_FOR_ALL, IsolationKey, isolation_key
from circuitloom.pool.slots import Circuit, CircuitState

MAX_OPEN = 16
"""Streams at once: enough for a thousand circuits every half minute, few for the guard that carries them."""

DOUBT_SECONDS = 1.0
"""Tor shows a stream within milliseconds of its request; one that comes later than this is another's."""


@dataclass(slots=True, eq=False)
class Trial:
    """One stream to one target over one circuit.

    Attributes:
        check: What it is part of.
        circuit: Where it has to go.
        target: Where it leads.
        identity: The key that Tor has to show for it, None: any; then the one that it shows.
        number: Of ProbeCircuit.
        is_asking: Whether its request is on its way to Tor.
        source: Its own address, over TCP.
        stream_id: Once Tor has shown it.
        shown_at: When (seconds of the pool's clock).
        difference: The names of the fields in which the key that Tor shows is another one.
        is_attached: Whether we asked Tor to attach it.
        is_pinned: Whether it is on its circuit, as far as we know.
        is_connected: Whether Tor said so.
        is_doubtful: Whether another stream may be taken for it, or somebody moved it.
        has_answered: Whether its connection says so.
        is_settled: Whether its outcome was told.
    """

    check: Check
    circuit: Circuit
    target: str = field(repr=False)
    identity: IsolationKey | None = None
    number: int = 0
    is_asking: bool = False
    source: str | None = None
    stream_id: StreamId | None = None
    shown_at: float = 0.0
    difference: str = ""
    is_attached: bool = False
    is_pinned: bool = False
    is_connected: bool = False
    is_doubtful: bool = False
    has_answered: bool = False
    is_settled: bool = False

    @property
    def login(self) -> tuple[str | None, str | None]:
        """SOCKS user name and password."""
        identity = self.identity or ONE_FOR_ALL
        values = dict(zip(identity.fields, identity.values, strict=True))
        return values.get("SOCKS_USERNAME"), values.get("SOCKS_PASSWORD")

    @property
    def is_sure(self) -> bool:
        """Whether its outcome is that of its circuit."""
        return self.is_attached and not self.is_doubtful and self.circuit.state is CircuitState.BUILT


class Trials:
    """The streams of probes.

    Args:
        emit: Takes each action, in order.
        on_outcome: Takes each trial, once, when its outcome is known: it answered, it failed, or (None) it
            tells nothing.
        on_attach: Called with each trial that goes to its circuit now.

    Attributes:
        now: The time (seconds of the pool's clock), set before each event.
        problem: Why probes do not work, in words; empty: they do.
        open_at: When the budget allows the next one (seconds of the pool's clock); None: it does now.
    """

    def __init__(
        self,
        *,
        emit: Callable[[Action], None],
        on_outcome: Callable[[Trial, bool | None], None],
        on_attach: Callable[[Trial], None],
    ) -> None:
        self._emit = emit
        self._on_outcome = on_outcome
        self._on_attach = on_attach
        self._rule: Probe | None = None
        self._allowance = Allowance(None, now=0.0)
        self._numbers = 0
        self._queue: deque[Trial] = deque()
        self._opening: Trial | None = None
        self._open: dict[int, Trial] = {}
        self._streams: dict[StreamId, Trial] = {}
        self.now = 0.0
        self.problem = ""
        self.open_at: float | None = None

    # --- what Probes calls ---------------------------------------------------------------------------------

    @property
    def is_any(self) -> bool:
        """Whether Tor may still tell of a stream."""
        return bool(self._streams)

    def begin_anew(self, rule: Probe | None) -> None:
        """Another policy holds; nothing is under way."""
        self._rule = rule
        self._allowance = Allowance(rule.budget_bytes if rule else None, now=self.now)
        self.problem = ""

    def add(self, trial: Trial) -> None:
        """Open a stream when it is its turn; ``open_next`` has to follow."""
        self._queue.append(trial)

    def open_next(self) -> None:
        """Open the next stream, if it is its turn and the budget allows it."""
        self.open_at = None
        rule = self._rule
        while rule is not None and self._queue and self._opening is None and len(self._open) < MAX_OPEN:
            trial = self._queue[0]
            if trial.circuit.state is CircuitState.BUILT:
                self.open_at = self._allowance.spend(cost_of_stream(rule), now=self.now)
                if self.open_at is not None:
                    return
            self._queue.popleft()
            if trial.circuit.state is not CircuitState.BUILT:
                continue
            self._numbers += 1
            trial.number = self._numbers
            self._open[trial.number] = self._opening = trial
            user, password = trial.login
            self._emit(ProbeCircuit(trial.number, trial.target, user, password or ""))

    def stop(self) -> None:
        """End everything that is under way, without an outcome."""
        for number in self._open:
            self._emit(StopProbe(number))
        for trial in (*self._open.values(), *self._streams.values()):
            trial.is_settled = True
        self._open.clear()
        self._queue.clear()
        self._opening = self.open_at = None

    def forget_streams(self) -> None:
        """What Tor says next is all there is; what is stopped is counted like the streams of others."""
        self._streams.clear()

    def take(self, event: StreamEvent) -> bool:
        """Whether the stream is a probe's; then nobody else has to hear of it."""
        trial = self._streams.get(event.stream_id)
        if trial is not None:
            self._follow(trial, event)
        elif event.status is not StreamStatus.NEW:
            return False
        elif self._opening is not None and _is_of(self._opening, event):
            self._show(self._opening, event)
        else:
            self._doubt(event)
            return False
        self.open_next()
        return True

    def handle_started(self, event: ProbeStarted) -> None:
        """The request of a probe leaves."""
        trial = self._open.get(event.probe)
        if trial is not None:
            trial.is_asking, trial.source = True, event.source

    def handle_finished(self, event: ProbeFinished) -> None:
        """A probe has ended."""
        trial = self._open.pop(event.probe, None)
        if trial is None:
            return
        is_unshown = trial is self._opening
        if is_unshown:
            self._opening = None
        has_answered = event.outcome is ProbeOutcome.ANSWERED
        if event.outcome is ProbeOutcome.UNREACHED:
            self._tell_problem(event.detail)
            self._settle(trial, None)
        elif is_unshown:
            self._tell_problem("Tor shows no such stream: is `health.probe.socks` a port of this Tor?")
            self._settle(trial, None)
        elif has_answered and not trial.is_connected:
            # Tor's event of it is on its way.
            trial.has_answered = True
        elif has_answered or not trial.is_connected or (self._rule and self._rule.read_bytes):
            self._settle(trial, has_answered)
        else:
            # Tor connected what we took for its stream, and told it otherwise.
            self._settle(trial, None)
        self.open_next()

    def handle_refused(self, event: AttachRefused) -> bool:
        """Tor did not attach; returns whether it was a probe's stream."""
        trial = self._streams.get(event.stream_id)
        if trial is None:
            return False
        if event.circuit_id != TOR_CHOOSES:
            self._leave(trial)
            self._end(trial)
            self.open_next()
        return True

    def check_invariants(self, circuits: set[Circuit]) -> None:
        """Assert what must always hold; for tests.

        Args:
            circuits: All that Tor has given an id.

        Raises:
            AssertionError: It does not.
        """
        counts: dict[Circuit, int] = {}
        for trial in self._streams.values():
            if trial.is_pinned:
                counts[trial.circuit] = counts.get(trial.circuit, 0) + 1
        for circuit in circuits:
            assert circuit.probes == counts.get(circuit, 0)
        assert len(self._open) <= MAX_OPEN
        assert self._opening is None or self._open.get(self._opening.number) is self._opening

    # --- one stream ----------------------------------------------------------------------------------------

    def _doubt(self, event: StreamEvent) -> None:
        """A stream of somebody else that could have been taken for a probe's makes that one doubtful."""
        for trial in self._open.values():
            is_by_order = trial.source is None and trial.stream_id is not None
            if is_by_order and trial.shown_at + DOUBT_SECONDS > self.now and _is_like(trial, event):
                trial.is_doubtful = True

    def _show(self, trial: Trial, event: StreamEvent) -> None:
        """Tor shows the trial's stream."""
        self._opening = None
        self._streams[event.stream_id] = trial
        trial.stream_id, trial.shown_at = event.stream_id, self.now
        if self.problem:
            self.problem = ""
            self._emit(Announce(Severity.INFO, "probes reach Tor again", Kind.PROBES))
        key = isolation_key(event)
        if trial.identity is not None and key != trial.identity:
            trial.difference = _difference(key, trial.identity)
            self._settle(trial, None)
        trial.identity = key

    def _follow(self, trial: Trial, event: StreamEvent) -> None:
        circuit = trial.circuit
        match event.status:
            case StreamStatus.CONTROLLER_WAIT:
                self._serve(trial, event.stream_id)
            case StreamStatus.SENTCONNECT | StreamStatus.SUCCEEDED:
                trial.is_doubtful |= event.circuit_id != circuit.circuit_id
                if event.status is StreamStatus.SUCCEEDED:
                    trial.is_connected = True
                    if trial.has_answered:
                        self._settle(trial, has_answered=True)
            case StreamStatus.DETACHED:
                if condemns(event) and circuit.state is CircuitState.BUILT:
                    circuit.slot.owner.condemn(circuit, now=self.now)
                self._settle(trial, None if is_exit_policy(event) else False)
                self._leave(trial)
                self._end(trial)
            case StreamStatus.CLOSED:
                self._leave(trial)
                del self._streams[event.stream_id]
                if trial.number not in self._open:
                    self._settle(trial, None)
            case _:
                pass

    def _serve(self, trial: Trial, stream_id: StreamId) -> None:
        """The trial's stream waits for us."""
        circuit = trial.circuit
        is_late = trial.is_attached or trial.is_settled or circuit.state is not CircuitState.BUILT
        if is_late or circuit.carried not in {None, trial.identity}:
            self._end(trial)
            if trial.source is None:
                # It may be somebody else's after all, and then it must not wait for nobody.
                self._emit(AttachProbe(stream_id, TOR_CHOOSES))
            return
        self._on_attach(trial)
        trial.is_attached = trial.is_pinned = True
        circuit.probes += 1
        self._emit(AttachProbe(stream_id, circuit.circuit_id or TOR_CHOOSES))

    def _leave(self, trial: Trial) -> None:
        """The trial's stream is not on its circuit any more."""
        circuit = trial.circuit
        if trial.is_pinned:
            trial.is_pinned = False
            circuit.probes -= 1
            circuit.slot.owner.end_if_empty(circuit)

    def _end(self, trial: Trial) -> None:
        """The trial's connection is of no more use."""
        self._settle(trial, None)
        if self._open.pop(trial.number, None) is not None:
            self._emit(StopProbe(trial.number))

    def _settle(self, trial: Trial, has_answered: bool | None) -> None:
        if not trial.is_settled:
            trial.is_settled = True
            self._on_outcome(trial, has_answered)

    def _tell_problem(self, problem: str) -> None:
        """Say once why probes do not work."""
        if problem != self.problem:
            self.problem = problem
            what = f"probes do not work, and no circuit is blamed for it: {problem}"
            self._emit(Announce(Severity.WARNING, what, Kind.PROBES))


def _is_of(trial: Trial, event: StreamEvent) -> bool:
    """Whether a new stream is the one that the trial asks for."""
    source = event.keywords.get("SOURCE_ADDR", "")
    if not trial.is_asking or event.keywords.get("PURPOSE", "USER") != "USER":
        return False
    if trial.source is not None:
        return _plain(source) == _plain(trial.source)
    # Tor prints the path of its socket and port 0, and cuts both off after 50 characters.
    return source.startswith("/") and _is_like(trial, event)


def _is_like(trial: Trial, event: StreamEvent) -> bool:
    login = (event.keywords.get("SOCKS_USERNAME"), event.keywords.get("SOCKS_PASSWORD"))
    return _plain(event.target) == _plain(trial.target) and login == trial.login


def _plain(address: str) -> str:
    """An address with its port, without what Tor may print otherwise: brackets and upper case."""
    return address.replace("[", "").replace("]", "").lower()


def _difference(key: IsolationKey | None, identity: IsolationKey) -> str:
    """The fields in which a stream differs from another; their values are nobody's business."""
    if key is None:
        return "what isolates it, which Tor does not tell"
    ours, theirs = (dict(zip(each.fields, each.values, strict=True)) for each in (key, identity))
    return ", ".join(
        name
        for name in sorted(ours.keys() | theirs.keys())
        if (name in ours, ours.get(name)) != (name in theirs, theirs.get(name))
    )
