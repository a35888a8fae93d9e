"""Least streams: the emptiest candidate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count

from circuitloom.balancing.chooser import NOTHING, WHOLE_WEIGHT
from circuitloom.balancing.connect_time import ConnectTime


@dataclass(slots=True)
class _Load:
    weight: int
    streams: int
    turn: int
    tenths: int = WHOLE_WEIGHT


class LeastStreams:
    """The candidate with the fewest streams for its weight; among equals, the one chosen longest ago.

    The load compared is (streams + 1) / weight, what it would be with the new stream. A heap holds one
    current entry for each candidate; entries that a count or a scaling has made stale are dropped when they
    surface.
    """

    def __init__(self) -> None:
        self._loads: dict[str, _Load] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._turns = count()

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """See Chooser."""
        del order, connect_time
        if name in self._loads:
            raise ValueError(f"{name} is a candidate already")
        self._loads[name] = _Load(weight, streams, next(self._turns))
        self._push(name)

    def remove(self, name: str) -> None:
        """See Chooser."""
        del self._loads[name]

    def scale(self, name: str, tenths: int) -> None:
        """See Chooser."""
        load = self._loads.get(name)
        if load is not None and load.tenths != tenths:
            load.tenths = tenths
            self._push(name)

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser."""
        load = self._loads.get(name)
        if load is not None and load.streams != streams:
            load.streams = streams
            self._push(name)

    def choose(
        self, exclude: Collection[str] = NOTHING, *, now: float = 0.0, sticky: str | None = None
    ) -> str | None:
        """See Chooser."""
        del now, sticky
        passed_over: list[tuple[float, int, str]] = []
        chosen = None
        heap = self._heap
        while heap:
            entry = heap[0]
            name = entry[2]
            load = self._loads.get(name)
            if load is None or entry != self._entry(name, load):
                heappop(heap)
            elif name in exclude:
                passed_over.append(heappop(heap))
            else:
                chosen = name
                load.turn = next(self._turns)
                self._push(name)
                break
        for entry in passed_over:
            heappush(heap, entry)
        return chosen

    def _entry(self, name: str, load: _Load) -> tuple[float, int, str]:
        return (load.streams + 1) / (load.weight * load.tenths), load.turn, name

    def _push(self, name: str) -> None:
        heappush(self._heap, self._entry(name, self._loads[name]))
        # Stale entries are bounded: without this a chooser that is counted and never asked would grow.
        if len(self._heap) > 64 + 4 * len(self._loads):
            self._heap = [self._entry(name, load) for name, load in self._loads.items()]
            heapify(self._heap)
