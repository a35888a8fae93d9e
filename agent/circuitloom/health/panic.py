"""Panic: when so many members are out that those left would have to carry everything (Envoy's threshold)."""

from __future__ import annotations

from circuitloom.policy.health import Panic, PanicAction


class Alarm:
    """Whether too few members are healthy, and what that means.

    Args:
        rule: From which part on, and what follows; None: never.
    """

    def __init__(self, rule: Panic | None) -> None:
        self.rule = rule
        self.is_on = False

    @property
    def action(self) -> PanicAction | None:
        """What is done now; None: nothing out of the ordinary."""
        return self.rule.action if self.rule is not None and self.is_on else None

    def count(self, *, healthy: int, members: int) -> bool:
        """So many of the members are healthy.

        Returns:
            Whether the alarm went on or off by that.
        """
        was_on = self.is_on
        threshold = 0.0 if self.rule is None else self.rule.threshold
        self.is_on = healthy < threshold * members
        return self.is_on != was_on
