"""Ejected circuits over all keys: told in a line each way, and back in time.

Rules of this file:

* A failure that is the destination's does not count; nor does one of a destination that is not known.
* What comes back in time is looked for when its time has come, and not with each event.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from circuitloom.kinds import Kind
from circuitloom.model import Action, Announce, Severity
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.slots import Circuit


class Ejections:
    """Counts failures against circuits, and knows when somebody comes back.

    Args:
        emit: Takes each action, in order.
    """

    def __init__(self, emit: Callable[[Action], None]) -> None:
        self._emit = emit
        self._numbers = count()
        self._returns: list[tuple[float, int, Circuits]] = []

    def fail(self, circuit: Circuit, *, now: float) -> bool:
        """A stream failed on the circuit, by the circuit's fault; returns whether it is ejected for that.

        Args:
            circuit: Which.
            now: The time (seconds of the pool's clock).
        """
        owner = circuit.slot.owner
        until = owner.fail(circuit, now=now)
        if until is None:
            return False
        circuit.slot.tally.ejections += 1
        heappush(self._returns, (until, next(self._numbers), owner))
        what = f"circuit {circuit.label} ejected for {until - now:g} s: streams in a row failed on it"
        name, circuit_id = circuit.slot.slot.name, circuit.circuit_id or ""
        self._emit(Announce(Severity.WARNING, what, Kind.CIRCUIT_EJECTED, name, circuit_id))
        return True

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        return self._returns[0][0] if self._returns else None

    def handle_deadline(self, *, now: float) -> None:
        """Those whose time is over take streams again; one that went or came back before is not there."""
        while self._returns and self._returns[0][0] <= now:
            _, _, owner = heappop(self._returns)
            owner.readmit_due(now=now)
