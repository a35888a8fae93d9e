"""Runs a fuzzer: case after case, progress and memory at intervals, and a minimal reproducer of a failure.

Rules of this file:

* A case is drawn from its own number alone: ``--seed NUMBER --cases 1`` runs it again.
* A contract is broken by any exception that leaves ``judge``, by a case that takes too long, and by memory
  that keeps growing.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

SLOW_CPU_SECONDS = 2.0
"""A case costs milliseconds; of CPU, because this machine may be busy with something else."""

HANG_SECONDS = 20
"""After this a case is taken for hung, and its traceback tells where."""

PROGRESS_SECONDS = 10.0

FLAT_BYTES = 24 << 20
"""By how much memory may grow after the first tenth: caches fill late, and an allocator keeps pieces."""

MINIMISE_SECONDS = 30.0
"""A smaller case is a kindness; the seed alone suffices."""

SHOWN_LETTERS = 400

Case = tuple[bytes, ...]


class Fuzzer(Protocol):
    """What is fuzzed.

    Attributes:
        unit: What ``judge`` counts, in the plural.
    """

    unit: str

    def draw(self, rng: random.Random) -> Case:
        """Make a case."""
        ...

    def judge(self, case: Case) -> int:
        """Feed a case to the real thing; raise when the contract is broken, else return the units fed."""
        ...


class Hung(Exception):
    """A case did not end."""


class Slow(Exception):
    """A case cost too much."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A case that broke the contract.

    Attributes:
        seed: Draws the case.
        case: Made as small as it could be.
        error: What it raised.
    """

    seed: int
    case: Case
    error: BaseException


@dataclass(slots=True)
class Tally:
    """How far a campaign has come.

    Attributes:
        units: Fed so far.
        cases: Judged so far.
        seconds: Since the start.
        settled_bytes: Resident memory when a tenth was done.
        resident_bytes: Now.
    """

    units: int = 0
    cases: int = 0
    seconds: float = 0.0
    settled_bytes: int = 0
    resident_bytes: int = 0

    @property
    def grown_bytes(self) -> int:
        """By how much memory has grown since a tenth was done."""
        return self.resident_bytes - self.settled_bytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """When a campaign ends: at the first that is reached."""

    units: int | None = None
    seconds: float | None = None
    cases: int | None = None

    def done_share(self, tally: Tally) -> float:
        """How much is done, from 0 to 1."""
        pairs = ((tally.units, self.units), (tally.seconds, self.seconds), (tally.cases, self.cases))
        return max((reached / bound for reached, bound in pairs if bound), default=0.0)


def run_campaign(
    fuzzer: Fuzzer,
    *,
    seed: int,
    bounds: Bounds,
    on_progress: Callable[[Tally], None] = lambda _: None,
) -> tuple[Tally, Failure | None]:
    """Judge cases until a bound is reached or one fails.

    Args:
        fuzzer: Draws and judges.
        seed: The number of the first case; each further one has the next.
        bounds: When to end.
        on_progress: Told every few seconds, and at the end.
    """
    tally = Tally()
    started = told = time.monotonic()
    while (share := bounds.done_share(tally)) < 1:
        case = fuzzer.draw(random.Random(seed + tally.cases))  # noqa: S311 - a seeded one is the point
        try:
            tally.units += _judge(fuzzer, case)
        except Exception as error:  # noqa: BLE001 - whatever leaves it breaks the contract
            tally.seconds = time.monotonic() - started
            return tally, Failure(seed + tally.cases, minimise(fuzzer, case, type(error)), error)
        tally.cases += 1
        now = time.monotonic()
        tally.seconds = now - started
        if share >= 0.1 and not tally.settled_bytes:
            tally.settled_bytes = resident_bytes()
        if now - told >= PROGRESS_SECONDS:
            told = now
            tally.resident_bytes = resident_bytes()
            on_progress(tally)
    tally.resident_bytes = resident_bytes()
    tally.settled_bytes = tally.settled_bytes or tally.resident_bytes
    on_progress(tally)
    return tally, None


def _judge(fuzzer: Fuzzer, case: Case) -> int:
    cpu = time.thread_time()
    units = fuzzer.judge(case)
    if time.thread_time() - cpu > SLOW_CPU_SECONDS:
        raise Slow(f"the case cost more than {SLOW_CPU_SECONDS:g} s of CPU")
    return units


def minimise(fuzzer: Fuzzer, case: Case, kind: type[BaseException]) -> Case:
    """Leave out pieces, then bytes of pieces, as long as the same kind of error remains."""
    deadline = time.monotonic() + MINIMISE_SECONDS

    def still_fails(candidate: Case) -> bool:
        try:
            _judge(fuzzer, candidate)
        except Exception as error:  # noqa: BLE001 - another kind is another fault; one at a time
            return isinstance(error, kind)
        return False

    # Where it is cut seldom matters, and lines are better pieces.
    lines = tuple(b"".join(case).splitlines(keepends=True))
    if still_fails(lines):
        case = lines
    size = -1
    # Again and again: with a byte gone, a whole piece may have become dispensable.
    while size != sum(map(len, case)):
        size = sum(map(len, case))
        case = _leave_out(case, still_fails, deadline)
        for number in range(len(case)):
            before, after = case[:number], case[number + 1 :]

            def piece_fails(piece: bytes, before: Case = before, after: Case = after) -> bool:
                return still_fails((*before, piece, *after))

            case = (*before, _leave_out(case[number], piece_fails, deadline), *after)
    return case


Whole = TypeVar("Whole", bytes, Case)


def _leave_out(whole: Whole, still_fails: Callable[[Whole], bool], deadline: float) -> Whole:
    """Try without windows of it: large ones first, single items last."""
    size = max(1, len(whole) // 2)
    while True:
        at = 0
        while at < len(whole):
            if time.monotonic() > deadline:
                return whole
            candidate = whole[:at] + whole[at + size :]
            if still_fails(candidate):
                whole = candidate
            else:
                at += size
        if size == 1:
            return whole
        size //= 2


def resident_bytes() -> int:
    """Memory of this process now."""
    return _memory("VmRSS:")


def peak_bytes() -> int:
    """The most that it ever was."""
    return _memory("VmHWM:")


def _memory(key: str) -> int:
    for line in Path("/proc/self/status").read_text("ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) << 10
    return 0


def main(fuzzer: Fuzzer, *, default_count: int) -> int:
    """A fuzz program: arguments, progress, and the verdict as its exit code (1 for a failure)."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--count", type=int, help=f"how many {fuzzer.unit} (default {default_count:,})")
    parser.add_argument("--seconds", type=float, help="end after this time instead, or as well")
    parser.add_argument("--cases", type=int, help="end after so many cases, each of several units")
    parser.add_argument("--seed", type=int, help="the first case's number (default: another each time)")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(1 << 40)
    is_bounded = arguments.count or arguments.seconds or arguments.cases
    bounds = Bounds(arguments.count if is_bounded else default_count, arguments.seconds, arguments.cases)
    signal.signal(signal.SIGALRM, _on_hang)
    watched = _Watched(fuzzer)
    _say(f"seed {seed}")
    tally, failure = run_campaign(watched, seed=seed, bounds=bounds, on_progress=lambda t: _tell(fuzzer, t))
    if failure is not None:
        _say(f"FAILED after {tally.units:,} {fuzzer.unit}: {type(failure.error).__name__}: {failure.error}")
        _say(f"again: {sys.argv[0]} --cases 1 --seed {failure.seed}", "minimal case:")
        _say(*(f"    {_shown(piece)}" for piece in failure.case))
        return 1
    if tally.grown_bytes > FLAT_BYTES:
        _say(f"FAILED: memory grew by {tally.grown_bytes >> 20} MiB, seed {seed}")
        return 1
    _say(f"well: {tally.units:,} {fuzzer.unit} in {tally.cases:,} cases, {tally.seconds:.0f} s")
    return 0


class _Watched:
    """A fuzzer whose every case has an alarm clock; only for programs, as tests have one of their own."""

    def __init__(self, fuzzer: Fuzzer) -> None:
        self._fuzzer = fuzzer
        self.unit = fuzzer.unit
        self.draw = fuzzer.draw

    def judge(self, case: Case) -> int:
        signal.alarm(HANG_SECONDS)
        try:
            return self._fuzzer.judge(case)
        finally:
            signal.alarm(0)


def _on_hang(_number: int, _frame: object) -> None:
    raise Hung(f"the case did not end within {HANG_SECONDS} s")


def _tell(fuzzer: Fuzzer, tally: Tally) -> None:
    rate = tally.units / max(tally.seconds, 1e-9)
    _say(
        f"{tally.seconds:6.0f} s  {tally.units:>11,} {fuzzer.unit}  {rate:>9,.0f}/s  "
        f"memory {tally.resident_bytes >> 20} MiB, peak {peak_bytes() >> 20} MiB"
    )


def _shown(piece: bytes) -> str:
    """A long one only in part; the seed makes it again."""
    text = repr(piece)
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]} ... {len(piece)} bytes"


def _say(*lines: str) -> None:
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()
