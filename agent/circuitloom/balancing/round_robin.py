"""Round robin: each candidate in its turn, as often as its weight says."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass, field

from circuitloom.balancing.chooser import NOTHING, WHOLE_WEIGHT
from circuitloom.balancing.connect_time import ConnectTime


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
    Classes are of tenths of a weight; what one is owed that scaling empties, its last member takes along.
    """

    def __init__(self) -> None:
        self._classes: dict[int, _WeightClass] = {}
        self._weight_of: dict[str, int] = {}
        self._class_of: dict[str, int] = {}

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """See Chooser."""
        del streams, order, connect_time
        if name in self._weight_of:
            raise ValueError(f"{name} is a candidate already")
        self._weight_of[name] = weight
        self._class_of[name] = weight * WHOLE_WEIGHT
        self._classes.setdefault(weight * WHOLE_WEIGHT, _WeightClass()).members[name] = None

    def remove(self, name: str) -> None:
        """See Chooser."""
        del self._weight_of[name]
        del self._classes[self._class_of.pop(name)].members[name]
        if not self._weight_of:
            # Nobody is left to be fair to; the next ones start even.
            self._classes.clear()

    def scale(self, name: str, tenths: int) -> None:
        """See Chooser."""
        weight = self._weight_of.get(name)
        if weight is None or self._class_of[name] == weight * tenths:
            return
        old = self._classes[self._class_of[name]]
        new = self._classes.setdefault(weight * tenths, _WeightClass())
        del old.members[name]
        new.members[name] = None
        if not old.members:
            new.current += old.current
            del self._classes[self._class_of[name]]
        self._class_of[name] = weight * tenths

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser: counts do not matter to a round robin."""

    def choose(
        self, exclude: Collection[str] = NOTHING, *, now: float = 0.0, sticky: str | None = None
    ) -> str | None:
        """See Chooser."""
        del now, sticky
        total = 0
        best: _WeightClass | None = None
        best_name = ""
        for weight, weight_class in self._classes.items():
            members = weight_class.members
            free = (name for name in members if name not in exclude) if exclude else iter(members)
            name = next(free, None)
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

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """See Chooser."""
        del weight
        super().add(name, weight=1, streams=streams, order=order, connect_time=connect_time)
