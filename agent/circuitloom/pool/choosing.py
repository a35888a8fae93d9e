"""From the policy to choosers, and from a stream to what it sticks by."""

from __future__ import annotations

from collections.abc import Callable, Collection

from circuitloom.balancing import CHOOSERS, NOTHING, Chooser, ConnectTime, Sticky
from circuitloom.model import StreamEvent
from circuitloom.policy.types import Balance, Policy, StickyBy


def new_chooser(balance: Balance, uniform: Callable[[], float]) -> Chooser:
    """The chooser that the policy asks for.

    Args:
        balance: What it says.
        uniform: Gives a random number in [0, 1).
    """
    chooser = CHOOSERS[balance.algorithm](uniform)
    return chooser if balance.sticky is StickyBy.NONE else Sticky(chooser, balance.sticky_load)


class Choosers:
    """One chooser over all circuits of a key, and one over each set of circuits that a rule names.

    Args:
        policy: Which sets, and which kind.
        uniform: Gives a random number in [0, 1).
    """

    def __init__(self, policy: Policy, uniform: Callable[[], float]) -> None:
        self._all = new_chooser(policy.balance, uniform)
        self._among = {
            rule.circuits: new_chooser(policy.balance, uniform) for rule in policy.rules if rule.circuits
        }
        self._of: dict[str, tuple[Chooser, ...]] = {}

    def add(self, name: str, *, weight: int, streams: int, order: int, connect_time: ConnectTime) -> None:
        """See Chooser."""
        choosers = (self._all, *(chooser for names, chooser in self._among.items() if name in names))
        for chooser in choosers:
            chooser.add(name, weight=weight, streams=streams, order=order, connect_time=connect_time)
        self._of[name] = choosers

    def remove(self, name: str) -> None:
        """See Chooser."""
        for chooser in self._of.pop(name):
            chooser.remove(name)

    def scale(self, name: str, tenths: int) -> None:
        """See Chooser."""
        for chooser in self._of.get(name, ()):
            chooser.scale(name, tenths)

    def count_streams(self, name: str, streams: int) -> None:
        """See Chooser."""
        for chooser in self._of[name]:
            chooser.count_streams(name, streams)

    def choose(
        self, exclude: Collection[str], *, now: float, sticky: str | None, among: frozenset[str] | None
    ) -> str | None:
        """See Chooser.

        Args:
            exclude: Candidates that must not be chosen.
            now: The time (seconds of the pool's clock).
            sticky: What the stream sticks by.
            among: The only candidates that may be chosen; None: all.
        """
        if among is None:
            return self._all.choose(exclude, now=now, sticky=sticky)
        chooser = self._among.get(among)
        if chooser is None:
            # The rule went with a reload while the stream waited.
            return self._all.choose({*exclude, *(self._of.keys() - among)}, now=now, sticky=sticky)
        return chooser.choose(exclude, now=now, sticky=sticky)

    def has_any(self, among: frozenset[str] | None, exclude: frozenset[str] = NOTHING) -> bool:
        """Whether there is a candidate among these (None: all) that is not excluded."""
        if exclude:
            return any(name in self._of for name in (among or self._of.keys()) - exclude)
        return bool(self._of) if among is None else not among.isdisjoint(self._of)


def sticky_value(event: StreamEvent, by: StickyBy) -> str | None:
    """What decides where a stream sticks, or None when it has nothing of the kind.

    Args:
        event: NEW or NEWRESOLVE: the only events that tell the client's address (tor-facts 1).
        by: What the policy asks for.
    """
    match by:
        case StickyBy.SOCKS_USER:
            return event.keywords.get("SOCKS_USERNAME")
        case StickyBy.DESTINATION:
            return event.target.rpartition(":")[0].lower() or None
        case StickyBy.SOURCE:
            return event.keywords.get("SOURCE_ADDR", "").rpartition(":")[0] or None
        case _:
            return None
