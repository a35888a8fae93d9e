"""The process that writes a recording: a disk that hangs, or is full, is never the agent's own.

It writes what comes over a socket until that ends, also when the agent was killed. What the system has
against a write it says over the same socket, and ends.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys

CHUNK_BYTES = 1 << 16


def main(link_descriptor: int, file_descriptor: int) -> None:
    """Be the child.

    Args:
        link_descriptor: The inherited socket to the agent.
        file_descriptor: The inherited file.
    """
    # A stop of the whole service signals every process of it; the agent's end is what counts here.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.chdir("/")
    with socket.socket(fileno=link_descriptor) as link:
        while data := link.recv(CHUNK_BYTES):
            try:
                while data:
                    data = data[os.write(file_descriptor, data) :]
            except OSError as error:
                with contextlib.suppress(OSError):
                    link.sendall(str(error.strerror).encode())
                return


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
