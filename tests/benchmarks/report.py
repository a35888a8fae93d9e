"""The report of ``./dev bench``: a table and one chart, in files that a README can show."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.attach import Row

_BAR_HEIGHT, _GAP, _LABEL_WIDTH, _WIDTH = 24, 12, 330, 760


def write_report(directory: Path, rows: Sequence[Row], *, machine: str, date: str, rounds: int) -> None:
    """Write ``README.md`` and ``attach.svg`` into the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "README.md").write_text(report_text(rows, machine=machine, date=date, rounds=rounds))
    (directory / "attach.svg").write_text(chart(rows))


def report_text(rows: Sequence[Row], *, machine: str, date: str, rounds: int) -> str:
    """The report in Markdown."""
    lines = [
        "# Benchmarks",
        "",
        f"Measured {date} on {machine}; `./dev bench` writes this file anew.",
        "",
        "A control port on a Unix socket floods whoever attaches its streams, each with the five lines",
        "that Tor writes for it. CPU is that of the process and its children; the time is from NEW to",
        f"ATTACHSTREAM. Median (lowest..highest) of {rounds} rounds in turns.",
        "",
        "![attachments a second](attach.svg)",
        "",
        "| who attaches | in flight | streams/s | CPU us/stream | p50 ms | p99 ms | RSS MiB |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.name} | {row.window} | {row.per_second:,.0f} | {row.cpu_us:.1f} | {row.p50_ms:.2f} "
        f"| {row.p99_ms:.2f} | {row.rss_mib:.0f} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


def chart(rows: Sequence[Row]) -> str:
    """Streams a second as bars, in colours that read on a light and on a dark page."""
    longest = max(row.per_second.median for row in rows)
    height = len(rows) * (_BAR_HEIGHT + _GAP) + _GAP
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"',
        ' font-family="sans-serif" font-size="13" fill="#768390">',
    ]
    for number, row in enumerate(rows):
        top = _GAP + number * (_BAR_HEIGHT + _GAP)
        width = max(1.0, (_WIDTH - _LABEL_WIDTH - 80) * row.per_second.median / longest)
        middle = top + _BAR_HEIGHT * 2 / 3
        label = f"{row.name}, {row.window} in flight"
        figure = f"{row.per_second.median:,.0f}/s"
        parts += [
            f'<text x="{_LABEL_WIDTH - 8}" y="{middle:.0f}" text-anchor="end">{label}</text>',
            f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{width:.0f}" height="{_BAR_HEIGHT}" fill="#7d4698"/>',
            f'<text x="{_LABEL_WIDTH + width + 8:.0f}" y="{middle:.0f}">{figure}</text>',
        ]
    return "\n".join([*parts, "</svg>", ""])
