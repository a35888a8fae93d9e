"""Where the log goes and how its lines look.

Under systemd each line begins with ``<priority>``, which journald keeps as PRIORITY (sd-daemon(3));
in a terminal it begins with the time.
"""

from __future__ import annotations

import logging
import os
import sys

from circuitloom.model import Severity
from circuitloom.policy.operating import Log, LogFormat

LEVEL = {
    Severity.DEBUG: logging.DEBUG,
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}
"""What the core calls a severity, as logging does."""

_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"<{_PRIORITY.get(record.levelno, 6)}>{record.getMessage()}"


class _PlainFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", datefmt="%H:%M:%S")


def configure(log: Log) -> None:
    """Send the agent's log to standard error, as the policy says; may be called again after a reload."""
    is_journal = log.format is LogFormat.JOURNAL or (log.format is LogFormat.AUTO and _is_under_journald())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter() if is_journal else _PlainFormatter())
    logger = logging.getLogger("circuitloom")
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.setLevel(log.level.value.upper())
    logger.propagate = False


def _is_under_journald() -> bool:
    """Whether standard error is journald's; systemd names its socket in JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"
