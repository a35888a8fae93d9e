"""What streams and circuits cost as they grow: memory, and CPU for one stream more."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from benchmarks.chart import Curve, Goal, curves
from benchmarks.flood import Flooded, Plan
from benchmarks.measure import Spread, in_turns
from benchmarks.report import Figure, Part, table
from benchmarks.subjects import Subject, run_once

IN_FLIGHT = 64
STREAMS = (100, 1000, 3000, 10_000)
STREAM_CIRCUITS = 64
CIRCUITS = (2, 8, 64, 256, 1000)
CIRCUIT_STREAMS = 1000
MOST_MIB = 60.0


def cases() -> list[tuple[int, int]]:
    """Streams and circuits of every run, each pair once."""
    pairs = [(streams, STREAM_CIRCUITS) for streams in STREAMS]
    return list(dict.fromkeys([*pairs, *((CIRCUIT_STREAMS, circuits) for circuits in CIRCUITS)]))


def run_case(streams: int, circuits: int, seconds: float) -> Flooded:
    """Hold so many streams over so many circuits, and attach one for each that ends."""
    policy = (
        f"circuits: [{{name: swarm, count: {circuits}}}]\n"
        f"failover: {{min_active: {circuits}}}\n"
        f"balance: {{max_streams: 65535, keys: {{max_circuits: {circuits}}}}}\n"
    )
    return run_once(Subject("the agent", policy), Plan(seconds, window=IN_FLIGHT, held=streams))


def measure(rounds: int, seconds: float, tell: Callable[[str], None]) -> Part:
    """Run every case ``rounds`` times for ``seconds`` each, in turns."""
    runs = {_name(*case): partial(run_case, *case, seconds) for case in cases()}
    named = in_turns(
        runs, rounds, tell, lambda flooded: f"{flooded.rss_mib:.1f} MiB, {flooded.cpu_us:.1f} us a stream"
    )
    return make_part({case: named[_name(*case)] for case in cases()})


def make_part(results: Mapping[tuple[int, int], Sequence[Flooded]]) -> Part:
    """The report's part from all rounds of every case."""
    largest = Spread.of(one.rss_mib for one in results[max(STREAMS), STREAM_CIRCUITS])
    few, many = (Spread.of(_cpu(results[CIRCUIT_STREAMS, count])) for count in (min(CIRCUITS), max(CIRCUITS)))
    figures = [
        Figure(
            f"{_name(max(STREAMS), STREAM_CIRCUITS)}: resident memory below {MOST_MIB:.0f} MiB",
            f"{largest:.1f} MiB",
            largest.median < MOST_MIB,
        ),
        Figure(
            f"CPU a stream with {max(CIRCUITS):,} circuits at most twice that with {min(CIRCUITS)}",
            f"{many.median / few.median:.2f} times",
            many.median <= 2 * few.median,
        ),
    ]
    text = f"""\
So many streams are open, and {IN_FLIGHT} more are on their way all the time: the oldest ends for each that is
opened. RSS is the agent's own process; PSS is the agent with its guard process, shared pages counted once.

![memory by open streams](scale-memory.svg)

![CPU for one stream by circuits](scale-circuits.svg)

{_table(results)}
"""
    charts = {
        "scale-memory.svg": curves(
            "The agent's memory by open streams",
            [
                Curve(
                    "",
                    [
                        (streams, Spread.of(one.rss_mib for one in results[streams, STREAM_CIRCUITS]))
                        for streams in STREAMS
                    ],
                )
            ],
            lambda value: f"{value:.0f} MiB",
            across=f"streams open at once, over {STREAM_CIRCUITS} circuits",
            subtitle="resident memory of the process",
            goal=Goal(f"aim: below {MOST_MIB:.0f} MiB", MOST_MIB),
        ),
        "scale-circuits.svg": curves(
            "CPU for one stream by number of circuits",
            [
                Curve(
                    "",
                    [(count, Spread.of(_cpu(results[CIRCUIT_STREAMS, count]))) for count in CIRCUITS],
                )
            ],
            lambda value: f"{value:.0f} us",
            across=f"circuits, with {CIRCUIT_STREAMS:,} streams open",
            subtitle="the whole agent: five events read, circuit chosen, attached, counted",
            goal=Goal("aim: at most 35 us", 35.0),
        ),
    }
    return Part("scale", "Scale", text, figures, charts)


def _name(streams: int, circuits: int) -> str:
    return f"{streams:,} streams over {circuits:,} circuits"


def _cpu(runs: Sequence[Flooded]) -> list[float]:
    return [one.cpu_us for one in runs]


def _table(results: Mapping[tuple[int, int], Sequence[Flooded]]) -> str:
    header = ("streams", "circuits", "RSS MiB", "PSS MiB", "CPU us a stream", "streams/s", "p99 ms")
    return table(
        header,
        [
            (
                f"{streams:,}",
                f"{circuits:,}",
                f"{Spread.of(one.rss_mib for one in runs):.1f}",
                f"{Spread.of(one.pss_mib for one in runs):.1f}",
                f"{Spread.of(_cpu(runs)):.1f}",
                f"{Spread.of(one.per_second for one in runs):,.0f}",
                f"{Spread.of(one.p99_ms for one in runs):.2f}",
            )
            for (streams, circuits), runs in results.items()
        ],
    )
