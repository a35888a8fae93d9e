"""What becomes of a stream that waits for us.

Rules of this file:

* A stream that resolves a name never goes to a circuit of purpose controller: that aborts Tor (tor-facts 0).
* A stream goes to circuits of its own key only, and to none when its key is not known.
* Whoever waits here waits for something that is on its way, and not for longer than the policy says, or under
  ``when_none: hold``; everybody else is Tor's, or closed, at once.
* One that is on its way is attached again only where moving it cannot lose what the application has sent
  early: on a circuit of purpose controller (tor-facts 0).
"""

from __future__ import annotations

from collections.abc import Callable

from circuitloom.kinds import Kind
from circuitloom.model import TOR_CHOOSES, Action, Announce, CloseCircuit, Purpose, Severity
from circuitloom.policy.health import PanicAction
from circuitloom.policy.types import (
    ColdStart,
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
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.ejections import Ejections
from circuitloom.pool.isolation import IsolationKey
from circuitloom.pool.keys import Keys
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.slots import Circuit
from circuitloom.pool.streams import Stream, StreamState
from circuitloom.pool.table import StreamTable

MAX_FAILURES_OF_DEAD = 30
"""Tor ends every third stream that such a destination fails; nobody is so long among the other two."""

_NO_RESOLVE = "only Tor's own circuits resolve names under purpose controller"


class Dispatcher(StreamTable):
    """A table of streams that serves those that wait.

    Args:
        policy: What to do.
        keys: Circuits by key.
        builder: Circuits by id.
        rotation: Looks after their age and use.
        emit: Takes each action, in order.

    Attributes:
        is_in_charge: Whether new streams wait for us.
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
        super().__init__(policy, keys=keys, builder=builder, rotation=rotation, emit=emit)
        self._blame = Blame()
        self._ejections = Ejections(emit)
        self.is_in_charge = False

    def serve_waiting(self) -> None:
        """Try all that wait again, oldest first."""
        for stream in self.waiting:
            self.serve(stream)

    def serve_queued(self) -> None:
        """Give the places that became free to those that have waited longest."""
        freed, self.freed = self.freed, []
        for circuit in freed:
            while circuit.is_candidate and self._serve_first(circuit):
                pass

    def _serve_first(self, circuit: Circuit) -> bool:
        """Serve who has waited longest for the circuit; whether somebody has left the queue by that."""
        stream = self._queues.first(circuit)
        if stream is None:
            return False
        self.serve(stream)
        return not stream.is_queued

    def release_waiting(self, why: str) -> None:
        """Hand all that wait to Tor."""
        for stream in self.waiting:
            self._release(stream, why)

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        patience = self.policy.failover.redispatch_seconds
        sent_at = None if patience is None else self._unanswered.next_sent_at()
        deadlines = (
            self.waiting.next_deadline(),
            self._ejections.next_deadline(),
            self._rotation.next_deadline(),
            None if patience is None or sent_at is None else sent_at + patience,
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def handle_deadline(self) -> None:
        """Those that waited long enough are Tor's; those that no circuit answered try another."""
        self._ejections.handle_deadline(now=self.now)
        for circuit in self._rotation.overdue():
            self._cut(circuit)
        patience = self.policy.failover.redispatch_seconds
        if patience is not None:
            for stream in self._unanswered.overdue(sent_before=self.now - patience):
                self._redispatch(stream)
        for stream in self.waiting.expired(self.now):
            if stream.is_queued:
                self._overflow(stream, "no circuit had room in time")
            else:
                self._miss_all(stream, "its circuits were not built in time")

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
        elif stream.failures:
            self._serve_again(stream, stream.key)
        else:
            self._find_circuits(stream, stream.key)

    def _serve_again(self, stream: Stream, key: IsolationKey) -> None:
        """Tor detached the stream."""
        circuit = self._circuit_spent_on(stream)
        stream.is_resigned = circuit is not None
        if circuit is not None:
            self._attach(stream, circuit)
        elif self._unanswered.may_retry(stream.failures, self.policy.failover.retry):
            self._find_circuits(stream, key)
        else:
            self._give_up(stream)

    def _find_circuits(self, stream: Stream, key: IsolationKey) -> None:
        """Choose among the circuits of the stream's key."""
        circuits = stream.owner or self._keys.find(key)
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
        if circuits.is_cold or circuits.is_cold_among(stream.among):
            if self.policy.balance.keys.cold_start is ColdStart.WAIT:
                self._wait(stream)
            else:
                self._release(stream, "its circuits are not built yet")
            return
        dead_on = self._blame.circuits_of_dead(stream.target, now=self.now)
        if dead_on and stream.failures:
            self._give_up(stream)
            return
        circuit = circuits.candidate(dead_on, stream.among, stream.target) or circuits.choose(
            stream.tried, now=self.now, sticky=stream.sticky, among=stream.among, target=stream.target
        )
        if circuit is not None and stream.is_resolve and circuit.purpose is Purpose.CONTROLLER:
            # Built under another policy, or made so by another controller.
            self._release(stream, _NO_RESOLVE)
        elif circuit is not None:
            self._attach(stream, circuit)
        else:
            self._miss(stream, circuits)

    def _circuit_spent_on(self, stream: Stream) -> Circuit | None:
        """A circuit that the stream's dead destination has cost already, to be tried on until Tor gives up.

        Left to Tor it would be tried on circuits that it has not cost yet, and ours are among those.
        """
        is_tors_to_end = self.policy.failover.retry.exhausted is WhenExhausted.TOR and stream.is_counted
        if not is_tors_to_end or stream.failures >= MAX_FAILURES_OF_DEAD:
            return None
        if stream.owner is None or stream.owner.is_retired:
            return None
        dead_on = self._blame.circuits_of_dead(stream.target, now=self.now)
        return stream.owner.candidate(dead_on, stream.among, stream.target)

    def _miss(self, stream: Stream, circuits: Circuits) -> None:
        """No circuit can take the stream now."""
        if circuits.panic is PanicAction.TOR:
            self._release(stream, "too few circuits are healthy")
        elif circuits.panic is PanicAction.HOLD or circuits.is_usable_among(stream.among, stream.target):
            if stream.tried and circuits.has_room(stream.among, stream.target):
                self._release(stream, "no other circuit can take it")
            else:
                self._queue(stream, circuits)
        elif why := _hopeless(stream, circuits):
            # To hold it is of no use.
            if self.policy.failover.when_none is WhenNone.TOR:
                self._release(stream, why)
            else:
                self._close(stream, why)
        else:
            match self.policy.failover.when_none:
                case WhenNone.TOR:
                    self._release(stream, "no circuit is usable")
                case WhenNone.HOLD:
                    stream.wait_until = None
                    self.waiting.hold(stream)
                case _:
                    self._close(stream, "no circuit is usable")

    def _miss_all(self, stream: Stream, why: str) -> None:
        """No circuit will take the stream, and to wait any longer is of no use."""
        if self.policy.failover.when_none is WhenNone.REJECT:
            # Who says so wants no answer over circuits of Tor's own choice.
            self._close(stream, why)
        else:
            self._release(stream, why)

    def _queue(self, stream: Stream, circuits: Circuits) -> None:
        """All circuits that may take the stream are full, or none may take any for a while."""
        is_panic = circuits.panic is PanicAction.HOLD
        balance = self.policy.balance
        if not stream.is_held:
            # It waited before us, nobody can tell for how long: a place in the queue is for those of whom
            # that is known.
            self._release(stream, "all circuits are full")
            return
        match balance.when_full:
            case WhenFull.TOR if not is_panic:
                self._release(stream, "all circuits are full")
            case WhenFull.REJECT if not is_panic:
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
            (*stream.tried, circuit_id),
            now=self.now,
            sticky=stream.sticky,
            among=stream.among,
            target=stream.target,
        )
        if other is None or other.purpose is not Purpose.CONTROLLER:
            return
        self._accuse(stream, circuit)
        self._count_failure(stream)
        stream.failures += 1
        stream.tried = (*stream.tried, circuit_id)
        self._tally.redispatches += 1
        self._take_off(stream)
        self._attach(stream, other)

    def _cut(self, circuit: Circuit) -> None:
        """Close a circuit whose time to drain is over, with its streams.

        Not while one is on its way: it would fail, and once it is answered, or detached, it does not have to.
        """
        if any(
            stream.circuit is circuit and stream.state is StreamState.ATTACHED
            for stream in self.streams.values()
        ):
            self._rotation.postpone(circuit)
        else:
            assert circuit.circuit_id is not None, "what drains was BUILT"
            self._rotation.cut(circuit)
            left = "1 stream" if circuit.streams == 1 else f"{circuit.streams} streams"
            message = f"circuit {circuit.label} is closed with {left}: its time to drain is over"
            name = circuit.slot.slot.name
            self._emit(Announce(Severity.INFO, message, Kind.CIRCUIT_CLOSED, name, circuit.circuit_id))
            self._emit(CloseCircuit(circuit.circuit_id, is_forced=True))

    def _accuse(self, stream: Stream, circuit: Circuit) -> None:
        """The stream failed on the circuit: find out whose fault that is."""
        if self._blame.fail(stream.target, circuit, now=self.now):
            circuit.slot.owner.replace(circuit)
        if not self._blame.is_destinations(stream.target, now=self.now):
            self.is_reshuffled |= self._ejections.fail(circuit, now=self.now)

    def _give_up(self, stream: Stream) -> None:
        why = f"failed on {stream.failures} circuits"
        if self.policy.failover.retry.exhausted is WhenExhausted.CLOSE:
            self._close(stream, why)
        else:
            self._release(stream, why)


def _hopeless(stream: Stream, circuits: Circuits) -> str:
    """Why no circuit that comes will take the stream; empty: one may."""
    if circuits.is_usable_among(stream.among):
        return "every exit refuses its port"
    if stream.among is not None and stream.among.isdisjoint(circuits.slots):
        # Its rule went with a reload while it waited.
        return "the policy has none of its circuits any more"
    return ""
