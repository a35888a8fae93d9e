"""Carries out probes: a stream through Tor's SOCKS port, and what came of it.

Rules of this file:

* It judges nothing: which circuit, when, and what an outcome means, others know.
* Each probe ends in time, with one answer; one that is stopped has none.
* The request leaves only after ``started`` was told its source, so that Tor's event of it is recognised.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from circuitloom import socks
from circuitloom.errors import reason_of
from circuitloom.model import ProbeCircuit, ProbeFinished, ProbeOutcome, ProbeStarted
from circuitloom.policy.probing import Probe
from circuitloom.policy.types import UnixAddress


class Prober:
    """The probes that are under way.

    Args:
        started: Takes each ProbeStarted.
        finished: Takes each ProbeFinished.
    """

    def __init__(
        self, *, started: Callable[[ProbeStarted], None], finished: Callable[[ProbeFinished], None]
    ) -> None:
        self._started = started
        self._finished = finished
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def start(self, action: ProbeCircuit, rule: Probe) -> None:
        """Open the stream.

        Args:
            action: What to do.
            rule: Through which port, for how long at most, and what has to come.
        """
        task = asyncio.get_running_loop().create_task(self._run(action, rule))
        self._tasks[action.probe] = task
        task.add_done_callback(lambda _: self._tasks.pop(action.probe, None))

    def stop(self, probe: int) -> None:
        """End one without an answer; harmless when it has ended."""
        task = self._tasks.pop(probe, None)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """End all, without an answer."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, action: ProbeCircuit, rule: Probe) -> None:
        connection = _Connection(rule)
        try:
            async with asyncio.timeout(rule.timeout_seconds):
                await connection.open(action)
                self._started(ProbeStarted(action.probe, connection.source))
                outcome = await connection.ask(action)
            detail = ""
        except TimeoutError:
            outcome, detail = connection.blame, f"{rule.socks} does not answer"
        except EOFError:
            outcome, detail = connection.blame, f"{rule.socks} ends the connection: is it a SOCKS port?"
        except OSError as error:
            # For a refused TCP connection asyncio has words of its own, with the address once more.
            error.strerror = os.strerror(error.errno) if error.errno else error.strerror
            outcome, detail = connection.blame, f"{rule.socks}: {reason_of(error)}"
        finally:
            connection.abort()
        self._finished(ProbeFinished(action.probe, outcome, detail))


class _Connection:
    """One connection to the SOCKS port.

    Attributes:
        source: Its own address; None: it is a Unix socket.
        blame: What it means if it ends now.
    """

    def __init__(self, rule: Probe) -> None:
        self._rule = rule
        self._reader = asyncio.StreamReader()
        self._writer: asyncio.StreamWriter | None = None
        self.source: str | None = None
        self.blame = ProbeOutcome.UNREACHED

    async def open(self, action: ProbeCircuit) -> None:
        """Connect and greet; raises EOFError, OSError or TimeoutError."""
        address = self._rule.socks
        if isinstance(address, UnixAddress):
            self._reader, self._writer = await asyncio.open_unix_connection(address.path)
        else:
            self._reader, self._writer = await asyncio.open_connection(address.host, address.port)
            host, port, *_ = self._writer.get_extra_info("sockname")
            self.source = f"{host}:{port}"
        user = None if action.user is None else action.user.encode("latin-1")
        if not await socks.greet(self._reader, self._writer, user, action.password.encode("latin-1")):
            raise EOFError

    async def ask(self, action: ProbeCircuit) -> ProbeOutcome:
        """Have the target connected; raises as ``open`` does."""
        assert self._writer is not None  # noqa: S101 - ``open`` comes first
        host, _, port = action.target.rpartition(":")
        self.blame = ProbeOutcome.FAILED
        # Of an address Tor warns, and refuses it under SafeSocks: it cannot know that nobody resolved it.
        is_name = not host.startswith("[")
        self._writer.write(socks.request(socks.CONNECT, host.strip("[]"), int(port), is_name=is_name))
        code, _ = await socks.read_answer(self._reader)
        if code:
            return ProbeOutcome.FAILED
        await self._reader.readexactly(self._rule.read_bytes)
        return ProbeOutcome.ANSWERED

    def abort(self) -> None:
        """End it at once: nobody waits for an orderly end."""
        if self._writer is not None:
            self._writer.transport.abort()
