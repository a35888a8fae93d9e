"""Choosers: exact shares, fairness under change, cost bounds by construction."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.balancing import CHOOSERS, Chooser, LeastStreams, RoundRobin, WeightedRoundRobin

weights = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 9), min_size=1, max_size=12
)


def fill(chooser: Chooser, candidates: dict[str, int]) -> Chooser:
    for name, weight in candidates.items():
        chooser.add(name, weight=weight, streams=0)
    return chooser


def take(chooser: Chooser, count: int) -> list[str]:
    chosen = [chooser.choose() for _ in range(count)]
    return [name for name in chosen if name is not None]


def test_round_robin_alternates() -> None:
    assert take(fill(RoundRobin(), {"primary": 1, "backup": 1}), 4) == ["primary", "backup"] * 2


def test_round_robin_ignores_weights() -> None:
    assert Counter(take(fill(RoundRobin(), {"a": 5, "b": 1}), 100)) == {"a": 50, "b": 50}


def test_weighted_round_robin_is_smooth() -> None:
    chosen = "".join(take(fill(WeightedRoundRobin(), {"a": 4, "b": 3, "c": 2, "d": 1}), 10))

    assert Counter(chosen) == {"a": 4, "b": 3, "c": 2, "d": 1}
    assert "aa" not in chosen


@given(weights, st.integers(0, 100), st.integers(1, 5))
def test_every_window_of_the_total_weight_is_exact(
    candidates: dict[str, int], skip: int, windows: int
) -> None:
    chooser = fill(WeightedRoundRobin(), candidates)
    total = sum(candidates.values())
    take(chooser, skip)

    assert Counter(take(chooser, total * windows)) == {n: w * windows for n, w in candidates.items()}


@given(weights, st.integers(1, 300))
def test_no_candidate_is_ever_two_turns_away_from_its_share(candidates: dict[str, int], turns: int) -> None:
    chosen = Counter(take(fill(WeightedRoundRobin(), candidates), turns))
    total = sum(candidates.values())

    for name, weight in candidates.items():
        assert abs(chosen[name] - turns * weight / total) < 2


@given(weights, st.data())
def test_shares_are_exact_again_after_any_coming_and_going(
    candidates: dict[str, int], data: st.DataObject
) -> None:
    chooser = fill(WeightedRoundRobin(), candidates)
    present = set(candidates)
    for name in data.draw(st.lists(st.sampled_from(sorted(candidates)), max_size=20)):
        if name in present:
            chooser.remove(name)
            present.discard(name)
        else:
            chooser.add(name, weight=candidates[name], streams=0)
            present.add(name)
        chooser.choose()
    here = {name: candidates[name] for name in present}
    total = sum(here.values())
    # What the change left owing is paid within one round for each weight; from then on it is exact.
    take(chooser, total * (1 + len(set(candidates.values()))))

    assert Counter(take(chooser, total)) == here


@pytest.mark.parametrize("name", sorted(CHOOSERS))
def test_excluded_candidates_are_passed_over_and_keep_their_turn(name: str) -> None:
    chooser = fill(CHOOSERS[name](), {"a": 1, "b": 1})

    assert [chooser.choose({"a"}) for _ in range(3)] == ["b", "b", "b"]
    assert chooser.choose({"a", "b"}) is None
    assert chooser.choose() == "a"


@pytest.mark.parametrize("name", sorted(CHOOSERS))
def test_nobody_to_choose(name: str) -> None:
    chooser = CHOOSERS[name]()

    assert chooser.choose() is None
    chooser.add("a", weight=1, streams=0)
    with pytest.raises(ValueError, match="already"):
        chooser.add("a", weight=1, streams=0)
    chooser.remove("a")
    assert chooser.choose() is None
    with pytest.raises(KeyError):
        chooser.remove("a")
    chooser.count_streams("a", 3)


@given(weights, st.lists(st.booleans(), max_size=200))
def test_least_streams_chooses_a_least_loaded_candidate(
    candidates: dict[str, int], steps: list[bool]
) -> None:
    chooser = fill(LeastStreams(), candidates)
    streams = dict.fromkeys(candidates, 0)
    order: list[str] = []
    for is_arrival in steps:
        if is_arrival:
            chosen = chooser.choose()
            assert chosen is not None
            load = {name: (streams[name] + 1) / weight for name, weight in candidates.items()}
            assert load[chosen] == min(load.values())
            streams[chosen] += 1
            order.append(chosen)
            chooser.count_streams(chosen, streams[chosen])
        elif order:
            ended = order.pop(0)
            streams[ended] -= 1
            chooser.count_streams(ended, streams[ended])


def test_least_streams_takes_turns_among_equals() -> None:
    chooser = fill(LeastStreams(), {"a": 1, "b": 1, "c": 1})

    assert take(chooser, 6) == ["a", "b", "c"] * 2


def test_least_streams_knows_what_a_candidate_brings() -> None:
    chooser = LeastStreams()
    chooser.add("busy", weight=1, streams=10)
    chooser.add("idle", weight=1, streams=0)
    chooser.count_streams("idle", 0)

    assert chooser.choose() == "idle"


def test_least_streams_forgets_stale_counts() -> None:
    chooser = LeastStreams()
    fill(chooser, {"a": 1, "b": 1})
    for streams in range(5000):
        chooser.count_streams("a", streams)

    assert len(chooser._heap) < 100
    assert chooser.choose() == "b"
