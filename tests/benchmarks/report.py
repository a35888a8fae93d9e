"""The report of ``./dev bench``: one page in Markdown with charts beside it, part by part.

Rules of this file:

* A part that is measured anew replaces its own text and charts; the others stay as they are.
* Each part says when, where and how often it was measured, and how loud the machine was.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

HEAD = """\
# Benchmarks

`./dev bench` measures all of this anew on your machine and writes this page, in about ten minutes;
`./dev bench attach`, `scale`, `failover` or `tor` does one part. How: [the benchmarks' README](../README.md).
Every figure is the median of its rounds, with (lowest..highest); thin lines in the charts reach as far.
"""

PARTS = ("attach", "tor", "scale", "failover", "ends")
"""In the order of the page."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure that was set as an aim, and what was measured.

    Attributes:
        aim: In words.
        measured: The same, with unit and spread.
        holds: Whether the aim was reached.
    """

    aim: str
    measured: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Part:
    """What one part of the benchmark found.

    Attributes:
        name: One of ``PARTS``.
        title: Its heading.
        text: Markdown, without heading and date.
        figures: The aims that it measures.
        charts: SVG texts by file name.
    """

    name: str
    title: str
    text: str
    figures: Sequence[Figure] = ()
    charts: Mapping[str, str] = field(default_factory=dict)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def part_text(part: Part, measured: str) -> str:
    """One part in Markdown; ``measured`` says when, where and how often."""
    blocks = [f"## {part.title}", measured, part.text]
    if part.figures:
        rows = [(figure.aim, figure.measured, "yes" if figure.holds else "**no**") for figure in part.figures]
        blocks.insert(2, table(("aim", "measured", "holds"), rows))
    return "\n\n".join(block.strip() for block in blocks) + "\n"


def write_part(directory: Path, part: Part, measured: str) -> None:
    """Put one part into the report in this directory, which is made when it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / "README.md"
    texts = _parts_of(page.read_text("utf-8")) if page.exists() else {}
    texts[part.name] = part_text(part, measured)
    blocks = [f"<!-- part: {name} -->\n\n{texts[name].strip()}\n" for name in PARTS if name in texts]
    page.write_text("\n".join([HEAD, *blocks]), "utf-8")
    for name, chart in part.charts.items():
        (directory / name).write_text(chart, "utf-8")


def _parts_of(text: str) -> dict[str, str]:
    """The parts of a report by name; none of a page that is no such report."""
    pieces = re.split(r"^<!-- part: (\w+) -->$", text, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))
