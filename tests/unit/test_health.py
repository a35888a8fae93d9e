"""Ejection on random histories: never too many out, everybody comes back, each time is longer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.health import MAX_STEPS, Ejector
from circuitloom.policy.types import Eject

NAMES = st.sampled_from("abcdefgh")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "remove", "keep", "fail", "fail", "fail", "succeed", "due"]),
        NAMES,
        st.floats(0, 90),
    ),
    max_size=150,
)


def ejector(*names: str, max_percent: int = 50, failures: int = 3) -> Ejector[str]:
    made = Ejector[str](Eject(failures, 30.0, max_percent))
    for name in names:
        made.add(name)
    return made


def fail(members: Ejector[str], name: str, *, now: float, times: int = 3) -> float | None:
    return [members.fail(name, now=now) for _ in range(times)][-1]


def test_so_many_failures_in_a_row_and_it_is_out() -> None:
    members = ejector("a", "b")

    assert [members.fail("a", now=1.0) for _ in range(4)] == [None, None, 31.0, None]
    assert members.until("a") == 31.0
    assert members.until("b") is None


def test_a_success_begins_the_row_anew() -> None:
    members = ejector("a", "b")
    fail(members, "a", now=1.0, times=2)
    members.succeed("a")
    members.succeed("nobody")

    assert fail(members, "a", now=1.0, times=2) is None


def test_without_a_rule_nobody_is_out() -> None:
    members = Ejector[str](None)
    members.add("a")
    members.add("b")

    assert fail(members, "a", now=0.0, times=50) is None
    members.check_invariants()


def test_it_comes_back_after_its_time_and_stays_out_longer_the_next() -> None:
    members = ejector("a", "b")
    fail(members, "a", now=0.0)
    assert members.due(now=29.9) == []
    assert members.due(now=30.0) == ["a"]

    assert fail(members, "a", now=31.0) == 91.0


def eject_again_and_again(members: Ejector[str], times: int) -> float:
    """The time when the last of so many ejections of ``a`` ends."""
    now = 0.0
    for _ in range(times):
        now = fail(members, "a", now=now) or 0.0
        members.due(now=now)
    return now


def test_health_is_forgiven_step_by_step() -> None:
    members = ejector("a", "b")
    now = eject_again_and_again(members, 3)

    # Three ejections, two spans of 30 s in health: the next one counts as the second.
    assert fail(members, "a", now=now + 65.0) == now + 65.0 + 60.0


def test_an_ejection_is_never_longer_than_ten_times_the_base() -> None:
    members = ejector("a", "b")
    now = eject_again_and_again(members, 30)

    assert fail(members, "a", now=now) == now + 30.0 * MAX_STEPS


@pytest.mark.parametrize(
    ("count", "max_percent", "out"),
    [(1, 100, 0), (2, 100, 1), (2, 49, 0), (4, 50, 2), (5, 50, 2), (8, 100, 7)],
)
def test_no_more_than_the_part_and_never_all(count: int, max_percent: int, out: int) -> None:
    names = "abcdefgh"[:count]
    members = ejector(*names, max_percent=max_percent)
    for name in names:
        fail(members, name, now=0.0, times=10)

    assert len(members.out) == out


def test_when_members_go_those_out_longest_come_back() -> None:
    members = ejector("a", "b", "c", "d")
    fail(members, "a", now=0.0)
    fail(members, "b", now=1.0)

    assert members.remove("d") == ["a"]
    assert list(members.out) == ["b"]


def test_who_goes_comes_again_without_a_past() -> None:
    members = ejector("a", "b")
    fail(members, "a", now=0.0)
    fail(members, "b", now=0.0, times=2)
    members.keep(["b", "c"])
    members.add("a")

    assert not members.out
    assert fail(members, "a", now=0.0, times=2) is None
    assert members.fail("b", now=0.0) == 30.0


@given(STEPS, st.integers(1, 100))
def test_never_more_than_the_part_is_out_and_everybody_comes_back(
    steps: list[tuple[str, str, float]], max_percent: int
) -> None:
    members, there, now = ejector(max_percent=max_percent), set[str](), 0.0
    for what, name, pause in steps:
        now += pause
        out = set(members.out)
        back: list[str] = []
        match what:
            case "add":
                members.add(name)
                there.add(name)
            case "remove":
                back = members.remove(name)
                there.discard(name)
            case "keep":
                there = set(sorted(there)[:4]) | {name}
                back = members.keep(there)
            case "fail":
                until = members.fail(name, now=now)
                assert until is None or (name in there and now + 30.0 <= until <= now + 300.0)
            case "succeed":
                members.succeed(name)
            case _:
                back = members.due(now=now)
        members.check_invariants()
        assert set(members.out) <= there
        assert len(members.out) <= len(there) * max_percent / 100
        assert not there or len(members.out) < len(there)
        assert set(back) == (out - set(members.out)) & there
        assert all(member in members for member in there)
    members.due(now=now + 300.0)

    assert not members.out
