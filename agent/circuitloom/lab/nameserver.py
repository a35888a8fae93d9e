"""The private network's DNS: exits ask it instead of the machine's own resolver, so no query leaves loopback.

``NAME.test`` is 127.0.0.1, whatever NAME is; 192.0.2.1 is ``echo.test`` (tor never asks who a private address
is); nothing else exists (NXDOMAIN).
"""

from __future__ import annotations

import socket
import struct
import threading
from typing import Self

from circuitloom.lab.torrc import LOOPBACK

A, PTR = 1, 12
"""Query types of RFC 1035."""

ANSWER_SECONDS = 60
"""Time to live of an answer; exits cache it."""


class NameServer:
    """A UDP name server on a loopback port, in a thread of its own.

    Attributes:
        port: Where it listens.
    """

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, name="lab-nameserver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # An empty datagram is no query: it tells the thread to end.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as farewell:
            farewell.sendto(b"", (LOOPBACK, self.port))
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            query, sender = self._socket.recvfrom(4096)
            if not query:
                return
            reply = answer(query)
            if reply:
                self._socket.sendto(reply, sender)


def answer(query: bytes) -> bytes:
    """The reply to one query, or nothing when it cannot be read."""
    try:
        labels, kind, question_end = _read_question(query)
    except (IndexError, struct.error):
        return b""
    name = b".".join(labels).lower()
    if kind == PTR and name == b"1.2.0.192.in-addr.arpa":
        data = b"\x04echo\x04test\x00"
    elif kind == A and name.endswith(b".test"):
        data = socket.inet_aton(LOOPBACK)
    else:
        data = b""
    exists = bool(data) or name.endswith(b".test")
    # A response (QR, AA, RA) without error, or with NXDOMAIN. The question goes back letter by letter: tor
    # varies its case and compares.
    flags = 0x8480 if exists else 0x8483
    header = query[:2] + struct.pack("!HHHHH", flags, 1, 1 if data else 0, 0, 0)
    if not data:
        return header + query[12:question_end]
    record = struct.pack("!HHHIH", 0xC00C, kind, 1, ANSWER_SECONDS, len(data)) + data
    return header + query[12:question_end] + record


def _read_question(query: bytes) -> tuple[list[bytes], int, int]:
    """The labels, the query type and where the first question ends."""
    labels = []
    at = 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length])
        at += 1 + length
    (kind,) = struct.unpack_from("!H", query, at + 1)
    return labels, kind, at + 5
