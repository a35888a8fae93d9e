"""To which ports an exit lets streams go, as its microdescriptor sums it up."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

ALL_PORTS = (1, 65535)


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """The ports that an exit accepts for most addresses (dir-spec, ``p`` of microdescriptors).

    Attributes:
        accepted: Ranges, both ends included, in order and apart from one another.
    """

    accepted: tuple[tuple[int, int], ...]

    def accepts(self, first: int, last: int | None = None) -> bool:
        """Whether every port of a range (or one port) is accepted."""
        last = first if last is None else last
        return any(start <= first and last <= end for start, end in self.accepted)

    @property
    def accepts_all(self) -> bool:
        """Whether no port is refused."""
        return self.accepted == (ALL_PORTS,)


REJECTS_ALL = PortPolicy(())
"""What a relay without a policy line says."""


@lru_cache(maxsize=4096)
def read_policy(text: str) -> PortPolicy:
    """Read ``accept 80,443,8000-8999`` or ``reject 25``; equal texts give one object.

    What is no port or range counts as nothing: then an exit is not used for what it may accept.
    """
    word, _, ports = text.partition(" ")
    ranges = sorted(filter(None, map(_read_range, ports.split(","))))
    joined: list[tuple[int, int]] = []
    for first, last in ranges:
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    if word == "accept":
        return PortPolicy(tuple(joined))
    return PortPolicy(_others(joined)) if word == "reject" else REJECTS_ALL


def _read_range(text: str) -> tuple[int, int] | None:
    first, _, last = text.partition("-")
    if not (first.isdecimal() and (last or first).isdecimal() and len(text) <= len("65535-65535")):
        return None
    ports = int(first), int(last or first)
    return ports if ALL_PORTS[0] <= ports[0] <= ports[1] <= ALL_PORTS[1] else None


def _others(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """All ports that are in none of these."""
    others: list[tuple[int, int]] = []
    start = ALL_PORTS[0]
    for first, last in ranges:
        if start < first:
            others.append((start, first - 1))
        start = last + 1
    if start <= ALL_PORTS[1]:
        others.append((start, ALL_PORTS[1]))
    return tuple(others)
