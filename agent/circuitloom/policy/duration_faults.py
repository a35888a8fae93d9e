"""Durations of a policy that are well written, and too short or too long for what they are about."""

from __future__ import annotations

from collections.abc import Iterator

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document, Scalar
from circuitloom.policy.values import parse_duration
from circuitloom.policy.wording import Path, quoted

__all__ = ["find_duration_faults"]

_BOUNDS: dict[Path, tuple[str, str]] = {
    # Below a tenth of a second a step is over before a stream is connected.
    ("health", "slow_start"): ("100ms", "1h"),
    ("health", "degrade", "interval"): ("100ms", "1h"),
    # Below a second relays would be asked for circuits faster than these are built.
    ("rotation", "max_age"): ("1s", "30d"),
    ("rotation", "drain"): ("1s", "1d"),
}


def find_duration_faults(document: Document, faulty: frozenset[Path]) -> Iterator[Fault]:
    """Judges each duration that has bounds of its own.

    Args:
        document: The policy, which may have faults.
        faulty: Paths of values that the schema has already refused.
    """
    for path, (least, most) in _BOUNDS.items():
        node = document.node_at(path)
        if not isinstance(node, Scalar) or any(path[:length] in faulty for length in range(1, 4)):
            continue
        if not parse_duration(least) <= parse_duration(node.text) <= parse_duration(most):
            yield document.fault(path, f"must be from {least} to {most}, not {quoted(node.text)}")
