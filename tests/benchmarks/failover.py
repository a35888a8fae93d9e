"""How fast a circuit's end is made up for, with 1,000 new streams a second arriving."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.chart import Bar, bars
from benchmarks.flood import Closing, Flooded, Plan
from benchmarks.measure import Spread, in_turns
from benchmarks.report import Figure, Part, table
from benchmarks.subjects import Subject, run_once

PER_SECOND = 1000.0
CIRCUITS = 8
HELD = 400
CLOSE_SECONDS = 0.25
"""Each circuit lives for eight times as long; the agent takes one that ends within a second for bad."""

ASKED_MS = 100.0
_CASE = f"a circuit closes every {CLOSE_SECONDS * 1e3:.0f} ms"


def run_case(seconds: float) -> Flooded:
    """Close one circuit after the other while new streams arrive."""
    subject = Subject("the agent", f"circuits: [{{name: swarm, count: {CIRCUITS}}}]\n")
    return run_once(subject, Plan(seconds, per_second=PER_SECOND, held=HELD, close_seconds=CLOSE_SECONDS))


def measure(rounds: int, seconds: float, tell: Callable[[str], None]) -> Part:
    """Run it ``rounds`` times for ``seconds`` each."""
    results = in_turns({_CASE: lambda: run_case(seconds)}, rounds, tell, _say)
    return make_part(results[_CASE])


def make_part(runs: Sequence[Flooded]) -> Part:
    """The report's part from all rounds."""
    closings = [closing for flooded in runs for closing in flooded.closings]
    asked = Spread.of(_asked(closings))
    served = Spread.of(closing.served_ms for closing in closings if closing.served_ms is not None)
    late = Spread.of(closing.late_ms for closing in closings)
    late_streams = sum(closing.late for closing in closings)
    newer = sum(closing.late_newer for closing in closings)
    round_trip = Spread.of(one.p50_ms for one in runs)
    figures = [
        Figure(
            "no stream is attached to a closed circuit more than one control round trip after Tor told of it",
            f"{newer} of {sum(one.streams for one in runs):,} streams that came later",
            newer == 0,
        ),
        Figure(
            f"a replacement is asked for within {ASKED_MS:.0f} ms",
            f"{asked:.2f} ms",
            asked.high < ASKED_MS and len(list(_asked(closings))) == len(closings),
        ),
    ]
    rows = [
        ("the last stream on its way to it arrives", f"{late:.2f}"),
        ("a replacement is asked for", f"{asked:.2f}"),
        ("the first stream is attached to the replacement", f"{served:.2f}"),
        ("for comparison: NEW to ATTACHSTREAM, half of all streams", f"{round_trip:.2f}"),
    ]
    text = f"""\
{PER_SECOND:,.0f} new streams a second arrive at the flooding control port, {HELD} are open over {CIRCUITS}
circuits, and every {CLOSE_SECONDS * 1e3:.0f} ms one circuit closes with the streams on it: {len(closings)}
times in all. What was on its way to it then is refused, as Tor does, and attached elsewhere ({late_streams}
streams in all); nothing that is announced afterwards may go there. A new circuit is built at once here; a
real one takes Tor the round trips of three hops.

![what happens after a circuit closes](failover.svg)

{table(("after Tor told that the circuit closed", "ms"), rows)}
"""
    chart = bars(
        "After a circuit closes, with 1,000 new streams a second",
        [
            Bar("last stream on its way to it", late),
            Bar("a replacement is asked for", asked),
            Bar("first stream on the replacement", served),
        ],
        lambda value: f"{value:.2f} ms",
        subtitle="milliseconds after Tor told of it; shorter is better",
    )
    return Part("failover", "Failover", text, figures, {"failover.svg": chart})


def _asked(closings: Sequence[Closing]) -> list[float]:
    return [closing.asked_ms for closing in closings if closing.asked_ms is not None]


def _say(flooded: Flooded) -> str:
    return f"{len(flooded.closings)} times, replaced after {Spread.of(_asked(flooded.closings)):.2f} ms"
