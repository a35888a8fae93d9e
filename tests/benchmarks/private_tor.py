"""Streams over a private Tor network: every way to spread them, in turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks import relay_death
from benchmarks.chart import Bar, bars
from benchmarks.load import PATIENCE_SECONDS, Loaded
from benchmarks.measure import Spread, cpu_seconds, footprint_mib, in_turns, output_of, python_module
from benchmarks.report import Figure, Part, table
from benchmarks.ways import Size, Way, all_ways
from circuitloom.lab.network import PrivateNetwork
from tor.echo_process import echo_process

IN_FLIGHT = 64
WARM_UP_SECONDS = 0.5
PAUSE_SECONDS = 0.06
"""After each stream that is alone. Tor leaves Nagle's algorithm on: its next small packet waits until the
last one is acknowledged, for which the kernel may take 40 ms; a stream right after another may meet that."""

SETTLE_SECONDS = 0.3
"""After a load, until its last streams have ended in every relay."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One way, measured once.

    Attributes:
        alone: One stream after the other.
        full: As many as go.
        tor_cpu_us: CPU time of its Tor clients for one stream of ``full``, microseconds.
        helper_cpu_us: The same of what runs beside them.
        tor_mib: Memory of its Tor clients afterwards, what they share counted once.
        helper_mib: The same of what runs beside them.
    """

    alone: Loaded
    full: Loaded
    tor_cpu_us: float
    helper_cpu_us: float
    tor_mib: float
    helper_mib: float


def measure(rounds: int, seconds: float, tell: Callable[[str], None], size: Size) -> list[Part]:
    """Start the network and every way; measure each ``rounds`` times, then what ends of circuits do.

    Args:
        rounds: How often.
        seconds: For how long each way is loaded fully each time; alone for half of that.
        tell: Takes lines about the progress.
        size: How much of everything.
    """
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(echo_process())
        network = stack.enter_context(PrivateNetwork(relays=size.relays, on_progress=tell))
        ways = all_ways(network, size, tell)
        runs = {way.name: partial(measure_way, way, target, seconds) for way in ways}
        results = in_turns(runs, rounds, tell, _say)
        ends = relay_death.measure(network, relay_death.chosen_ways(network, ways), target, rounds, tell)
        return [make_part(ways, results, size.relays), ends]


def measure_way(way: Way, target: int, seconds: float) -> Turn:
    """Start one way, and load it, alone and then full."""
    with way.running() as helpers:
        _load(way, target, WARM_UP_SECONDS, 8)
        alone = _load(way, target, seconds, 1, pause_seconds=PAUSE_SECONDS)
        before = cpu_seconds(way.tor_processes()), cpu_seconds(helpers)
        full = _load(way, target, seconds, IN_FLIGHT)
        after = cpu_seconds(way.tor_processes()), cpu_seconds(helpers)
        time.sleep(SETTLE_SECONDS)
        tor_mib, helper_mib = footprint_mib(way.tor_processes()), footprint_mib(helpers)
    tor_cpu, helper_cpu = (
        (end - start) / max(1, full.streams) * 1e6 for start, end in zip(before, after, strict=True)
    )
    return Turn(alone, full, tor_cpu, helper_cpu, tor_mib, helper_mib)


def _load(way: Way, target: int, seconds: float, in_flight: int, *, pause_seconds: float = 0.0) -> Loaded:
    numbers = (way.socks_port, target, seconds, in_flight, pause_seconds)
    arguments = [str(number) for number in numbers]
    pipe = subprocess.PIPE
    with python_module("benchmarks.load", *arguments, stdout=pipe, stderr=pipe) as process:
        return Loaded(**json.loads(output_of(process, seconds + 2 * PATIENCE_SECONDS)))


def make_part(ways: Sequence[Way], results: Mapping[str, Sequence[Turn]], relays: int) -> Part:
    """The report's part from all rounds of every way."""
    tors = results[ways[0].name]
    figures = [
        figure for way in ways if way.is_ours for figure in _figures(way.name, results[way.name], tors)
    ]
    text = f"""\
Three authorities and {relays} exit relays on this machine's loopback, and Tor clients of it. All share its
cores, so streams/s tell what the ways cost beside each other, not what Tor can do. "Alone" is one stream
after the other with a pause, "full" {IN_FLIGHT} at a time; each is closed once it is connected. The time is
from the first packet to the SOCKS reply. CPU is that of the ways' own processes, not of the relays.

Memory is what the way would take on a machine of its own: private pages, and shared ones once for each
program. A Tor client here knows {relays} relays and the authorities; on the public network each keeps a
directory of thousands. So here the agent, whose memory does not depend on that, looks larger than there.

![streams a second](tor-streams.svg)

{_rate_table(ways, results)}

![memory](tor-memory.svg)

{_cost_table(ways, results)}
"""
    charts = {
        "tor-streams.svg": bars(
            "SOCKS connects a second over a private Tor network",
            [
                Bar(way.name, Spread.of(turn.full.per_second for turn in results[way.name]), way.is_ours)
                for way in ways
            ],
            lambda value: f"{value:,.0f}/s",
            subtitle=f"{IN_FLIGHT} at a time; relays and load share the machine; longer is better",
        ),
        "tor-memory.svg": bars(
            "Memory: Tor clients and what balances them",
            [
                Bar(
                    way.name,
                    Spread.of(turn.tor_mib + turn.helper_mib for turn in results[way.name]),
                    way.is_ours,
                )
                for way in ways
            ],
            lambda value: f"{value:.0f} MiB",
            subtitle="with a directory of a few relays; shorter is better",
        ),
    }
    return Part("tor", "On a real Tor", text, figures, charts)


