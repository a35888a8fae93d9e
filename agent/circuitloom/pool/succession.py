"""How circuits follow one another in the slots of one isolation key.

Rules of this file:

* Make before break: a circuit that takes a slot is BUILT before the one there drains.
* A circuit that another controller built is never closed: without streams it is let go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from circuitloom.kinds import Kind
from circuitloom.policy.path_types import PathRules
from circuitloom.pool.slots import Circuit, CircuitState, SlotState
from circuitloom.pool.tiers import Tiers


class Succession(Tiers):
    """The slots of one key, and how a circuit enters and leaves them.

    Args:
        policy: What to keep.
        drained: Names of slots that take no new streams now.
        builder: Knows the circuits by id.
        rotation: Looks after their age and use.
        emit: Takes each action, in order.
    """

    def rotate(self, circuit: Circuit, why: str) -> None:
        """The circuit has served enough: have its successor built, and this one serve until then.

        Args:
            circuit: Which; one that is on its way out already is left to that.
            why: What to say.
        """
        state = circuit.slot
        is_replaced = state.is_outdated or not (state.is_ours_to_build and self._is_kept(state))
        if circuit is state.circuit and not is_replaced:
            state.is_outdated = True
            state.tally.rotations += 1
            what = f"circuit {circuit.label} is replaced, make before break: {why}"
            self._say(what, Kind.CIRCUIT_REPLACED, circuit)
            self._builder.want(state)

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
        self._rotation.begin(circuit)
        self._fitness.begin(circuit, now=now)
        circuit.exit_ports = self._builder.planner.exit_ports(circuit.path)
        predecessor, state.circuit, state.is_outdated = state.circuit, circuit, False
        names = ", ".join(hop.label for hop in circuit.path)
        kind = Kind.CIRCUIT_ADOPTED if circuit.is_adopted else Kind.CIRCUIT_BUILT
        self._say(f"circuit {circuit.label} {what}: {names}", kind, circuit)
        if predecessor is not None:
            # Candidates are named by their slots: one leaves before the other joins.
            predecessor.state = CircuitState.DRAINING
            self._offer(predecessor)
        self._join(circuit)
        self._offer(circuit)
        if predecessor is not None:
            self._drain(predecessor)
        self._dismiss_outgoing()
        # Whoever was planned beside the others is judged alone; one that came otherwise may clash with any.
        is_planned = isinstance(state.slot.path, PathRules) and not circuit.is_adopted
        self._review([state] if is_planned else self.slots.values())

    def _review(self, states: Iterable[SlotState]) -> None:
        """Replace those circuits that are not, or no longer, what the rules of their paths ask for."""
        for state in states:
            circuit = state.circuit
            if circuit is None or state.is_outdated or not self._builder.planner.is_broken(state):
                continue
            what = f"circuit {circuit.label} is not what its path asks for now, building another"
            self._say(what, Kind.CIRCUIT_REPLACED, circuit)
            state.is_outdated = True
            self._builder.want(state)

    def renew_relays(self) -> None:
        """Another snapshot of the consensus is there."""
        for circuit in self._members:
            known = self._builder.planner.exit_ports(circuit.path)
            circuit.exit_ports = circuit.exit_ports if known is None else known
        self._refusals.forget()
        self._review(self.slots.values())

    def all_circuits(self) -> Iterator[Circuit]:
        """Every circuit that there is in Tor, or that Tor was asked for."""
        yield from self._members
        yield from (
            state.building
            for state in self.slots.values()
            if state.building is not None and state.building not in self._members
        )

    def _drain(self, circuit: Circuit) -> None:
        """No new streams; those on it finish, then it is closed."""
        was_serving = circuit.slot.circuit is circuit
        circuit.state = CircuitState.DRAINING
        self._rotation.drain(circuit)
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
            what = f"circuit {circuit.label} is let go: who built it may close it"
            self._say(what, Kind.CIRCUIT_CLOSED, circuit)
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
