"""A control port that floods whoever takes attachment over: ``benchmarks.flood SOCKET SECONDS WINDOW``.

It keeps WINDOW streams in front of the controller. Each attached stream runs through SENTCONNECT, SUCCEEDED
and CLOSED at once, with the lines that a real Tor writes, and a new one takes its place. Replies to one read
come before its events, as Tor's do. What it measures, it prints as one line of JSON: the time from NEW to
ATTACHSTREAM of each stream, and the CPU time of the process at the other end with its children.

It is the measuring instrument, so it does next to nothing for each stream; and it is no Tor: it forgets
circuits, and believes every attachment.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

WARM_UP_SECONDS = 0.5
PATIENCE_SECONDS = 30.0
"""How long the controller may take to come, and then to attach anything."""

MARKED_TARGET = "marked-destination.example:443"
_KEYWORDS = (
    b"CLIENT_PROTOCOL=SOCKS5 NYM_EPOCH=0 SESSION_GROUP=-3 "
    b"ISO_FIELDS=SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH\r\n"
)
_TARGET = MARKED_TARGET.encode()
_BORN = (
    b"650 STREAM %d NEW 0 " + _TARGET + b" SOURCE_ADDR=127.0.0.1:40000 PURPOSE=USER " + _KEYWORDS + b""
    b"650 STREAM %d CONTROLLER_WAIT 0 " + _TARGET + b" " + _KEYWORDS
)
_LIVED = (
    b"650 STREAM %b SENTCONNECT %b " + _TARGET + b" " + _KEYWORDS + b""
    b"650 STREAM %b SUCCEEDED %b " + _TARGET + b" " + _KEYWORDS + b""
    b"650 STREAM %b CLOSED %b " + _TARGET + b" REASON=DONE " + _KEYWORDS
)
_HOPS = b"$" + b"A" * 40 + b"~alpha,$" + b"B" * 40 + b"~beta,$" + b"C" * 40 + b"~gamma"
_INFO = {b"version": b"0.4.9.11", b"circuit-status": b"", b"stream-status": b""}


@dataclass(frozen=True, slots=True)
class Flooded:
    """What one flood measured.

    Attributes:
        window: Streams kept in front of the controller.
        streams: Attached while it was measured.
        seconds: How long that took.
        cpu_seconds: Of the controller's process and its children meanwhile.
        p50_ms: From NEW to ATTACHSTREAM, half of the streams.
        p99_ms: The same, all but a hundredth.
        max_ms: The longest.
        refused: Streams handed back (ATTACHSTREAM to circuit 0) or closed.
        rss_mib: Of the controller's process at the end.
    """

    window: int
    streams: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused: int
    rss_mib: float

    @property
    def per_second(self) -> float:
        """Streams attached in a second."""
        return self.streams / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time for one stream, microseconds."""
        return self.cpu_seconds / self.streams * 1e6


