"""Small charts as SVG: bars, and lines over a logarithmic axis, on a light and on a dark page.

Rules of this file:

* What is drawn are medians; a thin line beside them reaches from the lowest to the highest round.
* Colour is never all there is: every bar and line has its name and its figure beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from benchmarks.measure import Spread

WIDTH = 760
_BAR, _GAP, _HEAD, _NAME_WIDTH, _FIGURE_WIDTH = 20, 10, 54, 250, 130
_PLOT_LEFT, _PLOT_RIGHT, _PLOT_TOP, _PLOT_HEIGHT = 64, 110, 64, 240

_STYLE = """<style>
text { font: 13px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #424a53 }
.title { font-size: 15px; font-weight: 600; fill: #1f2328 }
.quiet { fill: #656d76; font-size: 12px }
.ours { fill: #7d4698 } .other { fill: #8c959f }
.spread { stroke: #1f2328; stroke-opacity: .55; stroke-width: 1.5 }
.grid { stroke: #8c959f; stroke-opacity: .3 }
.goal { stroke: #bc4c00; stroke-dasharray: 5 4; stroke-width: 1.5 }
.aim { fill: #bc4c00; font-size: 12px }
.line { fill: none; stroke-width: 2.5 } .line.ours { stroke: #7d4698; fill: none }
.line.other { stroke: #8c959f; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #c9d1d9 } .title { fill: #f0f6fc } .quiet { fill: #9198a1 } .ours { fill: #b083f0 }
  .other { fill: #6e7681 } .spread { stroke: #f0f6fc } .aim { fill: #f0883e } .goal { stroke: #f0883e }
  .line.ours { stroke: #b083f0 } .line.other { stroke: #9198a1 }
}
</style>"""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar; ``is_ours`` gives it the colour that stands out."""

    name: str
    value: Spread
    is_ours: bool = True


@dataclass(frozen=True, slots=True)
class Curve:
    """One line: (where, how much) in ascending order."""

    name: str
    points: Sequence[tuple[float, Spread]]
    is_ours: bool = True


@dataclass(frozen=True, slots=True)
class Goal:
    """A line across the chart."""

    name: str
    value: float


def bars(
    title: str,
    rows: Sequence[Bar],
    tell: Callable[[float], str],
    *,
    subtitle: str = "",
    goal: Goal | None = None,
) -> str:
    """Horizontal bars.

    Args:
        title: Above them.
        rows: From top to bottom.
        tell: A value with its unit.
        subtitle: What is measured, and which way is better.
        goal: Drawn as a line, if there is one.
    """
    left, right = _NAME_WIDTH, WIDTH - _FIGURE_WIDTH
    scale = (right - left) / _most([row.value for row in rows], goal)
    bottom = _HEAD + len(rows) * (_BAR + _GAP)
    parts = [_text(title, 12, 20, "title"), _text(subtitle, 12, 37, "quiet")]
    for number, row in enumerate(rows):
        top = _HEAD + number * (_BAR + _GAP)
        middle, base = top + _BAR / 2, top + _BAR / 2 + 4.5
        if math.isnan(row.value.median):
            parts += [_text(row.name, left - 10, base, anchor="end"), _text("never", left + 8, base)]
            continue
        width = max(2.0, row.value.median * scale)
        parts += [
            _text(row.name, left - 10, base, anchor="end"),
            _rectangle(_colour(row.is_ours), left, top, width),
            _line("spread", left + row.value.low * scale, middle, left + row.value.high * scale, middle),
            _text(tell(row.value.median), left + max(width, row.value.high * scale) + 8, base),
        ]
    if goal is not None:
        x = left + goal.value * scale
        parts += [
            _line("goal", x, _HEAD - 4, x, bottom - _GAP + 4),
            _text(goal.name, x, bottom + 8, "aim", anchor="middle"),
        ]
    return _document(parts, bottom + (18 if goal else 2))


def curves(
    title: str,
    lines: Sequence[Curve],
    tell: Callable[[float], str],
    *,
    across: str,
    subtitle: str = "",
    goal: Goal | None = None,
) -> str:
    """Lines over a logarithmic horizontal axis, from zero upwards.

    Args:
        title: Above them.
        lines: Each with its own places.
        tell: A value with its unit.
        across: What the horizontal axis counts.
        subtitle: What is measured.
        goal: Drawn as a line, if there is one.
    """
    places = sorted({place for line in lines for place, _ in line.points})
    ticks = _ticks(_most([spread for line in lines for _, spread in line.points], goal))
    top, bottom = _PLOT_TOP, _PLOT_TOP + _PLOT_HEIGHT
    left, right = _PLOT_LEFT, WIDTH - _PLOT_RIGHT
    decades = math.log(places[-1] / places[0]) if len(places) > 1 else 1.0

    def x_of(place: float) -> float:
        return left + (right - left) * math.log(place / places[0]) / decades

    def y_of(value: float) -> float:
        return bottom - (bottom - top) * value / ticks[-1]

    parts = [_text(title, 12, 20, "title"), _text(subtitle, 12, 38, "quiet")]
    for tick in ticks:
        parts += [
            _line("grid", left, y_of(tick), right, y_of(tick)),
            _text(tell(tick), left - 8, y_of(tick) + 4, "quiet", anchor="end"),
        ]
    parts += [_text(f"{place:,.0f}", x_of(place), bottom + 18, "quiet", anchor="middle") for place in places]
    parts.append(_text(across, (left + right) / 2, bottom + 38, "quiet", anchor="middle"))
    if goal is not None:
        parts += [
            _line("goal", left, y_of(goal.value), right, y_of(goal.value)),
            _text(goal.name, left + 8, y_of(goal.value) - 6, "aim"),
        ]
    for line in lines:
        colour = _colour(line.is_ours)
        path = " ".join(f"{x_of(place):.1f},{y_of(spread.median):.1f}" for place, spread in line.points)
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        for place, spread in line.points:
            x = x_of(place)
            parts += [
                _line("spread", x, y_of(spread.low), x, y_of(spread.high)),
                f'<circle class="{colour}" cx="{x:.1f}" cy="{y_of(spread.median):.1f}" r="4"/>',
            ]
        last = line.points[-1][1].median
        name = f"{line.name}: {tell(last)}" if line.name else tell(last)
        parts.append(_text(name, x_of(line.points[-1][0]) + 8, y_of(last) + 4))
    return _document(parts, bottom + 48)


def _most(spreads: Sequence[Spread], goal: Goal | None) -> float:
    """What the axis has to reach; above zero, whatever was measured."""
    values = [spread.high for spread in spreads if not math.isnan(spread.high)]
    return max([*values, goal.value if goal else 0.0]) or 1.0


def _ticks(most: float) -> list[float]:
    """From zero to above ``most`` in four to seven round steps."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [step * number for number in range(math.ceil(most / step) + 1)]


def _colour(is_ours: bool) -> str:
    return "ours" if is_ours else "other"


def _text(text: str, x: float, y: float, kind: str = "", anchor: str = "start") -> str:
    name = f' class="{kind}"' if kind else ""
    return f'<text{name} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _rectangle(kind: str, x: float, y: float, width: float) -> str:
    return f'<rect class="{kind}" x="{x}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>'


def _document(parts: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">'
    return "\n".join([head, _STYLE, *parts, "</svg>", ""])
