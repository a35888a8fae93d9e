"""What Tor tells of streams, and what follows from it.

Rules of this file:

* A stream is served only when it is known to wait: at CONTROLLER_WAIT, or when Tor refused to attach it.
* What only one event tells (the key, the target) is kept for as long as the stream lives.
* A stream that Tor may be choosing a circuit for is not touched: it may be on its way by the time Tor reads
  our command, and would be torn off its circuit, without the bytes it has sent already (tor-facts 0 and 4).
"""

from __future__ import annotations

from collections.abc import Callable

from circuitloom.kinds import Kind
from circuitloom.model import (
    DOUBT_SECONDS,
    TOR_CHOOSES,
    Action,
    Announce,
    AskWaiting,
    AttachRefused,
    CircuitId,
    Reserved,
    Severity,
    StillWaiting,
    StreamEvent,
    StreamId,
    StreamStatus,
)
from circuitloom.policy.matching import find_rule
from circuitloom.policy.types import (
    Isolation,
    Policy,
)
from circuitloom.pool.builder import Builder
from circuitloom.pool.choosing import sticky_value
from circuitloom.pool.dispatch import Dispatcher
from circuitloom.pool.isolation import isolation_key
from circuitloom.pool.keys import Keys
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.streams import Stream, StreamState, TorsOwn, is_directory
from circuitloom.pool.tally import observe_connect

_RESOLVES = frozenset({StreamStatus.NEWRESOLVE, StreamStatus.SENTRESOLVE})

_FATAL_TO_CIRCUIT = frozenset({"MISC", "RESOLVEFAILED", "NOROUTE"})
"""Tor takes no new streams of its own to a circuit after one such END, and soon closes it (tor-facts 0). It
counts them for each address, and gives the one up that has the third (tor-facts 3)."""


