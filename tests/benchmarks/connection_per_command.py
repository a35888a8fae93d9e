"""A loop with a control connection for every command: ``... SOCKET COOKIE CIRCUITS``.

What scripts around Tor often do, and the two-circuit monitor that this project began with: events come on one
connection, and for each command another one is opened, authenticated and closed.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from pathlib import Path

from circuitloom.errors import LabError
from circuitloom.lab.controlport import ControlPort, build_circuit

BUILD_SECONDS = 30.0


def main(path: Path, cookie: Path, circuits: int) -> None:
    """Attach until the connection ends."""
    with ControlPort(path, cookie) as builder:
        ids = [build_circuit(builder, timeout_seconds=BUILD_SECONDS) for _ in range(circuits)]
    turns = itertools.cycle(ids)
    with ControlPort(path, cookie) as listener:
        events = listener.events("STREAM")
        _command(path, cookie, "SETCONF __LeaveStreamsUnattached=1")
        for line in events:
            _, stream_id, status, *_ = line.split(" ", 3)
            if status == "NEW" and "PURPOSE=USER" in line:
                # One that has ended meanwhile, or a circuit that has: this loop cares about neither.
                with contextlib.suppress(LabError):
                    _command(path, cookie, f"ATTACHSTREAM {stream_id} {next(turns)}")


def _command(path: Path, cookie: Path, command: str) -> None:
    with ControlPort(path, cookie) as port:
        port.ask(command)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
