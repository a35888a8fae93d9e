"""Ejection: a circuit on which streams in a row fail takes none for a while (Envoy's outlier ejection).

Rules of this file:

* Never more members are out than the policy's part of all, rounded down, and never all of them. When members
  go, those that have been out longest come back.
* Each ejection of a member is longer than its last one, up to a bound; each span of health as long as the
  policy's base takes one step back. Who is held by its probes is out until they let it in again.
* It knows members and the time it is given; what a member is, and whose fault a failure was, others know.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from circuitloom.policy.types import Eject

Member = TypeVar("Member", bound=Hashable)

MAX_STEPS = 10
"""An ejection lasts at most ten times the base: with the default of 30 s, the 5 minutes that Envoy allows."""


HELD = float("inf")
"""Until when somebody is out whom nothing but ``let_in`` brings back."""


@dataclass(slots=True)
class _Past:
    """How often a member was ejected, less what it was forgiven, and when the last time ends (seconds)."""

    ejections: int = 0
    healthy_since: float = 0.0


class Ejector(Generic[Member]):
    """Who is out, and until when.

    Args:
        rule: When, for how long, and how many at once; None: nobody for failures, and as many as by default.
    """

    def __init__(self, rule: Eject | None) -> None:
        self.rule = rule
        self._members: set[Member] = set()
        self._failures: dict[Member, int] = {}
        self._pasts: dict[Member, _Past] = {}
        self._out: dict[Member, float] = {}

    def __contains__(self, member: Member) -> bool:
        """Whether the member counts."""
        return member in self._members

    def __len__(self) -> int:
        """How many members count."""
        return len(self._members)

    @property
    def out(self) -> Collection[Member]:
        """Who is out, those that went first at the front."""
        return self._out.keys()

    def until(self, member: Member) -> float | None:
        """When a member that is out comes back (seconds of the caller's clock); None if it is not out."""
        return self._out.get(member)

    def add(self, member: Member) -> None:
        """Count a member, without a past."""
        self._members.add(member)

    def remove(self, member: Member) -> list[Member]:
        """Forget a member and its past.

        Returns:
            The members that come back, so that not too many of the rest are out.
        """
        self._forget(member)
        return self._make_room()

    def keep(self, members: Collection[Member]) -> list[Member]:
        """Count these and no others; those that were counted keep their past.

        Returns:
            The members that come back, so that not too many are out.
        """
        for member in self._members.difference(members):
            self._forget(member)
        self._members.update(members)
        return self._make_room()

    def succeed(self, member: Member) -> None:
        """A stream was connected on a member."""
        if self._failures:
            self._failures.pop(member, None)

    def fail(self, member: Member, *, now: float) -> float | None:
        """A stream failed on a member, and it was the member's fault.

        Args:
            member: Which.
            now: The time (seconds of the caller's clock).

        Returns:
            Until when it is out from now on (seconds of that clock); None if it is not, or was already.
        """
        rule = self.rule
        if rule is None or member not in self._members or member in self._out:
            return None
        failures = self._failures[member] = self._failures.get(member, 0) + 1
        if failures < rule.consecutive_failures or len(self._out) >= self._room():
            return None
        del self._failures[member]
        past = self._pasts.setdefault(member, _Past())
        forgiven = max(0, int((now - past.healthy_since) / rule.base_seconds))
        past.ejections = min(MAX_STEPS, max(0, past.ejections - forgiven) + 1)
        past.healthy_since = self._out[member] = now + rule.base_seconds * past.ejections
        return past.healthy_since

    def hold(self, member: Member) -> bool:
        """Take a member out until ``let_in``, if there is room; returns whether it is held."""
        if member not in self._members or (member not in self._out and len(self._out) >= self._room()):
            return False
        self._out[member] = HELD
        return True

    def let_in(self, member: Member) -> bool:
        """Let a member in that is held; returns whether it was."""
        is_held = self._out.get(member) == HELD
        if is_held:
            del self._out[member]
        return is_held

    def due(self, *, now: float) -> list[Member]:
        """Let those in whose time is over, and return them."""
        back = [member for member, until in self._out.items() if until <= now]
        for member in back:
            del self._out[member]
        return back

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        assert self._out.keys() | self._failures.keys() | self._pasts.keys() <= self._members
        assert len(self._out) <= self._room()

    def _forget(self, member: Member) -> None:
        self._members.discard(member)
        for kept in (self._failures, self._pasts, self._out):
            kept.pop(member, None)

    def _make_room(self) -> list[Member]:
        """Let in who was out longest, until not too many are."""
        back = []
        while len(self._out) > self._room():
            first = next(iter(self._out))
            del self._out[first]
            back.append(first)
        return back

    def _room(self) -> int:
        """How many may be out."""
        percent = (self.rule or Eject()).max_percent
        return max(0, min(len(self._members) - 1, len(self._members) * percent // 100))
