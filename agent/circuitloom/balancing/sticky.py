"""Sticky: streams that have something in common go to one candidate, as long as that has room."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from math import ceil

from circuitloom.balancing.chooser import NOTHING, Chooser
from circuitloom.balancing.connect_time import ConnectTime
from circuitloom.balancing.ring import Ring


@dataclass(slots=True)
class _Load:
    weight: int
    streams: int


class Sticky:
    """Consistent hashing with bounded load, over another chooser that takes what sticks to nothing.

    A key goes to the candidate that follows it on a ring; when that is away, excluded or overloaded, to the
    next. When one of n candidates goes, only its keys move, and they come back with it (Karger et al.). A
    candidate is overloaded beyond ``max_load`` times its part of all streams (Mirrokni, Thorup and
    Zadimoghaddam): a key with very many streams then uses several, always the same.

    Args:
        rest: Chooses for streams without a key.
        max_load: The bound, above 1; None: none but being full.
    """

    def __init__(self, rest: Chooser, max_load: float | None = None) -> None:
        self._rest = rest
        self._max_load = max_load
        self._ring = Ring()
        self._loads: dict[str, _Load] = {}
        self._streams = 0
        self._weight = 0

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """See Chooser."""
        self._rest.add(name, weight=weight, streams=streams, order=order, connect_time=connect_time)
        self._ring.add(name, weight)
        self._loads[name] = _Load(weight, streams)
        self._streams += streams
        self._weight += weight

    def remove(self, name: str) -> None:
        """See Chooser."""
        self._rest.remove(name)
        self._ring.remove(name)
        load = self._loads.pop(name)
        self._streams -= load.streams
        self._weight -= load.weight

    def scale(self, name: str, tenths: int) -> None:
        """See Chooser: for what sticks to nothing; the ring stays as it is, or keys would move."""
        self._rest.scale(name, tenths)

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser."""
        load = self._loads.get(name)
        if load is not None:
            self._streams += streams - load.streams
            load.streams = streams
            self._rest.count_streams(name, streams)

    def choose(
        self, exclude: Collection[str] = NOTHING, *, now: float = 0.0, sticky: str | None = None
    ) -> str | None:
        """See Chooser."""
        if sticky is None:
            return self._rest.choose(exclude, now=now)
        for name in self._ring.walk(sticky):
            if name not in exclude and not self._is_overloaded(name):
                return name
        # Only excluded ones are below the bound: better above it than nowhere.
        return next((name for name in self._ring.walk(sticky) if name not in exclude), None)

    def _is_overloaded(self, name: str) -> bool:
        if self._max_load is None:
            return False
        load = self._loads[name]
        return load.streams >= ceil(self._max_load * (self._streams + 1) * load.weight / self._weight)
