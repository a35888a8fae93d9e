"""The guard: a second process that gives the streams back to Tor when the agent cannot.

Tor has no "reset when the controller leaves" (tor-facts 4): when the agent is killed, or stops turning, every
new stream would wait. So the agent keeps a small child with a control connection of its own, authenticated
already, and a socket between them. While the agent is in charge it sends a beat; when the socket ends or the
beat stays away, the child gives everything back, within milliseconds of the one and a second of the other.

Rules of this file:

* The child only ever gives back. Doing it without need costs little: the agent takes over again.
* It ends when the agent's end of the socket is closed, and by nothing gentler than SIGKILL before.
* systemd's ExecStopPost= does the same once more for whoever runs without a guard, or lost it as well.
"""

from __future__ import annotations

import array
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

from circuitloom import wire
from circuitloom.errors import ControlProtocolError
from circuitloom.model import DOUBT_SECONDS, LEAVE_UNATTACHED, TOR_CHOOSES
from circuitloom.wire import ControlCodec, Reply

BEAT_SECONDS = 0.3
SILENCE_SECONDS = 1.0
"""A turn of the agent's loop takes milliseconds; after three missed beats streams have waited long enough."""

ANSWER_SECONDS = 2.0
"""How long the child waits for Tor's answers; a Tor that hangs serves nobody anyway."""

RESPAWN_SECONDS = 5.0
"""A child that ends at once, for lack of memory say, must not be started in a loop."""

_IN_CHARGE, _NOT_IN_CHARGE, _CONNECTION = b"1", b"0", b"C"


class Guard:
    """The agent's end: starts the child, hands it connections, and beats."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._started_at = -RESPAWN_SECONDS

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid if self._child is not None else None

    @property
    def is_missing(self) -> bool:
        """Whether a child should be started."""
        return self._child is None and time.monotonic() - self._started_at >= RESPAWN_SECONDS

    def start(self) -> None:
        """Start the child; it waits for a connection.

        Raises:
            OSError: No process or socket can be made.
        """
        self._started_at = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        isolated = ["-I"] if sys.flags.isolated else []
        with theirs:
            try:
                self._child = subprocess.Popen(  # noqa: S603 - our own module, in our own interpreter
                    [sys.executable, *isolated, "-m", "circuitloom.guard", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    # A Ctrl-C in a terminal is for the agent, which then gives back itself.
                    start_new_session=True,
                )
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)  # noqa: FBT003 - the method's only argument
        self._link = ours

    def hand_over(self, connection: socket.socket) -> None:
        """Give the child an authenticated control connection; our copy of it is closed."""
        with connection:
            self._send([_CONNECTION], [connection.fileno()])

    def beat(self, *, is_in_charge: bool) -> None:
        """Tell the child that the loop turns, and whether streams wait for us.

        A child that has ended is noticed here and can be started anew.
        """
        self._send([_IN_CHARGE if is_in_charge else _NOT_IN_CHARGE], [])

    def close(self, *, gives_back: bool) -> None:
        """End the child.

        Args:
            gives_back: Whether it has to give everything back first.
        """
        self.beat(is_in_charge=gives_back)
        self._drop()

    def _send(self, data: list[bytes], descriptors: list[int]) -> None:
        if self._link is None:
            return
        try:
            socket.send_fds(self._link, data, descriptors)
        except BlockingIOError:
            # It is stopped and its queue is full: it knows enough.
            return
        except OSError:
            self._drop()

    def _drop(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._child is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(0.5)
            if self._child.poll() is None:
                self._child.kill()
                self._child.wait()
            self._child = None


class _Watch:
    """The child's end; see ``watch``."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._tor: socket.socket | None = None

    def run(self) -> None:
        """Wait for the agent's silence or end, and give back then."""
        is_in_charge = False
        while True:
            self._link.settimeout(SILENCE_SECONDS if is_in_charge else None)
            try:
                data = self._receive()
            except TimeoutError:
                # Once is enough until the agent is heard of again.
                is_in_charge = False
                self._give_back()
                continue
            if not data:
                if is_in_charge:
                    self._give_back()
                return
            if data in {_IN_CHARGE, _NOT_IN_CHARGE}:
                is_in_charge = data == _IN_CHARGE

    def close(self) -> None:
        """Leave Tor."""
        if self._tor is not None:
            self._tor.close()
            self._tor = None

    def _receive(self) -> bytes:
        """The next message of the agent; empty at its end."""
        size = array.array("i").itemsize
        try:
            data, ancillary, _, _ = self._link.recvmsg(16, socket.CMSG_SPACE(size))
        except TimeoutError:
            raise
        except OSError:
            return b""
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                (descriptor,) = array.array("i", payload[:size])
                self.close()
                self._tor = socket.socket(fileno=descriptor)
        return data

    def _give_back(self) -> None:
        """As ``release`` does, on a blocking socket."""
        tor = self._tor
        if tor is None:
            return
        tor.settimeout(ANSWER_SECONDS)
        with contextlib.suppress(OSError, ControlProtocolError):
            option, status, _ = self._ask(
                tor,
                wire.command("GETCONF", LEAVE_UNATTACHED),
                wire.command("GETINFO", "stream-status"),
                wire.command("RESETCONF", LEAVE_UNATTACHED),
            )
            waiting = wire.waiting_streams(status)
            if waiting and option.values().get(LEAVE_UNATTACHED) != "1":
                time.sleep(DOUBT_SECONDS)
                (status,) = self._ask(tor, wire.command("GETINFO", "stream-status"))
                waiting &= wire.waiting_streams(status)
            # The answers are read, or a later time would take them for its own.
            self._ask(tor, *(wire.attach_stream(stream_id, TOR_CHOOSES) for stream_id in sorted(waiting)))

    @staticmethod
    def _ask(tor: socket.socket, *commands: bytes) -> list[Reply]:
        """Send these in one write, and wait for a reply to each."""
        tor.sendall(b"".join(commands))
        codec = ControlCodec()
        replies: list[Reply] = []
        while len(replies) < len(commands):
            data = tor.recv(1 << 16)
            if not data:
                raise ControlProtocolError("Tor hung up")
            replies += [message for message in codec.feed(data) if isinstance(message, Reply)]
        return replies


def watch(link: socket.socket) -> None:
    """Be the child's loop, until the agent's end of ``link`` is closed."""
    child = _Watch(link)
    try:
        child.run()
    finally:
        child.close()


def main(descriptor: int) -> None:
    """Be the child.

    Args:
        descriptor: The inherited socket to the agent.
    """
    # A stop of the whole service signals every process of it; the agent's end is what counts here.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.chdir("/")
    watch(socket.socket(fileno=descriptor))


if __name__ == "__main__":
    main(int(sys.argv[1]))
