"""``GET /metrics`` on a loopback port, for Prometheus; one request a connection, and nothing else of HTTP.

Rules of this file:

* A client can be slow, silent, huge or wrong; it costs one bounded buffer for a bounded time.
* Whoever may connect to the port may read the numbers: every user of this machine, and nobody beyond it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

from circuitloom.accepting import accept_clients, tell_fault

MAX_CLIENTS = 8
MAX_REQUEST_BYTES = 8 << 10
CLIENT_SECONDS = 10.0
"""From its connection to the last byte of the answer; Prometheus' own scrape_timeout is as long."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the text format (Prometheus, exposition formats)."""


class MetricsServer:
    """Answers with the metrics.

    Args:
        text: Makes them.
    """

    def __init__(self, text: Callable[[], Awaitable[bytes]]) -> None:
        self._text = text
        self._clients: set[asyncio.Task[None]] = set()

    async def serve(self, host: str, port: int) -> None:
        """Answer until cancelled.

        Args:
            host: An IP literal of this machine.
            port: The port.

        Raises:
            OSError: Nothing can listen there.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as listener:
            # An agent that comes after another one need not wait until the kernel has forgotten its clients.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(MAX_CLIENTS)
            listener.setblocking(False)  # noqa: FBT003 - the method's only argument
            try:
                await accept_clients(listener, name=f"metrics port {port}", take=self._take)
            finally:
                for client in self._clients:
                    client.cancel()

    async def _take(self, connection: socket.socket) -> bool:
        if len(self._clients) >= MAX_CLIENTS:
            return False
        reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_REQUEST_BYTES)
        client = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)
        client.add_done_callback(tell_fault)
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head))
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.transport.abort()

    async def _answer(self, head: bytes) -> bytes:
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        if method != b"GET":
            return _response("405 Method Not Allowed", b"only GET\n")
        if path != b"/metrics":
            return _response("404 Not Found", b"the metrics are at /metrics\n")
        return _response("200 OK", await self._text())


def _response(status: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode() + body
