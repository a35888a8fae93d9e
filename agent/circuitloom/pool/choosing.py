"""From the policy to a chooser, and from a stream to what it sticks by."""

from __future__ import annotations

from collections.abc import Callable

from circuitloom.balancing import CHOOSERS, Chooser, Sticky
from circuitloom.model import StreamEvent
from circuitloom.policy.types import Balance, StickyBy


def new_chooser(balance: Balance, uniform: Callable[[], float]) -> Chooser:
    """The chooser that the policy asks for.

    Args:
        balance: What it says.
        uniform: Gives a random number in [0, 1).
    """
    chooser = CHOOSERS[balance.algorithm](uniform)
    return chooser if balance.sticky is StickyBy.NONE else Sticky(chooser, balance.sticky_load)


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
