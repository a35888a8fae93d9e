"""The least of a control-port client: ask, and get the reply.

For set-up, tests and the demo. The agent has its own, which does not block.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from circuitloom.errors import LabError


class ControlPort:
    """One authenticated connection to a node's control socket.

    Args:
        path: The Unix socket.
        cookie: The file that proves who we are.
        timeout_seconds: How long connecting, and then each reply, may take.

    Raises:
        LabError: Nothing answers, or Tor refuses.
    """

    def __init__(self, path: Path, cookie: Path, *, timeout_seconds: float = 10.0) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_seconds)
        self._received = b""
        try:
            self._socket.connect(str(path))
            self.ask(f"AUTHENTICATE {cookie.read_bytes().hex()}")
        except OSError as error:
            self._socket.close()
            raise LabError(f"the control socket {path} does not answer: {error.strerror or error}") from error
        except LabError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; a thread that waits for events on it goes on."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def ask(self, command: str) -> list[str]:
        """Send one command and return its reply's lines, without codes; data lines are items of their own.

        Raises:
            LabError: Tor answers with an error, not in time, or not at all.
        """
        self._send(command)
        code, lines = self._read_reply()
        if code != "250":
            # The first word only: AUTHENTICATE carries a secret.
            raise LabError(f"Tor answered {command.split(maxsplit=1)[0]} with: {code} {lines[-1]}")
        return lines

    def ask_value(self, key: str) -> str:
        """The value of one ``GETINFO`` key, its lines joined by line feeds."""
        lines = self.ask(f"GETINFO {key}")
        first = lines[0].partition("=")[2]
        return "\n".join(line for line in [first, *lines[1:-1]] if line)

    def has(self, key: str) -> bool:
        """Whether Tor has a value for this ``GETINFO`` key; a failed connection still raises LabError."""
        self._send(f"GETINFO {key}")
        code, lines = self._read_reply()
        # An unknown md/id/ is a 552, an unknown ns/id/ a 250 without value.
        return code == "250" and (len(lines) > 2 or not lines[0].endswith("="))

    def events(self, *names: str) -> Iterator[str]:
        """The one-line events of these kinds, without their code, until the connection ends or is closed."""
        self.ask(f"SETEVENTS {' '.join(names)}")
        self._socket.settimeout(None)
        return self._read_events()

    def _read_events(self) -> Iterator[str]:
        with contextlib.suppress(LabError):
            while True:
                line = self._read_line()
                if line.startswith("650 "):
                    yield line.removeprefix("650 ")

    def _send(self, command: str) -> None:
        try:
            self._socket.sendall(f"{command}\r\n".encode())
        except OSError as error:
            raise LabError(f"the control socket {self._path} failed: {error.strerror or error}") from error

    def _read_reply(self) -> tuple[str, list[str]]:
        """The code and the lines of one reply; events between replies are left out."""
        lines: list[str] = []
        while True:
            line = self._read_line()
            code, separator, text = line[:3], line[3:4], line[4:]
            data = []
            if separator == "+":
                while (item := self._read_line()) != ".":
                    data.append(item.removeprefix("."))
            if code == "650":
                continue
            lines += [text, *data]
            if separator == " ":
                return code, lines

    def _read_line(self) -> str:
        while b"\r\n" not in self._received:
            try:
                chunk = self._socket.recv(65536)
            except OSError as error:
                raise LabError(
                    f"the control socket {self._path} failed: {error.strerror or error}"
                ) from error
            if not chunk:
                raise LabError(f"the control socket {self._path} was closed by Tor")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\r\n")
        return line.decode("utf-8", "replace")


def build_circuit(port: ControlPort, *, timeout_seconds: float) -> str:
    """Build one circuit along a path of Tor's choice.

    Returns:
        Its id; the circuit is built and stays open.

    Raises:
        LabError: It is not built in time.
    """
    # A launch may fail while descriptors still arrive, and Tor gives up what takes longer than its learned
    # build timeout; it tries again only for itself, never for a controller.
    deadline = time.monotonic() + timeout_seconds
    circuit_id = ""
    while time.monotonic() < deadline:
        circuits = [line.split() for line in port.ask_value("circuit-status").splitlines()]
        states = {words[0]: words[1] for words in circuits}
        if states.get(circuit_id) == "BUILT":
            return circuit_id
        if circuit_id not in states:
            try:
                circuit_id = port.ask("EXTENDCIRCUIT 0")[0].split()[1]
            except LabError:
                circuit_id = ""
        time.sleep(0.05)
    raise LabError(f"no circuit was built within {timeout_seconds:.0f} s")