def _figures(name: str, ours: Sequence[Turn], tors: Sequence[Turn]) -> list[Figure]:
    """The agent beside Tor's own assignment, round by round."""
    pairs = list(zip(ours, tors, strict=True))
    later = Spread.of(one.alone.p50_ms - other.alone.p50_ms for one, other in pairs)
    share = Spread.of(one.full.per_second / other.full.per_second for one, other in pairs)
    return [
        Figure(
            f"{name}: SOCKS connect p50 within 1 ms of Tor's own", f"{later:+.2f} ms", later.median <= 1.0
        ),
        Figure(f"{name}: streams/s within 5 % of Tor's own", f"{share:.1%} of them", share.median >= 0.95),
    ]


def _rate_table(ways: Sequence[Way], results: Mapping[str, Sequence[Turn]]) -> str:
    header = ("", "alone p50 ms", "alone p99 ms", "full streams/s", "full p50 ms", "full p99 ms", "failed")
    return table(
        header,
        [
            (
                way.name,
                f"{Spread.of(turn.alone.p50_ms for turn in turns):.2f}",
                f"{Spread.of(turn.alone.p99_ms for turn in turns):.2f}",
                f"{Spread.of(turn.full.per_second for turn in turns):,.0f}",
                f"{Spread.of(turn.full.p50_ms for turn in turns):.1f}",
                f"{Spread.of(turn.full.p99_ms for turn in turns):.1f}",
                str(sum(turn.alone.failed + turn.full.failed for turn in turns)),
            )
            for way, turns in ((way, results[way.name]) for way in ways)
        ],
    )


def _cost_table(ways: Sequence[Way], results: Mapping[str, Sequence[Turn]]) -> str:
    header = ("", "CPU us a stream: Tor", "beside it", "memory MiB: Tor", "beside it", "together")
    return table(
        header,
        [
            (
                way.name,
                f"{Spread.of(turn.tor_cpu_us for turn in turns):.0f}",
                f"{Spread.of(turn.helper_cpu_us for turn in turns):.0f}",
                f"{Spread.of(turn.tor_mib for turn in turns):.1f}",
                f"{Spread.of(turn.helper_mib for turn in turns):.1f}",
                f"{Spread.of(turn.tor_mib + turn.helper_mib for turn in turns):.1f}",
            )
            for way, turns in ((way, results[way.name]) for way in ways)
        ],
    )


def _say(turn: Turn) -> str:
    return f"{turn.full.per_second:,.0f}/s, alone p50 {turn.alone.p50_ms:.1f} ms"