class Attacher(Dispatcher):
    """A table of streams that follows what Tor tells.

    Args:
        policy: What to do.
        keys: Circuits by key.
        builder: Circuits by id.
        rotation: Looks after their age and use.
        emit: Takes each action, in order.
        on_foreign: Called when another controller attached a stream that waited for us.

    Attributes:
        on_stream: What takes an event, by the stream's status.
    """

    def __init__(  # noqa: PLR0913 - each by name, and none can be made from another
        self,
        policy: Policy,
        *,
        keys: Keys,
        builder: Builder,
        rotation: Rotation,
        emit: Callable[[Action], None],
        on_foreign: Callable[[], None],
    ) -> None:
        super().__init__(policy, keys=keys, builder=builder, rotation=rotation, emit=emit)
        self._on_foreign = on_foreign
        self._tors_own = TorsOwn(None)
        self._doubtful: set[StreamId] = set()
        self._doubt_ends_at: float | None = None
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
        super().clear()
        self._doubtful.clear()
        self._doubt_ends_at = None

    def adopt(self, line: StreamEvent, *, is_held: bool = True) -> None:
        """Take one line of stream-status.

        Args:
            line: It; NEW means that the stream waits, for a controller or for Tor's own choice.
            is_held: Whether Tor lets streams wait for a controller (the option is set).
        """
        if is_directory(line) or line.status in {StreamStatus.FAILED, StreamStatus.CLOSED}:
            return
        stream = self.streams[line.stream_id] = Stream(line.stream_id)
        stream.is_resolve = line.status in _RESOLVES
        match line.status:
            case StreamStatus.SENTCONNECT | StreamStatus.SENTRESOLVE:
                self._place(stream, line.circuit_id, is_news=False)
                stream.state = StreamState.ATTACHED
            case StreamStatus.SUCCEEDED:
                self._place(stream, line.circuit_id, is_news=False)
                stream.state = StreamState.OPEN
            case _:
                stream.target = line.target
                stream.held_at = self.now
                stream.is_tors = self._tors_own.has(line.target)
                stream.key = self._shared_key()
                if is_held:
                    self._wait(stream)
                else:
                    self._doubtful.add(stream.stream_id)
                    self.doubt_anew()

    def doubt_anew(self) -> None:
        """Tor begins to choose only now, as far as we know."""
        if self._doubtful:
            self._doubt_ends_at = self.now + DOUBT_SECONDS

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        deadlines = (super().next_deadline(), self._doubt_ends_at)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_deadline(self) -> None:
        """As for those that wait; and what is in doubt is asked for once more."""
        super().handle_deadline()
        if self._doubt_ends_at is not None and self._doubt_ends_at <= self.now:
            self._doubt_ends_at = None
            self._doubtful = {stream_id for stream_id in self._doubtful if self._is_in_doubt(stream_id)}
            if self._doubtful:
                self._emit(AskWaiting())

    def handle_still_waiting(self, event: StillWaiting) -> None:
        """What Tor did not choose for in all the time was left waiting by somebody."""
        for stream_id in sorted(self._doubtful & event.stream_ids):
            if self._is_in_doubt(stream_id):
                self._release(self.streams[stream_id], "it waited before we came")
        self._doubtful.clear()
        self._doubt_ends_at = None

    def _is_in_doubt(self, stream_id: StreamId) -> bool:
        stream = self.streams.get(stream_id)
        return stream is not None and stream.state is StreamState.NEW and not stream.is_held

    def locate(self, line: StreamEvent) -> None:
        """Count a stream on a circuit that has just been adopted; ``line`` is of stream-status."""
        is_open = line.status is StreamStatus.SUCCEEDED
        if not is_open and line.status not in {StreamStatus.SENTCONNECT, StreamStatus.SENTRESOLVE}:
            return
        stream = self.streams.get(line.stream_id)
        if stream is None:
            self.adopt(line)
        elif stream.state is not StreamState.WAITING:
            # One that waits, as far as we know, has been moved since: events tell of it.
            self._place(stream, line.circuit_id, is_news=False)
            stream.state = StreamState.OPEN if is_open else StreamState.ATTACHED

    # --- events --------------------------------------------------------------------------------------------

    def _on_new(self, event: StreamEvent) -> None:
        """Remember what only NEW tells; attaching waits for CONTROLLER_WAIT (tor-facts 1)."""
        if is_directory(event):
            return
        stream = self.streams.get(event.stream_id)
        if stream is None:
            stream = self.streams[event.stream_id] = Stream(event.stream_id)
        stream.target = event.target
        stream.is_resolve = event.status is StreamStatus.NEWRESOLVE
        stream.is_tors = self._tors_own.has(event.target)
        if stream.owner is None:
            stream.key = self._shared_key() or isolation_key(event)
        if self.policy.health.probe is not None and self.policy.balance.isolation is Isolation.NONE:
            # A probe that differs from the first stream of a circuit makes Tor log a warning (tor-facts 7).
            stream.identity = isolation_key(event)
        stream.sticky = sticky_value(event, self.policy.balance.sticky)
        if self.policy.rules:
            stream.rule = find_rule(self.policy.rules, event.target, event.keywords)

    def _on_controller_wait(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is None:
            # Its NEW came before we listened: what isolates it, and what it asks for, is not known any more.
            stream = self.streams[event.stream_id] = Stream(event.stream_id, is_resolve=True)
            stream.target = event.target
            stream.is_tors = self._tors_own.has(event.target)
            stream.key = self._shared_key()
        stream.is_held = True
        stream.held_at = self.now
        # In any other state this is the echo of a move, ours or another controller's (tor-facts 3, 12).
        if stream.state is StreamState.NEW:
            self.serve(stream)

    def _on_sent(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            is_foreign = self.is_in_charge and _is_foreign(stream, event.circuit_id)
            self._place(stream, event.circuit_id)
            stream.state = StreamState.ATTACHED
            if is_foreign:
                self._on_foreign()

    def _on_succeeded(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            self._place(stream, event.circuit_id)
            if stream.is_unanswered and stream.circuit is not None:
                circuit, seconds = stream.circuit, self.now - stream.attached_at
                circuit.connect_time.observe(seconds, self.now)
                observe_connect(circuit.connects, circuit.slot.tally.connects, seconds)
            self._unanswered.end(stream)
            self._blame.succeed(stream.target, stream.circuit)
            if stream.circuit is not None:
                stream.circuit.slot.owner.succeed(stream.circuit)
            stream.state = StreamState.OPEN

    def _on_detached(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        circuit = self._builder.by_id.get(event.circuit_id)
        if circuit is not None and condemns(event):
            circuit.slot.owner.condemn(circuit, now=self.now)
        if stream is None:
            return
        ours = stream.circuit
        if stream.is_unanswered and ours is not None and ours.circuit_id != event.circuit_id:
            # Told before Tor read that we had moved it: it is on its way over another circuit already.
            return
        if circuit is not None and stream.is_unanswered and not is_exit_policy(event):
            self._accuse(stream, circuit)
        if ours is not None and event.keywords.get("REASON") == "TIMEOUT":
            ours.connect_time.penalise(self.now)
        self._count_failure(stream)
        stream.failures += 1
        stream.is_counted = event.keywords.get("REMOTE_REASON") in _FATAL_TO_CIRCUIT
        stream.tried = (*stream.tried, event.circuit_id)
        self._take_off(stream)
        stream.state = StreamState.NEW

    def _on_failed(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        if stream is not None:
            circuit = stream.circuit
            if circuit is not None and stream.is_unanswered and event.keywords.get("REASON") == "END":
                # The exit's last word; the end of a circuit (DESTROY) says nothing of a destination.
                self._accuse(stream, circuit)
            self._count_failure(stream, is_final=True)

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
                what = f"Tor does not take stream {event.stream_id} back"
                self._emit(Announce(Severity.WARNING, what, Kind.STREAM_RELEASED, stream_id=event.stream_id))
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


def condemns(event: StreamEvent) -> bool:
    """Whether Tor closes the circuit soon because of this stream (tor-facts 0)."""
    reason = event.keywords.get("REASON")
    return reason == "TIMEOUT" or event.keywords.get("REMOTE_REASON") in _FATAL_TO_CIRCUIT


def is_exit_policy(event: StreamEvent) -> bool:
    """Whether the exit does not serve this port at all, which is nobody's fault."""
    return event.keywords.get("REMOTE_REASON") == "EXITPOLICY"


def _is_foreign(stream: Stream, circuit_id: CircuitId) -> bool:
    """Whether somebody else put the stream on this circuit: it waited for us, or we chose another one."""
    ours = stream.circuit if stream.is_unanswered else None
    is_elsewhere = ours is not None and ours.circuit_id != circuit_id and circuit_id not in stream.tried
    return stream.is_held and (stream.state is StreamState.WAITING or is_elsewhere)
