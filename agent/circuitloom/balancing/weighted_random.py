"""Random: each candidate as likely as its weight says."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection
from itertools import accumulate

from circuitloom.balancing.bag import Bag
from circuitloom.balancing.chooser import NOTHING, WHOLE_WEIGHT
from circuitloom.balancing.connect_time import ConnectTime


class WeightedRandom:
    """A draw among all candidates, by weight.

    Nothing that is seen of one stream tells where the next one goes. As in WeightedRoundRobin, candidates of
    one weight (in tenths) are one class: a choice costs the number of distinct weights.

    Args:
        uniform: Gives a random number in [0, 1).
    """

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._uniform = uniform
        self._weight_of: dict[str, int] = {}
        self._class_of: dict[str, int] = {}
        self._classes: dict[int, Bag] = {}

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """See Chooser."""
        del streams, order, connect_time
        if name in self._weight_of:
            raise ValueError(f"{name} is a candidate already")
        self._weight_of[name] = weight
        self._put(name, weight * WHOLE_WEIGHT)

    def remove(self, name: str) -> None:
        """See Chooser."""
        del self._weight_of[name]
        self._take(name)

    def scale(self, name: str, tenths: int) -> None:
        """See Chooser."""
        weight = self._weight_of.get(name)
        if weight is not None and self._class_of[name] != weight * tenths:
            self._take(name)
            self._put(name, weight * tenths)

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser: counts do not matter to a draw."""

    def choose(
        self, exclude: Collection[str] = NOTHING, *, now: float = 0.0, sticky: str | None = None
    ) -> str | None:
        """See Chooser."""
        del now, sticky
        classes = dict(self._classes)
        while classes:
            weight = self._draw_class(classes)
            name = classes[weight].draw(exclude)
            if name is not None:
                return name
            # All of this weight are excluded: draw among the others.
            del classes[weight]
        return None

    def _put(self, name: str, weight: int) -> None:
        self._class_of[name] = weight
        bag = self._classes.get(weight)
        if bag is None:
            bag = self._classes[weight] = Bag(self._uniform)
        bag.add(name)

    def _take(self, name: str) -> None:
        weight = self._class_of.pop(name)
        bag = self._classes[weight]
        bag.remove(name)
        if not bag:
            del self._classes[weight]

    def _draw_class(self, classes: dict[int, Bag]) -> int:
        weights = list(classes)
        bounds = list(accumulate(weight * len(classes[weight]) for weight in weights))
        # The last bound itself is never reached, but for a rounding of the product.
        return weights[bisect_right(bounds, self._uniform() * bounds[-1], hi=len(bounds) - 1)]
