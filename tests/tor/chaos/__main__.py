"""Prints the table of faults: ``PYTHONPATH=tests python -m tor.chaos [--only WORDS] [--list]``.

Exit code 1 when a row failed; 69 when the private network cannot be started.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from circuitloom.errors import LabError
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.traffic import EchoServer
from tor.chaos.row import run_row
from tor.chaos.scenarios import SCENARIOS, Scenario
from tor.chaos.table import HEADER, LEGEND, WIDTH, format_row, format_total


def main() -> int:
    """Run the chosen rows one after the other on one network."""
    parser = argparse.ArgumentParser(prog="chaos", description="Injects faults under load; prints a table.")
    parser.add_argument("--only", metavar="WORDS", default="", help="rows whose name contains this")
    parser.add_argument("--list", action="store_true", help="print the rows' names and end")
    parser.add_argument("--keep", action="store_true", help="keep the agents' logs and say where they are")
    arguments = parser.parse_args()
    chosen = [scenario for scenario in SCENARIOS if arguments.only.lower() in scenario.name.lower()]
    if arguments.list:
        say(*(scenario.name for scenario in chosen))
        return 0
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    try:
        return run(chosen, directory)
    except LabError as error:
        sys.stderr.write(f"chaos: {error}\n")
        return error.exit_code
    finally:
        if arguments.keep:
            say(f"logs: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)


def run(scenarios: list[Scenario], directory: Path) -> int:
    """Print one row after the other; the exit code."""
    started = time.monotonic()
    rows = []
    with PrivateNetwork(on_progress=tell) as network, EchoServer() as echo:
        say(HEADER, "-" * WIDTH)
        for number, scenario in enumerate(scenarios):
            row = run_row(scenario, network, echo, directory / str(number))
            rows.append(row)
            say(format_row(row))
    say("-" * WIDTH, format_total(rows, time.monotonic() - started), "", LEGEND)
    return 1 if any(row.problems for row in rows) else 0


def tell(progress: str) -> None:
    """Say what the network's start has reached, beside the table."""
    sys.stderr.write(f"chaos: {progress}\n")
    sys.stderr.flush()


def say(*lines: str) -> None:
    """Print at once: a row takes ten seconds, and somebody waits for it."""
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
