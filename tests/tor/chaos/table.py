"""The table: one line per fault, 80 columns, and what is wrong below its line."""

from __future__ import annotations

import math
import textwrap

from tor.chaos.row import Row

WIDTH = 80
HEADER = (
    f"{'fault, under 50 streams/s':33} {'streams':>7} {'cut':>4} {'stranded':>8} {'lost':>5} "
    f"{'works in':>8} {'longest':>8}"
)
LEGEND = """\
cut       ended with their circuit or with Tor, as without circuitloom
stranded  waited over 5 s for the SOCKS reply while Tor could have served them
lost      failed although Tor alone would have kept them
works in  from the fault (or Tor's return) until new streams succeed again
longest   the longest wait for a SOCKS reply while Tor could serve"""


def format_row(row: Row) -> str:
    """The line, and indented below it what failed and what Tor complained of."""
    verdict = row.verdict
    line = (
        f"{row.scenario.name:33} {verdict.streams:7} {verdict.cut:4} {verdict.stranded:8} {verdict.lost:5} "
        f"{_seconds(verdict.works_seconds):>8} {_seconds(verdict.longest_seconds):>8}"
    )
    remarks = [f"FAILED: {problem}" for problem in row.problems] + [f"note: {note}" for note in row.notes]
    wrapped = (
        textwrap.fill(text, WIDTH, initial_indent="    ", subsequent_indent="        ") for text in remarks
    )
    return "\n".join([line, *wrapped])


def format_total(rows: list[Row], seconds: float) -> str:
    """One line on all rows."""
    failed = sum(1 for row in rows if row.problems)
    streams = sum(row.verdict.streams for row in rows)
    outcome = f"{failed} of {len(rows)} rows FAILED" if failed else f"all {len(rows)} rows well"
    return f"{outcome}: {streams} streams in {seconds / 60:.0f} min {seconds % 60:02.0f} s"


def _seconds(seconds: float) -> str:
    return "never" if math.isinf(seconds) else f"{seconds:.2f} s"
