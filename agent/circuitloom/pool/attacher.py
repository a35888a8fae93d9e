"""Every stream, and what is decided on it.

Rules of this file:

* A stream is attached only when it is known to wait. One that is on its way is attached again only where
  moving it cannot lose what the application has sent early: on a circuit of purpose controller (tor-facts 0).
* A stream that resolves a name never goes to such a circuit: it would abort Tor (tor-facts 0).
* A stream goes to circuits of its own key only, and to none when its key is not known.
* Whoever waits here waits for something that is on its way, and not for longer than the policy says, or under
  ``when_none: hold``; everybody else is Tor's, or closed, at once.
"""

from __future__ import annotations

from collections.abc import Callable

from circuitloom.model import (
    TOR_CHOOSES,
    Action,
    Announce,
    AttachRefused,
    AttachStream,
    CircuitId,
    CloseStream,
    Purpose,
    ReleaseStream,
    Reserved,
    Severity,
    StreamEvent,
    StreamId,
    StreamStatus,
)
from circuitloom.policy.matching import find_rule
from circuitloom.policy.types import (
    ColdStart,
    Isolation,
    Overflow,
    Policy,
    RuleAction,
    WhenExceeded,
    WhenExhausted,
    WhenFull,
    WhenNone,
)
from circuitloom.pool.blame import Blame
from circuitloom.pool.builder import Builder
from circuitloom.pool.choosing import sticky_value
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.isolation import ONE_FOR_ALL, UNKNOWN_KEY, IsolationKey, isolation_key
from circuitloom.pool.keys import Keys
from circuitloom.pool.queues import Queues
from circuitloom.pool.retries import Unanswered
from circuitloom.pool.slots import Circuit, CircuitState
from circuitloom.pool.streams import Stream, StreamState, TorsOwn, is_directory
from circuitloom.pool.waiting import Waiting

_NO_RESOLVE = "only Tor's own circuits resolve names under purpose controller"
_RESOLVES = frozenset({StreamStatus.NEWRESOLVE, StreamStatus.SENTRESOLVE})

_FATAL_TO_CIRCUIT = frozenset({"MISC", "RESOLVEFAILED", "NOROUTE"})
"""Tor takes no new streams of its own to a circuit after one such END, and soon closes it (tor-facts 0)."""


