"""Steady load with its own clocks: many short streams, and a few held open all the time.

The lab's ``Load`` tells how streams ended; here each is also known by its source port, which Tor names in its
events, so that what an application saw and what Tor did are told of the same stream.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from dataclasses import dataclass
from typing import Self

from circuitloom.lab.socks import SocksError
from circuitloom.lab.torrc import LOOPBACK
from circuitloom.socks import CONNECT, IPV4, NO_AUTHENTICATION, VERSION

STREAMS_PER_SECOND = 50

HELD_STREAMS = 12
"""Open from the start of the load to its end."""

PATIENCE_SECONDS = 12.0
"""How long a stream waits for its SOCKS reply: beyond what counts as stranded, short of Tor's 120 s."""

ECHO_SECONDS = 8.0
"""How long one echo may take; over loopback it takes milliseconds."""

HELD_ECHO_INTERVAL_SECONDS = 0.5
"""How often a held stream says something, so that its end is noticed when it happens."""

PAYLOAD = b"circuitloom" * 6


@dataclass(slots=True, eq=False)
class LoadStream:
    """One stream; times are of ``time.monotonic``.

    Attributes:
        started_at: When the application asked for it.
        is_held: Whether it is to stay open until the load ends.
        source_port: Of its connection to the SOCKS port; 0 when there was none.
        replied_at: When SOCKS said that it is connected.
        ended_at: When it ended, in whatever way.
        failure: Why it did not succeed; empty when every byte came back.
    """

    started_at: float
    is_held: bool = False
    source_port: int = 0
    replied_at: float | None = None
    ended_at: float | None = None
    failure: str = ""


class SteadyLoad:
    """Starts streams by the clock, whatever becomes of the ones before; a context manager with a thread.

    Args:
        socks_port: The client's.
        target_port: Of the echo server on 127.0.0.1.

    Attributes:
        streams: All streams so far, in the order of their start.
    """

    def __init__(self, socks_port: int, target_port: int) -> None:
        self._socks_port = socks_port
        request = struct.pack("!BBBB", VERSION, CONNECT, 0, IPV4)
        self._request = request + socket.inet_aton(LOOPBACK) + struct.pack("!H", target_port)
        self.streams: list[LoadStream] = []
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Start no more streams and wait until all have ended; held ones say something once more before."""
        self._stopping.set()
        self._thread.join()

    async def _run(self) -> None:
        start = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(HELD_STREAMS):
                tasks.create_task(self._run_stream(is_held=True, is_early=False))
            number = 0
            while not self._stopping.is_set():
                # Every second one sends before the reply, as browsers do: bytes that a careless move loses.
                tasks.create_task(self._run_stream(is_held=False, is_early=number % 2 == 1))
                number += 1
                due_at = start + number / STREAMS_PER_SECOND
                await asyncio.sleep(max(0.0, due_at - time.monotonic()))

    async def _run_stream(self, *, is_held: bool, is_early: bool) -> None:
        stream = LoadStream(time.monotonic(), is_held)
        self.streams.append(stream)
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                reader, writer = await asyncio.open_connection(LOOPBACK, self._socks_port)
                stream.source_port = writer.get_extra_info("sockname")[1]
                await self._connect(reader, writer, PAYLOAD if is_early else b"")
            stream.replied_at = time.monotonic()
            if is_early:
                await _expect(reader)
            else:
                await _echo(reader, writer)
            while is_held and not self._stopping.is_set():
                await asyncio.sleep(HELD_ECHO_INTERVAL_SECONDS)
                await _echo(reader, writer)
        except SocksError as error:
            stream.failure = str(error)
        except TimeoutError:
            stream.failure = "no SOCKS reply in time" if stream.replied_at is None else "no echo in time"
        except ConnectionRefusedError:
            stream.failure = "no SOCKS port"
        except (OSError, asyncio.IncompleteReadError):
            stream.failure = "ended without a SOCKS reply" if stream.replied_at is None else "cut"
        finally:
            stream.ended_at = time.monotonic()
            if writer is not None:
                writer.transport.abort() if stream.failure else writer.close()

    async def _connect(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, early_data: bytes
    ) -> None:
        writer.write(bytes((VERSION, 1, NO_AUTHENTICATION)))
        await reader.readexactly(2)
        writer.write(self._request + early_data)
        answer = await reader.readexactly(10)
        if answer[1]:
            raise SocksError(answer[1])


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(PAYLOAD)
    await _expect(reader)


async def _expect(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(ECHO_SECONDS):
        received = await reader.readexactly(len(PAYLOAD))
    if received != PAYLOAD:
        raise ConnectionResetError("other bytes came back than were sent")
