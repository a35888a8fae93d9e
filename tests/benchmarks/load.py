"""SOCKS connects as fast as they go: ``... SOCKS_PORT TARGET_PORT SECONDS IN_FLIGHT PAUSE_SECONDS``.

Opens streams to TARGET_PORT of 127.0.0.1, closes each as soon as it is connected, keeps so many on their way,
with a pause before each one that follows another, and prints what it measured as a line of JSON. It shares
the machine with every relay of the private network, so it does as little as it can for each stream.
"""

from __future__ import annotations

import errno
import json
import selectors
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass

from benchmarks.measure import percentile

LOOPBACK = "127.0.0.1"
PATIENCE_SECONDS = 20.0
"""How long a stream may take before it counts as failed."""

_GREETING, _METHOD = b"\x05\x01\x00", b"\x05\x00"
_REPLY_BYTES = 10


@dataclass(frozen=True, slots=True)
class Loaded:
    """What one load measured.

    Attributes:
        streams: Connected in the time.
        failed: Refused, or not answered in time.
        seconds: For how long streams were started.
        p50_ms: From the first packet to the SOCKS reply, half of the streams.
        p99_ms: The same, all but a hundredth.
    """

    streams: int
    failed: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """Streams connected in a second."""
        return self.streams / self.seconds


class _Stream:
    """One connect on its way."""

    def __init__(self, socks_port: int) -> None:
        self.started_at = time.monotonic()
        self.received = b""
        self.is_asked = False
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.socket.setblocking(False)  # noqa: FBT003 - the method's only argument
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self.socket.connect_ex((LOOPBACK, socks_port))
        if code not in {0, errno.EINPROGRESS}:
            raise OSError(code, "cannot connect to the SOCKS port")

    def advance(self, request: bytes) -> bool | None:
        """Take what has come; True: it is connected, False: it failed, None: it is on its way."""
        try:
            data = self.socket.recv(64)
            if not data:
                return False
            self.received += data
            if not self.is_asked and self.received == _METHOD:
                self.is_asked = True
                self.received = b""
                self.socket.send(request)
                return None
        except BlockingIOError:
            return None
        except OSError:
            return False
        if not self.is_asked or len(self.received) < _REPLY_BYTES:
            return None if self.is_asked or len(self.received) < len(_METHOD) else False
        return self.received[1] == 0


class Driver:
    """Keeps so many connects on their way.

    Args:
        socks_port: Of the Tor client, on 127.0.0.1.
        target_port: Where the streams go, on 127.0.0.1 as well.
    """

    def __init__(self, socks_port: int, target_port: int) -> None:
        self._socks_port = socks_port
        self._request = b"\x05\x01\x00\x01" + socket.inet_aton(LOOPBACK) + struct.pack("!H", target_port)
        self._selector = selectors.DefaultSelector()
        self._on_their_way = 0
        self._failed = 0
        self._waits: list[float] = []

    def drive(self, seconds: float, in_flight: int, pause_seconds: float) -> Loaded:
        """Start streams for so long, and wait for the last of them; a pause is meant for one at a time."""
        end = time.monotonic() + seconds
        for _ in range(in_flight):
            self._begin()
        while self._on_their_way and time.monotonic() < end + PATIENCE_SECONDS:
            for key, ready in self._selector.select(1.0):
                is_connected = self._advance(key.data, ready)
                if is_connected is not None:
                    self._finish(key.data, end, is_connected=is_connected)
                    time.sleep(pause_seconds)
                    if time.monotonic() < end:
                        self._begin()
        waits = sorted(self._waits)
        return Loaded(
            len(waits),
            self._failed + self._on_their_way,
            seconds,
            percentile(waits, 50) * 1e3,
            percentile(waits, 99) * 1e3,
        )

    def _begin(self) -> None:
        stream = _Stream(self._socks_port)
        self._selector.register(stream.socket, selectors.EVENT_WRITE, stream)
        self._on_their_way += 1

    def _advance(self, stream: _Stream, ready: int) -> bool | None:
        if not ready & selectors.EVENT_WRITE:
            return stream.advance(self._request)
        self._selector.modify(stream.socket, selectors.EVENT_READ, stream)
        try:
            stream.socket.send(_GREETING)
        except OSError:
            return False
        return None

    def _finish(self, stream: _Stream, end: float, *, is_connected: bool) -> None:
        now = time.monotonic()
        self._selector.unregister(stream.socket)
        stream.socket.close()
        self._on_their_way -= 1
        if not is_connected:
            self._failed += 1
        elif now < end:
            self._waits.append(now - stream.started_at)


if __name__ == "__main__":
    driver = Driver(int(sys.argv[1]), int(sys.argv[2]))
    result = driver.drive(float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))
    json.dump(asdict(result), sys.stdout)
