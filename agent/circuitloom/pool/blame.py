"""Whose fault a failed stream is: the destination's, or the circuit's.

A failed END makes Tor close the circuit soon (tor-facts 0), so a dead destination that is tried everywhere
costs every circuit there is. A destination that failed on several circuits is therefore taken for dead: its
streams stay on circuits that it has cost already, and are not tried elsewhere. A circuit on which several
destinations failed that are not dead is to blame itself.

Rules of this file:

* A success acquits: the destination at once, and the circuit of all that was held against it.
* Memory is bounded, and what is remembered is a destination: it is compared and never shown.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from circuitloom.model import CircuitId
from circuitloom.pool.slots import Circuit

DEAD_CIRCUITS = 3
"""Tor itself gives an address up after three places (MAX_RESOLVE_FAILURES, tor-facts 3)."""

FAULTY_TARGETS = 5
"""Envoy's default for consecutive errors before an endpoint is ejected."""

SUSPECT_SECONDS = 60.0
"""How long after its last failure a destination is under suspicion."""

MAX_SUSPECTS = 1024


@dataclass(slots=True)
class _Suspect:
    """A destination that failed, on which circuits (newest last), and when last (seconds)."""

    circuits: dict[CircuitId, None] = field(default_factory=dict)
    failed_at: float = 0.0


class Blame:
    """Remembers which destinations failed where."""

    def __init__(self) -> None:
        self._suspects: OrderedDict[str, _Suspect] = OrderedDict()

    def fail(self, target: str, circuit: Circuit, *, now: float) -> bool:
        """A stream failed; returns whether the circuit is to blame for it.

        Args:
            target: ``host:port``; empty when it is not known, and then nobody is blamed.
            circuit: Which could not connect it.
            now: The time (seconds of the pool's clock).
        """
        if not target or circuit.circuit_id is None:
            return False
        self._expire(now)
        suspect = self._suspects.setdefault(target, _Suspect())
        self._suspects.move_to_end(target)
        suspect.failed_at = now
        suspect.circuits.setdefault(circuit.circuit_id)
        if len(suspect.circuits) > DEAD_CIRCUITS:
            del suspect.circuits[next(iter(suspect.circuits))]
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)
        circuit.failed_targets.add(target)
        # What is dead, or failed too long ago to be remembered, proves nothing against a circuit.
        circuit.failed_targets = {known for known in circuit.failed_targets if self._is_open_case(known)}
        return len(circuit.failed_targets) >= FAULTY_TARGETS

    def succeed(self, target: str, circuit: Circuit | None) -> None:
        """A stream to this destination was connected, on this circuit if it is one of ours."""
        if self._suspects:
            self._suspects.pop(target, None)
        if circuit is not None and circuit.failed_targets:
            circuit.failed_targets.clear()

    def circuits_of_dead(self, target: str, *, now: float) -> Collection[CircuitId]:
        """The circuits that a dead destination has cost already; none when it is not known to be dead."""
        if not self._suspects:
            return ()
        self._expire(now)
        suspect = self._suspects.get(target)
        return () if suspect is None or len(suspect.circuits) < DEAD_CIRCUITS else suspect.circuits

    def is_destinations(self, target: str, *, now: float) -> bool:
        """Whether a failure of this destination says nothing against a circuit: it is dead, or not known."""
        return not target or bool(self.circuits_of_dead(target, now=now))

    def _is_open_case(self, target: str) -> bool:
        suspect = self._suspects.get(target)
        return suspect is not None and len(suspect.circuits) < DEAD_CIRCUITS

    def _expire(self, now: float) -> None:
        while self._suspects:
            target, suspect = next(iter(self._suspects.items()))
            if suspect.failed_at + SUSPECT_SECONDS > now:
                return
            del self._suspects[target]
