"""How fast streams are attached: the whole agent beside a plain stem listener, and what disturbs it.

The flood keeps a window full: what is measured is the most that goes. Disturbances are measured at 1,000 new
streams a second instead, far below that: on a full machine whatever else runs takes time from the agent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from benchmarks.chart import Bar, bars
from benchmarks.flood import Flooded, Plan
from benchmarks.measure import Spread, in_turns
from benchmarks.report import Figure, Part, table
from benchmarks.subjects import (
    ENDLESS_HOOK,
    HOSTILE_CLIENTS,
    STEM,
    WEIGHTED,
    Subject,
    hostile_clients,
    run_once,
)

STEADY_PER_SECOND = 1000.0


@dataclass(frozen=True, slots=True)
class Case:
    """A subject and how hard it is pressed: a window of streams, or None for the steady rate."""

    subject: Subject
    window: int | None

    @property
    def name(self) -> str:
        """In the report."""
        return self.subject.name if self.window is None else f"{self.subject.name}, {self.window} in flight"

    def run(self, seconds: float) -> Flooded:
        """Measure it once."""
        if self.window is None:
            return run_once(self.subject, Plan(seconds, per_second=STEADY_PER_SECOND))
        return run_once(self.subject, Plan(seconds, window=self.window))


AGENT = Subject("the agent")
PRESSED = (Case(AGENT, 64), Case(STEM, 64), Case(AGENT, 1024))
QUIET = Case(Subject("the agent, left alone"), None)
STEADY = (
    QUIET,
    Case(Subject(f"{HOSTILE_CLIENTS} hostile admin clients", disturb=hostile_clients), None),
    Case(Subject("a hook of rounds that never ends", policy=WEIGHTED + ENDLESS_HOOK), None),
)


def measure(rounds: int, seconds: float, tell: Callable[[str], None]) -> Part:
    """Run every case ``rounds`` times for ``seconds`` each, in turns."""
    cases = {case.name: partial(case.run, seconds) for case in (*PRESSED, *STEADY)}
    results = in_turns(cases, rounds, tell, lambda flooded: f"{flooded.per_second:,.0f}/s")
    return make_part(results)


def make_part(results: Mapping[str, Sequence[Flooded]]) -> Part:
    """The report's part from all rounds of every case."""
    agent, stem = results[PRESSED[0].name], results[PRESSED[1].name]
    quiet_p99 = Spread.of(one.p99_ms for one in results[QUIET.name])
    rate, p99 = Spread.of(one.per_second for one in agent), Spread.of(one.p99_ms for one in agent)
    cpu = Spread.of(one.cpu_us for one in agent)
    ratio = Spread.of(ours.per_second / theirs.per_second for ours, theirs in zip(agent, stem, strict=True))
    figures = [
        Figure("30,000 streams/s", f"{rate:,.0f}/s", rate.median >= 30_000),
        Figure("10 times a stem listener", f"{ratio:.1f} times", ratio.median >= 10),
        Figure("at most 35 us of CPU a stream", f"{cpu:.1f} us", cpu.median <= 35),
        Figure("p99 below 5 ms with 64 in flight", f"{p99:.2f} ms", p99.median < 5),
    ]
    text = f"""\
A control port on a Unix socket floods whoever attaches its streams, each with the five lines that Tor writes
for it. CPU is that of the process with its children; times are from NEW to ATTACHSTREAM. "Short of CPU" is
for how much of the time the attaching process and the port were ready to run and waited for a core
(together, so up to 200 %): the higher it is, the more the figures tell of the machine's other work.

![streams attached a second](attach.svg)

{_table(results, PRESSED)}

What disturbs it, at {STEADY_PER_SECOND:,.0f} new streams a second: admin clients that never read and send
garbage or lines of 1 MB without end, and a hook of `rounds` that does not return. Left alone, its p99 is
{quiet_p99.median:.2f} ms.

![p99 of the attachment while disturbed](disturbed.svg)

{_table(results, STEADY)}
"""
    charts = {
        "attach.svg": bars(
            "Streams attached a second",
            [
                Bar(case.name, Spread.of(one.per_second for one in results[case.name]), case.subject is AGENT)
                for case in PRESSED
            ],
            lambda value: f"{value:,.0f}/s",
            subtitle="flooding control port; longer is better",
        ),
        "disturbed.svg": bars(
            "p99 from NEW to ATTACHSTREAM while disturbed",
            [Bar(case.subject.name, Spread.of(one.p99_ms for one in results[case.name])) for case in STEADY],
            lambda value: f"{value:.2f} ms",
            subtitle=f"{STEADY_PER_SECOND:,.0f} new streams a second; shorter is better",
        ),
    }
    return Part("attach", "Attaching streams", text, figures, charts)


def _table(results: Mapping[str, Sequence[Flooded]], cases: Sequence[Case]) -> str:
    header = ("", "streams/s", "CPU us a stream", "p50 ms", "p99 ms", "RSS MiB", "short of CPU")
    return table(
        header,
        [
            (
                case.name,
                f"{Spread.of(one.per_second for one in runs):,.0f}",
                f"{Spread.of(one.cpu_us for one in runs):.1f}",
                f"{Spread.of(one.p50_ms for one in runs):.2f}",
                f"{Spread.of(one.p99_ms for one in runs):.2f}",
                f"{Spread.of(one.rss_mib for one in runs):.0f}",
                f"{Spread.of(one.starved for one in runs):.0%}",
            )
            for case, runs in ((case, results[case.name]) for case in cases)
        ],
    )
