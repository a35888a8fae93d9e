"""Attachments against the flooding control port: the whole agent beside a plain stem listener.

Rules of this file:

* Each round runs every subject once, so that what else the machine does meets all of them.
* What is compared are medians over the rounds; the spread is printed beside them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.flood import PATIENCE_SECONDS, Flooded

STOP_SECONDS = 10.0
HOSTILE_CLIENTS = 100

_POLICY = """\
version: 1
tor: {{control: 'unix:{directory}/control'}}
circuits:
  - {{name: heavy, weight: 4}}
  - {{name: middle, weight: 3}}
  - {{name: light, weight: 2}}
  - {{name: feather, weight: 1}}
admin: {{socket: '{directory}/admin.sock'}}
"""


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to attach streams.

    Attributes:
        name: In the report.
        window: Streams kept in front of it.
        arguments: After ``python -m``; ``{directory}`` is where the sockets are.
        disturb: What goes on beside it while it is measured.
    """

    name: str
    window: int
    arguments: tuple[str, ...]
    disturb: Callable[[Path], contextlib.AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Spread:
    """Lowest, median and highest of one figure over the rounds."""

    low: float
    median: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}..{self.high:{spec}})"


@dataclass(frozen=True, slots=True)
class Row:
    """One subject over all rounds."""

    name: str
    window: int
    per_second: Spread
    cpu_us: Spread
    p50_ms: Spread
    p99_ms: Spread
    rss_mib: Spread


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


AGENT = ("circuitloom", "run", "{directory}/policy.yaml")
SUBJECTS = (
    Subject("the agent", 64, AGENT, nothing),
    Subject("stem listener", 64, ("benchmarks.stem_listener", "{directory}/control", "4"), nothing),
    Subject("the agent", 1024, AGENT, nothing),
    Subject("the agent, 100 hostile admin clients", 64, AGENT, hostile_clients),
)


def measure(rounds: int, seconds: float, tell: Callable[[str], None]) -> list[Row]:
    """Run every subject ``rounds`` times for ``seconds`` each, in turns."""
    results: dict[Subject, list[Flooded]] = {subject: [] for subject in SUBJECTS}
    for number in range(rounds):
        for subject, measured in results.items():
            flooded = run_once(subject, seconds)
            measured.append(flooded)
            tell(
                f"round {number + 1}: {subject.name}, {subject.window} in flight: {flooded.per_second:,.0f}/s"
            )
    return [_row(subject, measured) for subject, measured in results.items()]


def run_once(subject: Subject, seconds: float) -> Flooded:
    """Start the port, then the subject, and wait for what the port measured."""
    with tempfile.TemporaryDirectory(prefix="loom-") as folder:
        directory = Path(folder)
        (directory / "policy.yaml").write_text(_POLICY.format(directory=directory))
        flood = ("benchmarks.flood", str(directory / "control"), str(seconds), str(subject.window))
        arguments = [argument.format(directory=directory) for argument in subject.arguments]
        with _python(*flood, stdout=subprocess.PIPE) as port:
            while not (directory / "control").exists():
                if port.poll() is not None:
                    raise RuntimeError("the flooding control port ended")
            with _python(*arguments, stdout=subprocess.DEVNULL), subject.disturb(directory):
                text, _ = port.communicate(timeout=2 * PATIENCE_SECONDS + seconds)
        return Flooded(**json.loads(text))


@contextlib.contextmanager
def _python(*arguments: str, stdout: int) -> Iterator[subprocess.Popen[bytes]]:
    """A module as a process of its own, ended at the end."""
    environment = dict(os.environ) | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-m", *arguments], stdout=stdout, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(STOP_SECONDS)


def _row(subject: Subject, measured: Sequence[Flooded]) -> Row:
    return Row(
        subject.name,
        subject.window,
        _spread([one.per_second for one in measured]),
        _spread([one.cpu_us for one in measured]),
        _spread([one.p50_ms for one in measured]),
        _spread([one.p99_ms for one in measured]),
        _spread([one.rss_mib for one in measured]),
    )


def _spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))


def machine() -> str:
    """This machine, as the report names it."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores ({model}), Linux {os.uname().release}, Python {python}"
