"""Spans of time, and how much of one is left without others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Span:
    """From a moment to another, or (None) until now."""

    start: float
    end: float | None = None

    def overlaps(self, start: float, end: float) -> bool:
        """Whether it shares a moment with another span."""
        return self.start <= end and (self.end is None or start <= self.end)


def seconds_outside(start: float, end: float, spans: Iterable[Span]) -> float:
    """How long ``start`` to ``end`` lasts without the (disjoint) spans."""
    seconds = end - start
    for span in spans:
        seconds -= max(0.0, min(end, span.end if span.end is not None else end) - max(start, span.start))
    return seconds
