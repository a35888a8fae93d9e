"""Scaled weights: every chooser gives a candidate its tenths, exactly where it is exact."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.balancing import CHOOSERS, WHOLE_WEIGHT, Chooser, ConnectTime, Sticky
from circuitloom.balancing.round_robin import WeightedRoundRobin

WEIGHTED = [name for name in CHOOSERS if name != "first"]
SLACK = {"power-of-two": 60, "random": 60}
"""Two drawn at random are no exact rule, nor is a draw."""


def made(algorithm: str, weights: dict[str, int]) -> Chooser:
    chooser = CHOOSERS[algorithm](Random(7).random)  # noqa: S311 - nothing secret hangs on it
    for order, (name, weight) in enumerate(weights.items()):
        connect_time = ConnectTime()
        connect_time.observe(0.1, 0.0)
        chooser.add(name, weight=weight, streams=0, order=order, connect_time=connect_time)
    return chooser


def shares(chooser: Chooser, count: int) -> Counter[str]:
    """Where so many streams go that stay open."""
    streams: Counter[str] = Counter()
    for _ in range(count):
        name = chooser.choose(now=0.0)
        assert name is not None
        streams[name] += 1
        chooser.count_streams(name, streams[name])
    return streams


@pytest.mark.parametrize("algorithm", WEIGHTED)
def test_a_scaled_candidate_gets_its_tenths(algorithm: str) -> None:
    chooser = made(algorithm, dict.fromkeys("abc", 1))
    chooser.scale("a", 5)
    got = shares(chooser, 1000)

    slack = SLACK.get(algorithm, 2)
    assert abs(got["a"] - 200) <= slack
    assert abs(got["b"] - got["c"]) <= 2 * slack


@pytest.mark.parametrize("algorithm", WEIGHTED)
def test_the_whole_weight_comes_back(algorithm: str) -> None:
    chooser = made(algorithm, {"a": 2, "b": 1, "c": 1})
    chooser.scale("a", 4)
    chooser.scale("a", WHOLE_WEIGHT)
    expected = 1000 / 3 if algorithm == "round-robin" else 500

    assert abs(shares(chooser, 1000)["a"] - expected) <= SLACK.get(algorithm, 2)


@pytest.mark.parametrize("algorithm", CHOOSERS)
def test_unknown_candidates_are_ignored_and_known_ones_can_go(algorithm: str) -> None:
    chooser = made(algorithm, {"a": 1, "b": 2})
    chooser.scale("stranger", 5)
    chooser.scale("a", 5)
    chooser.scale("a", 5)
    chooser.remove("a")
    chooser.scale("a", 7)

    assert {chooser.choose() for _ in range(9)} == {"b"}
    chooser.add("a", weight=1, streams=0)
    assert chooser.choose(["b"]) == "a"


def test_first_knows_no_weights() -> None:
    chooser = made("first", {"a": 1, "b": 1})
    chooser.scale("a", 1)

    assert shares(chooser, 10) == {"a": 10}


def test_what_sticks_does_not_move_for_a_weight() -> None:
    chooser = Sticky(made("round-robin", {}))
    for name in "abc":
        chooser.add(name, weight=1, streams=0)
    before = [chooser.choose(sticky=f"user {number}") for number in range(200)]
    chooser.scale("a", 1)

    assert [chooser.choose(sticky=f"user {number}") for number in range(200)] == before
    assert shares(chooser, 210)["a"] == pytest.approx(10, abs=2)


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1),
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 10)), max_size=20),
)
def test_a_round_robin_is_exact_after_any_scaling(
    weights: dict[str, int], scalings: list[tuple[str, int]]
) -> None:
    chooser = WeightedRoundRobin()
    for name, weight in weights.items():
        chooser.add(name, weight=weight, streams=0)
    tenths = dict.fromkeys(weights, WHOLE_WEIGHT)
    for name, part in scalings:
        chooser.choose()
        chooser.scale(name, part)
        if name in tenths:
            tenths[name] = part
    total = sum(weights[name] * tenths[name] for name in weights)
    got = Counter(chooser.choose() for _ in range(2 * total))

    # What changed on the way leaves a debt or a credit of a few turns, and no more.
    for name, weight in weights.items():
        assert abs(got[name] - 2 * weight * tenths[name]) <= len(scalings) + len(weights)
    # No class is left behind that nobody is in.
    assert len(chooser._classes) == len({weight * tenths[name] for name, weight in weights.items()})
