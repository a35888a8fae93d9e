"""The judge of the chaos table, on made-up evidence: what is excused, and what is not."""

from __future__ import annotations

import math

import pytest

from tor.chaos.load import LoadStream
from tor.chaos.row import Row
from tor.chaos.scenarios import SCENARIOS
from tor.chaos.span import Span, seconds_outside
from tor.chaos.table import HEADER, WIDTH, format_row
from tor.chaos.verdict import Evidence, Verdict, judge
from tor.chaos.watch import SeenStream, TorLife


def good(start: float, reply: float = 0.1) -> LoadStream:
    return LoadStream(start, replied_at=start + reply, ended_at=start + reply + 0.1, source_port=1)


def bad(start: float, end: float, port: int = 2) -> LoadStream:
    return LoadStream(start, source_port=port, ended_at=end, failure="SOCKS: general failure")


def judged(
    *streams: LoadStream,
    seen: SeenStream | None = None,
    died: dict[str, tuple[float, str]] | None = None,
    unable: tuple[Span, ...] = (),
    absent: tuple[Span, ...] = (),
    faults: tuple[float, ...] = (),
    closed: frozenset[str] = frozenset(),
) -> Verdict:
    life = TorLife({"9": seen} if seen else {}, died or {})
    return judge(Evidence(streams, [life], unable, absent, faults, closed))


def on_circuit(circuit_id: str, ended_at: float) -> SeenStream:
    return SeenStream(first_seen_at=2.0, source_port=2, circuit_id=circuit_id, ended_at=ended_at)


def test_a_port_that_is_used_again_is_told_apart_by_time() -> None:
    first, second = on_circuit("5", 3.0), SeenStream(first_seen_at=9, source_port=2, circuit_id="6")
    life = TorLife({"1": first, "2": second}, {"5": (3.0, "DESTROYED")})
    streams = [bad(1.9, 3.1), LoadStream(8.9, source_port=2, replied_at=9.1, ended_at=9.2)]

    assert judge(Evidence(streams, [life], (), (), (), ())).cut == 1


def test_a_failed_stream_is_lost() -> None:
    verdict = judged(good(1), bad(2, 3), seen=on_circuit("5", 3))

    assert (verdict.streams, verdict.lost, verdict.cut, verdict.stranded) == (2, 1, 0, 0)
    assert verdict.failures == {"SOCKS: general failure (stream: open, no circuit: alive)": 1}


@pytest.mark.parametrize(
    ("reason", "closed", "died_at", "lost"),
    [
        ("DESTROYED", frozenset(), 3.0, 0),
        ("REQUESTED", frozenset("5"), 3.0, 0),
        ("REQUESTED", frozenset(), 3.0, 1),
        ("DESTROYED", frozenset(), 1.0, 1),
    ],
    ids=["by a relay", "by the scenario", "by the agent", "long before"],
)
def test_the_end_of_its_circuit_excuses_a_stream(
    reason: str, closed: frozenset[str], died_at: float, lost: int
) -> None:
    verdict = judged(bad(0, 3), seen=on_circuit("5", 3.0), died={"5": (died_at, reason)}, closed=closed)

    assert (verdict.lost, verdict.cut) == (lost, 1 - lost)


def test_the_end_of_another_circuit_excuses_nothing() -> None:
    verdict = judged(bad(0, 3), seen=on_circuit("5", 3.0), died={"6": (3.0, "DESTROYED")})

    assert verdict.lost == 1


@pytest.mark.parametrize(("start", "end", "lost"), [(1, 5, 0), (6, 6, 0), (1, 4, 1), (8, 9, 1)])
def test_the_absence_of_tor_excuses_streams_of_that_time(start: float, end: float, lost: int) -> None:
    assert judged(bad(start, end), absent=(Span(5, 7),)).lost == lost


@pytest.mark.parametrize(("wait", "stranded"), [(4.9, 0), (5.1, 1)])
def test_a_long_wait_is_stranded_although_it_ends_well(wait: float, stranded: int) -> None:
    verdict = judged(good(1, wait))

    assert verdict.stranded == stranded
    assert verdict.longest_seconds == pytest.approx(wait)


def test_waiting_for_a_tor_that_cannot_is_not_stranded() -> None:
    assert judged(good(1, 9), unable=(Span(2, 7),)).stranded == 0


def test_a_stream_that_tor_holds_is_stranded_whoever_asked_for_it() -> None:
    assert judged(seen=SeenStream(source_port=7, waits=[Span(1, 7)])).stranded == 1
    assert judged(seen=SeenStream(source_port=7, waits=[Span(1)])).stranded == 1
    assert judged(seen=SeenStream(source_port=7, waits=[Span(1, 2), Span(3, 7)])).stranded == 0


def test_new_streams_work_from_the_first_of_three_successes() -> None:
    streams = [good(1), good(3), bad(3.5, 3.6), good(4, 0.5), good(5), good(6)]

    assert judged(*streams, faults=(2.0,)).works_seconds == pytest.approx(2.5)
    assert judged(*streams, faults=(0.0, 4.5)).works_seconds == math.inf
    assert judged(*streams).works_seconds == 0


def test_time_outside_of_spans_is_counted() -> None:
    assert seconds_outside(0, 10, [Span(2, 3), Span(9)]) == 8
    assert seconds_outside(0, 10, [Span(-5, 1), Span(20, 30)]) == 9


def test_the_table_fits_80_columns() -> None:
    verdict = judged(bad(2, 300), faults=(0.0,))
    lines = [HEADER]
    for scenario in SCENARIOS:
        lines += format_row(Row(scenario, verdict, ("x" * 200, "no " * 60), ("why " * 50,))).splitlines()

    assert max(len(line) for line in lines if "xxx" not in line) <= WIDTH
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS)
