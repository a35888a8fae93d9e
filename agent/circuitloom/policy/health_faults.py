"""What of a policy's ``health`` does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document
from circuitloom.policy.types import Policy

__all__ = ["find_health_warnings"]


def find_health_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    """A panic that never comes, because too few circuits can be out."""
    panic, eject = policy.health.panic, policy.health.eject
    if panic is None:
        return
    if eject is None:
        yield document.fault(("health", "panic"), "without `eject` no circuit is ever unhealthy")
    elif panic.threshold * 100 <= 100 - eject.max_percent:
        least = 100 - eject.max_percent
        message = f"by `eject.max_percent` {least} % of the circuits are always healthy: raise one of the two"
        yield document.fault(("health", "panic", "threshold"), message)
