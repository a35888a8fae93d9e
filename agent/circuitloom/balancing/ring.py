"""A ring for consistent hashing: what is near which name, so that little moves when a name comes or goes.

Rules of this file:

* Each name has points on the ring, as many as its weight says; a key belongs to the first point from it on.
* A name's points never move. One that is away keeps them, unseen, so that it finds its keys when it is back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from hashlib import blake2b

POINTS_PER_WEIGHT = 64
"""Enough that the shares of equal weights differ by an eighth or so."""

MAX_POINTS = 1024
"""Of one name: weights further apart than 16:1 are not told apart, and 1,000 names stay a bounded ring."""


def place(text: str) -> int:
    """Where a text lies on the ring: the same on every host and after every restart."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


class Ring:
    """Names on a ring."""

    def __init__(self) -> None:
        self._points: list[tuple[int, str, int]] = []
        self._is_sorted = True
        self._generated: dict[str, int] = {}
        self._seen: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, name: str, weight: int) -> None:
        """A name is there now."""
        points = min(MAX_POINTS, POINTS_PER_WEIGHT * weight)
        self._seen[name] = points
        first = self._generated.get(name, 0)
        if first < points:
            self._points += [(place(f"{number} {name}"), name, number) for number in range(first, points)]
            self._generated[name] = points
            self._is_sorted = False

    def remove(self, name: str) -> None:
        """A name is away; raises KeyError if it was not there."""
        del self._seen[name]
        if len(self._generated) > 16 + 4 * len(self._seen):
            # Most of the ring is names that will not come back: walks over them would grow.
            self._points = [point for point in self._points if point[1] in self._seen]
            self._generated = {name: self._generated[name] for name in self._seen}

    def walk(self, key: str) -> Iterator[str]:
        """The names there are, each once, in the order in which they take a key's streams."""
        if not self._is_sorted:
            # Two sorted runs: what was there, and what came; the sort finds that out by itself.
            self._points.sort()
            self._is_sorted = True
        points = self._points
        start = bisect_left(points, (place(key), "", 0))
        told: set[str] = set()
        for index in range(len(points)):
            if len(told) == len(self._seen):
                return
            _, name, number = points[(start + index) % len(points)]
            if name not in told and number < self._seen.get(name, 0):
                told.add(name)
                yield name
