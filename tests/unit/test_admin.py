"""The admin socket: real Unix sockets, clients of every kind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from circuitloom import admin
from circuitloom.admin import AdminServer, ask, follow
from circuitloom.errors import AdminError, CannotCreate

WAIT_SECONDS = 10.0
STATUS = {"command": "status"}
ALIEN = [b"garbage\n", b"[1]\n", b'{"a": 1', b"\xff\n", b"[" * 5000 + b"\n"]


def answer_status(request: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"state": "balancing", "asked": request.get("what", "")}


def serve(path: Path, body: Callable[[AdminServer], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            server = AdminServer(str(path), {"status": answer_status, "beta": answer_status})
            await server.start()
            try:
                await body(server)
            finally:
                await server.close()

    asyncio.run(bounded())


async def exchange(path: Path, data: bytes) -> list[Any]:
    """What the server answers to these bytes, until it closes or an end is told."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(data)
    writer.write_eof()
    lines = [json.loads(line) async for line in reader]
    writer.close()
    return lines


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "admin.sock"


def test_a_command_s_object_is_the_answer(path: Path) -> None:
    async def body(_server: AdminServer) -> None:
        answer = await asyncio.to_thread(ask, str(path), STATUS | {"what": "all"})
        assert answer == {"state": "balancing", "asked": "all"}

    serve(path, body)


def test_a_client_may_ask_several_times(path: Path) -> None:
    async def body(_server: AdminServer) -> None:
        assert len(await exchange(path, json.dumps(STATUS).encode() + b"\n" + b'{"command": "beta"}\n')) == 2

    serve(path, body)


@pytest.mark.parametrize(
    ("request_line", "complaint"),
    [
        (b"garbage\n", "a request is one JSON object on one line"),
        (b"\xff\xfe\n", "a request is one JSON object on one line"),
        (b"\n", "a request is one JSON object on one line"),
        (b"[" * 5000 + b"\n", "a request is one JSON object on one line"),
        (b'"status"\n', 'a request names its command: {"command": "status"}'),
        (b"{}\n", 'a request names its command: {"command": "status"}'),
        (b'{"command": 1}\n', 'a request names its command: {"command": "status"}'),
        (b'{"command": "nonsense"}\n', "no such command; there are: beta, events, status"),
        (b'{"command": "status"', "a request is one JSON object on one line"),
    ],
)
def test_a_wrong_request_gets_an_error(path: Path, request_line: bytes, complaint: str) -> None:
    async def body(_server: AdminServer) -> None:
        assert await exchange(path, request_line) == [{"error": complaint}]

    serve(path, body)


def test_a_line_of_a_megabyte_is_refused_and_the_next_client_is_served(path: Path) -> None:
    def send_much() -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(WAIT_SECONDS)
            client.connect(str(path))
            with contextlib.suppress(OSError):
                client.sendall(b"x" * (1 << 20))
            return client.recv(1000)

    async def body(_server: AdminServer) -> None:
        assert json.loads(await asyncio.to_thread(send_much)) == {"error": "a request is over 65536 bytes"}
        assert (await asyncio.to_thread(ask, str(path), STATUS))["state"] == "balancing"

    serve(path, body)