class FloodingPort:
    """The control port.

    Args:
        path: Where its Unix socket is made.
        seconds: How long to measure.
        window: Streams kept in front of the controller.
    """

    def __init__(self, path: Path, *, seconds: float, window: int) -> None:
        self._window = window
        self._seconds = seconds
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._rests: dict[socket.socket, bytes] = {}
        self._circuit_id = 0
        self._stream_id = 0
        self._born_at: dict[bytes, float] = {}
        self._waits: list[float] = []
        self._refused = 0
        self._measured_from: float | None = None
        self._cpu_before = 0.0

    def run(self) -> Flooded:
        """Serve until the flood was measured.

        Raises:
            TimeoutError: Nothing came.
        """
        patience_until = time.monotonic() + PATIENCE_SECONDS
        flooded: socket.socket | None = None
        started = 0.0
        while True:
            now = time.monotonic()
            if flooded is not None and self._measured_from is None and now - started > WARM_UP_SECONDS:
                self._measured_from = now
                self._cpu_before = cpu_seconds(_peer(flooded))
                self._waits.clear()
            if self._measured_from is not None and flooded is not None:
                seconds = now - self._measured_from
                if seconds >= self._seconds and self._waits:
                    return self._result(flooded, seconds)
            if now > patience_until + (self._seconds if flooded else 0):
                raise TimeoutError("the controller attached nothing")
            for key, _ in self._selector.select(1.0):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
                    self._rests[connection] = b""
                    self._selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]  # only sockets are registered
                if self._serve(connection) and flooded is None:
                    flooded, started = connection, time.monotonic()
                    connection.sendall(b"".join(self._bear(self._window, time.monotonic())))

    def _serve(self, connection: socket.socket) -> bool:
        """Answer one read; whether it asked for the flood."""
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(connection)
            connection.close()
            return False
        is_taken_over = False
        now = time.monotonic()
        lines = (self._rests[connection] + data).split(b"\r\n")
        self._rests[connection] = lines.pop()
        replies: list[bytes] = []
        events: list[bytes] = []
        attached = 0
        for line in lines:
            if line.startswith(b"ATTACHSTREAM "):
                _, stream_id, circuit_id, *_ = line.split(b" ")
                replies.append(b"250 OK\r\n")
                born_at = self._born_at.pop(stream_id, None)
                if born_at is not None:
                    attached += 1
                    self._waits.append(now - born_at)
                    self._refused += circuit_id == b"0"
                    events.append(_LIVED % ((stream_id, circuit_id) * 3))
            else:
                is_taken_over |= line.replace(b'"', b"").endswith(b"__LeaveStreamsUnattached=1")
                self._answer(line, replies, events)
        connection.sendall(b"".join(replies + events + self._bear(attached, now)))
        return is_taken_over

    def _bear(self, count: int, now: float) -> list[bytes]:
        first = self._stream_id + 1
        self._stream_id += count
        numbers = range(first, first + count)
        self._born_at.update((b"%d" % number, now) for number in numbers)
        return [_BORN % (number, number) for number in numbers]

    def _answer(self, line: bytes, replies: list[bytes], events: list[bytes]) -> None:
        word, _, rest = line.partition(b" ")
        match word:
            case b"PROTOCOLINFO":
                replies.append(
                    b'250-PROTOCOLINFO 1\r\n250-AUTH METHODS=NULL\r\n250-VERSION Tor="0.4.9.11"\r\n250 OK\r\n'
                )
            case b"GETINFO":
                values = b"".join(b"250-%b=%b\r\n" % (key, _INFO.get(key, b"")) for key in rest.split())
                replies.append(values + b"250 OK\r\n")
            case b"GETCONF":
                names = rest.split()
                lines = [b"%b=0" % name if name.startswith(b"__") else name for name in names]
                replies.append(
                    b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]
                )
            case b"EXTENDCIRCUIT":
                self._circuit_id += 1
                replies.append(b"250 EXTENDED %d\r\n" % self._circuit_id)
                events.append(
                    b"650 CIRC %d BUILT %b BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL "
                    b"TIME_CREATED=2026-01-01T00:00:00.%06d\r\n" % (self._circuit_id, _HOPS, self._circuit_id)
                )
            case b"CLOSESTREAM":
                self._refused += 1
                replies.append(b"250 OK\r\n")
            case _:
                replies.append(b"250 OK\r\n")

    def _result(self, flooded: socket.socket, seconds: float) -> Flooded:
        process = _peer(flooded)
        waits = sorted(self._waits)
        return Flooded(
            window=self._window,
            streams=len(waits),
            seconds=seconds,
            cpu_seconds=cpu_seconds(process) - self._cpu_before,
            p50_ms=waits[len(waits) // 2] * 1e3,
            p99_ms=waits[len(waits) * 99 // 100] * 1e3,
            max_ms=waits[-1] * 1e3,
            refused=self._refused,
            rss_mib=_status_kib(process, "VmRSS") / 1024,
        )


def cpu_seconds(process_id: int) -> float:
    """CPU time of a process with all its threads and its children, by the scheduler's nanoseconds."""
    total = 0
    for task in _tasks(process_id):
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[0])
        with contextlib.suppress(OSError):
            for child in (task / "children").read_text().split():
                total += int(cpu_seconds(int(child)) * 1e9)
    return total / 1e9


def _tasks(process_id: int) -> Iterable[Path]:
    with contextlib.suppress(OSError):
        yield from Path(f"/proc/{process_id}/task").iterdir()


def _status_kib(process_id: int, name: str) -> int:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    return 0


def _peer(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    process_id, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(process_id)


if __name__ == "__main__":
    socket_path, measured_seconds, window = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    result = FloodingPort(socket_path, seconds=measured_seconds, window=window).run()
    json.dump(asdict(result), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the controller sees the end of its connection at once
