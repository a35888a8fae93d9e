"""Which relays the circuits go through that the agent selects.

Rules of this file:

* Without a snapshot of the consensus there is no plan; whoever wants one waits for it.
* The exits of all circuits of a key count as taken, also of those that are being built or drain; those of the
  slot's own circuits, which this one succeeds, do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from circuitloom.model import Hop
from circuitloom.paths import Beside, NoPath, PortPolicy, Relays, breaks, select_path
from circuitloom.policy.path_types import Diversity, PathRules
from circuitloom.pool.slots import SlotState


class Planner:
    """Selects and judges the relays of circuits.

    Args:
        diversity: What the policy asks of the exits of all; a reload may replace it.
        uniform: Gives a random number in [0, 1).

    Attributes:
        relays: The snapshot; None: there is none, or nobody needs one.
    """

    def __init__(self, diversity: Diversity, *, uniform: Callable[[], float]) -> None:
        self.diversity = diversity
        self._uniform = uniform
        self.relays: Relays | None = None

    def plan(self, state: SlotState, rules: PathRules) -> tuple[Hop, ...] | NoPath | None:
        """The relays of the slot's next circuit, or why there are none; None: nobody knows yet."""
        if self.relays is None:
            return None
        beside = _beside(state, rules)
        path = select_path(self.relays, rules, diversity=self.diversity, beside=beside, uniform=self._uniform)
        if isinstance(path, NoPath):
            return path
        return tuple(Hop(relay.fingerprint, relay.nickname) for relay in path)

    def is_broken(self, state: SlotState) -> bool:
        """Whether the circuit that serves in the slot is not what its rules ask for."""
        rules, circuit = state.slot.path, state.circuit
        if self.relays is None or circuit is None or not isinstance(rules, PathRules):
            return False
        is_ours = not circuit.is_adopted and bool(circuit.path)
        return is_ours and breaks(
            self.relays, rules, circuit.path, diversity=self.diversity, beside=_beside(state, rules)
        )

    def exit_ports(self, path: Sequence[Hop]) -> PortPolicy | None:
        """What the exit of a circuit accepts; None if that is not known."""
        if self.relays is None or not path:
            return None
        relay = self.relays.by_fingerprint.get(path[-1].fingerprint)
        return None if relay is None else relay.ports


def _beside(state: SlotState, rules: PathRules) -> Beside:
    """The exits of the other circuits of the slot's key; where the policy names an exit, it counts always."""
    named = [
        (other.slot.name, other.slot.path[-1])
        for other in state.owner.slots.values()
        if other is not state and isinstance(other.slot.path, tuple)
    ]
    planned = [
        (circuit.slot.slot.name, circuit.path[-1].fingerprint)
        for circuit in state.owner.all_circuits()
        if circuit.slot is not state and circuit.path
    ]
    exits = named + planned
    return Beside(
        exits=frozenset(exit_ for _, exit_ in exits),
        barred=frozenset(exit_ for name, exit_ in exits if name in rules.not_exit_of),
    )
