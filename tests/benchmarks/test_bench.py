"""Each part of the benchmark measures what it says; how fast that is, no test judges."""

from __future__ import annotations

import contextlib
import math
import shutil
import socket
import xml.etree.ElementTree as ET
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import attach, failover, private_tor, relay_death, scale
from benchmarks.attach import PRESSED, STEADY, Case
from benchmarks.chart import Bar, Curve, Goal, bars, curves
from benchmarks.flood import Closing, Flooded, FloodingPort, Plan
from benchmarks.measure import BenchError, Spread, in_turns, percentile
from benchmarks.report import Figure, Part, write_part
from benchmarks.ways import Size, find_haproxy

SVG = "{http://www.w3.org/2000/svg}"


def ignore(_line: str) -> None:
    return


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]  # noqa: S314 - our own


# --- what is measured ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [*PRESSED, *STEADY], ids=lambda case: case.name)
def test_each_subject_attaches_every_stream_of_the_flood(case: Case) -> None:
    flooded = case.run(0.3)

    assert flooded.streams > 0
    assert flooded.refused == 0
    assert flooded.cpu_seconds > 0
    assert flooded.pss_mib > 0
    assert 0 < flooded.p50_ms <= flooded.p99_ms <= flooded.max_ms


def test_a_hook_runs_while_the_agent_attaches_beside_it() -> None:
    quiet, _, hook = (case.run(1.0) for case in STEADY)

    # The shell that is the hook becomes the program that never ends.
    assert hook.processes == quiet.processes + 1


@pytest.mark.parametrize(("streams", "circuits"), [(100, 2), (300, 64)])
def test_so_many_streams_are_held_over_so_many_circuits(streams: int, circuits: int) -> None:
    flooded = scale.run_case(streams, circuits, 0.3)

    assert flooded.open == streams
    assert flooded.refused == 0


def test_a_circuit_that_closes_gets_no_stream_that_is_announced_later_and_is_replaced() -> None:
    flooded = failover.run_case(0.8)

    # How many there are in that time depends on how busy the machine is.
    assert flooded.closings
    assert sum(closing.late_newer for closing in flooded.closings) == 0
    assert flooded.closings[0].asked_ms is not None


@pytest.mark.timeout(240)
@pytest.mark.skipif(shutil.which("tor") is None, reason="tor is not installed: its benchmark was not tried")
def test_every_way_connects_streams_over_the_private_network() -> None:
    size = Size(agents=(2,), rivals=2, tors=(2,), relays=3)
    told: list[str] = []

    rates, ends = private_tor.measure(1, 0.5, told.append, size)

    names = ["Tor's own assignment", "the agent, 2 circuits", "stem listener", "a connection per command"]
    if find_haproxy():
        names.append("2 tor clients behind HAProxy")
    for name in names:
        assert rates.text.count(f"| {name} |") == 2
        assert f"round 1 of 1: {name}: " in "\n".join(told)
    assert "/s, alone p50 nan" not in "\n".join(told)
    assert len(rates.figures) == 2
    for event in (relay_death.CLOSED, relay_death.KILLED):
        assert f"| {event}: the agent, 2 circuits |" in ends.text


@pytest.mark.parametrize("how", [socket.SHUT_RDWR, socket.SHUT_WR], ids=["both", "writing"])
def test_a_controller_that_leaves_is_told_at_once(tmp_path: Path, how: int) -> None:
    control = tmp_path / "control"
    with (
        contextlib.closing(FloodingPort(control, Plan(60.0, window=1))) as port,
        ThreadPoolExecutor() as pool,
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as controller,
    ):
        controller.connect(str(control))
        measured = pool.submit(port.run)
        controller.sendall(b"SETCONF __LeaveStreamsUnattached=1\r\n")
        controller.settimeout(5.0)
        assert b"250 OK" in controller.recv(1 << 16)
        controller.shutdown(how)

        with pytest.raises(ConnectionAbortedError, match="the controller ended its connection"):
            measured.result(10.0)


# --- how it is told -----------------------------------------------------------------------------------------


def flooded(per_second: float, closings: tuple[Closing, ...] = ()) -> Flooded:
    return Flooded(
        streams=int(per_second),
        seconds=1.0,
        cpu_seconds=per_second * 20e-6,
        starved=0.1,
        p50_ms=1.0,
        p99_ms=2.0,
        max_ms=3.0,
        refused=0,
        open=0,
        rss_mib=40.0,
        pss_mib=38.0,
        processes=2,
        closings=closings,
    )


def test_a_spread_is_lowest_median_and_highest() -> None:
    assert f"{Spread.of([3000.0, 1000.0, 2000.0]):,.0f}" == "2,000 (1,000..3,000)"


@pytest.mark.parametrize(("percent", "expected"), [(50, 51), (99, 100), (100, 100)])
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    assert percentile(range(1, 101), percent) == expected


