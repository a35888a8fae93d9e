"""What a policy says of circuits that do badly: the parts of ``health`` beyond ejection."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class PanicAction(StrEnum):
    """What streams do while too few circuits are healthy: use all of them, leave for Tor, or wait."""

    ALL = "all"
    TOR = "tor"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Panic:
    """When too few circuits of a key are healthy.

    Attributes:
        threshold: Below this part (0 to 1) of those that are BUILT.
        action: What its streams do then.
    """

    threshold: float = 0.5
    action: PanicAction = PanicAction.ALL
