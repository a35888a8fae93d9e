"""Candidates to draw from at random, each as likely as the others, in constant time."""

from __future__ import annotations

from collections.abc import Callable, Collection

_DRAWS = 8
"""With as many draws, one excluded candidate among two is missed once in 256 streams; then we look."""


class Bag:
    """A set of names that one can be drawn from.

    Args:
        uniform: Gives a random number in [0, 1).
    """

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._uniform = uniform
        self._names: list[str] = []
        self._place: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str) -> None:
        """Put a name in that is not in the bag."""
        self._place[name] = len(self._names)
        self._names.append(name)

    def remove(self, name: str) -> None:
        """Take a name out; the last one moves to its place."""
        place = self._place.pop(name)
        last = self._names.pop()
        if last != name:
            self._names[place] = last
            self._place[last] = place

    def draw(self, exclude: Collection[str]) -> str | None:
        """One of the names that are not in ``exclude``, or None."""
        names = self._names
        if not names:
            return None
        for _ in range(_DRAWS):
            name = names[int(self._uniform() * len(names))]
            if name not in exclude:
                return name
        left = [name for name in names if name not in exclude]
        return left[int(self._uniform() * len(left))] if left else None
