"""The agent's end of a recording: opens the file, starts who writes it, and hands lines on.

Rules of this file:

* Nothing here waits for a disk: lines go into a socket that never blocks, and what it does not take is kept,
  up to a bound.
* Only the opening can fail for the agent; everything later ends the recording, and is told once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
import stat
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from circuitloom.errors import CannotCreate, reason_of
from circuitloom.model import Action, Event
from circuitloom.recording.lines import KEY_BYTES, Recording

MAX_BYTES = 64 << 20
"""About 120,000 streams. Together with the recording before it a state directory holds twice that."""

MAX_PENDING_BYTES = 4 << 20
"""What waits for a disk that is slow; beyond it the recording would have holes."""

BATCH_BYTES = 1 << 15
FLUSH_SECONDS = 0.5

END_SECONDS = 1.0
"""At the end of the agent, for what has not been written."""

REAP_SECONDS = 0.1
"""For a child that ends by itself; one that hangs on its disk is killed."""

_log = logging.getLogger(__name__)


class Recorder:
    """One recording, until it ends.

    Args:
        path: The file. One that is there is kept as ``PATH.1``, instead of the one before it.
        max_bytes: Where the recording ends.

    Raises:
        CannotCreate: The file or the process cannot be made.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._loop = asyncio.get_running_loop()
        self._began_at = self._loop.time()
        self._recording = Recording(secrets.token_bytes(KEY_BYTES))
        self._bytes = 0
        self._pending = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._is_blocked = False
        self._link: socket.socket | None = None
        try:
            self._link, self._child = self._start(_open(path))
        except OSError as error:
            raise CannotCreate(f"cannot record to {path}: {reason_of(error)}") from None
        self._loop.add_reader(self._link, self._on_word)
        self._add([self._recording.head()])
        _log.info("recording streams to %s, %d MiB at most", path, max_bytes >> 20)

    def take(self, event: Event, actions: Iterable[Action]) -> None:
        """Write down what happened and what the core made of it."""
        if self._link is not None:
            now = self._loop.time() - self._began_at
            self._add(self._recording.lines(event, actions, time=now))

    def close(self) -> None:
        """Write what is left, within ``END_SECONDS``."""
        link = self._link
        self._forget()
        if link is not None:
            with link, contextlib.suppress(OSError):
                link.settimeout(END_SECONDS)
                link.sendall(self._pending)
                link.shutdown(socket.SHUT_WR)
                # Its end of the socket closes when all is written.
                link.recv(1)
        self._reap()

    # --- inside --------------------------------------------------------------------------------------------

    def _start(self, descriptor: int) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        isolated = ["-I"] if sys.flags.isolated else []
        command = [sys.executable, *isolated, "-m", "circuitloom.recording.child"]
        try:
            child = subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
                [*command, str(theirs.fileno()), str(descriptor)],
                pass_fds=[theirs.fileno(), descriptor],
                stdin=subprocess.DEVNULL,
                # A Ctrl-C in a terminal is for the agent, which then ends it.
                start_new_session=True,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(descriptor)
        ours.setblocking(False)  # noqa: FBT003 - the method's only argument
        return ours, child

    def _add(self, lines: list[str]) -> None:
        for line in lines:
            data = line.encode()
            if self._bytes + len(data) > self._max_bytes:
                self._flush()
                self._end(f"{self._path} has {self._max_bytes >> 20} MiB, its most")
                return
            self._bytes += len(data)
            self._pending += data
        if len(self._pending) > MAX_PENDING_BYTES:
            self._end(f"what writes {self._path} does not keep up")
        elif len(self._pending) >= BATCH_BYTES and not self._is_blocked:
            self._flush()
        elif self._pending and self._timer is None and not self._is_blocked:
            self._timer = self._loop.call_later(FLUSH_SECONDS, self._flush)

    def _flush(self) -> None:
        """Hand on as much as the socket takes now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        link = self._link
        if link is None:
            return
        try:
            while self._pending:
                del self._pending[: link.send(self._pending[: 1 << 20])]
        except BlockingIOError:
            if not self._is_blocked:
                self._is_blocked = True
                self._loop.add_writer(link, self._flush)
            return
        except OSError:
            # It has ended; its last word, if there is one, tells why.
            self._on_word()
            return
        if self._is_blocked:
            self._is_blocked = False
            self._loop.remove_writer(link)

    def _on_word(self) -> None:
        """The child said why it ends, or ended."""
        if self._link is None:
            return
        try:
            reason = self._link.recv(1024).decode("utf-8", "replace")
        except BlockingIOError:
            return
        except OSError:
            reason = ""
        self._end(f"{self._path} cannot be written ({reason or 'its process ended'})")

    def _end(self, why: str) -> None:
        link = self._link
        if link is not None:
            _log.warning("recording ends: %s; serving goes on", why)
            self._forget()
            # It writes what it has been given, and ends.
            link.close()
            self._loop.call_later(END_SECONDS, self._child.poll)

    def _forget(self) -> None:
        """From here on there is nothing to record to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._link is not None:
            self._loop.remove_reader(self._link)
            self._loop.remove_writer(self._link)
            self._link = None

    def _reap(self) -> None:
        """End the child if it does not by itself; one that the kernel holds is left to it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(REAP_SECONDS)
        if self._child.poll() is None:
            self._child.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(END_SECONDS)


def _open(path: Path) -> int:
    """Make the file anew, for its owner only.

    Raises:
        OSError: It cannot be made.
        CannotCreate: What is there is no file.
    """
    with contextlib.suppress(FileNotFoundError):
        # Not followed: what a link names is not ours to move.
        if not stat.S_ISREG(path.lstat().st_mode):
            raise CannotCreate(f"cannot record to {path}: what is there is not a regular file")
        path.replace(path.with_name(f"{path.name}.1"))
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
