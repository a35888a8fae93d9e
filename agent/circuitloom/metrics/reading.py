"""What the metrics are made from: the numbers of pool and service at one moment."""

from __future__ import annotations

from dataclasses import dataclass, field

from circuitloom.pool import Histogram, PoolSnapshot, Tally
from circuitloom.rounds.types import RoundCounts

DECISION_BOUNDS_SECONDS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(slots=True)
class AgentCounts:
    """What has happened to the agent so far.

    Attributes:
        connections: Control connections on which Tor was taken up.
        takeovers: How often attachment was taken over, or taken back.
        give_backs: How often it was given back to Tor.
        reloads_applied: Policies that were put into force while it ran.
        reloads_refused: Policies that were not, for their faults.
        is_policy_current: Whether the last reload, if any, was not refused.
        decisions: From reading what Tor says of a stream to the command that attaches it.
    """

    connections: int = 0
    takeovers: int = 0
    give_backs: int = 0
    reloads_applied: int = 0
    reloads_refused: int = 0
    is_policy_current: bool = True
    decisions: Histogram = field(default_factory=lambda: Histogram(DECISION_BOUNDS_SECONDS))


@dataclass(frozen=True, slots=True)
class Reading:
    """One look at everything.

    Attributes:
        snapshot: The pool as it is.
        tally: What has happened in it.
        counts: What has happened to the agent.
        guards: How many built circuits begin at each first relay, the most first.
        version: Of the agent.
        tor_version: As Tor told it; empty before.
        rounds: What has become of rounds.
    """

    snapshot: PoolSnapshot
    tally: Tally
    counts: AgentCounts
    guards: tuple[int, ...]
    version: str
    tor_version: str
    rounds: RoundCounts = field(default_factory=RoundCounts)
