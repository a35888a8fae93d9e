"""Tells the metrics where the policy says: into a file, on a loopback port, or both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

from circuitloom.accepting import tell_fault
from circuitloom.errors import reason_of
from circuitloom.metrics.reading import Reading
from circuitloom.metrics.server import MetricsServer
from circuitloom.policy.operating import Metrics

LISTEN_RETRY_SECONDS = 10.0
"""Between attempts at a port that something else has."""

FRESH_SECONDS = 0.9
"""Less than the shortest interval of the file."""

FILE_MODE = 0o644
"""node_exporter runs as another user; the numbers name nobody."""

Text = Callable[[], Awaitable[bytes]]
_log = logging.getLogger(__name__)


class Exporter:
    """Tells until closed.

    Args:
        read: Takes a look at everything.
    """

    def __init__(self, read: Callable[[], Reading]) -> None:
        self._read = read
        self._metrics = Metrics()
        self._tasks: set[asyncio.Task[None]] = set()

    def apply(self, metrics: Metrics) -> None:
        """Go on as this policy says."""
        if metrics == self._metrics:
            return
        for task in self._tasks:
            task.cancel()
        self._metrics = metrics
        if not metrics.is_asked_for:
            return
        try:
            # Whoever asks for no metrics pays nothing for the library: 50 ms and 4 MiB.
            from circuitloom.metrics.exposition import text_slices  # noqa: PLC0415
        except ImportError:
            _log.warning(
                "no metrics: prometheus_client is missing; install Debian's python3-prometheus-client"
            )
            return

        async def make() -> bytes:
            pieces = []
            for piece in text_slices(self._read(), agent=metrics.agent):
                pieces.append(piece)
                await asyncio.sleep(0)
            return b"".join(pieces)

        text = _Shared(make).text
        if metrics.textfile is not None:
            self._start(_write_for_ever(Path(metrics.textfile), text, metrics.interval_seconds))
        if metrics.listen is not None:
            self._start(_listen_for_ever(*metrics.listen, text))

    async def close(self) -> None:
        """Tell no more."""
        self.apply(Metrics())
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _start(self, telling: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(telling)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(tell_fault)


class _Shared:
    """One text for all who ask within a second: asking again and again costs the agent next to nothing.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Text) -> None:
        self._make = make
        self._lock = asyncio.Lock()
        self._text = b""
        self._fresh_until = 0.0

    async def text(self) -> bytes:
        """The text, made now or less than a second ago."""
        loop = asyncio.get_running_loop()
        async with self._lock:
            if loop.time() >= self._fresh_until:
                self._text = await self._make()
                self._fresh_until = loop.time() + FRESH_SECONDS
            return self._text


async def _write_for_ever(path: Path, text: Text, interval_seconds: float) -> None:
    said = ""
    try:
        while True:
            lines = await text()
            try:
                _replace(path, lines)
                said = ""
            except OSError as error:
                hint = "under systemd the agent may write to its runtime directory only, /run/circuitloom"
                said = _say(f"metrics cannot be written to {path} ({reason_of(error)}); {hint}", said)
            await asyncio.sleep(interval_seconds)
    finally:
        # Numbers that stand still would be taken for those of an agent that runs.
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - as blocking, and no shorter to explain


async def _listen_for_ever(host: str, port: int, text: Text) -> None:
    server = MetricsServer(text)
    said = ""
    while True:
        try:
            await server.serve(host, port)
        except OSError as error:
            said = _say(f"metrics cannot be told on {host}:{port} ({reason_of(error)})", said)
        await asyncio.sleep(LISTEN_RETRY_SECONDS)


def _say(what: str, said: str) -> str:
    """Say it, unless that was said last: it is tried again."""
    if what != said:
        _log.warning("%s; trying again until it works", what)
    return what


def _replace(path: Path, text: bytes) -> None:
    """Write the file whole: a reader sees the old one or the new one.

    Raises:
        OSError: It cannot be written.
    """
    # node_exporter reads whatever ends with .prom.
    new = path.with_suffix(f".{os.getpid()}.new")
    try:
        descriptor = os.open(
            new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE
        )
        with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor has no path
            # The unit's UMask= would keep it from all others.
            os.fchmod(descriptor, FILE_MODE)
            file.write(text)
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
