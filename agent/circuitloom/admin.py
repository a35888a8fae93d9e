"""The admin socket: newline-delimited JSON on a Unix socket, one object in, one object out.

Rules of this file:

* It judges nothing: a command's name finds a function, and that function's dictionary is the answer.
* A client can be slow, silent, huge or wrong; it costs one bounded buffer for a bounded time.
* Requests: ``{"command": "status"}``. Answers: the command's object, or ``{"error": "what is wrong"}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import stat
from collections.abc import Callable, Mapping
from typing import Any

from circuitloom.errors import AdminError, CannotCreate

SOCKET_MODE = 0o660
"""Who may use the group of the agent may ask it; nobody else."""

MAX_REQUEST_BYTES = 64 << 10
MAX_CLIENTS = 32
IDLE_SECONDS = 30.0
CLIENT_TIMEOUT_SECONDS = 5.0
CLOSE_SECONDS = 0.5
"""An aborted client is gone in the next turn of the loop."""

Command = Callable[[Mapping[str, Any]], Mapping[str, Any]]


class AdminServer:
    """Answers on the admin socket until closed.

    Args:
        path: Where the socket is made.
        commands: By name.
    """

    def __init__(self, path: str, commands: Mapping[str, Command]) -> None:
        self._path = path
        self._commands = commands
        self._server: asyncio.Server | None = None
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
        except OSError as error:
            listener.close()
            raise CannotCreate(
                f"admin socket {self._path}: {error.strerror or error}; "
                "make its directory writable for the agent, or set admin.socket in the policy"
            ) from None
        self._server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_REQUEST_BYTES)

    async def close(self) -> None:
        """Stop answering and remove the socket."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        # A client accepted in this very turn is known from the next one on.
        await asyncio.sleep(0)
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
            raise CannotCreate(f"admin socket {self._path}: {error.strerror or error}") from None
        else:
            raise CannotCreate(
                f"admin socket {self._path}: another circuitloom answers there; stop it, "
                "or set another admin.socket in this policy"
            )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._clients) >= MAX_CLIENTS:
            writer.transport.abort()
            return
        self._clients[task] = writer
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
            del self._clients[task]

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
