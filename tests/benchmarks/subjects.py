"""Who attaches the streams of a flood, what goes on beside it, and one run of both."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.flood import PATIENCE_SECONDS, Flooded, Plan
from benchmarks.measure import STOP_SECONDS, BenchError, output_of, python_module

HOSTILE_CLIENTS = 100
POLL_SECONDS = 0.02

WEIGHTED = """\
circuits:
  - {name: heavy, weight: 4}
  - {name: middle, weight: 3}
  - {name: light, weight: 2}
  - {name: feather, weight: 1}
"""

ENDLESS_HOOK = """\
rounds: {command: ['{directory}/hook'], first_after: 10ms, interval: 1h, timeout: 1h}
"""


@contextlib.contextmanager
def nothing(_directory: Path) -> Iterator[None]:
    """Leave the subject alone."""
    yield


@contextlib.contextmanager
def hostile_clients(directory: Path) -> Iterator[None]:
    """A hundred clients of the admin socket that send garbage, or 1 MB lines, and never read an answer."""
    ended = threading.Event()
    path = str(directory / "admin.sock")
    threads = [
        threading.Thread(target=_be_hostile, args=(path, number, ended), daemon=True)
        for number in range(HOSTILE_CLIENTS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(STOP_SECONDS)


_HOSTILE = (b'{"command": "status"}\n' * 64, b"x" * (1 << 20), b"\0\xff{[\n" * 64)


def _be_hostile(path: str, number: int, ended: threading.Event) -> None:
    data = _HOSTILE[number % len(_HOSTILE)]
    while not ended.is_set():
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            connection.connect(path)
            while not ended.wait(0.2):
                connection.sendall(data)
        ended.wait(0.2)


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to attach streams.

    Attributes:
        name: In the report.
        policy: Of the agent, beside its sockets; None: it is no agent.
        arguments: After ``python -m``; ``{directory}`` is where the sockets are.
        disturb: What goes on beside it while it is measured.
    """

    name: str
    policy: str | None = WEIGHTED
    arguments: tuple[str, ...] = ("circuitloom", "run", "{directory}/policy.yaml", "--state", "{directory}")
    disturb: Callable[[Path], AbstractContextManager[None]] = nothing


STEM = Subject("stem listener", None, ("benchmarks.stem_listener", "{directory}/control", "4"))


def run_once(subject: Subject, plan: Plan) -> Flooded:
    """Start the port, then the subject, and wait for what the port measured.

    Raises:
        BenchError: The port, which measures, ended without a result.
    """
    with tempfile.TemporaryDirectory(prefix="loom-") as folder:
        directory = Path(folder)
        if subject.policy is not None:
            _write_policy(directory, subject.policy)
        port_arguments = ("benchmarks.flood", str(directory / "control"), json.dumps(asdict(plan)))
        arguments = [argument.format(directory=directory) for argument in subject.arguments]
        with python_module(*port_arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as port:
            while not (directory / "control").exists():
                if port.poll() is not None:
                    raise BenchError("the flooding control port ended at once")
                time.sleep(POLL_SECONDS)
            with python_module(*arguments), subject.disturb(directory):
                return Flooded.from_json(output_of(port, 2 * PATIENCE_SECONDS + plan.seconds))


def _write_policy(directory: Path, policy: str) -> None:
    hook = directory / "hook"
    hook.write_text("#!/bin/sh\nexec sleep 3600\n")
    hook.chmod(0o700)
    (directory / "policy.yaml").write_text(
        f"version: 1\ntor: {{control: 'unix:{directory}/control'}}\n"
        f"admin: {{socket: '{directory}/admin.sock'}}\n" + policy.replace("{directory}", str(directory))
    )
