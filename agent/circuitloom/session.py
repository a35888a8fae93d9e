"""One control connection: commands out, replies matched in order, events handed on at once.

Rules of this file:

* Commands are pipelined: nobody waits for a reply to send the next. Tor answers in order (tor-facts 9).
* An event is handed on in the call that read it; it never waits for a reply.
* All commands of one turn of the loop leave in one write.
* What is sent and received is never logged: it holds destinations.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from circuitloom import wire
from circuitloom.authentication import open_control
from circuitloom.errors import ControlClosed, ControlProtocolError, ControlRefused
from circuitloom.policy.types import TorControl, UnixAddress
from circuitloom.wire import AnyEvent, ControlCodec, Reply

OnReply = Callable[[Reply], None]


def ignore_reply(_reply: Reply) -> None:
    """For commands whose outcome the events tell."""


class Session(asyncio.Protocol):
    """An authenticated control connection, driven by the event loop.

    Args:
        on_event: Takes each event.
        on_turn: Called after all that one read brought was handed on.
        on_closed: Called once, when the connection ends, with the reason.

    Attributes:
        read_at: When the last read came (seconds of the loop's clock).
    """

    def __init__(
        self,
        *,
        on_event: Callable[[AnyEvent], None],
        on_turn: Callable[[], None],
        on_closed: Callable[[Exception | None], None],
    ) -> None:
        self._on_event = on_event
        self._on_turn = on_turn
        self._on_closed = on_closed
        self._codec = ControlCodec()
        self._pending: deque[OnReply] = deque()
        self._out: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._loop = asyncio.get_running_loop()
        self._is_flush_due = False
        self.read_at = self._loop.time()
        self._error: Exception | None = None
        self._is_ended = False
        self._waiters: set[asyncio.Future[Reply]] = set()

    @property
    def is_open(self) -> bool:
        """Whether commands can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def unanswered(self) -> int:
        """How many commands wait for their reply."""
        return len(self._pending)

    def send(self, command: bytes, on_reply: OnReply = ignore_reply) -> None:
        """Queue a command; it leaves when this turn of the loop ends.

        Args:
            command: One line, from ``wire``.
            on_reply: Takes the reply. It is not called when the connection ends first.
        """
        if self._transport is None:
            return
        self._pending.append(on_reply)
        self._out.append(command)
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self.flush)

    async def request(self, command: bytes) -> Reply:
        """Send a command and wait for its reply.

        Raises:
            ControlClosed: The connection ended first.
        """
        future: asyncio.Future[Reply] = self._loop.create_future()
        if not self.is_open:
            raise ControlClosed("the control connection is closed")

        def resolve(reply: Reply) -> None:
            if not future.done():
                future.set_result(reply)

        self.send(command, resolve)
        self.flush()
        self._waiters.add(future)
        try:
            return await future
        finally:
            self._waiters.discard(future)

    def flush(self) -> None:
        """Write what is queued."""
        self._is_flush_due = False
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    def close(self, error: Exception | None = None) -> None:
        """End the connection at once.

        Args:
            error: What ``on_closed`` is told.
        """
        if self._transport is not None:
            self._error = error
            self._is_ended = True
            self._transport.abort()

    # --- asyncio calls these -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        # What this read makes us send leaves at its end; the loop need not turn once more for it.
        self._is_flush_due = True
        self.read_at = self._loop.time()
        try:
            self._hand_on(data)
            if not self._is_ended:
                self._on_turn()
        except ControlProtocolError as error:
            self.close(error)
        finally:
            self.flush()

    def _hand_on(self, data: bytes) -> None:
        on_event = self._on_event
        for message in self._codec.feed(data):
            if self._is_ended:
                # Closed by what an earlier message of the same read brought.
                return
            if isinstance(message, Reply):
                self._take_reply(message)
            else:
                on_event(message)

    def _take_reply(self, reply: Reply) -> None:
        if not self._pending:
            raise ControlProtocolError("Tor sent a reply to no command")
        self._pending.popleft()(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._transport = None
        self._pending.clear()
        self._out.clear()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ControlClosed("Tor closed the control connection"))
        self._on_closed(self._error or exc)


async def connect(
    tor: TorControl,
    *,
    on_event: Callable[[AnyEvent], None],
    on_turn: Callable[[], None],
    on_closed: Callable[[Exception | None], None],
) -> Session:
    """Open, authenticate and hand over to the event loop.

    Raises:
        ControlError: As ``open_control`` says.
    """
    connection = open_control(tor)
    loop = asyncio.get_running_loop()

    def make() -> Session:
        return Session(on_event=on_event, on_turn=on_turn, on_closed=on_closed)

    if isinstance(tor.control, UnixAddress):
        _, session = await loop.create_unix_connection(make, sock=connection)
    else:
        _, session = await loop.create_connection(make, sock=connection)
    return session


async def connect_once(tor: TorControl) -> Session:
    """Open a connection for a few commands; events are not subscribed and its end is no news.

    Raises:
        ControlError: As ``open_control`` says.
    """
    return await connect(
        tor, on_event=lambda _event: None, on_turn=lambda: None, on_closed=lambda _error: None
    )


async def get_info(session: Session, *keys: str) -> dict[str, str]:
    """GETINFO; the values by key.

    Raises:
        ControlClosed: The connection ended.
        ControlRefused: Tor does not know one of the keys.
    """
    reply = await session.request(wire.command("GETINFO", *keys))
    if not reply.is_ok:
        raise ControlRefused(f"Tor refused GETINFO {' '.join(keys)}: {reply.text}")
    return reply.values()
