"""How much of its weight a member has: less while it is fresh, less while it is much slower than the others.

Rules of this file:

* Weight goes and comes a tenth at a time, and nobody has less than a tenth: without streams nothing would
  tell that a member is well again.
* Who is slow is judged against the median, of three measured members at least: of two there is no telling
  which one is the odd one.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from heapq import heapify, heappop, heappush
from itertools import count
from statistics import median
from typing import Generic, TypeVar

from circuitloom.policy.health import Degrade

Member = TypeVar("Member", bound=Hashable)

WHOLE, LEAST = 10, 1
"""Tenths of a weight."""

LEAST_MEASURED = 3

NEVER = float("inf")


class Fitness(Generic[Member]):
    """The tenths of its weight that each member has.

    Args:
        slow_start_seconds: How long a fresh member takes to have all of them; None: it has them at once.
        degrade: When a slow member loses some; None: never.

    Attributes:
        slow_start_seconds: As given.
        degrade: As given.
        review_at: From when on ``review`` may find a change (seconds of the caller's clock).
    """

    def __init__(self, slow_start_seconds: float | None, degrade: Degrade | None) -> None:
        self.slow_start_seconds = slow_start_seconds
        # Without a window nobody is fresh, and it is not looked at.
        self._window_seconds = slow_start_seconds or 0.0
        self.degrade = degrade
        self.review_at = NEVER if degrade is None else 0.0
        self._judge_at = self.review_at
        self._fresh_since: dict[Member, float] = {}
        self._fresh: dict[Member, int] = {}
        self._slow: dict[Member, int] = {}
        self._steps: list[tuple[float, int, Member]] = []
        self._step_of: dict[Member, int] = {}
        self._numbers = count()

    def tenths(self, member: Member) -> int:
        """What the member has of its weight since the last review, from ``LEAST`` to ``WHOLE``."""
        return self._product(member, self._fresh.get(member, WHOLE))

    def tenths_at(self, member: Member, *, now: float) -> int:
        """What it will have if it is reviewed now (seconds of the caller's clock)."""
        since = self._fresh_since.get(member)
        return self._product(member, WHOLE if since is None else self._ramp(now - since))

    def is_degraded(self, member: Member) -> bool:
        """Whether the member has lost weight for being slow."""
        return member in self._slow

    def begin(self, member: Member, *, now: float) -> None:
        """The member begins to take streams now (seconds of the caller's clock), as if it were new."""
        if self.slow_start_seconds is None:
            return
        self._fresh_since[member] = now
        self._fresh[member] = LEAST
        self._step(member, LEAST)
        if len(self._steps) > 64 + 4 * len(self._fresh_since):
            # Members that went leave their step behind, and without streams nobody reviews.
            self._steps = [entry for entry in self._steps if self._step_of.get(entry[2]) == entry[1]]
            heapify(self._steps)

    def forget(self, member: Member) -> None:
        """The member takes no streams any more."""
        for kept in (self._fresh_since, self._fresh, self._slow, self._step_of):
            kept.pop(member, None)

    def review(self, measured: Callable[[], Mapping[Member, float]], *, now: float) -> list[Member]:
        """Give and take what is due.

        Args:
            measured: Asked for how long each member that was measured takes (seconds).
            now: The time (seconds of the caller's clock).

        Returns:
            The members that may have other tenths than before.
        """
        changed = dict.fromkeys(self._warm(now))
        if self.degrade is not None and self._judge_at <= now:
            self._judge_at = now + self.degrade.interval_seconds
            changed |= dict.fromkeys(self._judge(measured(), self.degrade.slower_than))
        self.review_at = min(self._judge_at, self._steps[0][0] if self._steps else NEVER)
        return list(changed)

    # --- slow start ----------------------------------------------------------------------------------------

    def _warm(self, now: float) -> Iterator[Member]:
        while self._steps and self._steps[0][0] <= now:
            _, number, member = heappop(self._steps)
            if self._step_of.get(member) != number:
                continue
            # One more at least: the time of the step has come, whatever a division makes of it.
            tenths = max(self._ramp(now - self._fresh_since[member]), min(WHOLE, self._fresh[member] + 1))
            if tenths == WHOLE:
                del self._fresh_since[member], self._fresh[member], self._step_of[member]
            else:
                self._fresh[member] = tenths
                self._step(member, tenths)
            yield member

    def _ramp(self, age_seconds: float) -> int:
        return max(LEAST, min(WHOLE, int(WHOLE * age_seconds / self._window_seconds)))

    def _step(self, member: Member, tenths: int) -> None:
        """Look at a fresh member when it is due for one more than ``tenths``."""
        at = self._fresh_since[member] + self._window_seconds * (tenths + 1) / WHOLE
        number = self._step_of[member] = next(self._numbers)
        heappush(self._steps, (at, number, member))
        self.review_at = min(self.review_at, at)

    # --- degraded ------------------------------------------------------------------------------------------

    def _judge(self, seconds: Mapping[Member, float], slower_than: float) -> Iterator[Member]:
        """One step for each member towards the weight that makes up for its slowness."""
        bound = median(seconds.values()) * slower_than if len(seconds) >= LEAST_MEASURED else NEVER
        for member in {**seconds, **self._slow}:
            own = seconds.get(member, 0.0)
            wanted = WHOLE if own <= bound else max(LEAST, int(WHOLE * bound / own))
            has = self._slow.get(member, WHOLE)
            if wanted == has:
                continue
            tenths = has + (1 if wanted > has else -1)
            if tenths == WHOLE:
                del self._slow[member]
            else:
                self._slow[member] = tenths
            yield member

    def _product(self, member: Member, fresh: int) -> int:
        return max(LEAST, fresh * self._slow.get(member, WHOLE) // WHOLE)
