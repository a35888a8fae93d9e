"""Keys of a policy that do nothing, beside the others that it has."""

from __future__ import annotations

from collections.abc import Iterator

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document
from circuitloom.policy.types import Algorithm, Eject, Policy, Role

__all__ = ["find_idle_keys"]

# Of fewer circuits with a connect time there is no telling which one is the slow one.
_LEAST_JUDGED = 3


def find_idle_keys(document: Document, policy: Policy) -> Iterator[Fault]:
    """Warns about what cannot have an effect; ``policy`` is what ``document`` became."""
    yield from _rotation(document, policy)
    yield from _panic(document, policy)
    yield from _weights(document, policy)


def _rotation(document: Document, policy: Policy) -> Iterator[Fault]:
    rotation = policy.rotation
    bounds = (rotation.max_age_seconds, rotation.max_streams_total, rotation.max_bytes)
    if document.node_at(("rotation",)) is not None and all(bound is None for bound in bounds):
        message = "nothing here makes a circuit old: give `max_age`, `max_streams_total` or `max_bytes`"
        yield document.fault(("rotation",), message)


def _panic(document: Document, policy: Policy) -> Iterator[Fault]:
    health = policy.health
    if health.panic is None:
        return
    if health.eject is None and health.probe is None:
        message = "without `eject` or `probe` no circuit is ever unhealthy"
        yield document.fault(("health", "panic"), message)
        return
    least = 100 - (health.eject or Eject()).max_percent
    if health.panic.threshold * 100 <= least:
        message = f"by `eject.max_percent` {least} % of the circuits are always healthy: raise one of the two"
        yield document.fault(("health", "panic", "threshold"), message)


def _weights(document: Document, policy: Policy) -> Iterator[Fault]:
    health = policy.health
    active = sum(slot.role is Role.ACTIVE for slot in policy.slots)
    circuits = len(policy.slots) - active + min(active, policy.balance.keys.slots_per_key or active)
    for key, is_on in (
        ("slow_start", health.slow_start_seconds is not None),
        ("degrade", health.degrade is not None),
    ):
        if is_on and policy.balance.algorithm is Algorithm.FIRST:
            yield document.fault(("health", key), "`algorithm: first` knows no weights")
        elif is_on and key == "degrade" and circuits < _LEAST_JUDGED:
            message = f"needs {_LEAST_JUDGED} circuits for each key, to tell the slow one from the others"
            yield document.fault(("health", key), message)
