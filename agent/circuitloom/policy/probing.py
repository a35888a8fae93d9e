"""The part of the policy about probes: streams of the agent's own that show whether a circuit works."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from circuitloom.policy.types import ControlAddress


@dataclass(frozen=True, slots=True)
class Probe:
    """When circuits are probed, and what the outcomes do.

    Attributes:
        socks: Tor's SOCKS port that probes come through.
        targets: ``host:port`` of each destination.
        interval_seconds: From one check of a circuit to its next.
        timeout_seconds: How long one stream may take.
        rise: After how many passed checks in a row a circuit that is down takes streams again.
        fall: After how many failed ones in a row it is down.
        quorum: How many targets have to answer in one check.
        jitter: By up to which part (0 to 1) an interval is shorter.
        read_bytes: How many bytes a target has to send.
        budget_bytes: The most that all probes together may cost in an hour; None: no bound.
        unused: Whether circuits are probed that have carried no stream yet.
    """

    socks: ControlAddress
    targets: tuple[str, ...]
    interval_seconds: float = 30.0
    timeout_seconds: float = 5.0
    rise: int = 2
    fall: int = 3
    quorum: int = 1
    jitter: float = 0.2
    read_bytes: int = 0
    budget_bytes: int | None = None
    unused: bool = False
