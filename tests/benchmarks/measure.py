"""What is measured of processes, and how figures over several rounds are told."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

RETRIES = 2
STOP_SECONDS = 10.0
TESTS = Path(__file__).parents[1]


class BenchError(Exception):
    """Nothing was measured, and why."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Lowest, median and highest of one figure over the rounds."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Of one value for each round; of none at all, not a number."""
        ordered = sorted(values) or [math.nan]
        return cls(ordered[0], statistics.median(ordered), ordered[-1])

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}..{self.high:{spec}})"


def in_turns(
    cases: Mapping[str, Callable[[], Result]],
    rounds: int,
    tell: Callable[[str], None],
    say: Callable[[Result], str],
) -> dict[str, list[Result]]:
    """Run every case once in each round, so that what else the machine does meets all of them.

    Args:
        cases: By name; each round begins with another one.
        rounds: How many.
        tell: Takes a line for each run.
        say: What that line tells of the result.
    """
    results: dict[str, list[Result]] = {name: [] for name in cases}
    names = list(cases)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            result = _try(cases[name], name, tell)
            results[name].append(result)
            tell(f"round {number + 1} of {rounds}: {name}: {say(result)}")
    return results


def _try(case: Callable[[], Result], name: str, tell: Callable[[str], None]) -> Result:
    """A case's result; a machine that stood still meanwhile may spoil it, so it gets another chance."""
    for _ in range(RETRIES):
        try:
            return case()
        except BenchError as error:
            tell(f"{name}: {error}; once more")
    return case()


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, the one that this share does not exceed; NaN of none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


def family(process_id: int) -> list[int]:
    """A process and all that descend from it, as far as they still are there."""
    found = [process_id]
    for parent in found:
        for task in _tasks(parent):
            with contextlib.suppress(OSError):
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def cpu_seconds(process_ids: Iterable[int]) -> float:
    """CPU time of processes with all their threads, by the scheduler's nanoseconds."""
    return sum(_schedstat(process_id, 0) for process_id in process_ids)


def starved_seconds(process_ids: Iterable[int]) -> float:
    """How long their threads could have run and had to wait for a CPU: what else the machine did."""
    return sum(_schedstat(process_id, 1) for process_id in process_ids)


def pss_mib(process_ids: Iterable[int]) -> float:
    """Memory of processes; what several share counts for each in part, so sums are right."""
    return sum(_kib(process_id, "smaps_rollup", "Pss:") for process_id in process_ids) / 1024


def footprint_mib(process_ids: Sequence[int]) -> float:
    """Memory of processes of one program as if no other one ran it: private pages, and shared ones once."""
    private = sum(_kib(process_id, "smaps_rollup", "Private_") for process_id in process_ids)
    shared = max((_kib(process_id, "smaps_rollup", "Shared_") for process_id in process_ids), default=0)
    return (private + shared) / 1024


def rss_mib(process_id: int) -> float:
    """Resident memory of one process, with what it shares."""
    return _kib(process_id, "status", "VmRSS:") / 1024


def machine() -> str:
    """This machine, as the report names it."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{os.cpu_count()} cores ({model}), Linux {os.uname().release}, Python {python}"


@contextlib.contextmanager
def python_module(
    *arguments: str, stdout: int = subprocess.DEVNULL, stderr: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m ARGUMENTS`` as a process of its own, ended at the end."""
    environment = dict(os.environ) | {"PYTHONPATH": str(TESTS)}
    with (
        subprocess.Popen(
            [sys.executable, "-m", *arguments], stdout=stdout, stderr=stderr, env=environment
        ) as process,
        ended_at_the_end(process),
    ):
        yield process


def output_of(process: subprocess.Popen[bytes], timeout_seconds: float) -> bytes:
    """What a measuring process printed, once it has ended.

    Raises:
        BenchError: It did not end in time, or ended with an error.
    """
    try:
        text, complaint = process.communicate(timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        raise BenchError(f"nothing was measured within {timeout_seconds:.0f} s") from None
    if process.returncode:
        reason = (complaint or b"").decode(errors="replace").strip().rpartition("\n")[2]
        raise BenchError(f"nothing was measured ({reason or 'no reason was given'})")
    return text


@contextlib.contextmanager
def ended_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Around the use of a process: it is asked to end, and killed if it does not."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _tasks(process_id: int) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from Path(f"/proc/{process_id}/task").iterdir()


def _schedstat(process_id: int, field: int) -> float:
    """A field of all threads' schedstat: 0 is time on a CPU, 1 time on a queue for one; seconds."""
    total = 0
    for task in _tasks(process_id):
        with contextlib.suppress(OSError):
            total += int((task / "schedstat").read_text().split()[field])
    return total / 1e9


def _kib(process_id: int, file: str, name: str) -> int:
    """The sum of all lines whose name begins so; 0 of a process that is gone."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{process_id}/{file}").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith(name))
    return 0
