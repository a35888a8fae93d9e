"""Active health checks: through which targets a circuit is checked, and what the outcomes come to.

Rules of this file:

* A check tries as many targets as have to answer, and another one for each that fails (HAProxy's rise and
  fall, over a quorum).
* What never reached a circuit, and a failure of a target that most circuits fail on, says nothing of a
  circuit: a check that cannot be decided otherwise counts neither way.
* It knows members and the time it is given; what a member is, and how a target is tried, others know.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from circuitloom.policy.probing import Probe

CELL_BYTES = 514
"""A cell on the wire (tor-spec 3)."""

CELL_DATA_BYTES = 498
"""What one relay cell carries of a stream (tor-spec 6.1)."""

STREAM_CELLS = 3
"""BEGIN, CONNECTED and END."""

DEAD_MEMBERS = 3
"""A target is never taken for dead because of fewer: two bad circuits are no rarity, three at once are."""

HOUR_SECONDS = 3600.0

MIN_PART = 0.1
"""Of an interval; a jitter of 100 % must not turn checks into a flood."""


class Verdict(StrEnum):
    """What a check, or one stream of it, found."""

    PASSED = "passed"
    FAILED = "failed"
    VOID = "void"


class Check:
    """One check of one member.

    Args:
        targets: Those that count, in the order of trying.
        quorum: How many of them have to answer.
        scouts: Targets taken for dead, tried besides to see whether they still are.
    """

    def __init__(self, targets: Sequence[str], quorum: int, scouts: Sequence[str] = ()) -> None:
        self._left = list(targets)
        self._scouts = list(scouts)
        self._open: set[str] = set()
        self._quorum = quorum
        self._answered = 0
        self._failed = 0
        self._total = len(targets)

    def next_targets(self) -> list[str]:
        """The targets to try now; each has to come back in ``settle``."""
        targets, self._scouts = self._scouts, []
        missing = self._quorum - self._answered - len(self._open)
        if missing > 0:
            targets += self._left[:missing]
            del self._left[:missing]
        self._open.update(targets)
        return targets

    def settle(self, target: str, verdict: Verdict) -> None:
        """One target was tried."""
        self._open.discard(target)
        self._answered += verdict is Verdict.PASSED
        self._failed += verdict is Verdict.FAILED

    @property
    def verdict(self) -> Verdict | None:
        """What it comes to; None while targets are, or have to be, tried."""
        if self._open or self._scouts:
            return None
        if self._answered >= self._quorum:
            return Verdict.PASSED
        if self._left:
            return None
        is_decided = self._failed > 0 and self._total - self._failed < self._quorum
        return Verdict.FAILED if is_decided else Verdict.VOID


@dataclass(slots=True)
class Checkup:
    """What is known of one member by its checks; ``weigh`` keeps it.

    Attributes:
        due: When its next check is, or the one under way began (seconds of the caller's clock).
        check: The one under way.
        last: What the last decided check found; None: there was none.
        last_at: When (seconds of the caller's clock).
        in_a_row: How many decided checks before it, and with it, found the same.
        is_down: Whether it fell, and has not risen since.
        why_not: Why it is not checked; empty: it is.
        is_unfit: Whether that will not change.
    """

    due: float = 0.0
    check: Check | None = None
    last: Verdict | None = None
    last_at: float = 0.0
    in_a_row: int = 0
    is_down: bool = False
    why_not: str = ""
    is_unfit: bool = False

    def weigh(self, verdict: Verdict, rule: Probe, *, now: float) -> None:
        """A check has ended.

        Args:
            verdict: What it found.
            rule: How many in a row make the member fall or rise.
            now: The time (seconds of the caller's clock).
        """
        self.check = None
        if verdict is Verdict.VOID:
            return
        self.in_a_row = self.in_a_row + 1 if verdict is self.last else 1
        self.last, self.last_at = verdict, now
        if verdict is Verdict.PASSED and self.in_a_row >= rule.rise:
            self.is_down = False
        elif verdict is Verdict.FAILED and self.in_a_row >= rule.fall:
            self.is_down = True


class Targets:
    """The targets of a policy, and which of them are taken for dead.

    Args:
        rule: The policy.
    """

    def __init__(self, rule: Probe) -> None:
        self._rule = rule
        self._failed_on: dict[str, set[Hashable]] = {target: set() for target in rule.targets}
        self._scout_at: dict[str, float] = {}
        self._turn = 0

    def begin(self, *, now: float) -> Check:
        """A new check; each begins with another target, and a dead one is tried once an interval.

        Args:
            now: The time (seconds of the caller's clock).
        """
        targets = self._rule.targets
        start, self._turn = self._turn, (self._turn + 1) % len(targets)
        order = [*targets[start:], *targets[:start]]
        alive = [target for target in order if target not in self._scout_at]
        scouts = [target for target, at in self._scout_at.items() if at <= now]
        for target in scouts:
            self._scout_at[target] = now + self._rule.interval_seconds
        return Check(alive, max(1, min(self._rule.quorum, len(alive))), scouts)

    def judge(
        self, target: str, member: Hashable, *, has_answered: bool, members: int, now: float
    ) -> Verdict:
        """What an answer, or a failure, of a target says of a member.

        Args:
            target: Which.
            member: Over which member.
            has_answered: Whether it did.
            members: How many are checked in all: a target that most of them fail on is dead.
            now: The time (seconds of the caller's clock).
        """
        failed_on = self._failed_on.setdefault(target, set())
        if has_answered:
            failed_on.clear()
            self._scout_at.pop(target, None)
            return Verdict.PASSED
        if target in self._scout_at:
            return Verdict.VOID
        failed_on.add(member)
        if len(failed_on) >= max(DEAD_MEMBERS, members // 2 + 1):
            failed_on.clear()
            self._scout_at[target] = now + self._rule.interval_seconds
            return Verdict.VOID
        return Verdict.FAILED

    def forget(self, members: Iterable[Hashable]) -> None:
        """These are gone, and hold nothing against a target."""
        gone = set(members)
        for failed_on in self._failed_on.values():
            failed_on.difference_update(gone)

    @property
    def dead(self) -> int:
        """How many are taken for dead."""
        return len(self._scout_at)


class Allowance:
    """How many bytes may still be spent: a bucket that an hour fills.

    Args:
        budget_bytes: What it holds, and what an hour brings; None: no bound.
        now: The time (seconds of the caller's clock); it is full.
    """

    def __init__(self, budget_bytes: int | None, *, now: float) -> None:
        self._budget = budget_bytes
        self._left = float(budget_bytes or 0)
        self._at = now

    def spend(self, cost_bytes: int, *, now: float) -> float | None:
        """Take so much, now.

        Returns:
            None: it was taken. Else when enough will be there (seconds of the caller's clock); what costs
            more than the whole is had for the whole.
        """
        if self._budget is None:
            return None
        rate = self._budget / HOUR_SECONDS
        self._left = min(self._budget, self._left + (now - self._at) * rate)
        self._at = now
        needed = min(cost_bytes, self._budget)
        if self._left >= needed:
            self._left -= needed
            return None
        return now + (needed - self._left) / rate


def cost_of_stream(rule: Probe) -> int:
    """What one stream to a target costs at most, in bytes of cells."""
    return (STREAM_CELLS + -(-rule.read_bytes // CELL_DATA_BYTES)) * CELL_BYTES


def first_due(rule: Probe, *, now: float, uniform: Callable[[], float]) -> float:
    """When a new member is checked: soon, and not all of them at once (seconds of the clock of ``now``)."""
    return now + rule.interval_seconds * rule.jitter * uniform()


def next_due(rule: Probe, *, begun: float, now: float, uniform: Callable[[], float]) -> float:
    """When a member is checked again.

    Args:
        rule: The policy.
        begun: When its last check began.
        now: The time, on the clock of ``begun`` (seconds).
        uniform: Gives a random number in [0, 1).
    """
    return max(now, begun + rule.interval_seconds * max(MIN_PART, 1 - rule.jitter * uniform()))
