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


@dataclass(frozen=True, slots=True)
class Degrade:
    """When a slow circuit loses weight.

    Attributes:
        slower_than: From how many times the median connect time of its key's circuits on.
        interval_seconds: How often it loses a tenth of its weight, or gets one back.
    """

    slower_than: float = 3.0
    interval_seconds: float = 2.0
