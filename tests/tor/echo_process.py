"""An echo server as a process of its own: ten thousand connections have two ends, and a process its limit.

Run as a program it prints its port, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from circuitloom.lab.traffic import EchoServer


@contextlib.contextmanager
def echo_process() -> Iterator[int]:
    """The port of an echo server in a child process, which ends with the context."""
    process = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.stdin.close()
        process.stdout.close()
        process.wait(10)


if __name__ == "__main__":
    with EchoServer() as server:
        sys.stdout.write(f"{server.port}\n")
        sys.stdout.flush()
        sys.stdin.read()
