"""How the demo looks while it runs: a live table in a terminal, lines elsewhere.

Both fit 80 columns and say all in words and numbers; colour only repeats it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from circuitloom.demo.findings import WEIGHTS, Findings, wanted_share
from circuitloom.errors import LabError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

WIDTH = 78
"""Fits a terminal of 80 columns."""

BAR_WIDTH = 8
FULL_BAR_SHARE = 0.5
"""What a full bar stands for: no share comes near the whole."""

LINE_SECONDS = 2.0
"""How often the plain view prints a line."""

EVENTS_SHOWN = 4


class View(Protocol):
    """Something that shows the demo while it runs."""

    def stage(self, text: str) -> None:
        """A new part of the demo has begun."""

    def show(self, findings: Findings) -> None:
        """Something may have changed."""


@contextlib.contextmanager
def open_view(*, plain: bool) -> Iterator[View]:
    """The view that fits standard output.

    Args:
        plain: Lines, even in a terminal.

    Raises:
        LabError: The live view is wanted, and rich is not installed.
    """
    if plain or not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield PlainView()
        return
    try:
        from rich.console import Console  # noqa: PLC0415 - only this view needs rich
        from rich.live import Live  # noqa: PLC0415
    except ImportError:
        raise LabError(
            "the live view needs rich: install circuitloom[demo] (or python3-rich), or add --plain"
        ) from None
    console = Console(highlight=False)
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        yield LiveView(console, live)


class PlainView:
    """Lines on standard output."""

    def __init__(self) -> None:
        self._began_at = time.monotonic()
        self._next_line_at = 0.0
        self._events_told = 0

    def stage(self, text: str) -> None:
        """A new part of the demo has begun."""
        self._tell(text)

    def show(self, findings: Findings) -> None:
        """Tell new events at once, and the shares now and then."""
        for event in findings.events[self._events_told :]:
            self._tell(event.partition("s  ")[2])
        self._events_told = len(findings.events)
        now = time.monotonic()
        if now >= self._next_line_at:
            self._next_line_at = now + LINE_SECONDS
            shares = " ".join(f"{name} {findings.share(name):.0%}" for name in WEIGHTS)
            self._tell(f"{shares}  {_counts(findings).replace(',', '')}")

    def _tell(self, text: str) -> None:
        sys.stdout.write(f"{time.monotonic() - self._began_at:5.1f} s  {text}\n")
        # A pipe is block-buffered; whoever reads wants the line now.
        sys.stdout.flush()


class LiveView:
    """A table that is drawn again in place; the stages scroll by above it."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console = console
        self._live = live
        self._began_at = time.monotonic()
        # A terminal that cannot draw blocks still shows how long a bar is.
        self._block = "█" if console.encoding.startswith("utf") else "#"

    def stage(self, text: str) -> None:
        """A new part of the demo has begun."""
        from rich.spinner import Spinner  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        time_of_day = Text(f"{time.monotonic() - self._began_at:5.1f} s  ", style="dim")
        self._console.print(time_of_day + Text(text))
        self._live.update(Spinner("line", Text("")), refresh=True)

    def show(self, findings: Findings) -> None:
        """Draw the table again."""
        self._live.update(self._drawing(findings))

    def _drawing(self, findings: Findings) -> RenderableType:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        status = findings.status
        style = "bold green" if status["state"] == "balancing" else "bold yellow"
        reason = status["reason"].removeprefix(f"{status['state']} ")
        elapsed_seconds = min(findings.elapsed_seconds, findings.seconds)
        return Group(
            Text(f"\n {status['state'].upper()}", style=style) + Text(f"  {reason}", style="default"),
            Text(""),
            self._table(findings),
            Text(f"\n {_rates(findings)}"),
            Text(f" {_times(findings)}", style="dim"),
            Text(""),
            *(Text(f" {event}") for event in findings.events[-EVENTS_SHOWN:]),
            Text(f"\n {elapsed_seconds:.0f} of {findings.seconds:.0f} s; Ctrl-C ends it early", style="dim"),
        )

    def _table(self, findings: Findings) -> RenderableType:
        from rich.table import Table  # noqa: PLC0415

        table = Table(box=None, width=WIDTH, padding=(0, 1), header_style="dim", pad_edge=True)
        for name in ("CIRCUIT", "ID", "STATE", "PATH"):
            table.add_column(name, no_wrap=True)
        for name in ("OPEN", "WANTED", "ACTUAL"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", width=BAR_WIDTH, no_wrap=True)
        for circuit in findings.status["circuits"]:
            name, share = circuit["name"], findings.share(circuit["name"])
            table.add_row(
                name,
                circuit["circuit_id"] or "-",
                circuit["state"],
                " ".join(circuit["path"]) or "-",
                str(circuit["streams"]),
                f"{wanted_share(name):.1%}",
                f"{share:.1%}",
                self._block * round(share / FULL_BAR_SHARE * BAR_WIDTH),
                style="" if circuit["state"] == "built" else "yellow",
            )
        return table


def _rates(findings: Findings) -> str:
    streams = findings.status["streams"]
    per_second = len(findings.load.results) / max(1.0, findings.elapsed_seconds)
    now = f"{streams['active']} open, {streams['waiting']} waiting"
    return f"{per_second:.0f} streams/s   {_counts(findings)}   {now}"


def _counts(findings: Findings) -> str:
    cut = findings.lost_with_circuit()
    return f"{findings.carried.total()} streams, {cut} cut, {findings.lost_otherwise()} lost"


def _times(findings: Findings) -> str:
    words = []
    for label, report in (("circuitloom", findings.load), ("Tor alone", findings.own)):
        if report.results:
            p50, p99 = (report.connect_percentile_seconds(percent) * 1000 for percent in (50, 99))
            words.append(f"{label} {p50:.0f} (p99 {p99:.0f}) ms")
    return f"connect p50: {', '.join(words)}"
