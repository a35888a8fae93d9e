"""The admin socket: newline-delimited JSON on a Unix socket, one object in, one object out.

Rules of this file:

* It judges nothing: a command's name finds a function, and that function's dictionary is the answer.
* A client can be slow, silent, huge or wrong; it costs one bounded buffer for a bounded time.
* Streams come first: one request is answered in a turn of the loop, however many there are.
* Requests: ``{"command": "status"}``. Answers: the command's object, or ``{"error": "what is wrong"}``.
* ``events`` is answered once, and then with an object for each event; whoever does not read them is let go.
* Whoever changes something is named in the log, by the kernel's word.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator, Mapping
from typing import Any

from circuitloom.accepting import accept_clients, tell_fault
from circuitloom.errors import AdminError, AdminRefused, CannotCreate, reason_of
from circuitloom.kinds import Kind

SOCKET_MODE = 0o660
"""Who may use the group of the agent may ask it; nobody else."""

PROTOCOL = 1
"""A request may name it; one that asks for another is refused."""

MAX_BACKLOG_BYTES = 64 << 10
"""A follower that has left this much of the events unread is let go."""

MAX_REQUEST_BYTES = 64 << 10
MAX_CLIENTS = 32
IDLE_SECONDS = 30.0
CLIENT_TIMEOUT_SECONDS = 5.0
CLOSE_SECONDS = 0.5
"""An aborted client is gone in the next turn of the loop."""

BACKLOG = 100
"""Clients that may wait to be accepted."""

_EVENTS = "events"

Answer = Mapping[str, Any]
Command = Callable[[Mapping[str, Any]], Answer | Awaitable[Answer]]
_log = logging.getLogger(__name__)


class AdminServer:
    """Answers on the admin socket until closed.

    Args:
        path: Where the socket is made.
        commands: By name; one that raises AdminError is answered with its text. One that has to wait keeps
            only its own client waiting.
        changing: Names of those that change something.
    """

    def __init__(self, path: str, commands: Mapping[str, Command], *, changing: Collection[str] = ()) -> None:
        self._path = path
        self._commands = commands
        self._changing = changing
        self._followers: set[asyncio.StreamWriter] = set()
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Begin to answer.

        Raises:
            CannotCreate: The socket cannot be made there, or another agent answers on it.
        """
        self._remove_stale()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            # Between bind and chmod nobody can connect: nothing listens yet.
            listener.bind(self._path)
            os.chmod(self._path, SOCKET_MODE)  # noqa: PTH101 - the path is a string throughout
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise CannotCreate(
                f"admin socket {self._path}: {reason_of(error)}; "
                "make its directory writable for the agent, or set admin.socket in the policy"
            ) from None
        listener.setblocking(False)  # noqa: FBT003 - the method's only argument
        self._listener = listener
        accepting = accept_clients(listener, name=f"admin socket {self._path}", take=self._take)
        self._accepting = asyncio.get_running_loop().create_task(accepting)
        self._accepting.add_done_callback(tell_fault)

    async def close(self) -> None:
        """Stop answering and remove the socket."""
        if self._listener is None or self._accepting is None:
            return
        self._accepting.cancel()
        await asyncio.wait([self._accepting])
        self._listener.close()
        self._listener = None
        clients = dict(self._clients)
        for writer in clients.values():
            writer.transport.abort()
        if clients:
            await asyncio.wait(clients, timeout=CLOSE_SECONDS)
        with contextlib.suppress(OSError):
            os.unlink(self._path)  # noqa: PTH108 - the path is a string throughout

    def publish(self, event: Mapping[str, Any]) -> None:
        """Tell every follower."""
        if not self._followers:
            return
        line = json.dumps(event).encode() + b"\n"
        for writer in list(self._followers):
            if writer.transport.get_write_buffer_size() > MAX_BACKLOG_BYTES:
                self._followers.discard(writer)
                writer.transport.abort()
            else:
                writer.write(line)

    def _remove_stale(self) -> None:
        """A socket that nobody answers on was left by a killed agent."""
        try:
            if not stat.S_ISSOCK(os.lstat(self._path).st_mode):
                raise CannotCreate(f"admin socket {self._path}: something else has this name; remove it")
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.settimeout(1.0)
                probe.connect(self._path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(self._path)  # noqa: PTH108 - the path is a string throughout
        except FileNotFoundError:
            return
        except OSError as error:
            raise CannotCreate(f"admin socket {self._path}: {reason_of(error)}") from None
        else:
            raise CannotCreate(
                f"admin socket {self._path}: another circuitloom answers there; stop it, "
                "or set another admin.socket in this policy"
            )

    async def _take(self, connection: socket.socket) -> bool:
        if len(self._clients) >= MAX_CLIENTS:
            return False
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_REQUEST_BYTES)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._clients[task] = writer
        task.add_done_callback(self._clients.pop)
        task.add_done_callback(tell_fault)
        return True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(None if writer in self._followers else IDLE_SECONDS):
                    line = await reader.readline()
                    if not line:
                        break
                    async with self._turn:
                        # Neither a full reader nor a writer with room ever waits.
                        await asyncio.sleep(0)
                    writer.write(json.dumps(await self._answer(line, writer)).encode() + b"\n")
                    await writer.drain()
        except ValueError:
            writer.write(
                json.dumps({"error": f"a request is over {MAX_REQUEST_BYTES} bytes"}).encode() + b"\n"
            )
        except (OSError, TimeoutError):
            pass
        finally:
            self._followers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> Answer:
        try:
            name, request = self._read(line)
            if name == _EVENTS:
                self._followers.add(writer)
                return {"command": _EVENTS}
            if name in self._changing:
                _log.info("%s was asked for by %s", name, _peer(writer), extra={"kind": Kind.ORDERED})
            answer = self._commands[name](request)
            return await answer if isinstance(answer, Awaitable) else answer
        except AdminError as error:
            return {"error": str(error)}

    def _read(self, line: bytes) -> tuple[str, Mapping[str, Any]]:
        """The name of the command, which there is, and the whole request.

        Raises:
            AdminError: The line is no such thing.
        """
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            raise AdminError("a request is one JSON object on one line") from None
        if not isinstance(request, dict) or not isinstance(name := request.get("command"), str):
            raise AdminError('a request names its command: {"command": "status"}')
        if request.get("protocol", PROTOCOL) != PROTOCOL:
            raise AdminError(f"this agent speaks protocol {PROTOCOL} only")
        names = sorted([*self._commands, _EVENTS])
        if name not in names:
            raise AdminError(f"no such command; there are: {', '.join(names)}")
        return name, request


