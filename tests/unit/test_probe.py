"""The edge of probes, against a SOCKS port that behaves in every way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from circuitloom.model import ProbeCircuit, ProbeFinished, ProbeOutcome, ProbeStarted
from circuitloom.policy.probing import Probe
from circuitloom.policy.types import TcpAddress, UnixAddress
from circuitloom.probe import Prober

TARGET = "203.0.113.7:80"
CONNECTED = b"\x05\x00\x00\x01\0\0\0\0\0\0"
REFUSED = b"\x05\x05\x00\x01\0\0\0\0\0\0"

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Port:
    """A SOCKS port that takes no login, or any, and then does as it is told.

    Attributes:
        received: What came after the greeting.
        peers: The address of each client, as Tor would show it.
    """

    def __init__(self, *answers: bytes, method: int = 0, is_silent: bool = False) -> None:
        self.received = b""
        self.peers: list[str] = []
        self._answers = answers
        self._method = method
        self._is_silent = is_silent

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("peername")
        self.peers.append(f"{peer[0]}:{peer[1]}" if peer else "")
        await reader.readexactly(3)
        writer.write(bytes((5, self._method)))
        if self._method == 2:
            self.received += await reader.readexactly(2)
            self.received += await reader.readexactly(self.received[1] + 1)
            self.received += await reader.readexactly(self.received[-1])
            writer.write(b"\x01\x00")
        self.received += await reader.read(1000)
        for answer in self._answers:
            writer.write(answer)
            await asyncio.sleep(0.01)
        if self._is_silent:
            await reader.read()


class Told:
    """What a prober told, in order."""

    def __init__(self) -> None:
        self.events: list[ProbeStarted | ProbeFinished] = []
        self.is_over = asyncio.Event()
        self.prober = Prober(started=self.events.append, finished=self._finish)

    def _finish(self, event: ProbeFinished) -> None:
        self.events.append(event)
        self.is_over.set()


@asynccontextmanager
async def serving(handler: Handler, path: Path | None) -> AsyncIterator[TcpAddress | UnixAddress]:
    """A server whose connections are all gone when it is."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        with suppress(EOFError, OSError):
            await handler(reader, writer)
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    if path is None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        yield TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])
    else:
        server = await asyncio.start_unix_server(serve, path)
        yield UnixAddress(str(path))
    server.close()
    await asyncio.gather(*running)


def probe(
    handler: Handler | None,
    action: ProbeCircuit,
    *,
    directory: Path | None = None,
    read_bytes: int = 0,
    timeout_seconds: float = 5.0,
) -> list[ProbeStarted | ProbeFinished]:
    """Run one probe; over a Unix socket if there is a directory for it, and to nobody without a handler."""
    path = None if directory is None else directory / "socks"

    async def run_at(address: TcpAddress | UnixAddress) -> list[ProbeStarted | ProbeFinished]:
        told = Told()
        rule = Probe(address, (TARGET,), timeout_seconds=timeout_seconds, read_bytes=read_bytes)
        told.prober.start(action, rule)
        async with asyncio.timeout(10):
            await told.is_over.wait()
        await told.prober.close()
        return told.events

    async def run() -> list[ProbeStarted | ProbeFinished]:
        if handler is None:
            return await run_at(TcpAddress("127.0.0.1", 1) if path is None else UnixAddress(str(path)))
        async with serving(handler, path) as address:
            return await run_at(address)

    return asyncio.run(run())


def test_a_probe_tells_its_source_before_its_request_leaves() -> None:
    port = Port(CONNECTED)

    events = probe(port.serve, ProbeCircuit(7, TARGET))

    assert events == [ProbeStarted(7, port.peers[0]), ProbeFinished(7, ProbeOutcome.ANSWERED)]
    # As a name: Tor warns of addresses, or refuses them (SafeSocks).
    assert port.received == b"\x05\x01\x00\x03\x0b203.0.113.7\x00\x50"


def test_login_and_name_are_sent_as_tor_shows_them(tmp_path: Path) -> None:
    port = Port(CONNECTED, method=2)

    events = probe(port.serve, ProbeCircuit(7, "example.com:443", "al\xefce", "p\xff"), directory=tmp_path)

    assert events == [ProbeStarted(7, None), ProbeFinished(7, ProbeOutcome.ANSWERED)]
    assert port.received == b"\x01\x05al\xefce\x02p\xff\x05\x01\x00\x03\x0bexample.com\x01\xbb"


