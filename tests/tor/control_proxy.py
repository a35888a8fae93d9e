"""Stands between an agent and Tor's control socket, and acts when a certain command passes.

Rules of this file:

* Bytes go through as they are, line by line from the agent, so that Tor has had so many commands and no more.
* What the agent had sent behind the chosen command is dropped, as if it had not come to that.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Self

STOP_SECONDS = 5.0


class ControlProxy:
    """Forwards every connection to a Tor's control socket; a context manager with threads.

    Args:
        control: Tor's socket.
        path: Where the agent is to connect.

    Attributes:
        path: The same.
        passed: The first words of the commands from ``arm`` to the chosen one, over all connections.
        has_fired: Set once the chosen command has come.
    """

    def __init__(self, control: Path, path: Path) -> None:
        self.path = path
        self.passed: list[str] = []
        self.has_fired = threading.Event()
        self._control = control
        self._lock = threading.Lock()
        self._fire_at = 0
        self._is_before = False
        self._fire: Callable[[], None] = lambda: None
        self._pairs: list[_Pair] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._accept, name="control-proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut(with_guard=True)
        for thread in (self._thread, *self._threads):
            thread.join(STOP_SECONDS)

    def arm(self, number: int, fire: Callable[[], None], *, is_before: bool) -> None:
        """Count commands from here on, and act at one of them.

        Args:
            number: Which one, from 1.
            fire: What to do; its connection is cut afterwards, and every other of an agent.
            is_before: Whether Tor does not get that command any more.
        """
        with self._lock:
            self.passed = []
            self._fire_at, self._fire, self._is_before = number, fire, is_before
            self.has_fired.clear()

    def disarm(self) -> None:
        """Only forward."""
        with self._lock:
            self._fire_at = 0

    def cut(self, *, with_guard: bool = False) -> None:
        """End the connections on which events were subscribed: the agent's; or all, its guard's as well."""
        for pair in list(self._pairs):
            if pair.is_agents or with_guard:
                pair.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    theirs.connect(str(self._control))
                except OSError:
                    # No Tor: the agent gets its end of file.
                    ours.close()
                    theirs.close()
                    continue
                pair = _Pair(ours, theirs)
                self._pairs.append(pair)
                pair.answers.start()
                thread = threading.Thread(target=self._forward_commands, args=(pair,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _forward_commands(self, pair: _Pair) -> None:
        with contextlib.suppress(OSError), pair.agent.makefile("rb") as lines:
            for line in lines:
                pair.is_agents = pair.is_agents or line.startswith(b"SETEVENTS")
                if not self._pass(pair, line):
                    break
        pair.close()
        pair.answers.join(STOP_SECONDS)
        self._pairs.remove(pair)
        pair.agent.close()
        pair.tor.close()

    def _pass(self, pair: _Pair, line: bytes) -> bool:
        """Forward one command; whether the connection goes on."""
        with self._lock:
            if self._fire_at:
                self.passed.append(line.split()[0].decode("ascii", "replace"))
            # The chosen one may have been lost with its connection: then it is the next.
            is_chosen = 0 < self._fire_at <= len(self.passed)
            if not (is_chosen and self._is_before):
                pair.tor.sendall(line)
            if is_chosen:
                self._fire_at = 0
                self._fire()
                self.has_fired.set()
                self.cut()
        # An agent that is killed leaves by itself; what it has handed to its guard by then is the guard's.
        return not is_chosen or not (self._is_before or pair.is_agents)


class _Pair:
    """One connection of an agent, and the one to Tor that belongs to it."""

    def __init__(self, agent: socket.socket, tor: socket.socket) -> None:
        self.agent = agent
        self.tor = tor
        self.is_agents = False
        self.answers = threading.Thread(target=self._forward_answers, daemon=True)

    def _forward_answers(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.tor.recv(1 << 16):
                self.agent.sendall(data)
        self.close()

    def close(self) -> None:
        for end in (self.agent, self.tor):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
