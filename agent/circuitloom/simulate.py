"""``circuitloom simulate``: reads policy and recording, throws the dice, returns what is to be printed."""

from __future__ import annotations

import argparse
import json
from functools import partial
from random import Random

from circuitloom.errors import RecordingError, UnknownCircuit, reason_of
from circuitloom.policy import Policy, read_policy
from circuitloom.recording.read import MAX_LINE_BYTES, read_recording
from circuitloom.simulation import (
    Load,
    Traffic,
    document,
    hidden_rules,
    made_up,
    replayed,
    report,
    try_out,
)
from circuitloom.simulation.course import Uniform

_RELAYS = "relays are made up, so that every path finds some: `check --online` asks Tor"


def simulate(options: argparse.Namespace) -> str:
    """Run it.

    Args:
        options: As ``arguments`` reads them.

    Returns:
        A text, or a JSON document.

    Raises:
        PolicyError: The policy has faults.
        RecordingError: The recording cannot be used.
        UnknownCircuit: A circuit to lose is none of the policy's.
    """
    policy = read_policy(options.policy)
    names = [slot.name for slot in policy.slots]
    for name in options.lose or ():
        if name not in names:
            raise UnknownCircuit(f"--lose {name}: the policy names no such circuit")
    traffic = _recorded(options, policy) if options.log else _made_up(options, policy)
    trial = try_out(
        policy,
        traffic,
        lose=options.lose,
        outage_seconds=options.outage,
        dice=partial(_dice, options.seed),
    )
    if options.json:
        asked = {"policy": options.policy, "log": options.log, "seed": options.seed}
        return json.dumps(document(trial, asked), indent=2)
    return report(_title(options, policy, traffic), trial, outage_seconds=options.outage)


def _dice(seed: int, name: str) -> Uniform:
    # Text as a seed is hashed by Random itself, and gives the same numbers in every version of Python.
    return Random(f"{seed} {name}").random  # noqa: S311 - nothing secret hangs on it


def _load(options: argparse.Namespace) -> Load:
    return Load(options.streams, options.rate, options.lifetime, options.users, options.destinations)


def _made_up(options: argparse.Namespace, policy: Policy) -> Traffic:
    return Traffic(made_up(_load(options), policy, _dice(options.seed, "load")))


def _recorded(options: argparse.Namespace, policy: Policy) -> Traffic:
    try:
        with open(options.log, "rb") as file:  # noqa: PTH123 - the name is the user's, and shown as it is
            lines = read_recording(iter(partial(file.readline, MAX_LINE_BYTES + 1), b""), options.log)
    except OSError as error:
        raise RecordingError(f"{options.log}: cannot be read ({reason_of(error)})") from None
    return replayed(lines, policy, outage_seconds=options.outage)


def _title(options: argparse.Namespace, policy: Policy, traffic: Traffic) -> list[str]:
    count = len(traffic.arrivals)
    circuits = _plural(len(policy.slots), "circuit")
    over = f"over {circuits}, {policy.balance.algorithm.value}"
    relays = [_RELAYS] if policy.path_rules else []
    if options.log:
        lines = [f"{_plural(count, 'stream')} of {options.log} {over}"]
        hidden = hidden_rules(policy)
        if hidden:
            what = "1 rule asks" if hidden == 1 else f"{hidden} rules ask"
            lines.append(f"{what} for a host, user or network: no recording tells, so nothing matches.")
        return lines + relays
    people = f"{_plural(options.users, 'user')}, {_plural(options.destinations, 'destination')}"
    pace = f"{options.rate:g} a second, each open for {options.lifetime:g} s on average"
    return [f"{_plural(count, 'stream')} {over}", f"{pace}; {people}; seed {options.seed}", *relays]


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
