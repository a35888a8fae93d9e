"""What the demo measured, and the words for it.

Every number was measured in the same run. What went where is counted from Tor's own STREAM events, not from
what the agent says of itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from circuitloom.lab.traffic import LoadReport, Outcome

WEIGHTS = {"heavy": 4, "middle": 3, "light": 2, "feather": 1}

CLOSED = "heavy"
"""Whose circuit is closed on the way: the one with the most streams."""

BLAME_SECONDS = 0.1
"""A stream that Tor put on the circuit in the moment of its end is told as started a little later."""


@dataclass(slots=True)
class Failover:
    """What happened after a circuit was closed; times are on the clock of ``time.monotonic``.

    Attributes:
        circuit_id: The one that was closed.
        closed_at: When.
        open_streams: How many it carried then.
        replaced_by: The circuit that took its place.
        used_at: When Tor sent the first stream over that one.
    """

    circuit_id: str
    closed_at: float
    open_streams: int
    replaced_by: str = ""
    used_at: float | None = None


@dataclass(slots=True)
class Findings:
    """All that was measured so far; the views show it while it grows.

    Attributes:
        seconds: How long the load is to run.
        started_at: When it began, on the clock of ``time.monotonic``.
        own: The load that Tor assigned itself.
        load: The load under the agent.
        carried: How many streams Tor sent over the circuits of each slot; other circuits under an empty name.
        status: The agent's last status document.
        failover: What happened to the closed circuit, once there is one.
        events: What happened when, in words.
    """

    seconds: float
    started_at: float = 0.0
    own: LoadReport = field(default_factory=lambda: LoadReport(()))
    load: LoadReport = field(default_factory=lambda: LoadReport(()))
    carried: Counter[str] = field(default_factory=Counter)
    status: Mapping[str, Any] = field(default_factory=dict)
    failover: Failover | None = None
    events: list[str] = field(default_factory=list)

    @property
    def elapsed_seconds(self) -> float:
        """Since the load began."""
        return time.monotonic() - self.started_at

    def note(self, text: str) -> None:
        """Remember what happened just now."""
        self.events.append(f"{self.elapsed_seconds:5.1f} s  {text}")

    def share(self, name: str) -> float:
        """The part of all streams that Tor sent over this slot's circuits, 0 to 1."""
        return self.carried[name] / max(1, self.carried.total())

    def lost_with_circuit(self) -> int:
        """Streams that were on the circuit when it was closed: with any Tor they end with it."""
        failover = self.failover
        if failover is None:
            return 0
        return sum(
            result.outcome is not Outcome.SUCCEEDED
            and result.started_at <= failover.closed_at + BLAME_SECONDS
            and result.ended_at >= failover.closed_at
            for result in self.load.results
        )

    def lost_otherwise(self) -> int:
        """Streams that did not end well, and not because their circuit was closed."""
        return self.load.lost - self.lost_with_circuit()


def wanted_share(name: str) -> float:
    """The part of all streams that the policy gives this slot, 0 to 1."""
    return WEIGHTS[name] / sum(WEIGHTS.values())


def summary(findings: Findings) -> str:
    """What was seen, for a person; at most 78 columns."""
    lines = ["Shares, counted from Tor's own events:", "", "  circuit   weight   wanted   actual   streams"]
    for name, weight in WEIGHTS.items():
        shares = f"{wanted_share(name):>8.1%} {findings.share(name):>8.1%}"
        lines.append(f"  {name:<9} {weight:>6} {shares} {findings.carried[name]:>9}")
    if findings.carried[""]:
        lines.append(
            f"  {'by Tor':<9} {'-':>6} {'-':>8} {findings.share(''):>8.1%} {findings.carried['']:>9}"
        )
    lines += [
        "",
        "SOCKS connect times, same client, same load:",
        "",
        "                             p50       p99   streams   cut   lost",
        _times("Tor's own assignment", findings.own, cut=0),
        _times("circuitloom", findings.load, cut=findings.lost_with_circuit()),
        "",
        *_failover_lines(findings),
    ]
    return "\n".join(lines)


def _times(label: str, report: LoadReport, *, cut: int) -> str:
    p50, p99 = (report.connect_percentile_seconds(percent) * 1000 for percent in (50, 99))
    counts = f"{len(report.results):>9} {cut:>5} {report.lost - cut:>6}"
    return f"  {label:<20} {p50:>6.1f} ms {p99:>6.1f} ms {counts}"


def _failover_lines(findings: Findings) -> list[str]:
    failover = findings.failover
    if failover is None:
        return ["No circuit was closed: the load ended too early."]
    lines = [
        f"Failover: {CLOSED}'s circuit {failover.circuit_id} was closed behind the agent's back.",
        f"  {findings.lost_with_circuit()} streams ran on it and were cut: Tor cannot move a running stream.",
        f"  {findings.lost_otherwise()} other streams were lost: new ones went to the other circuits.",
    ]
    if failover.used_at is None:
        lines.append("  Its replacement did not carry a stream before the load ended.")
    else:
        seconds = failover.used_at - failover.closed_at
        lines.append(
            f"  Its replacement, circuit {failover.replaced_by}, carried streams after {seconds:.2f} s."
        )
    return lines