def test_an_ipv6_target_is_sent_as_an_address() -> None:
    port = Port(CONNECTED)

    probe(port.serve, ProbeCircuit(7, "[2001:db8::7]:80"))

    assert port.received[:4] == b"\x05\x01\x00\x04"
    assert port.received[-4:] == b"\x00\x07\x00\x50"


@pytest.mark.parametrize(
    ("answers", "read_bytes", "outcome"),
    [
        ([REFUSED], 0, ProbeOutcome.FAILED),
        ([], 0, ProbeOutcome.FAILED),
        ([CONNECTED], 1, ProbeOutcome.FAILED),
        ([CONNECTED, b"ab", b"cd"], 5, ProbeOutcome.FAILED),
        ([CONNECTED, b"ab", b"cd"], 4, ProbeOutcome.ANSWERED),
        ([CONNECTED + b"abcdef"], 4, ProbeOutcome.ANSWERED),
    ],
)
def test_what_comes_after_the_request_is_the_circuit_s_doing(
    answers: list[bytes], read_bytes: int, outcome: ProbeOutcome
) -> None:
    events = probe(Port(*answers).serve, ProbeCircuit(7, TARGET), read_bytes=read_bytes)

    assert isinstance(events[-1], ProbeFinished)
    assert events[-1].outcome is outcome


@pytest.mark.parametrize(("answers", "read_bytes"), [([], 0), ([CONNECTED], 1)])
def test_silence_is_a_failure_when_the_time_is_up(answers: list[bytes], read_bytes: int) -> None:
    port = Port(*answers, is_silent=True)

    events = probe(port.serve, ProbeCircuit(7, TARGET), read_bytes=read_bytes, timeout_seconds=0.2)

    assert isinstance(events[-1], ProbeFinished)
    assert events[-1].outcome is ProbeOutcome.FAILED


def test_a_port_that_refuses_is_not_the_circuit_s_doing(tmp_path: Path) -> None:
    assert probe(None, ProbeCircuit(7, TARGET)) == [
        ProbeFinished(7, ProbeOutcome.UNREACHED, "tcp:127.0.0.1:1: Connection refused")
    ]
    assert probe(None, ProbeCircuit(7, TARGET), directory=tmp_path) == [
        ProbeFinished(7, ProbeOutcome.UNREACHED, f"unix:{tmp_path}/socks: No such file or directory")
    ]


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (b"HTTP/1.0 400\r\n", "ends the connection: is it a SOCKS port?"),
        (b"\x05\xff", "ends the connection: is it a SOCKS port?"),
        (b"", "ends the connection: is it a SOCKS port?"),
        (None, "does not answer"),
    ],
)
def test_a_port_that_does_not_speak_socks_is_not_the_circuit_s_doing(
    tmp_path: Path, said: bytes | None, detail: str
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said is None:
            await reader.read()
        else:
            await reader.readexactly(3)
            writer.write(said)

    events = probe(serve, ProbeCircuit(7, TARGET), directory=tmp_path, timeout_seconds=0.3)

    assert events == [ProbeFinished(7, ProbeOutcome.UNREACHED, f"unix:{tmp_path}/socks {detail}")]


def test_a_probe_that_is_stopped_hangs_up_and_says_nothing(tmp_path: Path) -> None:
    async def run() -> list[ProbeStarted | ProbeFinished]:
        told = Told()
        is_asked, is_gone = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readexactly(3)
            writer.write(b"\x05\x00")
            await reader.readexactly(10)
            is_asked.set()
            await reader.read()
            is_gone.set()

        async with serving(serve, tmp_path / "socks") as address, asyncio.timeout(10):
            told.prober.start(ProbeCircuit(7, TARGET), Probe(address, (TARGET,)))
            await is_asked.wait()
            told.prober.stop(7)
            told.prober.stop(7)
            await is_gone.wait()
            await told.prober.close()
        return told.events

    assert asyncio.run(run()) == [ProbeStarted(7, None)]


def test_no_probe_s_value_is_ever_shown() -> None:
    assert repr(ProbeCircuit(7, TARGET, "alice", "secret")) == "ProbeCircuit(probe=7)"
