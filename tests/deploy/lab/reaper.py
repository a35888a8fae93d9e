"""Removes a lab when the process that made it goes away: `python -m deploy.lab.reaper NAME DIRECTORY`.

It reads standard input, a pipe whose other end only pytest holds, and does its work at the end of file; a
pytest that is killed closes the pipe as well as one that finishes.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

from deploy.lab.lab import remove


def main() -> int:
    """Wait for the end of the pipe, then remove the lab."""
    name, directory = sys.argv[1:]
    # Only the end of the pipe ends this process: a stray signal to it would leave hosts running.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.buffer.read()
    remove(name, Path(directory))
    return 0


if __name__ == "__main__":
    sys.exit(main())
