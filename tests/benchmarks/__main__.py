"""Measures and writes the report: ``PYTHONPATH=tests python -m benchmarks [--rounds N] [--out FOLDER]``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from benchmarks.attach import machine, measure
from benchmarks.report import report_text, write_report


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = argparse.ArgumentParser(prog="bench", description="Measures attachments; prints a table.")
    parser.add_argument("--rounds", type=int, default=5, help="how often each subject runs (default: 5)")
    parser.add_argument("--seconds", type=float, default=3.0, help="for how long each time (default: 3)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the report there as well")
    arguments = parser.parse_args()
    rows = measure(arguments.rounds, arguments.seconds, lambda line: print(line, file=sys.stderr))
    about = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rounds": arguments.rounds}
    sys.stdout.write(report_text(rows, **about))
    if arguments.out is not None:
        write_report(arguments.out, rows, **about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
