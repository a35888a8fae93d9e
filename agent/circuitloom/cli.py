"""The command line.

Rules of this file:

* Each command is one function; it returns the exit code of sysexits.h that design fits (see ``errors``).
* Whatever goes wrong on purpose is one line on standard error. Results go to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import io
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from circuitloom import __version__, logs
from circuitloom.admin import ask, follow
from circuitloom.errors import AdminError, CircuitloomError, PolicyError, is_out_of_descriptors, reason_of
from circuitloom.ledger import copy_of, read_rows
from circuitloom.model import Order
from circuitloom.policy import check_policy, read_policy, read_source, schema_text
from circuitloom.policy.types import DEFAULT_ADMIN_SOCKET, TorControl
from circuitloom.release import give_back
from circuitloom.rounds.listing import PAGE_ROWS, Reader, all_rows, export_csv, rounds_table
from circuitloom.service import Service
from circuitloom.session import connect_once
from circuitloom.state import state_directory
from circuitloom.status import explanation_text, plan_text, status_table
from circuitloom.watching import watch

EX_USAGE = 64
EX_OSERR = 71

LOOP_DESCRIPTORS = 3
"""An event loop's own: what it polls with, and a pair of sockets for signals."""

RELEASE_SECONDS = 10.0
"""systemd waits for ExecStopPost=; a Tor that hangs must not make it wait long."""

