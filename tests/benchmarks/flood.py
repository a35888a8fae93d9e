"""A control port that floods whoever takes attachment over: ``benchmarks.flood SOCKET PLAN``, a plan in JSON.

It keeps a window of streams in front of the controller, or starts so many a second. Each attached stream runs
through SENTCONNECT and SUCCEEDED at once, with the lines that a real Tor writes; it is closed at once, or
when so many are open. Replies to one read come before its events, as Tor's do. It may close circuits on the
way: then the streams on them end, and attaching to them is refused. What it measures it prints as JSON.

It is the measuring instrument, so it does next to nothing for each stream; and it is no Tor: a circuit is
built at once, and every other attachment is believed.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import socket
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.measure import cpu_seconds, family, percentile, pss_mib, rss_mib, starved_seconds

WARM_UP_SECONDS = 0.5
GROWN_UP_SECONDS = 1.5
"""The same where circuits are closed: one that ends within a second of its start is taken for a bad one."""

PATIENCE_SECONDS = 60.0
"""How long the controller may take to come, to attach anything, and to attach all that are to be open."""

_LEFT = "the controller ended its connection"

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
_OPENED = (
    b"650 STREAM %b SENTCONNECT %b " + _TARGET + b" " + _KEYWORDS + b""
    b"650 STREAM %b SUCCEEDED %b " + _TARGET + b" " + _KEYWORDS
)
_CLOSED = b"650 STREAM %b CLOSED %b " + _TARGET + b" REASON=%b " + _KEYWORDS
_LIVED = _OPENED + _CLOSED.replace(b"REASON=%b", b"REASON=DONE")
_HOPS = b"$" + b"A" * 40 + b"~alpha,$" + b"B" * 40 + b"~beta,$" + b"C" * 40 + b"~gamma"
_CIRCUIT = b"%b %b " + _HOPS + b" BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL TIME_CREATED=%b%b\r\n"
_INFO = {b"version": b"0.4.9.11", b"stream-status": b""}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a flood does.

    Attributes:
        seconds: How long it is measured.
        window: Streams kept in front of the controller; 0: ``per_second`` counts instead.
        per_second: New streams a second.
        held: Streams that stay open; the oldest one closes when another is opened.
        close_seconds: From the end of one circuit to that of the next; 0: none ends.
    """

    seconds: float
    window: int = 0
    per_second: float = 0.0
    held: int = 0
    close_seconds: float = 0.0


@dataclass(slots=True)
class Closing:
    """The end of one circuit; times in milliseconds from when the controller was told.

    Attributes:
        late: Streams that were attached to it afterwards, and refused.
        late_ms: When the last of them came.
        late_newer: Those among them that were announced only after its end.
        asked_ms: When a circuit in its place was asked for; None: never.
        served_ms: When the first stream was attached to that.
    """

    late: int = 0
    late_ms: float = 0.0
    late_newer: int = 0
    asked_ms: float | None = None
    served_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Flooded:
    """What one flood measured.

    Attributes:
        streams: Attached while it was measured.
        seconds: How long that took.
        cpu_seconds: Of the controller's process and its children meanwhile.
        starved: The share of that time in which the controller or this port had to wait for a CPU.
        p50_ms: From NEW to ATTACHSTREAM, half of the streams.
        p99_ms: The same, all but a hundredth.
        max_ms: The longest.
        refused: Streams handed back (ATTACHSTREAM to circuit 0) or closed.
        open: Streams that were open at the end.
        rss_mib: Of the controller's process at the end.
        pss_mib: The same with its children, what they share counted once.
        processes: How many those are, itself included.
        closings: The circuits that ended.
    """

    streams: int
    seconds: float
    cpu_seconds: float
    starved: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    refused: int
    open: int
    rss_mib: float
    pss_mib: float
    processes: int
    closings: tuple[Closing, ...]

    @property
    def per_second(self) -> float:
        """Streams attached in a second."""
        return self.streams / self.seconds

    @property
    def cpu_us(self) -> float:
        """CPU time for one stream, microseconds."""
        return self.cpu_seconds / self.streams * 1e6

    @classmethod
    def from_json(cls, text: bytes) -> Flooded:
        """Read what the port printed."""
        values = json.loads(text)
        return cls(**values | {"closings": tuple(Closing(**closing) for closing in values["closings"])})


