"""The decision core: events and the time in, actions out.

Rules of this file:

* Nothing here waits, reads a clock, draws a random number or writes a line.
* Every stream that Tor holds for us is attached, handed to Tor, closed as the policy says, or in ``waiting``
  with a circuit on its way; ``check_invariants`` states it.
* A stream is attached only when it is known to wait. A stream that is on its way is never attached again:
  moving it would lose what the application has sent early (tor-facts 0).
* Taking attachment over and giving it back are one pair: whoever sends SETCONF is in charge of every stream
  that waits until RESETCONF, and releases each of them with it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any

from circuitloom.model import (
    LEAVE_UNATTACHED,
    TOR_CHOOSES,
    Action,
    Announce,
    AttachRefused,
    AttachStream,
    BuildAccepted,
    BuildRefused,
    CircuitEvent,
    CircuitId,
    CloseStream,
    ConfChanged,
    Connected,
    DeadlinePassed,
    Disconnected,
    Event,
    GiveBack,
    NetworkReady,
    ReleaseStream,
    Reserved,
    Severity,
    SignalReceived,
    StopRequested,
    StreamEvent,
    StreamId,
    StreamStatus,
    TakeOver,
    TakeOverRefused,
)
from circuitloom.policy.types import Policy, WhenNone
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.slots import Circuit, CircuitState
from circuitloom.pool.snapshot import PoolSnapshot, snapshot_circuits
from circuitloom.pool.streams import Stream, StreamState, TorsOwn, is_directory

MAX_ATTEMPTS = 3
"""Circuits that one stream is tried on before Tor gets it; Tor itself gives an address up after three
(MAX_RESOLVE_FAILURES, tor-facts 3)."""

TAKE_OVER_RETRY_SECONDS = 10.0
"""Tor refuses SETCONF of this option only in a state that does not pass in a moment."""


class Attachment(StrEnum):
    """Who attaches new streams."""

    DISCONNECTED = "disconnected"
    RELEASED = "released"
    BALANCING = "balancing"
    STOPPING = "stopping"


class Pool:
    """Circuits, streams, and who is in charge, as one state machine.

    Args:
        policy: What to do.
        uniform: Gives a random number in [0, 1).
        now: The time (seconds of a clock that never goes back).
    """

    def __init__(self, policy: Policy, *, uniform: Callable[[], float], now: float) -> None:
        self._policy = policy
        self._actions: list[Action] = []
        self._circuits = Circuits(policy, uniform=uniform, emit=self._emit)
        self._streams: dict[StreamId, Stream] = {}
        self._waiting: dict[StreamId, Stream] = {}
        self._tors_own = TorsOwn(None)
        self._attachment = Attachment.DISCONNECTED
        self._since = now
        self._take_over_at: float | None = None
        self._attached_total = 0
        self._released_total = 0
        self._failed_total = 0
        self._dispatch: dict[type[Any], Callable[[Any, float], None]] = {
            CircuitEvent: self._on_circuit,
            ConfChanged: self._on_conf_changed,
            SignalReceived: self._on_signal,
            NetworkReady: self._on_network_ready,
            Connected: self._on_connected,
            Disconnected: self._on_disconnected,
            BuildAccepted: self._on_build_accepted,
            BuildRefused: self._on_build_refused,
            AttachRefused: self._on_attach_refused,
            TakeOverRefused: self._on_take_over_refused,
            Reserved: self._on_reserved,
            StopRequested: self._on_stop,
            DeadlinePassed: self._on_deadline,
        }
        self._on_stream: dict[StreamStatus, Callable[[StreamEvent], None]] = {
            StreamStatus.NEW: self._on_new,
            StreamStatus.NEWRESOLVE: self._on_new,
            StreamStatus.CONTROLLER_WAIT: self._on_controller_wait,
            StreamStatus.SENTCONNECT: self._on_sent,
            StreamStatus.SENTRESOLVE: self._on_sent,
            StreamStatus.SUCCEEDED: self._on_succeeded,
            StreamStatus.DETACHED: self._on_detached,
            StreamStatus.FAILED: self._on_failed,
            StreamStatus.CLOSED: self._on_closed,
        }

    # --- what the service calls ----------------------------------------------------------------------------

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Take one event.

        Args:
            event: What happened.
            now: The time (seconds of the clock given to the constructor).

        Returns:
            What to do, in this order.
        """
        actions: list[Action] = []
        self._actions = actions
        if isinstance(event, StreamEvent):
            self._on_stream[event.status](event)
        else:
            self._dispatch[type(event)](event, now)
            self._evaluate(now)
        return actions

    @property
    def is_in_charge(self) -> bool:
        """Whether new streams wait for us."""
        return self._attachment is Attachment.BALANCING

    def next_deadline(self) -> float | None:
        """When a DeadlinePassed event is due (seconds), or None."""
        deadlines = (self._circuits.next_deadline(), self._take_over_at)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def replace_policy(self, policy: Policy, *, now: float) -> list[Action]:
        """Go on with another policy: circuits that both name are kept, with their streams."""
        actions: list[Action] = []
        self._actions = actions
        self._policy = policy
        self._circuits.replace_policy(policy, now=now)
        self._evaluate(now)
        return actions

    def snapshot(self, *, now: float) -> PoolSnapshot:
        """The state as values, for the status."""
        return PoolSnapshot(
            state=self._attachment.value,
            since_seconds=now - self._since,
            algorithm=self._policy.balance.algorithm.value,
            is_ready=self._circuits.is_ready,
            circuits=snapshot_circuits(self._circuits, now=now),
            streams_active=len(self._streams),
            streams_waiting=len(self._waiting),
            attached_total=self._attached_total,
            released_total=self._released_total,
            failed_total=self._failed_total,
        )

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        counts: dict[Circuit, int] = {}
        for stream_id, stream in self._streams.items():
            assert stream.stream_id == stream_id
            assert (stream_id in self._waiting) == (stream.state is StreamState.WAITING)
            if stream.circuit is not None:
                assert stream.state in {StreamState.ATTACHED, StreamState.OPEN}
                counts[stream.circuit] = counts.get(stream.circuit, 0) + 1
        assert set(self._waiting) <= set(self._streams)
        self._circuits.check_invariants(counts)
        if self._attachment in {Attachment.RELEASED, Attachment.STOPPING}:
            assert not self._waiting
        if self._waiting and self._attachment is Attachment.BALANCING:
            assert not self._circuits.is_usable
            assert self._policy.failover.when_none is WhenNone.HOLD

    def _emit(self, action: Action) -> None:
        self._actions.append(action)

    # --- streams -------------------------------------------------------------------------------------------

    def _on_new(self, event: StreamEvent) -> None:
        """Remember what only NEW tells; attaching waits for CONTROLLER_WAIT (tor-facts 1)."""
        if is_directory(event):
            return
        stream = self._streams.get(event.stream_id)
        if stream is None:
            stream = self._streams[event.stream_id] = Stream(event.stream_id)
        stream.is_tors = self._tors_own.has(event.target)

    def _on_controller_wait(self, event: StreamEvent) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            stream = self._streams[event.stream_id] = Stream(event.stream_id)
            stream.is_tors = self._tors_own.has(event.target)
        # In any other state this is the echo of a move, ours or another controller's (tor-facts 3, 12).
        if stream.state is StreamState.NEW:
            self._serve(stream)

    def _on_sent(self, event: StreamEvent) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._place(stream, event.circuit_id)
            stream.state = StreamState.ATTACHED

    def _on_succeeded(self, event: StreamEvent) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._place(stream, event.circuit_id)
            stream.state = StreamState.OPEN

    def _on_detached(self, event: StreamEvent) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        self._count_failure(stream)
        stream.tried = (*stream.tried, event.circuit_id)
        self._take_off(stream)
        stream.state = StreamState.NEW

    def _on_failed(self, event: StreamEvent) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            self._count_failure(stream)

    def _on_closed(self, event: StreamEvent) -> None:
        stream = self._streams.pop(event.stream_id, None)
        if stream is not None:
            self._take_off(stream)

    def _count_failure(self, stream: Stream) -> None:
        if stream.circuit is not None:
            stream.circuit.slot.failed_total += 1
            self._failed_total += 1

    def _place(self, stream: Stream, circuit_id: CircuitId) -> None:
        """The stream is on this circuit, as Tor says; whoever put it there."""
        circuit = stream.circuit
        if circuit is not None and circuit.circuit_id == circuit_id:
            return
        self._take_off(stream)
        circuit = self._circuits.by_id.get(circuit_id)
        if circuit is not None:
            stream.circuit = circuit
            self._circuits.add_stream(circuit)

    def _take_off(self, stream: Stream) -> None:
        self._waiting.pop(stream.stream_id, None)
        circuit = stream.circuit
        if circuit is not None:
            stream.circuit = None
            if circuit.state is not CircuitState.CLOSED:
                self._circuits.remove_stream(circuit)

    def _serve(self, stream: Stream) -> None:
        """Decide on a stream that is known to wait."""
        if self._attachment is not Attachment.BALANCING:
            self._release(stream, "Tor assigns streams now")
        elif stream.is_tors:
            self._release(stream, "only Tor can serve this address")
        elif len(stream.tried) >= MAX_ATTEMPTS:
            self._release(stream, f"tried on {MAX_ATTEMPTS} circuits")
        else:
            circuit = self._circuits.choose(stream.tried)
            if circuit is not None:
                self._attach(stream, circuit)
            elif self._circuits.is_usable:
                self._release(
                    stream, "no other circuit can take it" if stream.tried else "all circuits are full"
                )
            else:
                self._hold(stream)

    def _attach(self, stream: Stream, circuit: Circuit) -> None:
        self._waiting.pop(stream.stream_id, None)
        stream.state = StreamState.ATTACHED
        stream.circuit = circuit
        state = circuit.slot
        state.attached_total += 1
        self._attached_total += 1
        self._circuits.add_stream(circuit)
        self._actions.append(
            AttachStream(stream.stream_id, circuit.circuit_id or TOR_CHOOSES, state.slot.name)
        )

    def _release(self, stream: Stream, why: str) -> None:
        self._take_off(stream)
        stream.state = StreamState.RELEASED
        self._released_total += 1
        self._emit(ReleaseStream(stream.stream_id, why))

    def _hold(self, stream: Stream) -> None:
        """No circuit is usable."""
        match self._policy.failover.when_none:
            case WhenNone.REJECT:
                self._take_off(stream)
                stream.state = StreamState.RELEASED
                self._emit(CloseStream(stream.stream_id, "no circuit is usable"))
            case _:
                # Under TOR the end of the last circuit gives back at once, so nothing waits here for long.
                stream.state = StreamState.WAITING
                self._waiting[stream.stream_id] = stream

    def _on_attach_refused(self, event: AttachRefused, now: float) -> None:
        """Tor did not attach; tor-facts 2 lists the cases and what became of the stream in each."""
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        if event.code == 552 and event.message.startswith("Unknown stream"):
            del self._streams[event.stream_id]
            self._take_off(stream)
            return
        if event.circuit_id == TOR_CHOOSES:
            if event.code != 555:
                self._emit(Announce(Severity.WARNING, f"Tor does not take stream {event.stream_id} back"))
            return
        circuit = stream.circuit
        if circuit is None or circuit.circuit_id != event.circuit_id:
            return
        self._take_off(stream)
        if event.code == 555 or event.message.startswith("Unable to attach"):
            # Tor is choosing for it already, or has just ended it: its own events tell the rest.
            stream.state = StreamState.RELEASED
            return
        is_circuit_s_fault = event.code == 552 or event.message.startswith("Can't attach")
        # Of many attaches under way, the first refusal has taken the circuit out already.
        if is_circuit_s_fault and circuit.state is not CircuitState.CLOSED:
            self._circuits.lose(circuit, "Tor attaches nothing to it", now=now)
        stream.tried = (*stream.tried, event.circuit_id)
        stream.state = StreamState.NEW
        self._serve(stream)

    # --- circuits ------------------------------------------------------------------------------------------

    def _on_circuit(self, event: CircuitEvent, now: float) -> None:
        self._circuits.handle_event(event, now=now)

    def _on_build_accepted(self, event: BuildAccepted, now: float) -> None:
        self._circuits.handle_accepted(event, now=now)

    def _on_build_refused(self, event: BuildRefused, now: float) -> None:
        self._circuits.handle_refused(event, now=now)

    def _on_network_ready(self, _event: NetworkReady, now: float) -> None:
        self._circuits.handle_network_ready(now=now)

    def _on_deadline(self, _event: DeadlinePassed, now: float) -> None:
        if self._take_over_at is not None and self._take_over_at <= now:
            self._take_over_at = None
        self._circuits.handle_deadline(now=now)

    # --- who is in charge ----------------------------------------------------------------------------------

    def _evaluate(self, now: float) -> None:
        """Take over, give back, or serve those that waited, as the circuits now are."""
        if self._attachment is Attachment.RELEASED:
            if self._circuits.is_ready and self._take_over_at is None:
                self._enter(Attachment.BALANCING, now)
                self._emit(TakeOver())
                self._emit(Announce(Severity.INFO, "taking stream attachment over from Tor"))
        elif self._attachment is Attachment.BALANCING and not self._circuits.is_usable:
            if self._policy.failover.when_none is WhenNone.TOR:
                self._give_back(Attachment.RELEASED, "no circuit is usable", now)
            if self._policy.failover.when_none is not WhenNone.REJECT:
                return
        if self._waiting and self._attachment is Attachment.BALANCING:
            for stream in list(self._waiting.values()):
                self._serve(stream)

    def _enter(self, attachment: Attachment, now: float) -> None:
        self._attachment = attachment
        self._since = now

    def _give_back(self, attachment: Attachment, why: str, now: float) -> None:
        self._enter(attachment, now)
        self._emit(GiveBack())
        severity = Severity.INFO if attachment is Attachment.STOPPING else Severity.WARNING
        self._emit(Announce(severity, f"giving stream attachment back to Tor: {why}"))
        for stream in list(self._waiting.values()):
            self._release(stream, why)

    def _on_conf_changed(self, event: ConfChanged, _now: float) -> None:
        if self._attachment is Attachment.BALANCING and event.values.get(LEAVE_UNATTACHED, "1") in {
            "0",
            None,
        }:
            # A SIGHUP to Tor re-reads torrc and so resets the option (tor-facts 4).
            self._emit(TakeOver())
            self._emit(
                Announce(Severity.WARNING, "Tor reset the option: taking stream attachment over again")
            )

    def _on_reserved(self, event: Reserved, _now: float) -> None:
        self._tors_own = TorsOwn(event)

    def _on_signal(self, event: SignalReceived, _now: float) -> None:
        if event.name == "RELOAD":
            self._emit(Announce(Severity.INFO, "Tor re-read its configuration"))

    def _on_take_over_refused(self, event: TakeOverRefused, now: float) -> None:
        if self._attachment is Attachment.STOPPING:
            return
        self._take_over_at = now + TAKE_OVER_RETRY_SECONDS
        self._give_back(Attachment.RELEASED, f"Tor refused ({event.message})", now)

    def _on_stop(self, _event: StopRequested, now: float) -> None:
        if self._attachment in {Attachment.RELEASED, Attachment.BALANCING}:
            self._give_back(Attachment.STOPPING, "stopping", now)
        else:
            self._enter(Attachment.STOPPING, now)

    def _on_disconnected(self, _event: Disconnected, now: float) -> None:
        if self._attachment is not Attachment.STOPPING:
            self._enter(Attachment.DISCONNECTED, now)
        self._circuits.handle_disconnected()
        self._take_over_at = None

    def _on_connected(self, event: Connected, now: float) -> None:
        """Rebuild everything from what Tor says; memory only serves to recognise circuits."""
        if self._attachment is Attachment.STOPPING:
            return
        self._tors_own = TorsOwn(event.reserved)
        self._streams.clear()
        self._waiting.clear()
        self._circuits.handle_connected(event.circuits, now=now)
        for line in event.streams:
            self._adopt(line)
        self._circuits.recounted()
        self._enter(Attachment.RELEASED, now)
        if self._circuits.is_ready:
            return
        # Somebody before us may have left streams waiting, whatever the option says now (tor-facts 4), and
        # no circuit of ours can take them soon. For a stream that Tor serves already this is refused.
        if event.leave_unattached:
            self._emit(GiveBack())
        for stream in list(self._waiting.values()):
            self._release(stream, "it waited before we came")

    def _adopt(self, line: StreamEvent) -> None:
        """Take one line of stream-status; NEW there means that it may wait."""
        if is_directory(line) or line.status in {StreamStatus.FAILED, StreamStatus.CLOSED}:
            return
        stream = self._streams[line.stream_id] = Stream(line.stream_id)
        match line.status:
            case StreamStatus.SENTCONNECT | StreamStatus.SENTRESOLVE:
                self._on_sent(line)
            case StreamStatus.SUCCEEDED:
                self._on_succeeded(line)
            case _:
                stream.is_tors = self._tors_own.has(line.target)
                stream.state = StreamState.WAITING
                self._waiting[line.stream_id] = stream
