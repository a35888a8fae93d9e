"""Power of two choices: two at random, and the cheaper one takes the stream."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from circuitloom.balancing.bag import Bag
from circuitloom.balancing.chooser import NOTHING, WHOLE_WEIGHT
from circuitloom.balancing.connect_time import ConnectTime

_UNMEASURED_SECONDS = 1e6
"""A candidate that nobody has measured and that has a stream already: it gets more once that is answered."""

_LEAST_SECONDS = 0.001
"""Below this an estimate that fades says nothing, and the number of streams decides."""


@dataclass(slots=True)
class _Load:
    weight: int
    streams: int
    connect_time: ConnectTime
    tenths: int = WHOLE_WEIGHT

    def cost(self, now: float) -> float:
        """What one more stream costs here."""
        seconds = self.connect_time.estimate(now)
        if seconds is None:
            seconds = _UNMEASURED_SECONDS if self.streams else 0.0
        else:
            seconds = max(seconds, _LEAST_SECONDS)
        return seconds * (self.streams + 1) / (self.weight * self.tenths)


class PowerOfTwo:
    """The cheaper of two candidates drawn at random: connect time, times streams, by weight.

    Envoy's and Finagle's rule. Two draws keep the crowd off the one that looks best at this instant, and yet
    no candidate gets far more than its part. A slow circuit gets fewer streams at once, a failing one hardly
    any, and both are tried again as the estimate fades.

    Args:
        uniform: Gives a random number in [0, 1).
    """

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._loads: dict[str, _Load] = {}
        self._bag = Bag(uniform)

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """See Chooser."""
        del order
        if name in self._loads:
            raise ValueError(f"{name} is a candidate already")
        self._loads[name] = _Load(weight, streams, connect_time or ConnectTime())
        self._bag.add(name)

    def remove(self, name: str) -> None:
        """See Chooser."""
        del self._loads[name]
        self._bag.remove(name)

    def scale(self, name: str, tenths: int) -> None:
        """See Chooser."""
        load = self._loads.get(name)
        if load is not None:
            load.tenths = tenths

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser."""
        load = self._loads.get(name)
        if load is not None:
            load.streams = streams

    def choose(
        self, exclude: Collection[str] = NOTHING, *, now: float = 0.0, sticky: str | None = None
    ) -> str | None:
        """See Chooser."""
        del sticky
        one = self._bag.draw(exclude)
        if one is None or len(self._bag) == 1:
            return one
        other = self._bag.draw((*exclude, one))
        if other is None or self._loads[one].cost(now) <= self._loads[other].cost(now):
            return one
        return other
