"""The table of streams, and what can be done to one of them.

Rules of this file:

* It decides nothing: each operation leaves stream, circuit, counters and queues in step, and asks Tor.
"""

from __future__ import annotations

from collections.abc import Callable

from circuitloom.model import (
    TOR_CHOOSES,
    Action,
    AttachStream,
    CircuitId,
    CloseStream,
    Purpose,
    ReleaseStream,
    StreamId,
)
from circuitloom.policy.types import Isolation, Policy
from circuitloom.pool.builder import Builder
from circuitloom.pool.isolation import ONE_FOR_ALL, UNKNOWN_KEY, IsolationKey
from circuitloom.pool.keys import Keys
from circuitloom.pool.queues import Queues
from circuitloom.pool.retries import Unanswered
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.slots import Circuit, CircuitState
from circuitloom.pool.streams import Stream, StreamState
from circuitloom.pool.waiting import Waiting


class StreamTable:
    """Every stream that Tor told us of.

    Args:
        policy: What to do.
        keys: Circuits by key.
        builder: Circuits by id.
        rotation: Looks after their age and use.
        emit: Takes each action, in order.

    Attributes:
        policy: A reload replaces it.
        now: The time (seconds of the pool's clock), set before each event.
        streams: By Tor's id.
        waiting: Those that are held.
        is_reshuffled: Whether a circuit was taken out since this was last set to False, so that others may
            serve those that wait.
        freed: Circuits with room again while streams wait for some.
        attached_total: Attachments so far.
        released_total: Streams handed to Tor so far.
        failed_total: Attachments that ended without a connection.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        keys: Keys,
        builder: Builder,
        rotation: Rotation,
        emit: Callable[[Action], None],
    ) -> None:
        self.policy = policy
        self._keys = keys
        self._builder = builder
        self._rotation = rotation
        self._emit = emit
        self._tally = builder.tally
        self._unanswered = Unanswered()
        self._queues = Queues()
        self.now = 0.0
        self.streams: dict[StreamId, Stream] = {}
        self.waiting = Waiting()
        self.freed: list[Circuit] = []
        self.is_reshuffled = False
        self.attached_total = 0
        self.released_total = 0
        self.failed_total = 0

    def reshuffle(self) -> None:
        """Other circuits than before may serve those that wait."""
        self.is_reshuffled = True

    def clear(self) -> None:
        """Forget every stream; what Tor says next is all there is."""
        self.streams.clear()
        self.waiting.clear()
        self._queues.clear()
        self.freed.clear()
        self._unanswered.clear()

    @property
    def queued(self) -> int:
        """How many wait for room on a circuit."""
        return len(self._queues)

    def check_invariants(self, counts: dict[Circuit, int]) -> None:
        """Assert what must always hold, and count the streams of each circuit; for tests.

        Raises:
            AssertionError: It does not.
        """
        for stream_id, stream in self.streams.items():
            assert stream.stream_id == stream_id
            if stream.circuit is not None:
                assert stream.state in {StreamState.ATTACHED, StreamState.OPEN}
                counts[stream.circuit] = counts.get(stream.circuit, 0) + 1
            if stream.is_unanswered and stream.circuit is not None:
                owner = stream.circuit.slot.owner
                assert stream.key is not None, "attached without knowing what isolates it"
                assert owner.key == stream.key, "attached to another key's circuit"
                is_fatal = stream.is_resolve and stream.circuit.purpose is Purpose.CONTROLLER
                assert not is_fatal, "this aborts Tor"
        held = [stream for stream in self.streams.values() if stream.state is StreamState.WAITING]
        assert set(self.waiting) == set(held)
        self._unanswered.check_invariants(iter(self.streams.values()))
        for circuits in self._keys.all:
            assert circuits.streams == sum(stream.owner is circuits for stream in self.streams.values())

    # --- one stream ----------------------------------------------------------------------------------------

    def _shared_key(self) -> IsolationKey | None:
        """The key of all streams, if the policy keeps none apart."""
        return ONE_FOR_ALL if self.policy.balance.isolation is Isolation.NONE else None

    def _attach(self, stream: Stream, circuit: Circuit) -> None:
        if stream.state is StreamState.WAITING:
            self._tally.waits.observe(self.now - stream.held_at)
        if stream.failures:
            self._tally.retries += 1
        self._queues.remove(stream)
        self.waiting.remove(stream)
        stream.state = StreamState.ATTACHED
        stream.circuit = circuit
        stream.attached_at = self.now
        self._unanswered.begin(stream, circuit, now=self.now, is_timed=self._may_redispatch(circuit))
        state = circuit.slot
        state.attached_total += 1
        state.tally.attached += 1
        self.attached_total += 1
        if circuit.key is None:
            circuit.key = stream.key
            self._keys.claims += 1
        circuit.carried = circuit.carried or stream.identity
        state.owner.add_stream(circuit)
        self._emit(AttachStream(stream.stream_id, circuit.circuit_id or TOR_CHOOSES, state.slot.name))
        self._rotation.use(circuit)
        self._rotation.count_stream(circuit)

    def _wait(self, stream: Stream) -> None:
        """Hold the stream until what it needs is there, within bounds."""
        self.waiting.hold_until(stream, self.now + self.policy.balance.keys.wait_seconds)

    def _release(self, stream: Stream, why: str) -> None:
        self._take_off(stream)
        stream.state = StreamState.RELEASED
        self.released_total += 1
        self._emit(ReleaseStream(stream.stream_id, why))

    def _close(self, stream: Stream, why: str) -> None:
        self._take_off(stream)
        stream.state = StreamState.RELEASED
        self._tally.closed += 1
        self._emit(CloseStream(stream.stream_id, why))

    def _place(self, stream: Stream, circuit_id: CircuitId, *, is_news: bool = True) -> None:
        """The stream is on this circuit, as Tor says; whoever put it there.

        Args:
            stream: It.
            circuit_id: Tor's id of the circuit.
            is_news: Whether Tor may have put it there after we attached others.
        """
        circuit = stream.circuit
        if circuit is not None and circuit.circuit_id == circuit_id:
            return
        self._take_off(stream)
        circuit = self._builder.by_id.get(circuit_id)
        if circuit is not None:
            stream.circuit = circuit
            circuit.carried = circuit.carried or stream.identity
            circuit.slot.owner.add_stream(circuit)
            self._rotation.use(circuit)
            if self.policy.balance.isolation is Isolation.TOR and (is_news or circuit.key is None):
                # What was there before us Tor judged by the streams that were there, so it has their key.
                circuit.slot.owner.mark(circuit, stream.key or UNKNOWN_KEY)
                self.is_reshuffled |= bool(self.waiting) and circuit.state is CircuitState.DRAINING

    def _take_off(self, stream: Stream) -> None:
        self._queues.remove(stream)
        self.waiting.remove(stream)
        self._unanswered.end(stream)
        circuit = stream.circuit
        if circuit is not None:
            stream.circuit = None
            if circuit.state is not CircuitState.CLOSED:
                circuit.slot.owner.remove_stream(circuit)
                if self._queues:
                    self.freed.append(circuit)

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.stream_id]
        self._take_off(stream)
        if stream.owner is not None:
            self._keys.remove_stream(stream.owner, now=self.now)
            stream.owner = None

    def _count_failure(self, stream: Stream, *, is_final: bool = False) -> None:
        # What Tor, or another agent, put on the circuit was not counted as attached either.
        if stream.circuit is not None and stream.is_unanswered:
            slot = stream.circuit.slot
            slot.failed_total += 1
            self.failed_total += 1
            if is_final:
                slot.tally.failed += 1
            else:
                slot.tally.detached += 1

    def _may_redispatch(self, circuit: Circuit) -> bool:
        """Whether a stream on its way over this circuit may be moved, by the policy and without loss."""
        return self.policy.failover.redispatch_seconds is not None and circuit.purpose is Purpose.CONTROLLER
