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
import errno
import gc
import io
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from circuitloom import logs
from circuitloom.admin import ask, follow
from circuitloom.arguments import parser
from circuitloom.directory import fetch_relays
from circuitloom.errors import (
    AdminError,
    CircuitloomError,
    PolicyError,
    RecordingError,
    is_out_of_descriptors,
    reason_of,
)
from circuitloom.ledger import copy_of, read_rows
from circuitloom.model import Order
from circuitloom.paths import find_online_faults
from circuitloom.policy import Policy, check_policy, read_policy, read_source, schema_text
from circuitloom.policy.document import parse_document
from circuitloom.policy.source import decode
from circuitloom.policy.types import DEFAULT_ADMIN_SOCKET, TorControl
from circuitloom.release import give_back
from circuitloom.rounds.listing import Reader, all_rows, export_csv, rounds_table
from circuitloom.service import Service
from circuitloom.session import connect_once
from circuitloom.state import state_directory
from circuitloom.tables import WIDTH, explanation_text, plan_text, status_table
from circuitloom.watching import watch

EX_OSERR = 71
EX_IOERR = 74

_UNWRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""Why a disk under standard output takes no more; of a file that is opened, errors name it."""

LOOP_DESCRIPTORS = 3
"""An event loop's own: what it polls with, and a pair of sockets for signals."""

RELEASE_SECONDS = 10.0
"""systemd waits for ExecStopPost=; a Tor that hangs must not make it wait long."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Without the program's name; None: those of the process.

    Returns:
        The exit code.
    """
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        # A policy's text may be quoted back at a terminal that cannot show it.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    options = parser().parse_args(arguments)
    try:
        code = _COMMANDS[options.command](options)
        sys.stdout.flush()
    except (PolicyError, RecordingError) as error:
        # Their text begins with the file, as a compiler's does.
        print(error, file=sys.stderr)
        return error.exit_code
    except CircuitloomError as error:
        print(f"circuitloom: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        return _code_of(error)
    return int(code)


def _code_of(error: OSError) -> int:
    """What a command ends with that no error of ours has ended; told in one line where there is one.

    Raises:
        OSError: It is a fault of circuitloom.
    """
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) has seen enough.
        _drop_output()
        return 0
    if error.errno in _UNWRITTEN and error.filename is None:
        _drop_output()
        print(f"circuitloom: the output cannot be written: {reason_of(error)}", file=sys.stderr)
        return EX_IOERR
    # Such as for the event loop; while it runs each place that can lack one says so itself.
    if not is_out_of_descriptors(error):
        raise error
    print(f"circuitloom: {reason_of(error)}", file=sys.stderr)
    return EX_OSERR


def _open_closed_streams() -> None:
    """Let nothing else have the numbers of standard streams that whoever started this has closed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.dup2(nowhere := os.open(os.devnull, os.O_RDWR), number)
            if nowhere != number:
                os.close(nowhere)
            setattr(sys, name, open(number, "r" if number == 0 else "w"))  # noqa: SIM115, PTH123 - as long as we live


def _drop_output() -> None:
    """What is still in the buffer of standard output goes nowhere, at exit either."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _check(options: argparse.Namespace) -> int:
    data = read_source(options.policy)
    policy, warnings = check_policy(data, name=options.policy)
    for warning in warnings:
        print(dataclasses.replace(warning, path=f"warning: {warning.path}"))
    return _check_online(options.policy, data, policy) if options.online else 0


def _check_online(name: str, data: bytes, policy: Policy) -> int:
    """Judge a policy without faults by the relays that its Tor knows now."""
    needs_countries = policy.uses_countries
    _try_descriptors()
    relays = asyncio.run(fetch_relays(policy.tor, countries={} if needs_countries else None))
    # One way to select them, not the same each time.
    uniform = random.Random().random  # noqa: S311 - nothing secret hangs on it
    found = list(
        find_online_faults(parse_document(decode(data, name), name), policy, relays, uniform=uniform)
    )
    for note in sorted(finding.fault for finding in found if finding.is_note):
        print(dataclasses.replace(note, path=f"note: {note.path}"))
    faults = {finding.fault for finding in found if not finding.is_note}
    if faults:
        raise PolicyError(sorted(faults))
    return 0


def _run(options: argparse.Namespace) -> int:
    policy, warnings = check_policy(read_source(options.policy), name=options.policy)
    logs.configure(policy.log)
    for warning in warnings:
        logging.getLogger(__name__).warning("%s", warning)

    # What is loaded now lives as long as the process: a collection that visits it holds streams up for 10 ms.
    gc.freeze()

    async def serve() -> int:
        state = state_directory(options.state)
        record = Path(options.record) if options.record else None
        return await Service(options.policy, policy, state=state, record=record).run()

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
    print(json.dumps(answer, indent=2) if options.json else explanation_text(answer, width=_width()))
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


def _width() -> int:
    """Of the terminal, in columns; what is written elsewhere is as for the narrowest one."""
    return max(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH


def _status_text(path: str, document: Mapping[str, Any]) -> str:
    try:
        return status_table(document, width=_width())
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


def _simulate(options: argparse.Namespace) -> int:
    # Only this command needs dice and a made-up Tor.
    from circuitloom.simulate import simulate  # noqa: PLC0415

    print(simulate(options))
    return 0


def _demo(options: argparse.Namespace) -> int:
    # Only this command needs the laboratory, and rich.
    from circuitloom.demo import run_demo  # noqa: PLC0415

    return run_demo(seconds=options.seconds, relays=options.relays, plain=options.plain)


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "order": _order,
    "adopt": _adopt,
    "reload": _reload,
    "explain": _explain,
    "events": _events,
    "check": _check,
    "run": _run,
    "simulate": _simulate,
    "status": _status,
    "rounds": _rounds,
    "release": _release,
    "schema": _schema,
    "demo": _demo,
}
"""By the name that ``arguments`` gives each."""
