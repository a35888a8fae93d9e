"""The circuits that a round can serve: one for each name, the oldest key's."""

from __future__ import annotations

from circuitloom.pool.keys import Keys
from circuitloom.pool.slots import Circuit


def built_circuits(keys: Keys) -> dict[str, Circuit]:
    """Of each slot that has a circuit that serves, that circuit.

    Args:
        keys: All circuits; they are asked in the order of their coming, so the first key's count.
    """
    found: dict[str, Circuit] = {}
    for circuits in keys:
        for name, state in circuits.slots.items():
            if state.circuit is not None:
                found.setdefault(name, state.circuit)
    return found
