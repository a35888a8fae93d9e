"""A control port on a real socket that answers as a test says, also as no real Tor would."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from circuitloom.policy.types import ControlAddress, TcpAddress, UnixAddress

WAIT_SECONDS = 10.0
PROTOCOL_INFO = '250-PROTOCOLINFO 1\r\n250-AUTH METHODS={0}\r\n250-VERSION Tor="0.4.9.11"\r\n250 OK\r\n'
PATH = f"${'A' * 40}~alpha,${'B' * 40}~beta"

HANG = ""
"""An answer that never comes."""

HANG_UP = None
"""Instead of an answer, the connection ends."""

Answer = str | None | Callable[[str], str | None]


class FakeControlPort:
    """Answers each command by its first word; a context manager that always closes.

    Args:
        path: Where the Unix socket is made; None: a TCP port on loopback.

    Attributes:
        address: As a policy names it.
        commands: Every line received, over all connections.
        answers: By a command's first word, or by a longer beginning of it, which counts more. Lines need
            their line ends; an event behind a reply is sent with it.
        chunk_bytes: How much is sent at once.
        is_mute: Whether connections are accepted and never answered.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.commands: list[str] = []
        self.chunk_bytes = 1 << 16
        self.is_mute = False
        self._circuit_id = 29
        self._heard = threading.Condition()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self.answers: dict[str, Answer] = {
            "PROTOCOLINFO": PROTOCOL_INFO.format("NULL"),
            "AUTHENTICATE": "250 OK\r\n",
            "SETEVENTS": "250 OK\r\n",
            "GETCONF": "250-__LeaveStreamsUnattached=0\r\n250 MapAddress\r\n",
            "GETINFO": "250-version=0.4.9.11\r\n250-circuit-status=\r\n250-stream-status=\r\n250 OK\r\n",
            "SETCONF": "250 OK\r\n",
            "RESETCONF": "250 OK\r\n",
            "ATTACHSTREAM": "250 OK\r\n",
            "CLOSESTREAM": "250 OK\r\n",
            "CLOSECIRCUIT": "250 OK\r\n",
            "EXTENDCIRCUIT": self._extend,
        }
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.address: ControlAddress = TcpAddress(*self._listener.getsockname())
        else:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            self._listener.listen()
            self.address = UnixAddress(str(path))
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.hang_up()
        for thread in self._threads:
            thread.join(WAIT_SECONDS)

    def tell(self, *lines: str) -> None:
        """Send events, each without its ``650``, to whoever has subscribed."""
        self.send("".join(f"650 {line}\r\n" for line in lines))

    def send(self, text: str) -> None:
        """Send these bytes on every connection."""
        with self._heard:
            for connection in self._connections:
                self._send(connection, text)

    def hang_up(self, *, only_first: bool = False) -> None:
        """End all connections, or the one that was made first: the agent's, where the next is its guard's."""
        with self._heard:
            for connection in self._connections[:1] if only_first else self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def count(self, beginning: str) -> int:
        """How many commands began like this."""
        with self._heard:
            return sum(command.startswith(beginning) for command in self.commands)

    def wait_for(self, beginning: str, times: int = 1) -> None:
        """Wait until so many commands began like this."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._heard:
            while sum(command.startswith(beginning) for command in self.commands) < times:
                if not self._heard.wait(deadline - time.monotonic()):
                    raise AssertionError(f"not {times} x {beginning} in {WAIT_SECONDS} s: {self.commands}")

    # --- the threads ---------------------------------------------------------------------------------------

    def _start(self, target: Callable[..., None], arguments: Sequence[object] = ()) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._start(self._serve, (connection,))

    def _serve(self, connection: socket.socket) -> None:
        with self._heard:
            self._connections.append(connection)
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            for line in lines:
                command = line.decode("latin-1").rstrip("\r\n")
                with self._heard:
                    self.commands.append(command)
                    answer = HANG if self.is_mute else self._answer(command)
                    if answer is HANG_UP:
                        break
                    self._send(connection, answer)
                    self._heard.notify_all()
        with self._heard:
            self._connections.remove(connection)
            self._heard.notify_all()

    def _answer(self, command: str) -> str | None:
        beginning = max((word for word in self.answers if command.startswith(word)), key=len, default="")
        answer = self.answers.get(beginning, "510 Unrecognized command\r\n")
        return answer(command) if callable(answer) else answer

    def _extend(self, _command: str) -> str:
        self._circuit_id += 1
        return (
            f"250 EXTENDED {self._circuit_id}\r\n"
            f"650 CIRC {self._circuit_id} BUILT {PATH} PURPOSE=GENERAL "
            f"TIME_CREATED=2026-11-22T11:00:00.0000{self._circuit_id}\r\n"
        )

    def _send(self, connection: socket.socket, text: str) -> None:
        data = text.encode("latin-1")
        with contextlib.suppress(OSError):
            for start in range(0, len(data), self.chunk_bytes):
                connection.sendall(data[start : start + self.chunk_bytes])
