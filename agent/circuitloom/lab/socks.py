"""A SOCKS5 client (RFC 1928, RFC 1929) with Tor's extensions: RESOLVE, RESOLVE_PTR, early data.

Every wait is bounded: a stream that nobody attaches otherwise hangs for Tor's SocksTimeout (120 s).
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from circuitloom import socks
from circuitloom.errors import LabError
from circuitloom.lab.torrc import LOOPBACK

CLOSE_SECONDS = 2.0
"""How long the last bytes of a stream may take to leave; they cross only the loopback interface."""

REPLY_TEXTS = {
    1: "general failure",
    2: "not allowed by the ruleset",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
}


class SocksError(LabError):
    """Tor refused a stream, or ended the connection before it replied.

    Attributes:
        code: The reply of RFC 1928 (1 to 8) or Tor's extended one (0xF0 to 0xF7); 0 when none came.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        said = REPLY_TEXTS.get(code, f"reply {code:#04x}") if code else "the connection ended without a reply"
        super().__init__(f"SOCKS: {said}")


class SocksTimeout(LabError):
    """No reply came in time: nobody attached the stream, or the circuit is silent."""


@dataclass(slots=True)
class Connection:
    """An open stream through Tor.

    Attributes:
        connect_seconds: From the first byte to the proxy until its reply.
    """

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    connect_seconds: float

    async def echo(self, payload: bytes, *, timeout_seconds: float = 30.0) -> None:
        """Send bytes and wait until they have come back.

        Raises:
            ConnectionError: The stream ended, or other bytes came.
            TimeoutError: They did not come in time.
        """
        self.writer.write(payload)
        await self.expect(payload, timeout_seconds=timeout_seconds)

    async def expect(self, payload: bytes, *, timeout_seconds: float = 30.0) -> None:
        """Wait until these bytes have come; what it raises is described at ``echo``."""
        async with asyncio.timeout(timeout_seconds):
            try:
                received = await self.reader.readexactly(len(payload))
            except asyncio.IncompleteReadError as error:
                raise ConnectionResetError(f"the stream ended after {len(error.partial)} bytes") from None
        if received != payload:
            raise ConnectionResetError("other bytes came back than were sent")

    async def close(self) -> None:
        """End the stream; what became of it does not matter any more."""
        self.writer.close()
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.writer.wait_closed()
        except TimeoutError:
            # Bytes are left that a paused client does not read.
            self.writer.transport.abort()
        except OSError:
            return


@dataclass(frozen=True, slots=True)
class SocksProxy:
    """Where a client takes SOCKS connections, and as whom to use it.

    Attributes:
        address: A port of 127.0.0.1, or the path of a Unix socket.
        username: With ``password``, what Tor's isolation keeps streams apart by; None: not sent.
        timeout_seconds: How long each call may take.
    """

    address: int | Path
    username: str | None = None
    password: str = ""
    timeout_seconds: float = 30.0

    async def connect(self, host: str, port: int, *, early_data: bytes = b"") -> Connection:
        """Open a stream.

        Args:
            host: A name, which the exit resolves, or an IP address.
            port: At that host.
            early_data: Sent with the request, before the reply (Tor calls it optimistic data).

        Raises:
            SocksError: Tor says no.
            SocksTimeout: It says nothing in time.
        """
        connection, _ = await self._request(socks.CONNECT, host, port, early_data)
        return connection

    async def resolve(self, name: str) -> str:
        """The address of a name, as an exit sees it; raises as ``connect`` does."""
        return await self._ask(socks.RESOLVE, name)

    async def resolve_ptr(self, address: str) -> str:
        """The name of an address, as an exit sees it; raises as ``connect`` does."""
        return await self._ask(socks.RESOLVE_PTR, address)

    async def _ask(self, command: int, host: str) -> str:
        connection, answer = await self._request(command, host, 0, b"")
        await connection.close()
        return answer

    async def _request(self, command: int, host: str, port: int, early_data: bytes) -> tuple[Connection, str]:
        started = time.perf_counter()
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self.timeout_seconds):
                if isinstance(self.address, int):
                    reader, writer = await asyncio.open_connection(LOOPBACK, self.address)
                else:
                    reader, writer = await asyncio.open_unix_connection(self.address)
                answer = await self._speak(reader, writer, socks.request(command, host, port) + early_data)
                return Connection(reader, writer, time.perf_counter() - started), answer
        except BaseException as error:
            if writer is not None:
                # At once: waiting for an orderly end could hang on the very proxy that did not answer.
                writer.transport.abort()
            if isinstance(error, TimeoutError):
                raise SocksTimeout(f"SOCKS: no reply within {self.timeout_seconds:.0f} s") from None
            if isinstance(error, (asyncio.IncompleteReadError, OSError)):
                raise SocksError(0) from error
            raise

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> str:
        user = None if self.username is None else self.username.encode()
        if not await socks.greet(reader, writer, user, self.password.encode()):
            raise SocksError(0)
        writer.write(request)
        code, answer = await socks.read_answer(reader)
        if code:
            raise SocksError(code)
        return answer
