"""How a line looks on standard error."""

from __future__ import annotations

import datetime as dt
import json
import logging

from circuitloom.kinds import Kind

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_SUBJECT = ("circuit", "circuit_id", "stream_id")


def priority_of(record: logging.LogRecord) -> int:
    """Syslog's number for how much it matters (syslog(3))."""
    return _PRIORITY.get(record.levelno, 6)


def kind_of(record: logging.LogRecord) -> Kind:
    """What the line is about."""
    kind = getattr(record, "kind", Kind.OTHER)
    return kind if isinstance(kind, Kind) else Kind.OTHER


def subject_of(record: logging.LogRecord) -> dict[str, str]:
    """The circuit and stream that the line names, as far as it does."""
    return {name: value for name in _SUBJECT if (value := getattr(record, name, ""))}


class PriorityFormatter(logging.Formatter):
    """``<priority>`` in front, which journald keeps as PRIORITY (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        return f"<{priority_of(record)}>{record.getMessage()}"


class PlainFormatter(logging.Formatter):
    """For a terminal: time, level and text."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """See logging.Formatter."""
        at = dt.datetime.fromtimestamp(record.created, tz=dt.UTC)
        line = {
            "time": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "event": kind_of(record).value,
            "message": record.getMessage(),
        }
        return json.dumps(line | subject_of(record), ensure_ascii=False)