def test_cases_run_in_turns_and_each_round_begins_with_another() -> None:
    ran: list[str] = []

    def run(name: str) -> str:
        ran.append(name)
        return name

    results = in_turns({"a": lambda: run("a"), "b": lambda: run("b")}, 2, ignore, str)

    assert ran == ["a", "b", "b", "a"]
    assert results == {"a": ["a", "a"], "b": ["b", "b"]}


def test_a_case_that_was_spoilt_runs_again_and_is_told() -> None:
    told: list[str] = []
    chances = iter([BenchError("the machine stood still"), None])

    def run() -> int:
        spoilt = next(chances)
        if spoilt:
            raise spoilt
        return 7

    assert in_turns({"a": run}, 1, told.append, str) == {"a": [7]}
    assert told == ["a: the machine stood still; once more", "round 1 of 1: a: 7"]


def test_the_attach_part_compares_the_agent_with_the_stem_listener_of_the_same_round() -> None:
    results = {case.name: [flooded(1000.0)] for case in (*PRESSED, *STEADY)}
    results[PRESSED[0].name] = [flooded(31_000.0)]

    part = attach.make_part(results)

    assert [figure.holds for figure in part.figures] == [True, True, True, True]
    assert "| the agent, 64 in flight | 31,000 (31,000..31,000) | 20.0 (20.0..20.0) |" in part.text
    assert "31,000/s" in texts(part.charts["attach.svg"])


def test_the_failover_part_owns_up_to_a_circuit_that_was_not_replaced() -> None:
    prompt = Closing(late=1, late_ms=0.5, asked_ms=1.0, served_ms=2.0)

    good = failover.make_part([flooded(1000.0, (prompt,))])
    bad = failover.make_part([flooded(1000.0, (prompt, Closing(late_newer=1)))])
    worst = failover.make_part([flooded(1000.0, (Closing(),))])

    assert [figure.holds for figure in good.figures] == [True, True]
    assert [figure.holds for figure in bad.figures] == [False, False]
    assert [figure.holds for figure in worst.figures] == [True, False]


def test_a_new_circuit_is_one_that_was_launched_after_the_event() -> None:
    seen = [(1.0, "5", "LAUNCHED"), (2.1, "5", "BUILT"), (2.2, "6", "LAUNCHED"), (2.5, "6", "BUILT")]

    assert relay_death.rebuilt_ms(seen, 2.0) == pytest.approx(500.0)
    assert math.isnan(relay_death.rebuilt_ms(seen, 2.4))


def test_a_part_that_is_measured_anew_replaces_only_itself(tmp_path: Path) -> None:
    figure = Figure("an aim", "1 (1..1)", holds=False)
    write_part(tmp_path, Part("scale", "Scale", "old scale", [figure]), "Measured then.")
    write_part(tmp_path, Part("attach", "Attaching", "the floods", (), {"a.svg": "<svg/>"}), "Measured then.")
    write_part(tmp_path, Part("scale", "Scale", "new scale", [figure]), "Measured now.")

    page = (tmp_path / "README.md").read_text()
    assert "old scale" not in page
    assert page.index("the floods") < page.index("Measured now.") < page.index("new scale")
    assert "| an aim | 1 (1..1) | **no** |" in page
    assert (tmp_path / "a.svg").read_text() == "<svg/>"


# --- charts -------------------------------------------------------------------------------------------------


def test_a_bar_is_as_long_as_its_median_and_says_it() -> None:
    svg = bars(
        "Rates",
        [Bar("one & all", Spread(50.0, 100.0, 200.0)), Bar("two", Spread.of([50.0]), is_ours=False)],
        lambda value: f"{value:.0f}/s",
        goal=Goal("aim", 150.0),
    )

    widths = [float(bar.attrib["width"]) for bar in ET.fromstring(svg).iter(f"{SVG}rect")]  # noqa: S314
    assert widths[0] == pytest.approx(2 * widths[1])
    assert {"one & all", "100/s", "50/s", "aim"} <= set(texts(svg))


def test_bars_without_anything_to_show_say_so() -> None:
    svg = bars("Failed", [Bar("none", Spread.of([0.0])), Bar("unknown", Spread.of([]))], lambda _: "0")

    assert {"none", "0", "unknown", "never"} <= set(texts(svg))
    assert "nan" not in svg


def test_a_curve_rises_with_its_values_over_a_logarithmic_axis() -> None:
    points = [(10.0, Spread.of([1.0])), (100.0, Spread.of([2.0])), (1000.0, Spread.of([4.0]))]

    svg = curves("Cost", [Curve("it", points)], lambda value: f"{value:g} us", across="circuits")

    dots = [
        (float(dot.attrib["cx"]), float(dot.attrib["cy"]))
        for dot in ET.fromstring(svg).iter(f"{SVG}circle")  # noqa: S314 - our own
    ]
    assert dots[2][0] - dots[1][0] == pytest.approx(dots[1][0] - dots[0][0], abs=0.2)
    assert dots[1][1] - dots[2][1] == pytest.approx(2 * (dots[0][1] - dots[1][1]), abs=0.3)
    assert {"it: 4 us", "10", "100", "1,000", "circuits"} <= set(texts(svg))
