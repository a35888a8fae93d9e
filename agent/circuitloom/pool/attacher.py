"""Every stream, and what is decided on it.

Rules of this file:

* A stream is attached only when it is known to wait. A stream that is on its way is never attached again:
  moving it would lose what the application has sent early (tor-facts 0).
* A stream goes to circuits of its own key only, and to none when its key is not known.
* Whoever waits here waits for something that is on its way, and not for longer than the policy says, or under
  ``when_none: hold``; everybody else is Tor's, or closed, at once.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from circuitloom.model import (
    TOR_CHOOSES,
    Action,
    Announce,
    AttachRefused,
    AttachStream,
    CircuitId,
    CloseStream,
    ReleaseStream,
    Reserved,
    Severity,
    StreamEvent,
    StreamId,
    StreamStatus,
)
from circuitloom.policy.types import (
    ColdStart,
    Isolation,
    Policy,
    WhenExceeded,
    WhenExhausted,
    WhenNone,
)
from circuitloom.pool.builder import Builder
from circuitloom.pool.choosing import sticky_value
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.isolation import ONE_FOR_ALL, UNKNOWN_KEY, IsolationKey, isolation_key
from circuitloom.pool.keys import Keys
from circuitloom.pool.slots import Circuit, CircuitState
from circuitloom.pool.streams import Stream, StreamState, TorsOwn, is_directory

MIN_RETRIES = 3
"""Retries that the budget never forbids: a quiet client has to retry too (Envoy: min_retry_concurrency)."""

_FATAL_TO_CIRCUIT = frozenset({"MISC", "RESOLVEFAILED", "NOROUTE"})
"""Tor takes no new streams of its own to a circuit after one such END, and soon closes it (tor-facts 0)."""


class Attacher:
    """The table of streams.

    Args:
        policy: What to do.
        keys: Circuits by key.
        builder: Circuits by id.
        emit: Takes each action, in order.

    Attributes:
        policy: A reload replaces it.
        is_in_charge: Whether new streams wait for us.
        now: The time (seconds of the pool's clock), set before each event.
        streams: By Tor's id.
        waiting: Those that are held.
        attached_total: Attachments so far.
        released_total: Streams handed to Tor so far.
        failed_total: Attachments that ended without a connection.
    """

    def __init__(
        self, policy: Policy, *, keys: Keys, builder: Builder, emit: Callable[[Action], None]
    ) -> None:
        self.policy = policy
        self._keys = keys
        self._builder = builder
        self._emit = emit
        self._tors_own = TorsOwn(None)
        self._deadlines: list[tuple[float, StreamId]] = []
        self._unanswered = 0
        self._retries = 0
        self.is_in_charge = False
        self.now = 0.0
        self.streams: dict[StreamId, Stream] = {}
        self.waiting: dict[StreamId, Stream] = {}
        self.attached_total = 0
        self.released_total = 0
        self.failed_total = 0
        self.on_stream: dict[StreamStatus, Callable[[StreamEvent], None]] = {
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

    # --- what the pool calls -------------------------------------------------------------------------------

    def replace_policy(self, policy: Policy) -> None:
        """Go on with another policy; a key read under another isolation says nothing any more."""
        is_same = policy.balance.isolation is self.policy.balance.isolation
        self.policy = policy
        if not is_same:
            for stream in self.streams.values():
                if stream.owner is None:
                    stream.key = self._shared_key()

    def reserve(self, reserved: Reserved | None) -> None:
        """Tor maps these addresses from now on."""
        self._tors_own = TorsOwn(reserved)

    def clear(self) -> None:
        """Forget every stream; what Tor says next is all there is."""
        self.streams.clear()
        self.waiting.clear()
        self._deadlines.clear()
        self._unanswered = self._retries = 0

    def adopt(self, line: StreamEvent) -> None:
        """Take one line of stream-status; NEW there means that it may wait."""
        if is_directory(line) or line.status in {StreamStatus.FAILED, StreamStatus.CLOSED}:
            return
        stream = self.streams[line.stream_id] = Stream(line.stream_id)
        match line.status:
            case StreamStatus.SENTCONNECT | StreamStatus.SENTRESOLVE:
                self._on_sent(line)
            case StreamStatus.SUCCEEDED:
                self._on_succeeded(line)
            case _:
                stream.is_tors = self._tors_own.has(line.target)
                stream.key = self._shared_key()
                self._wait(stream)

    def serve_waiting(self) -> None:
        """Try all that wait again, oldest first."""
        for stream in list(self.waiting.values()):
            self.serve(stream)

    def release_waiting(self, why: str) -> None:
        """Hand all that wait to Tor."""
        for stream in list(self.waiting.values()):
            self._release(stream, why)

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        while self._deadlines and self._deadlines[0][1] not in self.waiting:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def handle_deadline(self) -> None:
        """Those that waited long enough are Tor's."""
        while self._deadlines and self._deadlines[0][0] <= self.now:
            at, stream_id = heappop(self._deadlines)
            stream = self.waiting.get(stream_id)
            if stream is not None and stream.wait_until == at:
                self._release(stream, "its circuits were not built in time")

    def check_invariants(self, counts: dict[Circuit, int]) -> None:
        """Assert what must always hold, and count the streams of each circuit; for tests.

        Raises:
            AssertionError: It does not.
        """
        for stream_id, stream in self.streams.items():
            assert stream.stream_id == stream_id
            assert (stream_id in self.waiting) == (stream.state is StreamState.WAITING)
            if stream.circuit is not None:
                assert stream.state in {StreamState.ATTACHED, StreamState.OPEN}
                counts[stream.circuit] = counts.get(stream.circuit, 0) + 1
            if stream.is_unanswered and stream.circuit is not None:
                owner = stream.circuit.slot.owner
                assert stream.key is not None, "attached without knowing what isolates it"
                assert owner.key == stream.key, "attached to another key's circuit"
        assert set(self.waiting) <= set(self.streams)
        assert self._unanswered == sum(stream.is_unanswered for stream in self.streams.values())
        assert self._retries == sum(stream.is_retry for stream in self.streams.values())
        for circuits in self._keys.all:
            assert circuits.streams == sum(stream.owner is circuits for stream in self.streams.values())

    # --- events --------------------------------------------------------------------------------------------

    def _on_new(self, event: StreamEvent) -> None:
        """Remember what only NEW tells; attaching waits for CONTROLLER_WAIT (tor-facts 1)."""
        if is_directory(event):
            return
        stream = self.streams.get(event.stream_id)
        if stream is None:
            stream = self.streams[event.stream_id] = Stream(event.stream_id)
        stream.is_tors = self._tors_own.has(event.target)
        if stream.owner is None:
            stream.key = self._shared_key() or isolation_key(event)
        stream.sticky = sticky_value(event, self.policy.balance.sticky)

    def _on_controller_wait(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            # Its NEW came before we listened: what isolates it is not known any more.
            stream = self.streams[event.stream_id] = Stream(event.stream_id)
            stream.is_tors = self._tors_own.has(event.target)
            stream.key = self._shared_key()
        # In any other state this is the echo of a move, ours or another controller's (tor-facts 3, 12).
        if stream.state is StreamState.NEW:
            self.serve(stream)

    def _on_sent(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            self._place(stream, event.circuit_id)
            stream.state = StreamState.ATTACHED

    def _on_succeeded(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            self._place(stream, event.circuit_id)
            if stream.is_unanswered and stream.circuit is not None:
                stream.circuit.connect_time.observe(self.now - stream.attached_at, self.now)
            self._answered(stream)
            stream.state = StreamState.OPEN

    def _on_detached(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        self._count_failure(stream)
        circuit = stream.circuit
        if circuit is not None and _condemns(event):
            circuit.slot.owner.condemn(circuit, now=self.now)
        if circuit is not None and event.keywords.get("REASON") == "TIMEOUT":
            circuit.connect_time.penalise(self.now)
        stream.failures += 1
        stream.tried = (*stream.tried, event.circuit_id)
        self._take_off(stream)
        stream.state = StreamState.NEW

    def _on_failed(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            self._count_failure(stream)

    def _on_closed(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            self._forget(stream)

    def handle_refused(self, event: AttachRefused) -> None:
        """Tor did not attach; tor-facts 2 lists the cases and what became of the stream in each."""
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return
        if event.code == 552 and event.message.startswith("Unknown stream"):
            self._forget(stream)
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
        if event.code == 552 or event.message.startswith("Can't attach"):
            circuit.slot.owner.lose(circuit, "Tor attaches nothing to it", now=self.now)
        stream.tried = (*stream.tried, event.circuit_id)
        stream.state = StreamState.NEW
        self.serve(stream)

    # --- decisions -----------------------------------------------------------------------------------------

    def serve(self, stream: Stream) -> None:
        """Decide on a stream that is known to wait."""
        if not self.is_in_charge:
            self._release(stream, "Tor assigns streams now")
        elif stream.is_tors:
            self._release(stream, "only Tor can serve this address")
        elif stream.key is None:
            self._release(stream, "what isolates it is not known")
        elif stream.failures and not self._may_retry(stream):
            self._give_up(stream)
        else:
            circuits = stream.owner or self._keys.find(stream.key)
            if circuits is None:
                self._exceed(stream)
                return
            if stream.owner is None:
                stream.owner = circuits
                self._keys.add_stream(circuits)
            self._choose(stream, circuits)

    def _choose(self, stream: Stream, circuits: Circuits) -> None:
        if circuits.is_retired:
            self._release(stream, "the circuits of its key end")
            return
        if circuits.is_cold:
            if self.policy.balance.keys.cold_start is ColdStart.WAIT:
                self._wait(stream)
            else:
                self._release(stream, "its circuits are not built yet")
            return
        circuit = circuits.choose(stream.tried, now=self.now, sticky=stream.sticky)
        if circuit is not None:
            self._attach(stream, circuit)
        elif circuits.is_usable:
            why = "no other circuit can take it" if stream.tried else "all circuits are full"
            self._release(stream, why)
        else:
            match self.policy.failover.when_none:
                case WhenNone.TOR:
                    self._release(stream, "no circuit is usable")
                case WhenNone.HOLD:
                    stream.wait_until = None
                    self._hold(stream)
                case _:
                    self._close(stream, "no circuit is usable")

    def _exceed(self, stream: Stream) -> None:
        match self.policy.balance.keys.when_exceeded:
            case WhenExceeded.TOR:
                self._release(stream, "no room for circuits of its key")
            case WhenExceeded.QUEUE:
                self._wait(stream)
            case _:
                self._close(stream, "no room for circuits of its key")

    def _may_retry(self, stream: Stream) -> bool:
        retry = self.policy.failover.retry
        if stream.failures > retry.attempts:
            return False
        return self._retries < max(MIN_RETRIES, retry.budget * self._unanswered)

    def _give_up(self, stream: Stream) -> None:
        why = f"failed on {stream.failures} circuits"
        if self.policy.failover.retry.exhausted is WhenExhausted.CLOSE:
            self._close(stream, why)
        else:
            self._release(stream, why)

    # --- one stream ----------------------------------------------------------------------------------------

    def _shared_key(self) -> IsolationKey | None:
        """The key of all streams, if the policy keeps none apart."""
        return ONE_FOR_ALL if self.policy.balance.isolation is Isolation.NONE else None

    def _attach(self, stream: Stream, circuit: Circuit) -> None:
        self._stop_waiting(stream)
        stream.state = StreamState.ATTACHED
        stream.circuit = circuit
        stream.attached_at = self.now
        stream.is_unanswered = True
        self._unanswered += 1
        if stream.failures:
            stream.is_retry = True
            self._retries += 1
        state = circuit.slot
        state.attached_total += 1
        self.attached_total += 1
        if circuit.key is None:
            circuit.key = stream.key
        state.owner.add_stream(circuit)
        self._emit(AttachStream(stream.stream_id, circuit.circuit_id or TOR_CHOOSES, state.slot.name))

    def _wait(self, stream: Stream) -> None:
        """Hold the stream until what it needs is there, within bounds."""
        if stream.wait_until is None:
            stream.wait_until = self.now + self.policy.balance.keys.wait_seconds
            heappush(self._deadlines, (stream.wait_until, stream.stream_id))
        self._hold(stream)

    def _hold(self, stream: Stream) -> None:
        stream.state = StreamState.WAITING
        self.waiting[stream.stream_id] = stream

    def _release(self, stream: Stream, why: str) -> None:
        self._take_off(stream)
        stream.state = StreamState.RELEASED
        self.released_total += 1
        self._emit(ReleaseStream(stream.stream_id, why))

    def _close(self, stream: Stream, why: str) -> None:
        self._take_off(stream)
        stream.state = StreamState.RELEASED
        self._emit(CloseStream(stream.stream_id, why))

    def _place(self, stream: Stream, circuit_id: CircuitId) -> None:
        """The stream is on this circuit, as Tor says; whoever put it there."""
        circuit = stream.circuit
        if circuit is not None and circuit.circuit_id == circuit_id:
            return
        self._take_off(stream)
        circuit = self._builder.by_id.get(circuit_id)
        if circuit is not None:
            stream.circuit = circuit
            circuit.slot.owner.add_stream(circuit)
            if self.policy.balance.isolation is Isolation.TOR:
                circuit.slot.owner.mark(circuit, stream.key or UNKNOWN_KEY)

    def _stop_waiting(self, stream: Stream) -> None:
        self.waiting.pop(stream.stream_id, None)
        stream.wait_until = None

    def _take_off(self, stream: Stream) -> None:
        self._stop_waiting(stream)
        self._answered(stream)
        circuit = stream.circuit
        if circuit is not None:
            stream.circuit = None
            if circuit.state is not CircuitState.CLOSED:
                circuit.slot.owner.remove_stream(circuit)

    def _answered(self, stream: Stream) -> None:
        if stream.is_unanswered:
            stream.is_unanswered = False
            self._unanswered -= 1
        if stream.is_retry:
            stream.is_retry = False
            self._retries -= 1

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.stream_id]
        self._take_off(stream)
        if stream.owner is not None:
            self._keys.remove_stream(stream.owner, now=self.now)
            stream.owner = None

    def _count_failure(self, stream: Stream) -> None:
        if stream.circuit is not None:
            stream.circuit.slot.failed_total += 1
            self.failed_total += 1


def _condemns(event: StreamEvent) -> bool:
    """Whether Tor closes the circuit soon because of this stream (tor-facts 0)."""
    reason = event.keywords.get("REASON")
    return reason == "TIMEOUT" or event.keywords.get("REMOTE_REASON") in _FATAL_TO_CIRCUIT
