"""How circuits follow one another in the slots of one isolation key.

Rules of this file:

* Make before break: a circuit that takes a slot is BUILT before the one there drains.
* A circuit that another controller built is never closed: without streams it is let go.
"""

from __future__ import annotations

from circuitloom.pool.slots import Circuit, CircuitState, SlotState
from circuitloom.pool.tiers import Tiers


class Succession(Tiers):
    """The slots of one key, and how a circuit enters and leaves them.

    Args:
        policy: What to keep.
        drained: Names of slots that take no new streams now.
        builder: Knows the circuits by id.
        emit: Takes each action, in order.
    """

    def _serve(self, circuit: Circuit, what: str, *, now: float) -> None:
        """The circuit is BUILT: it takes the slot, and whichever had it drains.

        Args:
            circuit: The new one.
            what: What to say that it is, such as ``built``.
            now: The time (seconds of the pool's clock).
        """
        state = circuit.slot
        circuit.state = CircuitState.BUILT
        circuit.built_at = now
        predecessor, state.circuit, state.is_outdated = state.circuit, circuit, False
        names = ", ".join(hop.nickname or hop.fingerprint[:8] for hop in circuit.path)
        self._say(f"circuit {circuit.label} {what}: {names}")
        if predecessor is not None:
            # Candidates are named by their slots: one leaves before the other joins.
            predecessor.state = CircuitState.DRAINING
            self._offer(predecessor)
        self._join(circuit)
        self._offer(circuit)
        if predecessor is not None:
            self._drain(predecessor)
        self._dismiss_outgoing()

    def _drain(self, circuit: Circuit) -> None:
        """No new streams; those on it finish, then it is closed."""
        was_serving = circuit.slot.circuit is circuit
        circuit.state = CircuitState.DRAINING
        if was_serving:
            self._vacate(circuit.slot)
        self._leave(circuit)
        self._offer(circuit)
        self.end_if_empty(circuit)

    def end_if_empty(self, circuit: Circuit) -> None:
        """A stream, or a probe, has left the circuit, or it drains: if nothing is left on it, it ends."""
        if circuit.state is CircuitState.DRAINING and circuit.streams == 0 and circuit.probes == 0:
            self._end(circuit)

    def _end(self, circuit: Circuit) -> None:
        """Nothing is on a circuit that drains: close it if it is ours to close, or know it no longer."""
        if circuit.is_adopted:
            self._forget(circuit)
            self._say(f"circuit {circuit.label} is let go: who built it may close it")
        else:
            self._builder.close(circuit)

    def _forget(self, circuit: Circuit) -> None:
        """Take the circuit out of every table."""
        was_built = circuit.state is CircuitState.BUILT
        self._builder.forget(circuit)
        if circuit.slot.circuit is circuit:
            self._vacate(circuit.slot)
        if was_built:
            self._leave(circuit)
        self._offer(circuit)

    def _vacate(self, state: SlotState) -> None:
        """The slot's circuit serves no longer."""
        state.circuit = None
        if not self._is_kept(state):
            self._outgoing.pop(state.slot.name, None)

    def _dismiss_outgoing(self) -> None:
        """The circuits of the policy itself suffice: those of its predecessor take no more streams."""
        if self.is_ready:
            outgoing, self._outgoing = self._outgoing, {}
            for circuit in outgoing.values():
                self._drain(circuit)
