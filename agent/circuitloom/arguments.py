"""What the command line takes: each command, its arguments, and the words of ``--help``.

Rules of this file:

* It does nothing: ``command`` of the result names what ``cli`` does.
* Wrong arguments end the process with 64 and one line.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from typing import Any

from circuitloom import __version__
from circuitloom.model import Order
from circuitloom.operation import MAX_WEIGHT
from circuitloom.policy.types import DEFAULT_ADMIN_SOCKET
from circuitloom.policy.values import parse_duration
from circuitloom.rounds.listing import PAGE_ROWS
from circuitloom.simulation import DEFAULT_OUTAGE_SECONDS, Load

EX_USAGE = 64

MAX_COUNT = 1_000_000
"""Streams, users or destinations of a simulation: a million streams take some minutes."""

MAX_DEMO_RELAYS = 50
"""Each is a Tor process of some 40 MB."""

MAX_DEMO_SECONDS = 3600

_LOAD = Load()
_DURATION = re.compile("[0-9]{1,6}(ms|s|m|h)", re.ASCII)

_EPILOG = """\
exit codes (sysexits.h):
  0  done                              73  a socket or file cannot be made
  64 wrong arguments                   74  ledger unreadable, output unwritable
  65 a recording makes no sense        76  what answers is no Tor
  69 Tor or the agent does not answer  77  Tor, or the file system, refuses us
  70 a fault of circuitloom            78  the policy has faults
  71 no file descriptor is left

A first try, without touching this machine's Tor:   circuitloom demo
"""

_STATUS_EPILOG = """\
columns:
  STATE    built, building, backoff (waits to be built again), drained (by you),
           draining (its streams finish), ejected (rests after failures), idle
  OPEN     streams on it now; TOTAL: attached since the start; FAILED: of these
  SHARE    its part of the streams of its key; WEIGHT: its part of the weights
  P50 P99  what half of its streams, and all but a hundredth, took to connect
