"""One control connection: order, batching, and every way it can end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from circuitloom import wire
from circuitloom.errors import ControlClosed, ControlProtocolError, ControlRefused
from circuitloom.policy.types import TorControl
from circuitloom.session import Session, connect, connect_once, get_info
from circuitloom.wire import AnyEvent, Reply
from unit.fake_control_port import HANG, HANG_UP, FakeControlPort

WAIT_SECONDS = 5.0


class Ends:
    """A session and the other end of its connection."""

    def __init__(self) -> None:
        self.happened: list[object] = []
        self.on_event: Callable[[AnyEvent], None] = self.happened.append
        self.tor, self._ours = socket.socketpair()
        self.tor.settimeout(0)
        self.closed = asyncio.Event()
        self.turned = asyncio.Event()

    async def open(self) -> Session:
        loop = asyncio.get_running_loop()
        _, session = await loop.create_connection(
            lambda: Session(
                on_event=self._on_event,
                on_turn=self._on_turn,
                on_closed=self._on_closed,
            ),
            sock=self._ours,
        )
        return session

    async def read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.tor, 1 << 16)

    async def write(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.tor, data)

    def _on_event(self, event: AnyEvent) -> None:
        self.on_event(event)

    def _on_turn(self) -> None:
        self.happened.append("turn")
        self.turned.set()

    def _on_closed(self, error: Exception | None) -> None:
        self.happened.append(error)
        self.closed.set()


def run(body: Callable[[Ends, Session], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            ends = Ends()
            session = await ends.open()
            try:
                await body(ends, session)
            finally:
                session.close()
                await ends.closed.wait()
                ends.tor.close()

    asyncio.run(bounded())


def test_commands_of_one_turn_leave_in_one_write_and_are_answered_in_order() -> None:
    async def body(ends: Ends, session: Session) -> None:
        for number in range(3):
            session.send(wire.command("GETINFO", f"k{number}"), ends.happened.append)
        assert session.unanswered == 3
        assert await ends.read() == b"GETINFO k0\r\nGETINFO k1\r\nGETINFO k2\r\n"
        await ends.write(b"250 zero\r\n650 SIGNAL RELOAD\r\n552 one\r\n250 two\r\n")
        await ends.turned.wait()

        assert [str(thing) for thing in ends.happened] == [
            "Reply(code=250, lines=('zero',))",
            "SignalReceived(name='RELOAD')",
            "Reply(code=552, lines=('one',))",
            "Reply(code=250, lines=('two',))",
            "turn",
        ]

    run(body)


def test_what_is_sent_on_an_event_leaves_before_anything_else_is_read() -> None:
    async def body(ends: Ends, session: Session) -> None:
        ends.on_event = lambda _event: session.send(wire.command("ATTACHSTREAM", "1", "30"))
        await ends.write(b"650 STREAM 1 CONTROLLER_WAIT 0 a:80\r\n" * 2)

        assert await ends.read() == b"ATTACHSTREAM 1 30\r\n" * 2

    run(body)


def test_bytes_may_come_one_by_one(fake: FakeControlPort) -> None:
    fake.chunk_bytes = 1
    fake.answers["GETINFO"] = "250+circuit-status=\r\n..x\r\n.\r\n250 OK\r\n"

    async def ask() -> dict[str, str]:
        session = await connect_once(TorControl(fake.address))
        values = await get_info(session, "circuit-status")
        session.close()
        await asyncio.sleep(0)
        return values

    assert asyncio.run(ask()) == {"circuit-status": ".x"}


def test_a_request_waits_for_its_own_reply() -> None:
    async def body(ends: Ends, session: Session) -> None:
        session.send(wire.command("SETEVENTS"))
        request = asyncio.create_task(session.request(wire.command("GETINFO", "version")))
        await ends.read()
        await ends.write(b"250 first\r\n250 second\r\n")

        assert await request == Reply(250, ("second",))

    run(body)


def test_a_request_that_was_given_up_does_not_shift_the_replies() -> None:
    async def body(ends: Ends, session: Session) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(session.request(wire.command("GETINFO", "slow")), 0.05)
        second = asyncio.create_task(session.request(wire.command("GETINFO", "version")))
        await ends.read()
        await ends.write(b"250 slow\r\n250 version\r\n")

        assert await second == Reply(250, ("version",))

    run(body)


@pytest.mark.parametrize("data", [b"", b"250-version=0.4", b"250-version=0.4.9.11\r\n"])
def test_an_end_before_the_reply_is_complete_ends_the_request(data: bytes) -> None:
    async def body(ends: Ends, session: Session) -> None:
        request = asyncio.create_task(session.request(wire.command("GETINFO", "version")))
        await ends.read()
        await ends.write(data)
        ends.tor.shutdown(socket.SHUT_RDWR)
        with pytest.raises(ControlClosed, match="Tor closed the control connection"):
            await request
        await ends.closed.wait()

        assert not session.is_open
        assert session.unanswered == 0
        assert ends.happened.count(None) == 1

    run(body)


def test_on_a_closed_connection_nothing_is_sent_and_a_request_fails_at_once() -> None:
    async def body(ends: Ends, session: Session) -> None:
        session.close()
        await ends.closed.wait()
        session.send(wire.command("GETINFO", "version"))
        session.flush()
        session.close()

        assert session.unanswered == 0
        with pytest.raises(ControlClosed):
            await session.request(wire.command("GETINFO", "version"))

    run(body)


@pytest.mark.parametrize("data", [b"250 to no command\r\n", b"garbage\r\n", b"\x00" * 100 + b"\r\n"])
def test_what_is_not_the_protocol_ends_the_connection_with_its_reason(data: bytes) -> None:
    async def body(ends: Ends, session: Session) -> None:
        await ends.write(data)
        await ends.closed.wait()

        assert isinstance(ends.happened[-1], ControlProtocolError)
        assert not session.is_open

    run(body)


def test_what_was_read_with_the_reason_to_close_is_not_handed_on() -> None:
    async def body(ends: Ends, session: Session) -> None:
        session.send(wire.command("SETEVENTS"), lambda _reply: session.close())
        session.send(wire.command("GETINFO", "version"), ends.happened.append)
        await ends.read()
        await ends.write(b"552 no\r\n250 yes\r\n650 SIGNAL RELOAD\r\n")
        await ends.closed.wait()

        assert ends.happened == [None]

    run(body)


def test_the_reason_given_for_closing_is_told() -> None:
    async def body(ends: Ends, session: Session) -> None:
        reason = ControlRefused("no use")
        session.close(reason)
        await ends.closed.wait()

        assert ends.happened == [reason]

    run(body)


def test_a_fault_in_a_callback_reaches_the_loop_and_ends_the_connection() -> None:
    faults: list[dict[str, Any]] = []

    async def body(ends: Ends, session: Session) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))

        def fail(_event: AnyEvent) -> None:
            raise RuntimeError("a fault")

        ends.on_event = fail
        await ends.write(b"650 SIGNAL RELOAD\r\n")
        await ends.closed.wait()
        assert not session.is_open

    run(body)
    assert [str(fault["exception"]) for fault in faults] == ["a fault"]


def test_get_info_tells_what_tor_refused(fake: FakeControlPort) -> None:
    fake.answers["GETINFO"] = '552 Unrecognized key "x"\r\n'

    async def ask() -> None:
        session = await connect_once(TorControl(fake.address))
        try:
            await get_info(session, "x", "y")
        finally:
            session.close()
            await asyncio.sleep(0)

    with pytest.raises(ControlRefused, match='Tor refused GETINFO x y: Unrecognized key "x"'):
        asyncio.run(ask())


def test_a_tcp_port_serves_as_well() -> None:
    async def ask(tor: TorControl) -> list[object]:
        heard: list[object] = []
        closed = asyncio.Event()
        session = await connect(
            tor, on_event=heard.append, on_turn=lambda: None, on_closed=lambda _error: closed.set()
        )
        fake.tell("SIGNAL NEWNYM")
        await get_info(session, "version")
        session.close()
        await closed.wait()
        return heard

    with FakeControlPort() as fake:
        assert [str(event) for event in asyncio.run(ask(TorControl(fake.address)))] == [
            "SignalReceived(name='NEWNYM')"
        ]


@pytest.mark.parametrize("answer", [HANG, HANG_UP])
def test_a_tor_that_does_not_answer_is_left_by_a_timeout(fake: FakeControlPort, answer: str | None) -> None:
    fake.answers["GETINFO"] = answer

    async def ask() -> None:
        session = await connect_once(TorControl(fake.address))
        try:
            async with asyncio.timeout(0.2):
                await get_info(session, "version")
        finally:
            session.close()
            await asyncio.sleep(0)

    with pytest.raises((TimeoutError, ControlClosed)):
        asyncio.run(ask())
