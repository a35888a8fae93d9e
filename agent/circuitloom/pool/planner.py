"""Which relays the circuits go through that the agent selects.

Rules of this file:

* Without a snapshot of the consensus there is no plan; whoever wants one waits for it.
* The exits of all circuits of a key count as taken, also of those that are being built or drain; those of the
  slot's own circuits, which this one succeeds, do not.
* Tor learns that a guard is down from its own circuits only, and may build none: a guard that ours cannot
  reach rests for a while, if another one leads to where the circuit has to go.
* A relay farther on rests at its first failure: where few relays have the bandwidth, chance alone would take
  the same one again. Where no other fits it is tried all the same; it is never a reason for another guard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from circuitloom.model import Hop
from circuitloom.paths import Beside, NoPath, PortPolicy, Relays, breaks, select_path
from circuitloom.policy.path_types import Diversity, PathRules
from circuitloom.pool.slots import SlotState

GUARD_FAILURES = 3
"""In a row, of all circuits together; one or two may be the network's."""

REST_SECONDS = 60.0
"""After which a relay is tried once more."""


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
        self._guard_failures: dict[str, int] = {}
        self._resting_guards: dict[str, float] = {}
        self._resting: dict[str, float] = {}

    def handle_failed(self, planned: Sequence[Hop], reached: Sequence[Hop], *, now: float) -> Hop | None:
        """A circuit did not get to its last hop.

        Args:
            planned: All its hops.
            reached: Those that it got to.
            now: The time (seconds of the pool's clock).

        Returns:
            The hop that it did not get to.
        """
        if len(reached) >= len(planned):
            return None
        missed = planned[len(reached)]
        fingerprint = missed.fingerprint
        if reached:
            self._resting = {relay: until for relay, until in self._resting.items() if until > now}
            self._resting[fingerprint] = now + REST_SECONDS
        else:
            self._guard_failures[fingerprint] = self._guard_failures.get(fingerprint, 0) + 1
            if self._guard_failures[fingerprint] >= GUARD_FAILURES:
                self._resting_guards[fingerprint] = now + REST_SECONDS
        return missed

    def handle_built(self, planned: Sequence[Hop]) -> None:
        """A circuit got to its last hop."""
        for number, hop in enumerate(planned):
            if number:
                self._resting.pop(hop.fingerprint, None)
            else:
                self._guard_failures.pop(hop.fingerprint, None)
                self._resting_guards.pop(hop.fingerprint, None)

    def plan(self, state: SlotState, rules: PathRules, *, now: float) -> tuple[Hop, ...] | NoPath | None:
        """The relays of the slot's next circuit, or why there are none; None: nobody knows yet.

        Args:
            state: The slot.
            rules: What its path has to be.
            now: The time (seconds of the pool's clock).
        """
        if self.relays is None:
            return None
        relays = self.relays
        resting = {relay for relay, until in self._resting.items() if until > now}
        select = partial(
            select_path,
            rules=rules,
            diversity=self.diversity,
            beside=_beside(state, rules, resting),
            uniform=self._uniform,
        )
        awake = tuple(guard for guard in relays.guards if self._resting_guards.get(guard, now) <= now)
        has_resting = 0 < len(awake) < len(relays.guards)
        path = select(relays.with_guards(awake) if has_resting else relays)
        if has_resting and isinstance(path, NoPath):
            path = select(relays)
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


def _beside(state: SlotState, rules: PathRules, resting: Collection[str] = frozenset()) -> Beside:
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
        resting=resting,
    )