"""


def _whole(last: int) -> Callable[[str], int]:
    """What reads a whole number from 1 to ``last``."""

    def read(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not 1 <= int(text) <= last:
            raise argparse.ArgumentTypeError(f"must be a number from 1 to {last}")
        return int(text)

    return read


def _number(first: float, last: int) -> Callable[[str], float]:
    """What reads a number from ``first`` to ``last``."""

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not first <= number <= last:
            raise argparse.ArgumentTypeError(f"must be a number from {first:g} to {last}")
        return number

    return read


def _seconds(text: str) -> float:
    if not _DURATION.fullmatch(text):
        raise argparse.ArgumentTypeError("must be a time, such as 500ms, 10s or 2m")
    return parse_duration(text)


class _Parser(argparse.ArgumentParser):
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # noqa: ANN401 - as the original
        # The command that does not know an argument says so: its own help is the one to read.
        known, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return known, unknown

    def error(self, message: str) -> None:  # type: ignore[override]  # it exits, as the original does
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        raise SystemExit(EX_USAGE)


def _add_socket(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--socket", metavar="PATH", help=f"the admin socket (default: {DEFAULT_ADMIN_SOCKET})"
    )
    command.add_argument("--policy", metavar="POLICY", help="take the admin socket from this policy")


_ORDERS = {
    Order.DRAIN: "give a circuit no new streams; those on it finish",
    Order.READY: "let a drained circuit take streams again",
    Order.WEIGHT: "give a circuit another weight, until the next reload",
    Order.ROTATE: "replace a circuit, make before break",
    Order.CLOSE: "close a circuit at once, with the streams on it",
}


def _add_orders(commands: Any) -> None:  # noqa: ANN401 - argparse's class of it is private
    """The commands that change the running agent, or ask it why."""
    for order, what in _ORDERS.items():
        command = commands.add_parser(order.value, help=what, description=f"Ask the running agent: {what}.")
        command.add_argument("name", metavar="NAME", help="the circuit, as the policy names it")
        if order is Order.WEIGHT:
            command.add_argument(
                "weight", metavar="N", type=_whole(MAX_WEIGHT), help=f"from 1 to {MAX_WEIGHT}"
            )
        _add_socket(command)
        command.set_defaults(command="order", name_of_command=order.value)
    adopt = commands.add_parser(
        "adopt",
        help="take a circuit that another controller built",
        description=(
            "Give the running agent a circuit of another controller, for a circuit of the policy that has "
            "`adopt`. Tor is asked first, and the circuit serves when this ends with 0; one that was there "
            "before drains. The agent never closes it."
        ),
    )
    adopt.add_argument("name", metavar="NAME", help="the circuit, as the policy names it")
    adopt.add_argument(
        "circuit", metavar="CIRCUIT_ID", help="Tor's id of it, from EXTENDCIRCUIT or circuit-status"
    )
    _add_socket(adopt)
    adopt.set_defaults(command="adopt")
    reload = commands.add_parser(
        "reload",
        help="have the running agent read its policy again",
        description="Says what becomes of each circuit. A faulty policy changes nothing: its faults, and 78.",
    )
    reload.add_argument("--plan", action="store_true", help="say what it would do, and do nothing")
    _add_socket(reload)
    reload.set_defaults(command="reload")
    explain = commands.add_parser(
        "explain",
        help="say why a stream went where it went",
        description="The last decisions, or those on one stream, and what each circuit is good for now.",
    )
    explain.add_argument("stream", metavar="STREAM_ID", nargs="?", help="Tor's id of the stream")
    explain.add_argument("--json", action="store_true", help="print the whole document, for programs")
    explain.add_argument(
        "--destinations", action="store_true", help="show where the streams go, if the policy's log may"
    )
    _add_socket(explain)
    explain.set_defaults(command="explain")
    events = commands.add_parser(
        "events",
        help="follow what happens, one JSON object a line",
        description="Each change of state as it happens, until the agent ends or this is interrupted.",
    )
    _add_socket(events)
    events.set_defaults(command="events")


def _add_simulate(commands: Any) -> None:  # noqa: ANN401 - the same
    """The command that tries a policy out."""
    simulate = commands.add_parser(
        "simulate",
        help="show what a policy does with streams, without a Tor",
        description=(
            "Lead streams through the agent's own core beside a simulated Tor, and print where they go, "
            "what waits, what is left to Tor or rejected, and what the loss of each circuit does. Streams "
            "are made up, as many for each rule of the policy as for none, or those of a recording of "
            "`run --record`. The same policy, streams and seed print the same."
        ),
    )
    simulate.add_argument("policy", metavar="POLICY", help="the YAML file")
    source = simulate.add_mutually_exclusive_group()
    source.add_argument(
        "--streams",
        type=_whole(MAX_COUNT),
        default=_LOAD.streams,
        metavar="N",
        help="how many (default: 1000)",
    )
    source.add_argument("--log", metavar="FILE", help="the streams of this recording instead")
    simulate.add_argument(
        "--rate",
        type=_number(0.001, MAX_COUNT),
        default=_LOAD.per_second,
        metavar="N",
        help="streams a second, on average (default: 10)",
    )
    simulate.add_argument(
        "--lifetime",
        type=_seconds,
        default=_LOAD.open_seconds,
        metavar="TIME",
        help="of a stream, on average (default: 10s)",
    )
    simulate.add_argument(
        "--users", type=_whole(MAX_COUNT), default=_LOAD.users, metavar="N", help="SOCKS users (default: 1)"
    )
    simulate.add_argument(
        "--destinations",
        type=_whole(MAX_COUNT),
        default=_LOAD.destinations,
        metavar="N",
        help="hosts they go to (default: 100)",
    )
    simulate.add_argument(
        "--lose",
        action="append",
        metavar="NAME",
        help="lose this circuit half-way, and no others; may be repeated (default: each one in turn)",
    )
    simulate.add_argument(
        "--outage",
        type=_seconds,
        default=DEFAULT_OUTAGE_SECONDS,
        metavar="TIME",
        help="for how long a lost circuit cannot be built again (default: 30s)",
    )
    simulate.add_argument("--seed", type=int, default=1, metavar="N", help="of the dice (default: 1)")
    simulate.add_argument("--json", action="store_true", help="print the whole document, for programs")
    simulate.set_defaults(command="simulate")


def parser() -> argparse.ArgumentParser:
    """The whole command line; the result of parsing has ``command``, and what that command takes."""
    top = _Parser(
        prog="circuitloom",
        description="Spread the streams of one Tor client over many circuits, as a policy says.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"circuitloom {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    check = commands.add_parser(
        "check",
        help="name every fault of a policy",
        description="Print every fault as FILE:LINE:COLUMN: path: message; exit 0 without faults, else 78.",
    )
    check.add_argument("policy", metavar="POLICY", help="the YAML file")
    check.add_argument(
        "--online",
        action="store_true",
        help="ask the policy's Tor as well: unknown relays, missing flags, families, ports that exits refuse",
    )
    check.set_defaults(command="check")

    run = commands.add_parser(
        "run",
        help="balance the streams of a running Tor (what the systemd unit starts)",
        description=(
            "Take over stream attachment once enough circuits are built, and give it back when there is "
            "none, and at the end. SIGHUP reads the policy again (a faulty one is refused whole), SIGTERM "
            "and SIGINT give back and stop."
        ),
    )
    run.add_argument("policy", metavar="POLICY", help="the YAML file")
    run.add_argument(
        "--state",
        metavar="DIR",
        help="where circuits are written down for the next agent, which takes them over, and rounds "
        "(default: systemd's $STATE_DIRECTORY, or nowhere)",
    )
    run.add_argument(
        "--record",
        metavar="FILE",
        help="write down what comes and what becomes of it, without destinations, users and addresses, for "
        "`circuitloom simulate --log`; at most 64 MiB",
    )
    run.set_defaults(command="run")
    _add_simulate(commands)

    status = commands.add_parser(
        "status",
        help="show circuits, shares and streams of the running agent",
        description="Ask the running agent over its admin socket.",
        epilog=_STATUS_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    how = status.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the whole document, for programs")
    how.add_argument("--watch", action="store_true", help="show it anew every second, until interrupted")
    _add_socket(status)
    status.set_defaults(command="status")
    _add_orders(commands)

    rounds = commands.add_parser(
        "rounds",
        help="list the rounds that were run",
        description=(
            "Print the ledger of rounds: the last ones as a table, or all of them as JSON or CSV. Asks the "
            "running agent; --state reads the ledger of one that does not run."
        ),
    )
    form = rounds.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print all rounds as a JSON list")
    form.add_argument("--export", choices=["csv"], help="print all rounds as CSV")
    rounds.add_argument(
        "--last", type=_whole(PAGE_ROWS), default=20, metavar="N", help="rows of the table (default: 20)"
    )
    _add_socket(rounds)
    rounds.add_argument("--state", metavar="DIR", help="read the ledger in this state directory instead")
    rounds.set_defaults(command="rounds")

    release = commands.add_parser(
        "release",
        help="give every stream back to Tor, also after a crash of the agent",
        description=(
            "Reset Tor's option and hand every waiting stream to Tor. Works alone; harmless when nothing is "
            "held. A running agent takes over again: stop it first."
        ),
    )
    release.add_argument("policy", metavar="POLICY", nargs="?", help="take Tor's control address from it")
    release.set_defaults(command="release")

    schema = commands.add_parser("schema", help="print the JSON Schema of a policy, for editors")
    schema.set_defaults(command="schema")

    demo = commands.add_parser(
        "demo",
        help="see it work: a private Tor network on loopback, load, a failover",
        description=(
            "Start a private Tor network on this machine's loopback interface, the agent with four weighted "
            "circuits, and load; close a circuit on the way; print what happened. Leaves nothing behind, and "
            "never touches the public Tor network or this machine's Tor."
        ),
    )
    demo.add_argument(
        "--seconds",
        type=_number(1, MAX_DEMO_SECONDS),
        default=20.0,
        metavar="N",
        help="how long to drive load (default: 20)",
    )
    demo.add_argument(
        "--relays",
        type=_whole(MAX_DEMO_RELAYS),
        default=6,
        metavar="N",
        help="how many relays to start (default: 6)",
    )
    demo.add_argument("--plain", action="store_true", help="progress lines instead of the live view")
    demo.set_defaults(command="demo")
    return top
