"""Ends the private network when its owner is gone, in whatever way: the owner cannot do it after a SIGKILL.

Run as a program of its own: ``guardian.py OWNER_PID DIRECTORY``. On its standard input the owner names each
process as ``watch PID``; when that pipe closes or the owner ends, all of them are killed and the directory is
removed.

Why not other ways: tor's ``__OwningControllerProcess`` polls only every 15 s and removes nothing (we set it
too, in case this program is killed); PR_SET_PDEATHSIG fires when the *thread* that started a child ends.
Processes are held by pidfd, so a number that the kernel has given to somebody else is never signalled. Pure
standard library, no import of circuitloom, so that it starts at once and runs with ``python -I -S``.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
from pathlib import Path

EXIT_GRACE_MILLISECONDS = 2000
"""A killed process is gone within milliseconds; the bound is for one stuck in the kernel."""


def main() -> None:
    """Wait for the owner's end, then clean up."""
    owner_pid, directory = int(sys.argv[1]), Path(sys.argv[2])
    waiter = select.poll()
    waiter.register(0, select.POLLIN | select.POLLHUP)
    watched: set[int] = set()
    owner = -1
    # Besides the pipe, because a forked copy of the owner may still hold the pipe's other end. An owner that
    # is gone already has closed the pipe.
    with contextlib.suppress(ProcessLookupError):
        owner = os.pidfd_open(owner_pid)
        waiter.register(owner, select.POLLIN)
    pending = b""
    while True:
        ready = {descriptor for descriptor, _ in waiter.poll()}
        for descriptor in ready & watched:
            waiter.unregister(descriptor)
            os.close(descriptor)
            watched.discard(descriptor)
        if 0 in ready:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                try:
                    descriptor = os.pidfd_open(int(line.removeprefix(b"watch ")))
                except ProcessLookupError:
                    continue
                watched.add(descriptor)
                waiter.register(descriptor, select.POLLIN)
        elif owner in ready:
            break
    end(watched)
    shutil.rmtree(directory, ignore_errors=True)


def end(watched: set[int]) -> None:
    """Kill the processes and wait until they are gone, so that none writes into the directory any more."""
    for descriptor in watched:
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except ProcessLookupError:
            continue
    for descriptor in watched:
        waiter = select.poll()
        waiter.register(descriptor, select.POLLIN)
        waiter.poll(EXIT_GRACE_MILLISECONDS)


if __name__ == "__main__":
    main()