class FloodingPort:
    """The control port.

    Args:
        path: Where its Unix socket is made.
        plan: What to do.
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self._plan = plan
        self._selector = selectors.DefaultSelector()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._rests: dict[socket.socket, bytes] = {}
        self._flooded: socket.socket | None = None
        self._started_at = 0.0
        self._measured_from: float | None = None
        self._cpu_before = self._starved_before = 0.0
        self._stream_id = self._circuit_id = 0
        self._born_at: dict[bytes, float] = {}
        self._held: dict[bytes, bytes] = {}
        self._waits: list[float] = []
        self._refused = 0
        self._built: dict[bytes, None] = {}
        self._close_at = 0.0
        self._closed: dict[bytes, tuple[float, Closing]] = {}
        self._replacing: dict[bytes, tuple[float, Closing]] = {}

    def run(self) -> Flooded:
        """Serve until the flood was measured.

        Raises:
            TimeoutError: Nothing came, or too little to measure.
            ConnectionAbortedError: The controller left, as the agent does after it stood still for a second.
        """
        patience_until = time.monotonic() + PATIENCE_SECONDS + self._plan.seconds
        while True:
            now = time.monotonic()
            if self._flooded is not None:
                if self._measured_from is None:
                    self._begin_measuring(self._flooded, now)
                elif now - self._measured_from >= self._plan.seconds and self._waits:
                    return self._result(self._flooded, now - self._measured_from)
                self._keep_pace(self._flooded, now)
            if now > patience_until:
                raise TimeoutError("the controller attached too little")
            for key, _ in self._selector.select(0.001 if self._plan.per_second and self._flooded else 0.2):
                if key.fileobj is self._listener:
                    connection, _ = self._listener.accept()
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
                    self._rests[connection] = b""
                    self._selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = key.fileobj  # type: ignore[assignment]  # only sockets are registered
                if self._serve(connection) and self._flooded is None:
                    self._flooded, self._started_at = connection, time.monotonic()
                    self._send(connection, self._bear(self._plan.window, self._started_at))

    def close(self) -> None:
        """End every connection, and the port."""
        for connection in (self._listener, *self._rests):
            connection.close()
        self._selector.close()

    def _begin_measuring(self, flooded: socket.socket, now: float) -> None:
        warm_up = GROWN_UP_SECONDS if self._plan.close_seconds else WARM_UP_SECONDS
        if now - self._started_at > warm_up and len(self._held) >= self._plan.held:
            self._measured_from = now
            self._cpu_before = cpu_seconds(family(_peer(flooded)))
            self._starved_before = self._starved_seconds(flooded)
            self._waits.clear()
            self._close_at = now + self._plan.close_seconds

    def _keep_pace(self, flooded: socket.socket, now: float) -> None:
        """Start the streams that are due, and end a circuit if it is time."""
        lines: list[bytes] = []
        if self._plan.per_second:
            due = int((now - self._started_at) * self._plan.per_second) - self._stream_id
            lines += self._bear(max(0, due), now)
        if self._plan.close_seconds and self._measured_from is not None and now >= self._close_at:
            self._close_at += self._plan.close_seconds
            lines += self._close_oldest(now)
        if lines:
            self._send(flooded, lines)

    def _close_oldest(self, now: float) -> list[bytes]:
        circuit_id = next(iter(self._built))
        del self._built[circuit_id]
        self._closed[circuit_id] = (now, Closing())
        ended = [stream_id for stream_id, held_by in self._held.items() if held_by == circuit_id]
        for stream_id in ended:
            del self._held[stream_id]
        return [
            b"650 CIRC " + _CIRCUIT % (circuit_id, b"CLOSED", _created(circuit_id), b" REASON=DESTROYED"),
            *(_CLOSED % (stream_id, circuit_id, b"DESTROY") for stream_id in ended),
        ]

    def _send(self, connection: socket.socket, lines: list[bytes]) -> None:
        """Send all of it; one that left is noticed here or with the next read, whichever comes first."""
        try:
            connection.sendall(b"".join(lines))
        except ConnectionError:
            if connection is self._flooded:
                raise ConnectionAbortedError(_LEFT) from None

    def _serve(self, connection: socket.socket) -> bool:
        """Answer one read; whether it asked for the flood."""
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            if connection is self._flooded:
                raise ConnectionAbortedError(_LEFT)
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
        holds = self._plan.held > 0
        for line in lines:
            if line.startswith(b"ATTACHSTREAM "):
                _, stream_id, circuit_id, *_ = line.split(b" ")
                if circuit_id in self._closed:
                    replies.append(self._refuse(stream_id, circuit_id, now))
                    continue
                replies.append(b"250 OK\r\n")
                born_at = self._born_at.pop(stream_id, None)
                if born_at is not None:
                    attached += 1
                    self._waits.append(now - born_at)
                    self._refused += circuit_id == b"0"
                    if holds:
                        self._hold(stream_id, circuit_id, now, events)
                    else:
                        events.append(_LIVED % ((stream_id, circuit_id) * 3))
            else:
                is_taken_over |= line.replace(b'"', b"").endswith(b"__LeaveStreamsUnattached=1")
                self._answer(line, now, replies, events)
        births = self._bear(attached, now) if self._plan.window else []
        self._send(connection, replies + events + births)
        return is_taken_over

    def _hold(self, stream_id: bytes, circuit_id: bytes, now: float, events: list[bytes]) -> None:
        events.append(_OPENED % ((stream_id, circuit_id) * 2))
        self._held[stream_id] = circuit_id
        if len(self._held) > self._plan.held:
            oldest = next(iter(self._held))
            events.append(_CLOSED % (oldest, self._held.pop(oldest), b"DONE"))
        if circuit_id in self._replacing:
            closed_at, closing = self._replacing.pop(circuit_id)
            closing.served_ms = (now - closed_at) * 1e3

    def _refuse(self, stream_id: bytes, circuit_id: bytes, now: float) -> bytes:
        closed_at, closing = self._closed[circuit_id]
        closing.late += 1
        closing.late_ms = (now - closed_at) * 1e3
        closing.late_newer += self._born_at.get(stream_id, 0.0) > closed_at
        return b'552 Unknown circuit "%b"\r\n' % circuit_id

    def _bear(self, count: int, now: float) -> list[bytes]:
        first = self._stream_id + 1
        self._stream_id += count
        numbers = range(first, first + count)
        self._born_at.update((b"%d" % number, now) for number in numbers)
        return [_BORN % (number, number) for number in numbers]

    def _answer(self, line: bytes, now: float, replies: list[bytes], events: list[bytes]) -> None:
        word, _, rest = line.partition(b" ")
        match word:
            case b"PROTOCOLINFO":
                replies.append(
                    b'250-PROTOCOLINFO 1\r\n250-AUTH METHODS=NULL\r\n250-VERSION Tor="0.4.9.11"\r\n250 OK\r\n'
                )
            case b"GETINFO":
                replies += [self._value_of(key) for key in rest.split()]
                replies.append(b"250 OK\r\n")
            case b"GETCONF":
                names = rest.split()
                lines = [b"%b=0" % name if name.startswith(b"__") else name for name in names]
                replies.append(
                    b"".join(b"250-%b\r\n" % line for line in lines[:-1]) + b"250 %b\r\n" % lines[-1]
                )
            case b"EXTENDCIRCUIT":
                self._circuit_id += 1
                circuit_id = b"%d" % self._circuit_id
                self._built[circuit_id] = None
                replies.append(b"250 EXTENDED %b\r\n" % circuit_id)
                events.append(b"650 CIRC " + _built(circuit_id))
                self._note_replacement(circuit_id, now)
            case b"CLOSESTREAM":
                self._refused += 1
                replies.append(b"250 OK\r\n")
            case _:
                replies.append(b"250 OK\r\n")

    def _value_of(self, key: bytes) -> bytes:
        if key == b"circuit-status":
            return b"250+%b=\r\n%b.\r\n" % (key, b"".join(map(_built, self._built)))
        return b"250-%b=%b\r\n" % (key, _INFO.get(key, b""))

    def _note_replacement(self, circuit_id: bytes, now: float) -> None:
        # The last that closed: one that is replaced late must not make the later ones look late as well.
        for closed_at, closing in reversed(self._closed.values()):
            if closing.asked_ms is None:
                closing.asked_ms = (now - closed_at) * 1e3
                self._replacing[circuit_id] = (closed_at, closing)
                return

    def _starved_seconds(self, flooded: socket.socket) -> float:
        return starved_seconds((_peer(flooded), os.getpid()))

    def _result(self, flooded: socket.socket, seconds: float) -> Flooded:
        processes = family(_peer(flooded))
        used_seconds = cpu_seconds(processes) - self._cpu_before
        starved = (self._starved_seconds(flooded) - self._starved_before) / seconds
        waits = sorted(self._waits)
        return Flooded(
            streams=len(waits),
            seconds=seconds,
            cpu_seconds=used_seconds,
            starved=starved,
            p50_ms=percentile(waits, 50) * 1e3,
            p99_ms=percentile(waits, 99) * 1e3,
            max_ms=waits[-1] * 1e3,
            refused=self._refused,
            open=len(self._held),
            rss_mib=rss_mib(processes[0]),
            pss_mib=pss_mib(processes),
            processes=len(processes),
            closings=tuple(closing for _, closing in self._closed.values()),
        )


def _built(circuit_id: bytes) -> bytes:
    return _CIRCUIT % (circuit_id, b"BUILT", _created(circuit_id), b"")


def _created(circuit_id: bytes) -> bytes:
    return b"2026-01-01T00:00:00.%06d" % int(circuit_id)


def _peer(connection: socket.socket) -> int:
    size = struct.calcsize("3i")
    process_id, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(process_id)


if __name__ == "__main__":
    # A collection here would be measured as the controller's delay.
    gc.disable()
    result = FloodingPort(Path(sys.argv[1]), Plan(**json.loads(sys.argv[2]))).run()
    json.dump(asdict(result), sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # the controller sees the end of its connection at once
