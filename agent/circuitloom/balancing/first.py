"""First: one candidate after the other, each until it is full."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection

from circuitloom.balancing.chooser import NOTHING
from circuitloom.balancing.connect_time import ConnectTime


class First:
    """The first candidate in the policy's order (HAProxy's ``first``).

    A full one is no candidate, so the next one follows by itself. For a pool that should use as few circuits
    as the load allows.
    """

    def __init__(self) -> None:
        self._order: dict[str, int] = {}
        self._sorted: list[tuple[int, str]] = []

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """See Chooser."""
        del weight, streams, connect_time
        if name in self._order:
            raise ValueError(f"{name} is a candidate already")
        self._order[name] = order
        insort(self._sorted, (order, name))

    def remove(self, name: str) -> None:
        """See Chooser."""
        entry = (self._order.pop(name), name)
        del self._sorted[bisect_left(self._sorted, entry)]

    def scale(self, name: str, tenths: int) -> None:
        """See Chooser: there are no weights here."""

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser: only being full matters, and then it is no candidate."""

    def choose(
        self, exclude: Collection[str] = NOTHING, *, now: float = 0.0, sticky: str | None = None
    ) -> str | None:
        """See Chooser."""
        del now, sticky
        return next((name for _, name in self._sorted if name not in exclude), None)