def test_a_silent_client_is_let_go_and_hinders_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admin, "IDLE_SECONDS", 0.2)

    async def body(_server: AdminServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert (await asyncio.to_thread(ask, str(path), STATUS))["state"] == "balancing"
        assert await reader.read() == b""
        writer.close()

    serve(path, body)


def test_too_many_clients_are_refused_until_one_leaves(path: Path) -> None:
    async def body(_server: AdminServer) -> None:
        clients = [await asyncio.open_unix_connection(str(path)) for _ in range(admin.MAX_CLIENTS)]
        for reader, writer in clients:
            writer.write(json.dumps(STATUS).encode() + b"\n")
            assert b"balancing" in await reader.readline()
        with pytest.raises(AdminError):
            await asyncio.to_thread(ask, str(path), STATUS)
        clients[0][1].close()
        await clients[0][0].read()
        while True:
            try:
                await asyncio.to_thread(ask, str(path), STATUS)
            except AdminError:
                continue
            break
        for _, writer in clients[1:]:
            writer.close()

    serve(path, body)


def test_many_requests_at_once_let_the_loop_turn_between_them(path: Path) -> None:
    """Whatever else the loop does, attaching streams above all, waits for one answer at most."""
    since_turn = most_between_turns = 0

    def answer(_request: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal since_turn, most_between_turns
        since_turn += 1
        most_between_turns = max(most_between_turns, since_turn)
        return {}

    async def body() -> None:
        nonlocal since_turn
        server = AdminServer(str(path), {"status": answer})
        await server.start()
        clients = [
            asyncio.create_task(exchange(path, (json.dumps(STATUS).encode() + b"\n") * 100)) for _ in range(5)
        ]
        while not all(client.done() for client in clients):
            await asyncio.sleep(0)
            since_turn = 0
        assert [len(client.result()) for client in clients] == [100] * 5
        await server.close()

    asyncio.run(asyncio.wait_for(body(), WAIT_SECONDS))
    assert most_between_turns == 1


def test_a_client_that_leaves_before_its_answer_is_no_fault(path: Path) -> None:
    faults: list[object] = []

    async def body(_server: AdminServer) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
        for _ in range(10):
            _, writer = await asyncio.open_unix_connection(str(path))
            writer.write((json.dumps(STATUS).encode() + b"\n") * 100)
            writer.transport.abort()
        assert (await asyncio.to_thread(ask, str(path), STATUS))["state"] == "balancing"

    serve(path, body)
    assert faults == []


def test_open_clients_do_not_hold_up_the_end(path: Path) -> None:
    async def body(server: AdminServer) -> None:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(json.dumps(STATUS).encode() + b"\n")
        await reader.readline()
        await server.close()
        assert await reader.read() == b""
        writer.close()

    serve(path, body)
    assert not path.exists()


# --- the socket's file -------------------------------------------------------------------------------------


def test_only_owner_and_group_may_ask(path: Path) -> None:
    async def body(_server: AdminServer) -> None:
        mode = os.lstat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o660

    serve(path, body)


def test_the_socket_is_gone_afterwards(path: Path) -> None:
    async def body(server: AdminServer) -> None:
        await server.close()
        await server.close()

    serve(path, body)
    assert not path.exists()


def test_a_socket_that_a_killed_agent_left_is_taken_over(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))

    async def body(_server: AdminServer) -> None:
        assert (await asyncio.to_thread(ask, str(path), STATUS))["state"] == "balancing"

    serve(path, body)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_not_a_socket_is_not_removed(path: Path, kind: str) -> None:
    if kind == "file":
        path.write_text("mine")
    else:
        path.mkdir()

    with pytest.raises(CannotCreate, match="something else has this name; remove it"):
        asyncio.run(AdminServer(str(path), {}).start())
    assert path.exists()


def test_a_second_agent_is_refused(path: Path) -> None:
    async def body(_server: AdminServer) -> None:
        with pytest.raises(CannotCreate, match="another circuitloom answers there"):
            await AdminServer(str(path), {}).start()
        assert (await asyncio.to_thread(ask, str(path), STATUS))["state"] == "balancing"

    serve(path, body)


def test_a_missing_folder_is_told_with_what_to_do(short_path: Path) -> None:
    path = short_path / "missing" / "admin.sock"

    with pytest.raises(CannotCreate) as caught:
        asyncio.run(AdminServer(str(path), {}).start())
    assert str(caught.value) == (
        f"admin socket {path}: No such file or directory; "
        "make its directory writable for the agent, or set admin.socket in the policy"
    )


def test_a_folder_that_is_a_file_is_told(short_path: Path) -> None:
    (short_path / "file").write_text("")

    with pytest.raises(CannotCreate, match="Not a directory"):
        asyncio.run(AdminServer(str(short_path / "file" / "admin.sock"), {}).start())


# --- asking ------------------------------------------------------------------------------------------------


class Liar:
    """Answers the first client with these bytes, or with nothing at all."""

    def __init__(self, path: Path, answer: bytes | None) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._answer = answer
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._done.set()
        self._thread.join(WAIT_SECONDS)
        self._listener.close()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(1000)
            if self._answer is None:
                self._done.wait(WAIT_SECONDS)
            else:
                connection.sendall(self._answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "no answer, the connection was closed; an agent serves 32 clients at a time"),
        *((alien, "what answers there is no circuitloom: name its admin socket") for alien in ALIEN),
        (None, "no answer within 0.2 s; does the agent hang"),
    ],
)
@pytest.mark.parametrize("asked", [partial(ask, request=STATUS), lambda path: next(follow(path))])
def test_no_usable_answer_is_one_line_that_says_what_to_do(
    path: Path,
    answer: bytes | None,
    said: str,
    asked: Callable[[str], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(admin, "CLIENT_TIMEOUT_SECONDS", 0.2)
    liar = Liar(path, answer)
    try:
        with pytest.raises(AdminError) as caught:
            asked(str(path))
    finally:
        liar.close()
    assert str(caught.value).startswith(f"{path}: {said}")
    assert "\n" not in str(caught.value)


def test_an_error_of_the_agent_is_passed_on(path: Path) -> None:
    async def body(_server: AdminServer) -> None:
        with pytest.raises(AdminError, match="no such command; there are: beta, events, status"):
            await asyncio.to_thread(ask, str(path), {"command": "nonsense"})

    serve(path, body)


@pytest.mark.parametrize("is_left", [False, True])
def test_no_agent_is_one_line_that_says_what_to_do(path: Path, is_left: bool) -> None:
    if is_left:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
            dead.bind(str(path))

    with pytest.raises(AdminError) as caught:
        ask(str(path), STATUS)
    assert str(caught.value) == (
        f"no circuitloom answers on {path}; is it running (systemctl status circuitloom)? "
        "Another socket is named with --socket"
    )


def test_a_socket_we_may_not_use_is_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: object) -> None:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(socket.socket, "connect", refuse)

    with pytest.raises(
        AdminError, match="not allowed; run as root or as a member of the agent's group"
    ) as caught:
        ask(str(path), STATUS)
    assert caught.value.exit_code == 77


def test_a_path_too_long_for_a_socket_is_one_line() -> None:
    with pytest.raises(AdminError, match=r"no usable answer .*too long"):
        ask("/" + "a" * 200, STATUS)
