"""What is wrong with the rotation of a policy, and what of it does nothing."""

from __future__ import annotations

from collections.abc import Iterator

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document, Scalar
from circuitloom.policy.types import Policy
from circuitloom.policy.values import parse_duration
from circuitloom.policy.wording import Path, quoted

__all__ = ["find_rotation_faults", "find_rotation_warnings"]

# Below a second relays would be asked for circuits faster than these are built; Tor itself takes one away
# long before a month is over.
_BOUNDS = {"max_age": (1.0, 30 * 86_400.0, "30d"), "drain": (1.0, 86_400.0, "1d")}


def find_rotation_faults(document: Document, faulty: frozenset[Path]) -> Iterator[Fault]:
    """Judges how long circuits are to live.

    Args:
        document: The policy, which may have faults.
        faulty: Paths of values that the schema has already refused.
    """
    for key, (least, most, shown) in _BOUNDS.items():
        path: Path = ("rotation", key)
        node = document.node_at(path)
        if not isinstance(node, Scalar) or not faulty.isdisjoint({path, path[:1]}):
            continue
        if not least <= parse_duration(node.text) <= most:
            yield document.fault(path, f"must be from 1s to {shown}, not {quoted(node.text)}")


def find_rotation_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    """A section that replaces no circuit by itself."""
    rotation = policy.rotation
    bounds = (rotation.max_age_seconds, rotation.max_streams_total, rotation.max_bytes)
    if document.node_at(("rotation",)) is not None and all(bound is None for bound in bounds):
        message = "nothing here makes a circuit old: give `max_age`, `max_streams_total` or `max_bytes`"
        yield document.fault(("rotation",), message)
