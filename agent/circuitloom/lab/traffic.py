"""Load for a Tor client: an echo server, many streams at once, and a steady stream of streams."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from circuitloom.errors import LabError
from circuitloom.lab.socks import Connection, SocksError, SocksProxy, SocksTimeout
from circuitloom.lab.torrc import LOOPBACK

__all__ = [
    "Connection",
    "EchoServer",
    "Load",
    "LoadReport",
    "OpenedStreams",
    "Outcome",
    "SocksError",
    "SocksProxy",
    "SocksTimeout",
    "StreamResult",
    "StreamShape",
    "merge_reports",
    "open_many",
]

START_SECONDS = 5.0
"""How long a thread may take to open its listening socket."""

BACKLOG = 1024
"""Connections that may wait to be accepted: in a burst of hundreds none must wait for a repeated SYN."""


class EchoServer:
    """A TCP server on 127.0.0.1 that sends back what it gets; a context manager, in a thread of its own.

    Attributes:
        port: Where it listens, once entered.
        accepted: Connections so far.
        active: Connections now.
        received_bytes: Over all connections.
    """

    def __init__(self) -> None:
        self.port = 0
        self.accepted = 0
        self.active = 0
        self.received_bytes = 0
        self._protocols: set[_EchoProtocol] = set()
        self._opened = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve()), name="lab-echo", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._opened.wait(START_SECONDS):
            raise LabError(f"the echo server did not start within {START_SECONDS:.0f} s")
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def drop_connections(self) -> None:
        """End all connections at once, as a crashing server does."""
        self._loop.call_soon_threadsafe(self._abort)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port, as ``open_many`` and ``Load`` take them."""
        return LOOPBACK, self.port

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = asyncio.Event()
        server = await self._loop.create_server(
            lambda: _EchoProtocol(self, self._protocols),
            LOOPBACK,
            0,
            backlog=BACKLOG,
        )
        self.port = server.sockets[0].getsockname()[1]
        self._opened.set()
        await self._closing.wait()
        server.close()
        protocols = list(self._protocols)
        self._abort()
        await asyncio.gather(*(protocol.lost.wait() for protocol in protocols))

    def _abort(self) -> None:
        for protocol in self._protocols:
            protocol.transport.abort()


class _EchoProtocol(asyncio.Protocol):
    """One connection of the echo server; stops reading while its peer does not read."""

    transport: asyncio.Transport

    def __init__(self, server: EchoServer, open_protocols: set[_EchoProtocol]) -> None:
        self._server = server
        self._open_protocols = open_protocols
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self.transport = transport
        self._open_protocols.add(self)
        self._server.accepted += 1
        self._server.active += 1

    def data_received(self, data: bytes) -> None:
        self._server.received_bytes += len(data)
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self._open_protocols.discard(self)
        self._server.active -= 1
        self.lost.set()


@dataclass(slots=True)
class OpenedStreams:
    """What ``open_many`` got: streams that are still open, and an error for each that could not be opened."""

    connections: list[Connection] = field(default_factory=list)
    failures: list[LabError] = field(default_factory=list)

    async def close(self) -> None:
        """End all of them."""
        await asyncio.gather(*(connection.close() for connection in self.connections))


async def open_many(
    proxy: SocksProxy,
    target: tuple[str, int],
    *,
    count: int,
    concurrency: int = 64,
    early_data: bytes = b"",
) -> OpenedStreams:
    """Open streams and keep them open.

    Args:
        proxy: Through this client; its timeout bounds each stream.
        target: Host and port of all of them.
        count: How many.
        concurrency: How many may be waiting for their reply at once.
        early_data: See ``SocksProxy.connect``.
    """
    opened = OpenedStreams()
    numbers = iter(range(count))

    async def open_some() -> None:
        for _ in numbers:
            try:
                opened.connections.append(await proxy.connect(*target, early_data=early_data))
            except LabError as error:
                opened.failures.append(error)

    await asyncio.gather(*(open_some() for _ in range(min(count, concurrency))))
    return opened


class Outcome(StrEnum):
    """How a stream of the load ended."""

    SUCCEEDED = "succeeded"
    """Every byte came back."""
    REFUSED = "refused"
    """The SOCKS reply was an error, or the connection ended without one."""
    TIMED_OUT = "timed out"
    """No SOCKS reply came in time."""
    CUT = "cut"
    """It was connected, and then ended early or said nothing more."""


