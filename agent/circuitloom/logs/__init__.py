"""Where the log goes and how its lines look.

Rules of this package:

* A line says what it is about in a word (``Kind``) and names its circuit or stream; how that is shown is the
  format's business.
* The log never holds a stream up: a journal that takes nothing loses lines, which are counted and told.
* So does a burst: of one kind so many lines are written in a while, then one that says how many were not.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping

from circuitloom.kinds import Kind
from circuitloom.logs.formats import JsonFormatter, PlainFormatter, PriorityFormatter
from circuitloom.logs.journal import SOCKET_PATH, JournalHandler
from circuitloom.logs.limit import LimitedHandler
from circuitloom.model import Announce, Severity
from circuitloom.policy.operating import Log, LogFormat

__all__ = ["about", "announce", "configure", "tell_suppressed"]

_LEVEL = {
    Severity.DEBUG: logging.DEBUG,
    Severity.INFO: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.ERROR: logging.ERROR,
}


def about(kind: Kind, *, circuit: str = "", circuit_id: str = "", stream_id: str = "") -> Mapping[str, str]:
    """What a line is about, for the argument ``extra`` of a logger.

    Args:
        kind: In a word.
        circuit: The policy's name of the circuit, if it is about one.
        circuit_id: Tor's id of it.
        stream_id: Tor's id of the stream, if it is about one.
    """
    return {"kind": kind, "circuit": circuit, "circuit_id": circuit_id, "stream_id": stream_id}


def announce(log: logging.Logger, action: Announce) -> None:
    """Write what the core has announced."""
    subject = about(
        action.kind, circuit=action.circuit, circuit_id=action.circuit_id, stream_id=action.stream_id
    )
    log.log(_LEVEL[action.severity], "%s", action.message, extra=subject)


def configure(log: Log) -> None:
    """Send the agent's log where the policy says; may be called again after a reload."""
    logger = logging.getLogger("circuitloom")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    logger.addHandler(LimitedHandler(_handler(log.format)))
    logger.setLevel(log.level.value.upper())
    logger.propagate = False


def tell_suppressed() -> None:
    """Say how many lines were not written, where their time is over and nothing else was written since."""
    for handler in logging.getLogger("circuitloom").handlers:
        if isinstance(handler, LimitedHandler):
            handler.tell_suppressed()


def _handler(form: LogFormat) -> logging.Handler:
    is_journal = _is_under_journald()
    if is_journal and form in {LogFormat.AUTO, LogFormat.JOURNAL} and os.path.exists(SOCKET_PATH):  # noqa: PTH110 - it is a string throughout
        return JournalHandler()
    handler = logging.StreamHandler(sys.stderr)
    if form is LogFormat.JSON:
        handler.setFormatter(JsonFormatter())
    elif form is LogFormat.JOURNAL or (form is LogFormat.AUTO and is_journal):
        handler.setFormatter(PriorityFormatter())
    else:
        handler.setFormatter(PlainFormatter())
    return handler


def _is_under_journald() -> bool:
    """Whether standard error is journald's; systemd names its socket in JOURNAL_STREAM (systemd.exec(5))."""
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{status.st_dev}:{status.st_ino}"