class Attacher:
    """The table of streams.

    Args:
        policy: What to do.
        keys: Circuits by key.
        builder: Circuits by id.
        emit: Takes each action, in order.
        on_foreign: Called when another controller attached a stream that waited for us.

    Attributes:
        policy: A reload replaces it.
        is_in_charge: Whether new streams wait for us.
        now: The time (seconds of the pool's clock), set before each event.
        streams: By Tor's id.
        waiting: Those that are held.
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
        emit: Callable[[Action], None],
        on_foreign: Callable[[], None],
    ) -> None:
        self.policy = policy
        self._keys = keys
        self._builder = builder
        self._emit = emit
        self._on_foreign = on_foreign
        self._tors_own = TorsOwn(None)
        self._unanswered = Unanswered()
        self._blame = Blame()
        self.is_in_charge = False
        self.now = 0.0
        self.streams: dict[StreamId, Stream] = {}
        self.waiting = Waiting()
        self._queues = Queues()
        self.freed: list[Circuit] = []
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
        self._queues.clear()
        self.freed.clear()
        self._unanswered.clear()

    def adopt(self, line: StreamEvent) -> None:
        """Take one line of stream-status; NEW there means that it may wait."""
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
                stream.is_tors = self._tors_own.has(line.target)
                stream.key = self._shared_key()
                self._wait(stream)

    def serve_waiting(self) -> None:
        """Try all that wait again, oldest first."""
        for stream in self.waiting:
            self.serve(stream)

    def serve_queued(self) -> None:
        """Give the places that became free to those that have waited longest."""
        freed, self.freed = self.freed, []
        for circuit in freed:
            owner = circuit.slot.owner
            while circuit.is_candidate:
                stream = self._queues.first(owner, circuit.slot.slot.name)
                if stream is None:
                    break
                self.serve(stream)
                if stream.is_queued:
                    break

    def release_waiting(self, why: str) -> None:
        """Hand all that wait to Tor."""
        for stream in self.waiting:
            self._release(stream, why)

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        deadline = self.waiting.next_deadline()
        patience = self.policy.failover.redispatch_seconds
        sent_at = None if patience is None else self._unanswered.next_sent_at()
        if patience is None or sent_at is None:
            return deadline
        return sent_at + patience if deadline is None else min(deadline, sent_at + patience)

    def handle_deadline(self) -> None:
        """Those that waited long enough are Tor's; those that no circuit answered try another."""
        patience = self.policy.failover.redispatch_seconds
        if patience is not None:
            for stream in self._unanswered.overdue(sent_before=self.now - patience):
                self._redispatch(stream)
        for stream in self.waiting.expired(self.now):
            if stream.is_queued:
                self._overflow(stream, "no circuit had room in time")
            else:
                self._release(stream, "its circuits were not built in time")

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
                stream.circuit.connect_time.observe(self.now - stream.attached_at, self.now)
            self._unanswered.end(stream)
            self._blame.succeed(stream.target, stream.circuit)
            stream.state = StreamState.OPEN

    def _on_detached(self, event: StreamEvent) -> None:
        stream = self.streams.get(event.stream_id)
        circuit = self._builder.by_id.get(event.circuit_id)
        if circuit is not None and _condemns(event):
            circuit.slot.owner.condemn(circuit, now=self.now)
        if stream is None:
            return
        ours = stream.circuit
        if stream.is_unanswered and ours is not None and ours.circuit_id != event.circuit_id:
            # Told before Tor read that we had moved it: it is on its way over another circuit already.
            return
        if circuit is not None and stream.is_unanswered and not _is_policy(event):
            self._accuse(stream, circuit)
        if ours is not None and event.keywords.get("REASON") == "TIMEOUT":
            ours.connect_time.penalise(self.now)
        self._count_failure(stream)
        stream.failures += 1
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
        elif stream.is_resolve and self.policy.balance.purpose is Purpose.CONTROLLER:
            self._release(stream, _NO_RESOLVE)
        elif stream.rule is not None and stream.rule.action is RuleAction.TOR:
            self._release(stream, "a rule leaves it to Tor")
        elif stream.rule is not None and stream.rule.action is RuleAction.REJECT:
            self._close(stream, "a rule rejects it")
        elif stream.key is None:
            self._release(stream, "what isolates it is not known")
        elif stream.failures and not self._unanswered.may_retry(stream.failures, self.policy.failover.retry):
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
        dead_on = self._blame.circuits_of_dead(stream.target, now=self.now)
        if dead_on and stream.failures:
            self._give_up(stream)
            return
        circuit = circuits.candidate(dead_on, stream.among) or circuits.choose(
            stream.tried, now=self.now, sticky=stream.sticky, among=stream.among
        )
        if circuit is not None and stream.is_resolve and circuit.purpose is Purpose.CONTROLLER:
            # Built under another policy, or made so by another controller.
            self._release(stream, _NO_RESOLVE)
        elif circuit is not None:
            self._attach(stream, circuit)
        else:
            self._miss(stream, circuits)

    def _miss(self, stream: Stream, circuits: Circuits) -> None:
        """No circuit can take the stream now."""
        if circuits.is_usable_among(stream.among):
            if stream.tried and circuits.has_room(stream.among):
                self._release(stream, "no other circuit can take it")
            else:
                self._queue(stream, circuits)
        else:
            match self.policy.failover.when_none:
                case WhenNone.TOR:
                    self._release(stream, "no circuit is usable")
                case WhenNone.HOLD:
                    stream.wait_until = None
                    self.waiting.hold(stream)
                case _:
                    self._close(stream, "no circuit is usable")

    def _queue(self, stream: Stream, circuits: Circuits) -> None:
        """All circuits that may take the stream are full."""
        balance = self.policy.balance
        match balance.when_full:
            case WhenFull.TOR:
                self._release(stream, "all circuits are full")
            case WhenFull.REJECT:
                self._close(stream, "all circuits are full")
            case _ if self._queues.add(stream, circuits, length=balance.queue.length):
                # Whichever has room next may take it, also one that was tried.
                stream.tried = ()
                self.waiting.hold_until(stream, self.now + balance.queue.timeout_seconds)
            case _:
                self._overflow(stream, "all circuits and their queue are full")

    def _overflow(self, stream: Stream, why: str) -> None:
        if self.policy.balance.queue.overflow is Overflow.REJECT:
            self._close(stream, why)
        else:
            self._release(stream, why)

    def _exceed(self, stream: Stream) -> None:
        match self.policy.balance.keys.when_exceeded:
            case WhenExceeded.TOR:
                self._release(stream, "no room for circuits of its key")
            case WhenExceeded.QUEUE:
                self._wait(stream)
            case _:
                self._close(stream, "no room for circuits of its key")

    def _redispatch(self, stream: Stream) -> None:
        """Move a stream that its circuit does not answer, if it may and can be; else it stays.

        The move may come too late: then Tor refuses it, and tells of the answer (tor-facts 2).
        """
        circuit, circuits = stream.circuit, stream.owner
        if circuit is None or circuits is None or not self._may_redispatch(circuit):
            return
        if not self._unanswered.may_retry(stream.failures + 1, self.policy.failover.retry):
            return
        circuit_id = circuit.circuit_id or TOR_CHOOSES
        circuit.connect_time.penalise(self.now)
        other = circuits.choose(
            (*stream.tried, circuit_id), now=self.now, sticky=stream.sticky, among=stream.among
        )
        if other is None or other.purpose is not Purpose.CONTROLLER:
            return
        self._accuse(stream, circuit)
        self._count_failure(stream)
        stream.failures += 1
        stream.tried = (*stream.tried, circuit_id)
        self._take_off(stream)
        self._attach(stream, other)

    def _may_redispatch(self, circuit: Circuit) -> bool:
        """Whether a stream on its way over this circuit may be moved, by the policy and without loss."""
        return self.policy.failover.redispatch_seconds is not None and circuit.purpose is Purpose.CONTROLLER

    def _accuse(self, stream: Stream, circuit: Circuit) -> None:
        """The stream failed on the circuit: find out whose fault that is."""
        if self._blame.fail(stream.target, circuit, now=self.now):
            circuit.slot.owner.replace(circuit)

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
        self._queues.remove(stream)
        self.waiting.remove(stream)
        stream.state = StreamState.ATTACHED
        stream.circuit = circuit
        stream.attached_at = self.now
        self._unanswered.begin(stream, circuit, now=self.now, is_timed=self._may_redispatch(circuit))
        state = circuit.slot
        state.attached_total += 1
        self.attached_total += 1
        if circuit.key is None:
            circuit.key = stream.key
            self._keys.claims += 1
        state.owner.add_stream(circuit)
        self._emit(AttachStream(stream.stream_id, circuit.circuit_id or TOR_CHOOSES, state.slot.name))

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
            circuit.slot.owner.add_stream(circuit)
            if self.policy.balance.isolation is Isolation.TOR and (is_news or circuit.key is None):
                # What was there before us Tor judged by the streams that were there, so it has their key.
                circuit.slot.owner.mark(circuit, stream.key or UNKNOWN_KEY)

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

    def _count_failure(self, stream: Stream) -> None:
        if stream.circuit is not None:
            stream.circuit.slot.failed_total += 1
            self.failed_total += 1


def _condemns(event: StreamEvent) -> bool:
    """Whether Tor closes the circuit soon because of this stream (tor-facts 0)."""
    reason = event.keywords.get("REASON")
    return reason == "TIMEOUT" or event.keywords.get("REMOTE_REASON") in _FATAL_TO_CIRCUIT


def _is_policy(event: StreamEvent) -> bool:
    """Whether the exit does not serve this port at all, which is nobody's fault."""
    return event.keywords.get("REMOTE_REASON") == "EXITPOLICY"


def _is_foreign(stream: Stream, circuit_id: CircuitId) -> bool:
    """Whether somebody else put the stream on this circuit: it waited for us, or we chose another one."""
    ours = stream.circuit if stream.is_unanswered else None
    is_elsewhere = ours is not None and ours.circuit_id != circuit_id and circuit_id not in stream.tried
    return stream.is_held and (stream.state is StreamState.WAITING or is_elsewhere)
