"""The journal's native protocol: a datagram of fields for each line (systemd, "Native Journal Protocol").

Debian's python3-systemd has a handler for it, and is a binding to a C library; what is needed of it are these
few lines. They never wait: a journal that takes nothing loses the line, and is told how many once it does.
"""

from __future__ import annotations

import logging
import socket
import struct
import sys

from circuitloom.logs.formats import kind_of, priority_of, subject_of

SOCKET_PATH = "/run/systemd/journal/socket"

MAX_VALUE_BYTES = 8 << 10
"""A datagram has to fit the socket's buffer; no line of ours comes near."""

_FIELD = {"circuit": "CIRCUIT", "circuit_id": "CIRCUIT_ID", "stream_id": "STREAM"}


class JournalHandler(logging.Handler):
    """Writes each line with its fields: MESSAGE_ID, CIRCUITLOOM_EVENT, CIRCUIT, CIRCUIT_ID, STREAM."""

    def __init__(self) -> None:
        super().__init__()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # noqa: FBT003 - the method's only argument
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        kind = kind_of(record)
        fields = {
            "MESSAGE": record.getMessage(),
            "PRIORITY": str(priority_of(record)),
            "SYSLOG_IDENTIFIER": "circuitloom",
            "MESSAGE_ID": kind.message_id,
            "CIRCUITLOOM_EVENT": kind.value,
            **{_FIELD[name]: value for name, value in subject_of(record).items()},
        }
        if self._lost:
            fields["MESSAGE"] += f" (the journal did not take {self._lost} lines before this one)"
        try:
            self._socket.sendto(b"".join(_field(*field) for field in fields.items()), SOCKET_PATH)
        except BlockingIOError:
            # Standard error leads to the same journal, and would wait.
            self._lost += 1
        except OSError:
            # It is being restarted; what standard error was given, systemd keeps for it.
            print(f"<{priority_of(record)}>{record.getMessage()}", file=sys.stderr, flush=True)  # noqa: T201 - a log
        else:
            self._lost = 0

    def close(self) -> None:
        """See logging.Handler."""
        self._socket.close()
        super().close()


def _field(name: str, text: str) -> bytes:
    value = text.encode("utf-8", "replace")[:MAX_VALUE_BYTES]
    if b"\n" in value:
        return b"%b\n%b%b\n" % (name.encode(), struct.pack("<Q", len(value)), value)
    return b"%b=%b\n" % (name.encode(), value)
