"""A bound for lines that repeat: so many of a kind in a while, then one that tells how many more."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from circuitloom.kinds import Kind
from circuitloom.logs.formats import kind_of

BURST_LINES = 200
"""Of one kind in ``SPAN_SECONDS``: the circuits of a large policy at its start, and no flood."""

SPAN_SECONDS = 10.0


@dataclass(slots=True)
class _Span:
    """The lines of one kind since ``began_at`` (seconds of the monotonic clock)."""

    began_at: float
    level: int
    written: int = 0
    suppressed: int = 0


class LimitedHandler(logging.Handler):
    """Hands lines on until there are too many; DEBUG is for who wants them all.

    Args:
        inner: Writes them.
    """

    def __init__(self, inner: logging.Handler) -> None:
        super().__init__()
        self._inner = inner
        self._spans: dict[str, _Span] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.tell_suppressed()
        if record.levelno > logging.DEBUG:
            kind = kind_of(record)
            # Lines without a kind are told apart by their text before anything is filled in.
            span = self._spans.setdefault(
                str(record.msg) if kind is Kind.OTHER else kind.value, _Span(time.monotonic(), record.levelno)
            )
            if span.written >= BURST_LINES:
                span.suppressed += 1
                return
            span.written += 1
        self._inner.handle(record)

    def tell_suppressed(self) -> None:
        """Say how many lines were not written in the spans that are over."""
        self._end_spans(began_before=time.monotonic() - SPAN_SECONDS)

    def _end_spans(self, *, began_before: float) -> None:
        over = {key: span for key, span in self._spans.items() if span.began_at <= began_before}
        for key, span in over.items():
            del self._spans[key]
            if span.suppressed:
                self._inner.handle(
                    logging.makeLogRecord(
                        {
                            "name": "circuitloom",
                            "levelno": span.level,
                            "levelname": logging.getLevelName(span.level),
                            "msg": "%d more lines like this were not written: %s",
                            "args": (span.suppressed, key),
                        }
                    )
                )

    def close(self) -> None:
        """See logging.Handler; whatever was not written is told now."""
        self._end_spans(began_before=float("inf"))
        self._inner.close()
        super().close()