_EPILOG = """\
exit codes (sysexits.h):
  0  done                              71  no file descriptor is left
  64 wrong arguments                   73  a socket cannot be made
  69 Tor or the agent does not answer  74  the ledger cannot be read
  70 a fault of circuitloom            77  Tor, or the file system, refuses us
                                       78  the policy has faults

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # A policy's text may be quoted back at a terminal that cannot show it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
        sys.stdout.flush()
    except PolicyError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except CircuitloomError as error:
        print(f"circuitloom: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough; nothing more may be written, at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # Such as for the event loop; while it runs each place that can lack one says so itself.
        if not is_out_of_descriptors(error):
            raise
        print(f"circuitloom: {reason_of(error)}", file=sys.stderr)
        return EX_OSERR
    return int(code)


def _check(options: argparse.Namespace) -> int:
    _, warnings = check_policy(read_source(options.policy), name=options.policy)
    for warning in warnings:
        print(dataclasses.replace(warning, path=f"warning: {warning.path}"))
    return 0


def _run(options: argparse.Namespace) -> int:
    policy, warnings = check_policy(read_source(options.policy), name=options.policy)
    logs.configure(policy.log)
    for warning in warnings:
        logging.getLogger(__name__).warning("%s", warning)

    # What is loaded now lives as long as the process: a collection that visits it holds streams up for 10 ms.
    gc.freeze()

    async def serve() -> int:
        return await Service(options.policy, policy, state=state_directory(options.state)).run()

    _try_descriptors()
    return asyncio.run(serve())


def _try_descriptors() -> None:
    """Fail for lack of descriptors before asyncio does: a half-made event loop ends with a traceback.

    Raises:
        OSError: There are not as many as a loop takes.
    """
    with contextlib.ExitStack() as opened:
        for _ in range(LOOP_DESCRIPTORS):
            opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))


def _release(options: argparse.Namespace) -> int:
    tor = TorControl()
    if options.policy:
        try:
            tor = read_policy(options.policy).tor
        except PolicyError as error:
            # After a crash the streams come first: a policy that broke meanwhile must not hold them.
            print(f"{error}\ncircuitloom: using {tor.control} all the same", file=sys.stderr)

    async def release() -> int:
        async with asyncio.timeout(RELEASE_SECONDS):
            session = await connect_once(tor)
            try:
                return await give_back(session)
            finally:
                session.close()

    try:
        _try_descriptors()
        handed = asyncio.run(release())
    except TimeoutError:
        print(f"circuitloom: Tor at {tor.control} does not answer", file=sys.stderr)
        return 69
    print(f"Tor assigns all streams again; {handed} waited and {'is' if handed == 1 else 'are'} on their way")
    return 0


def _schema(_options: argparse.Namespace) -> int:
    sys.stdout.write(schema_text())
    return 0


def _admin_path(options: argparse.Namespace) -> str:
    if options.socket:
        return str(options.socket)
    return read_policy(options.policy).admin.socket if options.policy else DEFAULT_ADMIN_SOCKET


def _order(options: argparse.Namespace) -> int:
    request = {"command": options.name_of_command, "name": options.name}
    if options.name_of_command == Order.WEIGHT:
        request["weight"] = options.weight
    ask(_admin_path(options), request)
    return 0


def _adopt(options: argparse.Namespace) -> int:
    request = {"command": "adopt", "name": options.name, "circuit": options.circuit}
    ask(_admin_path(options), request)
    return 0


def _reload(options: argparse.Namespace) -> int:
    answer = ask(_admin_path(options), {"command": "reload", "plan": options.plan})
    if answer["faults"]:
        print("\n".join(answer["faults"]), file=sys.stderr)
        print("circuitloom: reload refused, the old policy stays", file=sys.stderr)
        return PolicyError.exit_code
    print(plan_text(answer["plan"]))
    return 0


def _explain(options: argparse.Namespace) -> int:
    answer = ask(
        _admin_path(options),
        {"command": "explain", "stream": options.stream, "destinations": options.destinations},
    )
    print(json.dumps(answer, indent=2) if options.json else explanation_text(answer))
    return 0


def _events(options: argparse.Namespace) -> int:
    for event in follow(_admin_path(options)):
        print(json.dumps(event), flush=True)
    return 0


def _status(options: argparse.Namespace) -> int:
    path = _admin_path(options)
    if options.watch:
        watch(lambda: _status_text(path, ask(path, {"command": "status"})))
    document = ask(path, {"command": "status"})
    print(json.dumps(document, indent=2) if options.json else _status_text(path, document))
    return 0


def _status_text(path: str, document: Mapping[str, Any]) -> str:
    try:
        return status_table(document)
    except (KeyError, TypeError):
        raise AdminError(f"{path}: what answers there is no circuitloom of this version") from None


def _rounds(options: argparse.Namespace) -> int:
    if options.state:
        with copy_of(Path(options.state)) as connection:
            _print_rounds(partial(read_rows, connection), options)
        return 0
    path = _admin_path(options)

    def read(*, after: int, limit: int) -> list[dict[str, Any]]:
        answer = ask(path, {"command": "rounds", "after": after, "limit": limit})
        try:
            return list(answer["rows"])
        except (KeyError, TypeError):
            raise AdminError(f"{path}: what answers there is no circuitloom of this version") from None

    _print_rounds(read, options)
    return 0


def _print_rounds(read: Reader, options: argparse.Namespace) -> None:
    if options.export:
        export_csv(all_rows(read), sys.stdout)
    elif options.json:
        print(json.dumps(list(all_rows(read)), indent=2))
    else:
        print(rounds_table(read(after=-1, limit=options.last)))


def _demo(options: argparse.Namespace) -> int:
    # Only this command needs the laboratory, and rich.
    from circuitloom.demo import run_demo  # noqa: PLC0415

    return run_demo(seconds=options.seconds, relays=options.relays, plain=options.plain)


def _row_count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= PAGE_ROWS:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {PAGE_ROWS}")
    return int(text)


class _Parser(argparse.ArgumentParser):
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
            command.add_argument("weight", metavar="N", type=int, help="from 1 to 1000")
        _add_socket(command)
        command.set_defaults(command=_order, name_of_command=order.value)
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
    adopt.set_defaults(command=_adopt)
    reload = commands.add_parser(
        "reload",
        help="have the running agent read its policy again",
        description="Says what becomes of each circuit. A faulty policy changes nothing: its faults, and 78.",
    )
    reload.add_argument("--plan", action="store_true", help="say what it would do, and do nothing")
    _add_socket(reload)
    reload.set_defaults(command=_reload)
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
    explain.set_defaults(command=_explain)
    events = commands.add_parser(
        "events",
        help="follow what happens, one JSON object a line",
        description="Each change of state as it happens, until the agent ends or this is interrupted.",
    )
    _add_socket(events)
    events.set_defaults(command=_events)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="circuitloom",
        description="Spread the streams of one Tor client over many circuits, as a policy says.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"circuitloom {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    check = commands.add_parser(
        "check",
        help="name every fault of a policy",
        description="Print every fault as FILE:LINE:COLUMN: path: message; exit 0 without faults, else 78.",
    )
    check.add_argument("policy", metavar="POLICY", help="the YAML file")
    check.set_defaults(command=_check)

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
    run.set_defaults(command=_run)

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
    status.set_defaults(command=_status)
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
        "--last", type=_row_count, default=20, metavar="N", help="rows of the table (default: 20)"
    )
    _add_socket(rounds)
    rounds.add_argument("--state", metavar="DIR", help="read the ledger in this state directory instead")
    rounds.set_defaults(command=_rounds)

    release = commands.add_parser(
        "release",
        help="give every stream back to Tor, also after a crash of the agent",
        description=(
            "Reset Tor's option and hand every waiting stream to Tor. Works alone; harmless when nothing is "
            "held. A running agent takes over again: stop it first."
        ),
    )
    release.add_argument("policy", metavar="POLICY", nargs="?", help="take Tor's control address from it")
    release.set_defaults(command=_release)

    schema = commands.add_parser("schema", help="print the JSON Schema of a policy, for editors")
    schema.set_defaults(command=_schema)

    demo = commands.add_parser(
        "demo",
        help="see it work: a private Tor network on loopback, load, a failover",
        description=(
            "Start a private Tor network on this machine's loopback interface, the agent with four weighted "
            "circuits, and load; close a circuit on the way; print what happened. Leaves nothing behind, and "
            "never touches the public Tor network or this machine's Tor."
        ),
    )
    demo.add_argument("--seconds", type=float, default=20.0, help="how long to drive load (default: 20)")
    demo.add_argument("--relays", type=int, default=6, help="how many relays to start (default: 6)")
    demo.add_argument("--plain", action="store_true", help="progress lines instead of the live view")
    demo.set_defaults(command=_demo)
    return parser
