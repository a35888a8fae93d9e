"""The admin socket: newline-delimited JSON on a Unix socket, one object in, one object out.

Rules of this file:

* It judges nothing: a command's name finds a function, and that function's dictionary is the answer.
* A client can be slow, silent, huge or wrong; it costs one bounded buffer for a bounded time.
* Without a file descriptor for them clients wait in the listener's queue; it is told at most once a minute.
* Requests: ``{"command": "status"}``. Answers: the command's object, or ``{"error": "what is wrong"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import stat
from collections.abc import Callable, Mapping
from typing import Any

from circuitloom.errors import AdminError, CannotCreate, reason_of

SOCKET_MODE = 0o660
"""Who may use the group of the agent may ask it; nobody else."""

MAX_REQUEST_BYTES = 64 << 10
MAX_CLIENTS = 32
IDLE_SECONDS = 30.0
CLIENT_TIMEOUT_SECONDS = 5.0
CLOSE_SECONDS = 0.5
"""An aborted client is gone in the next turn of the loop."""

BACKLOG = 100
"""Clients that may wait to be accepted."""

ACCEPT_RETRY_SECONDS = 1.0
"""How long a lack of descriptors or memory may last before the next client is tried."""

TELL_SECONDS = 60.0
"""Descriptors come and go; that they lack is told at most so often."""

Command = Callable[[Mapping[str, Any]], Mapping[str, Any]]
_log = logging.getLogger(__name__)


class AdminServer:
    """Answers on the admin socket until closed.

    Args:
        path: Where the socket is made.
        commands: By name.
    """

    def __init__(self, path: str, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

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
        self._accepting = asyncio.get_running_loop().create_task(self._accept(listener))
        self._accepting.add_done_callback(_tell_fault)

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

    async def _accept(self, listener: socket.socket) -> None:
        """Take clients for ever; asyncio's own server would call a lack of descriptors a fault of ours."""
        loop = asyncio.get_running_loop()
        told_at: float | None = None
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if told_at is None or loop.time() - told_at >= TELL_SECONDS:
                    told_at = loop.time()
                    _log.warning("admin socket %s takes no client: %s", self._path, reason_of(error))
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            if len(self._clients) >= MAX_CLIENTS:
                connection.close()
                # Whoever keeps the queue full must not keep the loop from turning.
                await asyncio.sleep(0)
                continue
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_REQUEST_BYTES)
            task = loop.create_task(self._serve(reader, writer))
            self._clients[task] = writer
            task.add_done_callback(self._clients.pop)
            task.add_done_callback(_tell_fault)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                async with asyncio.timeout(IDLE_SECONDS):
                    line = await reader.readline()
                    if not line:
                        break
                    writer.write(json.dumps(self._answer(line)).encode() + b"\n")
                    await writer.drain()
        except ValueError:
            writer.write(
                json.dumps({"error": f"a request is over {MAX_REQUEST_BYTES} bytes"}).encode() + b"\n"
            )
        except (OSError, TimeoutError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, line: bytes) -> Mapping[str, Any]:
        try:
            request = json.loads(line)
        except (ValueError, RecursionError):
            return {"error": "a request is one JSON object on one line"}
        if not isinstance(request, dict) or not isinstance(request.get("command"), str):
            return {"error": 'a request names its command: {"command": "status"}'}
        command = self._commands.get(request["command"])
        if command is None:
            return {"error": f"no such command; there are: {', '.join(sorted(self._commands))}"}
        return command(request)


def _tell_fault(task: asyncio.Task[None]) -> None:
    """Let the loop's exception handler know of a fault of our own."""
    if not task.cancelled():
        task.result()


def ask(path: str, request: Mapping[str, Any]) -> dict[str, Any]:
    """Send one request to a running agent and wait for the answer.

    Args:
        path: The agent's admin socket.
        request: The request.

    Raises:
        AdminError: Nobody answers there, or the answer is an error.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(CLIENT_TIMEOUT_SECONDS)
            connection.connect(path)
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as file:
                answer = json.loads(file.readline())
    except (FileNotFoundError, ConnectionRefusedError):
        raise AdminError(
            f"no circuitloom answers on {path}; is it running (systemctl status circuitloom)? "
            "Another socket is named with --socket"
        ) from None
    except PermissionError:
        raise AdminError(f"{path}: not allowed; run as root or as a member of the agent's group") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdminError(f"{path}: no usable answer ({error})") from None
    if not isinstance(answer, dict):
        raise AdminError(f"{path}: no usable answer")
    if "error" in answer:
        raise AdminError(f"{path}: {answer['error']}")
    return answer
