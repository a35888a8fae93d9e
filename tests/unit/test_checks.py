"""Checks: rise and fall, the quorum, dead targets, the budget."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.checks import (
    DEAD_MEMBERS,
    HOUR_SECONDS,
    Allowance,
    Check,
    Checkup,
    Targets,
    Verdict,
    cost_of_stream,
    first_due,
    next_due,
)
from circuitloom.policy.probing import Probe
from circuitloom.policy.types import UnixAddress

RULE = Probe(UnixAddress("/s"), ("a:1", "b:1", "c:1"))
PASSED, FAILED, VOID = Verdict.PASSED, Verdict.FAILED, Verdict.VOID


def run(check: Check, outcomes: dict[str, Verdict]) -> tuple[list[str], Verdict | None]:
    """Try what the check asks for until it is decided; which targets it asked for, and its verdict."""
    tried: list[str] = []
    while check.verdict is None:
        targets = check.next_targets()
        assert targets, "it waits for nothing"
        tried += targets
        for target in targets:
            check.settle(target, outcomes[target])
    return tried, check.verdict


@pytest.mark.parametrize(
    ("quorum", "outcomes", "tried", "verdict"),
    [
        (1, {"a": PASSED}, "a", PASSED),
        (1, {"a": FAILED, "b": PASSED}, "ab", PASSED),
        (1, {"a": FAILED, "b": FAILED, "c": FAILED}, "abc", FAILED),
        (2, {"a": PASSED, "b": PASSED}, "ab", PASSED),
        (2, {"a": PASSED, "b": FAILED, "c": PASSED}, "abc", PASSED),
        (2, {"a": FAILED, "b": FAILED, "c": PASSED}, "abc", FAILED),
        (3, {"a": PASSED, "b": PASSED, "c": FAILED}, "abc", FAILED),
        # What reached no circuit says nothing, unless the rest suffices for a verdict.
        (1, {"a": VOID, "b": VOID, "c": VOID}, "abc", VOID),
        (1, {"a": FAILED, "b": VOID, "c": FAILED}, "abc", VOID),
        (2, {"a": FAILED, "b": VOID, "c": FAILED}, "abc", FAILED),
    ],
)
def test_a_check_asks_as_many_targets_as_have_to_answer_and_one_more_for_each_that_does_not(
    quorum: int, outcomes: dict[str, Verdict], tried: str, verdict: Verdict
) -> None:
    assert run(Check(list("abc"), quorum), outcomes) == (list(tried), verdict)


def test_a_check_without_targets_decides_nothing() -> None:
    assert Check([], 1).verdict is VOID


def test_a_dead_target_is_tried_besides_and_counts_only_if_it_answers() -> None:
    assert run(Check(["a"], 1, ["z"]), {"a": FAILED, "z": VOID}) == (["z", "a"], FAILED)
    assert run(Check(["a"], 1, ["z"]), {"a": FAILED, "z": PASSED}) == (["z", "a"], PASSED)
    assert run(Check([], 1, ["z"]), {"z": PASSED}) == (["z"], PASSED)
    assert run(Check([], 1, ["z"]), {"z": VOID}) == (["z"], VOID)


@given(
    outcomes=st.lists(st.sampled_from([PASSED, FAILED, VOID]), min_size=1, max_size=8),
    quorum=st.integers(1, 8),
)
def test_a_check_passes_when_the_quorum_answers_and_fails_when_it_cannot_any_more(
    outcomes: list[Verdict], quorum: int
) -> None:
    quorum = min(quorum, len(outcomes))
    by_target = {str(number): outcome for number, outcome in enumerate(outcomes)}

    tried, verdict = run(Check(list(by_target), quorum), by_target)

    assert len(set(tried)) == len(tried)
    answered = outcomes.count(PASSED)
    if answered >= quorum:
        assert verdict is PASSED
    elif len(outcomes) - outcomes.count(FAILED) < quorum:
        assert verdict is FAILED
    else:
        assert verdict is VOID
    # Never more than needed: those that answered, those that did not, and no other.
    unanswered = sum(by_target[target] is not PASSED for target in tried)
    assert len(tried) <= quorum + unanswered


@given(
    verdicts=st.lists(st.sampled_from([PASSED, FAILED, VOID])), rise=st.integers(1, 4), fall=st.integers(1, 4)
)
def test_down_after_fall_failures_in_a_row_and_up_after_rise_passes_in_a_row(
    verdicts: list[Verdict], rise: int, fall: int
) -> None:
    rule = replace(RULE, rise=rise, fall=fall)
    checkup = Checkup()
    history: list[Verdict] = []
    is_down = False
    for now, verdict in enumerate(verdicts):
        checkup.weigh(verdict, rule, now=float(now))
        if verdict is not VOID:
            history.append(verdict)
            assert checkup.last_at == now
        if history[-fall:] == [FAILED] * fall:
            is_down = True
        if history[-rise:] == [PASSED] * rise:
            is_down = False
        assert checkup.is_down == is_down
        assert checkup.last == (history[-1] if history else None)


def test_each_check_begins_with_another_target() -> None:
    targets = Targets(RULE)

    begun = [targets.begin(now=0.0).next_targets() for _ in range(4)]

    assert begun == [["a:1"], ["b:1"], ["c:1"], ["a:1"]]


def test_a_target_that_most_circuits_fail_on_is_dead_and_proves_nothing_until_it_answers() -> None:
    targets = Targets(replace(RULE, targets=("a:1", "b:1")))

    verdicts = [
        targets.judge("a:1", member, has_answered=False, members=4, now=10.0)
        for member in range(DEAD_MEMBERS)
    ]

    assert verdicts == [FAILED, FAILED, VOID]
    assert targets.dead == 1
    assert targets.judge("a:1", 3, has_answered=False, members=4, now=11.0) is VOID
    # It is tried again once an interval, by one circuit, besides what counts.
    assert targets.begin(now=39.0).next_targets() == ["b:1"]
    assert targets.begin(now=40.0).next_targets() == ["a:1", "b:1"]
    assert targets.begin(now=41.0).next_targets() == ["b:1"]
    assert targets.judge("a:1", 0, has_answered=True, members=4, now=42.0) is PASSED
    assert targets.dead == 0
    assert targets.judge("a:1", 0, has_answered=False, members=4, now=43.0) is FAILED


def test_half_of_the_circuits_are_not_most_and_an_answer_acquits() -> None:
    targets = Targets(RULE)

    half = [targets.judge("a:1", member, has_answered=False, members=10, now=0.0) for member in range(5)]
    assert half == [FAILED] * 5

    assert targets.judge("a:1", 9, has_answered=True, members=10, now=0.0) is PASSED
    again = [targets.judge("a:1", member, has_answered=False, members=10, now=0.0) for member in range(5)]
    assert again == [FAILED] * 5
    targets.forget([0])
    assert targets.judge("a:1", 5, has_answered=False, members=10, now=0.0) is FAILED
    assert targets.judge("a:1", 6, has_answered=False, members=10, now=0.0) is VOID


def test_two_circuits_never_make_a_target_dead() -> None:
    targets = Targets(RULE)

    verdicts = [
        targets.judge("a:1", number % 2, has_answered=False, members=2, now=0.0) for number in range(9)
    ]

    assert verdicts == [FAILED] * 9


def test_when_all_targets_are_dead_nothing_is_decided() -> None:
    targets = Targets(replace(RULE, targets=("a:1",)))
    for member in range(3):
        targets.judge("a:1", member, has_answered=False, members=3, now=0.0)

    check = targets.begin(now=1.0)

    assert (check.next_targets(), check.verdict) == ([], VOID)


def test_a_budget_is_spent_and_comes_back_in_an_hour() -> None:
    allowance = Allowance(7200, now=0.0)

    assert [allowance.spend(3000, now=0.0) for _ in range(2)] == [None, None]
    assert allowance.spend(3000, now=0.0) == pytest.approx(900.0)
    assert allowance.spend(3000, now=600.0) == pytest.approx(900.0)
    assert allowance.spend(3000, now=900.0) is None
    assert Allowance(None, now=0.0).spend(10**12, now=0.0) is None


def test_what_costs_more_than_the_budget_is_had_for_all_of_it() -> None:
    allowance = Allowance(1000, now=0.0)

    assert allowance.spend(5000, now=0.0) is None
    assert allowance.spend(5000, now=0.0) == pytest.approx(HOUR_SECONDS)


@given(
    spans=st.lists(st.floats(0, 600), max_size=50), budget=st.integers(1000, 10**6), cost=st.integers(1, 5000)
)
def test_never_more_is_spent_than_the_budget_and_what_time_brings(
    spans: list[float], budget: int, cost: int
) -> None:
    allowance = Allowance(budget, now=0.0)
    now, spent = 0.0, 0
    for span in spans:
        now += span
        ready_at = allowance.spend(cost, now=now)
        if ready_at is None:
            spent += min(cost, budget)
        else:
            assert ready_at > now
    assert spent <= budget * (1 + now / HOUR_SECONDS) + 1


def test_a_stream_costs_three_cells_and_those_of_what_is_read() -> None:
    assert cost_of_stream(RULE) == 3 * 514
    assert cost_of_stream(replace(RULE, read_bytes=1)) == 4 * 514
    assert cost_of_stream(replace(RULE, read_bytes=499)) == 5 * 514


@pytest.mark.parametrize(
    ("uniform", "first", "following"), [(0.0, 100.0, 130.0), (0.5, 103.0, 127.0), (1.0, 106.0, 124.0)]
)
def test_jitter_spreads_first_checks_and_shortens_intervals(
    uniform: float, first: float, following: float
) -> None:
    assert first_due(RULE, now=100.0, uniform=lambda: uniform) == first
    assert next_due(RULE, begun=100.0, now=101.0, uniform=lambda: uniform) == following
    # A check that took longer than that is followed by the next at once.
    assert next_due(RULE, begun=100.0, now=140.0, uniform=lambda: uniform) == 140.0
