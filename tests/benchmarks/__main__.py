"""Measures and writes the report: ``./dev bench [PART ...] [--quick] [--rounds N] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import attach, failover, private_tor, scale
from benchmarks.measure import BenchError, machine
from benchmarks.report import Part, part_text, write_part
from benchmarks.ways import Size
from circuitloom.errors import LabError

SNAPSHOT = Path(__file__).parent / "snapshot"
QUICK = Path(__file__).parents[2] / ".cache" / "bench"
QUICK_SIZE = Size(agents=(2, 8), rivals=2, tors=(2,), relays=3)

Tell = Callable[[str], None]
Measure = Callable[[int, bool, Tell], list[Part]]

MEASURES: dict[str, tuple[int, Measure]] = {
    "attach": (5, lambda rounds, quick, tell: [attach.measure(rounds, 0.5 if quick else 2.5, tell)]),
    "scale": (3, lambda rounds, quick, tell: [scale.measure(rounds, 0.5 if quick else 1.5, tell)]),
    "failover": (3, lambda rounds, quick, tell: [failover.measure(rounds, 2.0 if quick else 8.0, tell)]),
    "tor": (
        3,
        lambda rounds, quick, tell: private_tor.measure(
            rounds, 1.0 if quick else 3.0, tell, QUICK_SIZE if quick else Size()
        ),
    ),
}
"""By part: how often each of its cases runs, and what does that once or often."""


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(
        prog="./dev bench",
        description="Measures, prints tables, and writes them with charts as a page. All parts together take "
        "about ten minutes; the less else runs on the machine, the more they say.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(MEASURES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="once and briefly, to see that it runs")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="how often each case runs (default: 3, attach 5)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="where the page is written (default: tests/benchmarks/snapshot; with --quick .cache/bench)",
    )
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(MEASURES))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}; there are: {', '.join(MEASURES)}")
    if arguments.rounds is not None and arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    out = arguments.out or (QUICK if arguments.quick else SNAPSHOT)
    is_complete = True
    try:
        for name in arguments.parts or MEASURES:
            is_complete &= _run(name, arguments.rounds, out, is_quick=arguments.quick)
    except KeyboardInterrupt:
        print("bench: interrupted; what was measured completely is written", file=sys.stderr)
        return 130
    print(f"bench: {out / 'README.md'}", file=sys.stderr)
    return 0 if is_complete else 1


def _run(name: str, rounds: int | None, out: Path, *, is_quick: bool) -> bool:
    """Measure one part, print it and write it; whether that worked."""
    often, measure = MEASURES[name]
    rounds = rounds or (1 if is_quick else often)
    started = time.monotonic()
    try:
        parts = measure(rounds, is_quick, lambda line: print(f"bench: {name}: {line}", file=sys.stderr))
    except (BenchError, LabError) as error:
        print(f"bench: {name}: not measured: {error}", file=sys.stderr)
        return False
    took = time.monotonic() - started
    often_text = "once" if rounds == 1 else f"{rounds} times, in turns"
    measured = (
        f"Measured {time.strftime('%Y-%m-%d')} on {machine()}; every case {often_text}; {took:.0f} s in all."
    )
    for part in parts:
        print(part_text(part, measured))
        write_part(out, part, measured)
    return True


if __name__ == "__main__":
    sys.exit(main())