@dataclass(frozen=True, slots=True)
class StreamResult:
    """One stream of the load, ended.

    Attributes:
        started_at: On the clock of ``time.monotonic``; ``ended_at`` as well.
        outcome: How it ended.
        connect_seconds: Until the SOCKS reply; None when there was none.
        detail: The error's text, without the destination; empty when it succeeded.
    """

    started_at: float
    ended_at: float
    outcome: Outcome
    connect_seconds: float | None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of a load's streams, in the order in which they ended."""

    results: tuple[StreamResult, ...]

    def count(self, outcome: Outcome) -> int:
        """How many ended so."""
        return sum(result.outcome is outcome for result in self.results)

    @property
    def lost(self) -> int:
        """How many did not succeed."""
        return len(self.results) - self.count(Outcome.SUCCEEDED)

    def connect_percentile_seconds(self, percent: float) -> float:
        """The time to the SOCKS reply that this share of streams did not exceed; NaN without any."""
        times = sorted(
            result.connect_seconds for result in self.results if result.connect_seconds is not None
        )
        if not times:
            return math.nan
        return times[max(0, math.ceil(len(times) * percent / 100) - 1)]

    def between(self, start: float, end: float) -> LoadReport:
        """Only the streams that were started in this span of ``time.monotonic``."""
        return LoadReport(tuple(result for result in self.results if start <= result.started_at < end))


@dataclass(frozen=True, slots=True)
class StreamShape:
    """What each stream of a load does.

    Attributes:
        payload: It echoes this after connecting, and again before its end if it is held.
        hold_seconds: How long it stays open in between.
        early_data: Whether the first payload goes out before the SOCKS reply.
    """

    payload: bytes = b"circuitloom" * 6
    hold_seconds: float = 0.0
    early_data: bool = False


class Load:
    """Streams at a steady rate, whatever becomes of the ones before.

    Args:
        proxies: Used in turn: several users, or several clients, in one load.
        target: Host and port of the echo server.
        streams_per_second: How many are started.
        shape: What each of them does.
        on_result: Told of each end.
    """

    def __init__(
        self,
        proxies: Sequence[SocksProxy],
        target: tuple[str, int],
        *,
        streams_per_second: float,
        shape: StreamShape = StreamShape(),
        on_result: Callable[[StreamResult], None] = lambda _: None,
    ) -> None:
        self._proxies = proxies
        self._target = target
        self._interval_seconds = 1.0 / streams_per_second
        self._shape = shape
        self._on_result = on_result
        self._results: list[StreamResult] = []
        self._stopping = False

    def report(self) -> LoadReport:
        """The streams that have ended so far."""
        return LoadReport(tuple(self._results))

    def stop(self) -> None:
        """Start no more streams; ``run`` returns when those that run have ended."""
        self._stopping = True

    async def run(self, seconds: float) -> LoadReport:
        """Start streams for so long and wait until all have ended, each within its own bounds."""
        start = time.monotonic()
        async with asyncio.TaskGroup() as streams:
            for number in range(max(1, round(seconds / self._interval_seconds))):
                # By the clock, not by sleeps: a late start must not lower the rate.
                await asyncio.sleep(max(0.0, start + number * self._interval_seconds - time.monotonic()))
                if self._stopping:
                    break
                streams.create_task(self._run_stream(self._proxies[number % len(self._proxies)]))
        return self.report()

    async def _run_stream(self, proxy: SocksProxy) -> None:
        started_at = time.monotonic()
        connection: Connection | None = None
        outcome, detail = Outcome.SUCCEEDED, ""
        try:
            connection = await proxy.connect(*self._target, early_data=self._early_data)
            await self._use(connection)
        except SocksError as error:
            outcome, detail = Outcome.REFUSED, str(error)
        except SocksTimeout as error:
            outcome, detail = Outcome.TIMED_OUT, str(error)
        except (OSError, TimeoutError) as error:
            outcome, detail = Outcome.CUT, str(error) or "no echo in time"
        finally:
            if connection is not None:
                await connection.close()
        connect_seconds = connection.connect_seconds if connection else None
        result = StreamResult(started_at, time.monotonic(), outcome, connect_seconds, detail)
        self._results.append(result)
        self._on_result(result)

    @property
    def _early_data(self) -> bytes:
        return self._shape.payload if self._shape.early_data else b""

    async def _use(self, connection: Connection) -> None:
        if self._early_data:
            await connection.expect(self._early_data)
        else:
            await connection.echo(self._shape.payload)
        if self._shape.hold_seconds:
            await asyncio.sleep(self._shape.hold_seconds)
            await connection.echo(self._shape.payload)


def merge_reports(reports: Iterable[LoadReport]) -> LoadReport:
    """One report of several loads, ordered by start."""
    results = (result for report in reports for result in report.results)
    return LoadReport(tuple(sorted(results, key=lambda result: result.started_at)))
