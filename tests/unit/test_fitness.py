"""Weight that comes with age and goes with slowness, a tenth at a time, and always comes back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.health import LEAST, WHOLE, Fitness
from circuitloom.policy.health import Degrade

FAST = {"a": 0.1, "b": 0.1, "c": 0.12, "d": 0.09}


def review(members: Fitness[str], now: float, seconds: dict[str, float] | None = None) -> dict[str, int]:
    """What each member has that changed."""
    return {member: members.tenths(member) for member in members.review(lambda: seconds or {}, now=now)}


# --- slow start --------------------------------------------------------------------------------------------


def test_a_fresh_member_gets_its_weight_in_tenths_over_the_window() -> None:
    members = Fitness[str](10.0, None)
    members.begin("a", now=100.0)
    assert members.tenths("a") == LEAST

    assert review(members, 101.9) == {}
    for tenths in range(2, 11):
        assert members.review_at == 100.0 + tenths
        assert review(members, members.review_at) == {"a": tenths}
    assert members.review_at == float("inf")
    assert members.tenths("stranger") == WHOLE


def test_who_is_not_looked_at_for_long_makes_up_for_it() -> None:
    members = Fitness[str](10.0, None)
    members.begin("a", now=100.0)
    assert members.tenths_at("a", now=107.5) == 7
    assert members.tenths("a") == LEAST

    assert review(members, 107.5) == {"a": 7}
    assert review(members, 1e6) == {"a": WHOLE}


def test_who_comes_back_begins_anew() -> None:
    members = Fitness[str](10.0, None)
    members.begin("a", now=100.0)
    review(members, 108.0)
    members.begin("a", now=109.0)
    assert members.tenths("a") == LEAST

    assert review(members, 110.0) == {}
    assert review(members, 112.0) == {"a": 3}


def test_without_a_window_it_is_all_there_at_once() -> None:
    members = Fitness[str](None, None)
    members.begin("a", now=100.0)

    assert members.tenths("a") == members.tenths_at("a", now=100.0) == WHOLE
    assert members.review_at == float("inf")


def test_steps_of_members_that_went_do_not_pile_up() -> None:
    members = Fitness[str](10.0, None)
    for number in range(1000):
        members.begin(f"m{number}", now=float(number))
        members.forget(f"m{number}")

    assert len(members._steps) <= 70


# --- degraded ----------------------------------------------------------------------------------------------


def judged(slow_seconds: float, reviews: int, *, members: Fitness[str] | None = None) -> Fitness[str]:
    members = members or Fitness[str](None, Degrade(3.0, 2.0))
    for _ in range(reviews):
        review(members, members.review_at, FAST | {"slow": slow_seconds})
    return members


@pytest.mark.parametrize(
    ("seconds", "tenths"), [(0.1, 10), (0.3, 10), (0.33, 9), (0.6, 5), (1.2, 2), (3.0, 1), (50.0, 1)]
)
def test_a_slow_member_ends_with_the_weight_that_makes_up_for_it(seconds: float, tenths: int) -> None:
    members = judged(seconds, 12)

    assert members.tenths("slow") == tenths
    assert members.is_degraded("slow") == (tenths < WHOLE)
    assert {members.tenths(name) for name in FAST} == {WHOLE}


def test_it_goes_and_comes_back_gradually() -> None:
    members = Fitness[str](None, Degrade(3.0, 2.0))
    seen = []
    for seconds in (9.0, 9.0, 9.0, 0.1, 0.1, 0.1, 0.1):
        judged(seconds, 1, members=members)
        seen.append(members.tenths("slow"))

    assert seen == [9, 8, 7, 8, 9, 10, 10]
    assert not members.is_degraded("slow")


def test_the_interval_bounds_the_pace() -> None:
    members = Fitness[str](None, Degrade(3.0, 2.0))
    for now in (10.0, 10.5, 11.9):
        review(members, now, FAST | {"slow": 9.0})

    assert members.tenths("slow") == 9
    assert review(members, 12.0, FAST | {"slow": 9.0}) == {"slow": 8}


def test_who_is_not_measured_any_more_gets_its_weight_back() -> None:
    members = judged(9.0, 3)
    for _ in range(3):
        review(members, members.review_at, FAST)

    assert members.tenths("slow") == WHOLE


def test_of_two_nobody_is_the_slow_one() -> None:
    members = Fitness[str](None, Degrade(3.0, 2.0))
    for _ in range(5):
        assert review(members, members.review_at, {"a": 0.1, "b": 90.0}) == {}


def test_fresh_and_slow_multiply_and_leave_a_tenth() -> None:
    members = Fitness[str](10.0, Degrade(3.0, 2.0))
    judged(0.6, 6, members=members)
    members.begin("slow", now=50.0)
    assert members.tenths("slow") == LEAST

    assert members.tenths_at("slow", now=58.0) == 4


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "forget", "review", "review"]),
            st.sampled_from("abcde"),
            st.floats(0.01, 20),
            st.floats(0, 9),
        ),
        max_size=80,
    )
)
def test_whatever_happens_each_step_is_a_tenth_and_all_get_well(
    steps: list[tuple[str, str, float, float]],
) -> None:
    members = Fitness[str](5.0, Degrade(2.0, 1.0))
    seconds: dict[str, float] = {}
    now = 0.0
    for what, member, own, passed in steps:
        now += passed
        seconds[member] = own
        if what == "begin":
            members.begin(member, now=now)
        elif what == "forget":
            members.forget(member)
            seconds.pop(member)
        else:
            before = {name: members._slow.get(name, WHOLE) for name in "abcde"}
            changed = members.review(lambda: seconds, now=now)
            for name in "abcde":
                assert abs(members._slow.get(name, WHOLE) - before[name]) <= 1
                # The others are as they were, and the status shows what the choosers have.
                assert name in changed or members._slow.get(name, WHOLE) == before[name]
                assert members.tenths(name) == members.tenths_at(name, now=now)
            assert members.review_at > now
        assert all(LEAST <= members.tenths(name) <= WHOLE for name in "abcde")
    for _ in range(WHOLE):
        now = max(now + 5.0, members.review_at)
        members.review(lambda: dict.fromkeys("abcde", 0.1), now=now)
    assert {members.tenths(name) for name in "abcde"} == {WHOLE}
