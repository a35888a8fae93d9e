"""What a chooser is, and what it is told of a candidate."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from circuitloom.balancing.connect_time import ConnectTime

NOTHING: frozenset[str] = frozenset()

WHOLE_WEIGHT = 10
"""Tenths: weights are scaled in whole ones, so that round robins stay exact."""


class Chooser(Protocol):
    """Spreads streams over candidates, which are named by unique strings."""

    def add(
        self, name: str, *, weight: int, streams: int, order: int = 0, connect_time: ConnectTime | None = None
    ) -> None:
        """Let a candidate take streams from now on.

        Args:
            name: The candidate; it must not be in the chooser. One that comes back has its old name.
            weight: Its share against the others' weights, from 1.
            streams: How many streams it has now.
            order: Its place among all candidates, for those that fill one after the other.
            connect_time: How long it takes to connect a stream; the caller goes on measuring.
        """

    def remove(self, name: str) -> None:
        """Let a candidate take no more streams; raises KeyError when it is not in the chooser."""

    def scale(self, name: str, tenths: int) -> None:
        """Let a candidate have so many tenths of its weight from now on; unknown ones are ignored.

        Args:
            name: The candidate; each begins with all of its weight.
            tenths: From 1 to ``WHOLE_WEIGHT``.
        """

    def count_streams(self, name: str, streams: int) -> None:
        """Tell how many streams a candidate has now; unknown candidates are ignored."""

    def choose(
        self, exclude: Collection[str] = NOTHING, *, now: float = 0.0, sticky: str | None = None
    ) -> str | None:
        """Take one turn.

        Args:
            exclude: Candidates that must not be chosen; their turns are not lost.
            now: The time (seconds of the clock that ``connect_time`` is measured with).
            sticky: What this stream has in common with those that should go where it goes.

        Returns:
            The candidate's name, or None when there is none.
        """
