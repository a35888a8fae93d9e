"""Choosers: which candidate takes the next stream.

Rules of this file:

* A chooser knows names, weights and how many streams each candidate has; it knows no circuits and no time.
* Only candidates that may take a stream are in it: the pool adds and removes, the chooser never asks.
* A choice costs no more than the logarithm of the number of candidates, or the number of distinct weights.
* Words are HAProxy's and nginx's: weight, round robin (roundrobin), least streams (leastconn).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Protocol

NOTHING: frozenset[str] = frozenset()


class Chooser(Protocol):
    """Spreads streams over candidates, which are named by unique strings."""

    def add(self, name: str, *, weight: int, streams: int) -> None:
        """Let a candidate take streams from now on.

        Args:
            name: The candidate; it must not be in the chooser.
            weight: Its share against the others' weights, from 1.
            streams: How many streams it has now.
        """

    def remove(self, name: str) -> None:
        """Let a candidate take no more streams; raises KeyError when it is not in the chooser."""

    def count_streams(self, name: str, streams: int) -> None:
        """Tell how many streams a candidate has now; unknown candidates are ignored."""

    def choose(self, exclude: Collection[str] = NOTHING) -> str | None:
        """Take one turn.

        Args:
            exclude: Candidates that must not be chosen; their turns are not lost.

        Returns:
            The candidate's name, or None when there is none.
        """


@dataclass(slots=True)
class _WeightClass:
    """The candidates of one weight, in the order of their turns."""

    members: OrderedDict[str, None] = field(default_factory=OrderedDict)
    current: int = 0


class WeightedRoundRobin:
    """Smooth weighted round robin, exact over every window as long as the sum of the weights.

    nginx's rule (each gains its weight, the highest takes the turn and pays the total) runs over classes of
    equal weight, and plain round robin inside a class. So the cost of a choice is the number of distinct
    weights, not of candidates, and each candidate still gets exactly its weight in every full window. A
    candidate that leaves and comes back joins at the end of its class: it is owed nothing for its absence.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _WeightClass] = {}
        self._weight_of: dict[str, int] = {}

    def add(self, name: str, *, weight: int, streams: int) -> None:  # noqa: ARG002 - weights alone decide here
        """See Chooser."""
        if name in self._weight_of:
            raise ValueError(f"{name} is a candidate already")
        self._weight_of[name] = weight
        self._classes.setdefault(weight, _WeightClass()).members[name] = None

    def remove(self, name: str) -> None:
        """See Chooser."""
        weight = self._weight_of.pop(name)
        members = self._classes[weight].members
        del members[name]
        if not self._weight_of:
            # Nobody is left to be fair to; the next ones start even.
            self._classes.clear()

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser: counts do not matter to a round robin."""

    def choose(self, exclude: Collection[str] = NOTHING) -> str | None:
        """See Chooser."""
        total = 0
        best: _WeightClass | None = None
        best_name = ""
        for weight, weight_class in self._classes.items():
            members = weight_class.members
            name = next((name for name in members if name not in exclude), None)
            if name is None:
                continue
            gain = weight * len(members)
            weight_class.current += gain
            total += gain
            if best is None or weight_class.current > best.current:
                best, best_name = weight_class, name
        if best is None:
            return None
        best.current -= total
        best.members.move_to_end(best_name)
        return best_name


class RoundRobin(WeightedRoundRobin):
    """Each candidate in turn, whatever its weight."""

    def add(self, name: str, *, weight: int, streams: int) -> None:  # noqa: ARG002 - all weigh the same
        """See Chooser."""
        super().add(name, weight=1, streams=streams)


@dataclass(slots=True)
class _Load:
    weight: int
    streams: int
    turn: int


class LeastStreams:
    """The candidate with the fewest streams for its weight; among equals, the one chosen longest ago.

    The load compared is (streams + 1) / weight, what it would be with the new stream. A heap holds one
    current entry for each candidate; entries that a count has made stale are dropped when they surface.
    """

    def __init__(self) -> None:
        self._loads: dict[str, _Load] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._turns = count()

    def add(self, name: str, *, weight: int, streams: int) -> None:
        """See Chooser."""
        if name in self._loads:
            raise ValueError(f"{name} is a candidate already")
        self._loads[name] = _Load(weight, streams, next(self._turns))
        self._push(name)

    def remove(self, name: str) -> None:
        """See Chooser."""
        del self._loads[name]

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser."""
        load = self._loads.get(name)
        if load is not None and load.streams != streams:
            load.streams = streams
            self._push(name)

    def choose(self, exclude: Collection[str] = NOTHING) -> str | None:
        """See Chooser."""
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
        return (load.streams + 1) / load.weight, load.turn, name

    def _push(self, name: str) -> None:
        heappush(self._heap, self._entry(name, self._loads[name]))
        # Stale entries are bounded: without this a chooser that is counted and never asked would grow.
        if len(self._heap) > 64 + 4 * len(self._loads):
            self._heap = [self._entry(name, load) for name, load in self._loads.items()]
            heapify(self._heap)


CHOOSERS: dict[str, type[WeightedRoundRobin | LeastStreams]] = {
    "round-robin": RoundRobin,
    "weighted-round-robin": WeightedRoundRobin,
    "least-streams": LeastStreams,
}
"""By the name that ``balance.algorithm`` has in a policy."""