def _peer(writer: asyncio.StreamWriter) -> str:
    """Who is at the other end (SO_PEERCRED, unix(7))."""
    size = struct.calcsize("3i")
    connection = writer.get_extra_info("socket")
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    process_id, user_id, group_id = struct.unpack("3i", credentials)
    return f"uid {user_id}, gid {group_id}, pid {process_id}"


def follow(path: str) -> Generator[dict[str, Any], None, None]:
    """The events of a running agent, until it ends.

    Raises:
        AdminError: Nobody answers there, or the answer is an error.
    """
    with _connected(path) as connection, connection.makefile("rwb") as file:
        file.write(json.dumps({"command": _EVENTS}).encode() + b"\n")
        file.flush()
        _read_answer(path, file.readline())
        connection.settimeout(None)
        for line in file:
            yield json.loads(line)


def ask(path: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send one request to a running agent and wait for the answer.

    Args:
        path: The agent's admin socket.
        request: The request.

    Raises:
        AdminError: Nobody answers there, or the answer is an error.
    """
    with _connected(path) as connection:
        connection.sendall(json.dumps(request).encode() + b"\n")
        with connection.makefile("rb") as file:
            return _read_answer(path, file.readline())


def _read_answer(path: str, line: bytes) -> dict[str, Any]:
    """What was answered.

    Raises:
        AdminError: It is an error, or nothing that an agent says.
    """
    if not line:
        raise AdminError(
            f"{path}: no answer, the connection was closed; an agent serves {MAX_CLIENTS} clients at a time: "
            "try again when others have ended"
        )
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise AdminError(
            f"{path}: what answers there is no circuitloom: name its admin socket with --socket or --policy"
        )
    if "error" in answer:
        raise AdminError(f"{path}: {answer['error']}")
    return answer


@contextlib.contextmanager
def _connected(path: str) -> Iterator[socket.socket]:
    """A connection to the agent; what goes wrong with it is one line."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CLIENT_TIMEOUT_SECONDS)
            connection.connect(path)
            yield connection
    except (FileNotFoundError, ConnectionRefusedError):
        raise AdminError(
            f"no circuitloom answers on {path}; is it running (systemctl status circuitloom)? "
            "Another socket is named with --socket"
        ) from None
    except PermissionError:
        raise AdminRefused(f"{path}: not allowed; run as root or as a member of the agent's group") from None
    except TimeoutError:
        raise AdminError(
            f"{path}: no answer within {CLIENT_TIMEOUT_SECONDS:g} s; does the agent hang "
            "(systemctl status circuitloom)? Another socket is named with --socket"
        ) from None
    except (OSError, ValueError) as error:
        raise AdminError(f"{path}: no usable answer ({error})") from None
