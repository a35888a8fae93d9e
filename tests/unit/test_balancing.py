"""Choosers: exact shares, fairness under change, cost bounds by construction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.balancing import (
    CHOOSERS,
    Chooser,
    ConnectTime,
    LeastStreams,
    PowerOfTwo,
    RoundRobin,
    WeightedRandom,
    WeightedRoundRobin,
)

weights = st.dictionaries(
    st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 9), min_size=1, max_size=12
)


def dice(seed: int) -> Callable[[], float]:
    """Random numbers that are the same each time."""
    return Random(seed).random  # noqa: S311 - nothing secret hangs on it


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
    chooser = fill(CHOOSERS[name](lambda: 0.0), {"a": 1, "b": 1})

    assert [chooser.choose({"a"}) for _ in range(3)] == ["b", "b", "b"]
    assert chooser.choose({"a", "b"}) is None
    assert chooser.choose() == "a"


@pytest.mark.parametrize("name", sorted(CHOOSERS))
def test_nobody_to_choose(name: str) -> None:
    chooser = CHOOSERS[name](lambda: 0.5)

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


def slow_and_fast(uniform: float = 0.0) -> tuple[PowerOfTwo, ConnectTime, ConnectTime]:
    chooser = PowerOfTwo(lambda: uniform)
    slow, fast = ConnectTime(), ConnectTime()
    chooser.add("slow", weight=1, streams=0, connect_time=slow)
    chooser.add("fast", weight=1, streams=0, connect_time=fast)
    slow.observe(0.4, 0.0)
    fast.observe(0.1, 0.0)
    return chooser, slow, fast


def test_power_of_two_takes_the_cheaper_of_two() -> None:
    chooser, _, _ = slow_and_fast()

    assert chooser.choose(now=0.0) == "fast"
    chooser.count_streams("fast", 4)
    # (4 + 1) * 0.1 s against 1 * 0.4 s.
    assert chooser.choose(now=0.0) == "slow"
    chooser.count_streams("nobody", 4)


def test_power_of_two_takes_what_is_left() -> None:
    chooser, _, _ = slow_and_fast()

    assert chooser.choose({"fast"}) == "slow"
    assert chooser.choose({"slow"}) == "fast"


def test_power_of_two_gives_one_stream_to_an_unmeasured_candidate_until_it_is_answered() -> None:
    chooser, slow, fast = slow_and_fast()
    chooser.add("fresh", weight=1, streams=0)
    chooser.remove("fast")

    assert chooser.choose(now=0.0) == "fresh"
    chooser.count_streams("fresh", 1)
    assert chooser.choose(now=0.0) == "slow"
    assert slow.peak_seconds == 0.4
    assert fast.peak_seconds == 0.1


def test_power_of_two_keeps_a_weights_part() -> None:
    chooser = PowerOfTwo(dice(5))
    for name, weight in (("a", 3), ("b", 1)):
        connect_time = ConnectTime()
        connect_time.observe(0.1, 0.0)
        chooser.add(name, weight=weight, streams=0, connect_time=connect_time)
    streams = Counter({"a": 0, "b": 0})
    for _ in range(400):
        chosen = chooser.choose(now=0.0)
        assert chosen is not None
        streams[chosen] += 1
        chooser.count_streams(chosen, streams[chosen])

    assert streams == {"a": 300, "b": 100}


@given(st.integers(2, 40), st.integers(0, 9), st.lists(st.booleans(), max_size=300))
def test_power_of_two_never_crowds_one_of_equals(count: int, seed: int, steps: list[bool]) -> None:
    chooser = PowerOfTwo(dice(seed))
    streams: Counter[str] = Counter()
    for number in range(count):
        connect_time = ConnectTime()
        connect_time.observe(0.1, 0.0)
        chooser.add(f"c{number}", weight=1, streams=0, connect_time=connect_time)
    order: list[str] = []
    for is_arrival in steps:
        if is_arrival:
            name = chooser.choose(now=0.0)
            assert name is not None
            streams[name] += 1
            order.append(name)
        elif order:
            name = order.pop(0)
            streams[name] -= 1
        else:
            continue
        chooser.count_streams(name, streams[name])
    # log log n above the mean with high probability (Mitzenmacher); a single draw would break it at once.
    assert max(streams.values(), default=0) <= len(order) / count + 8


def test_connect_time_is_believed_at_once_when_it_rises_and_slowly_when_it_falls() -> None:
    connect_time = ConnectTime()
    assert connect_time.estimate(5.0) is None
    connect_time.observe(0.1, 0.0)
    connect_time.observe(2.0, 1.0)
    assert connect_time.estimate(1.0) == 2.0
    connect_time.observe(0.1, 2.0)
    estimate = connect_time.estimate(2.0)
    assert estimate is not None
    assert 1.5 < estimate < 2.0
    connect_time.penalise(3.0)
    assert connect_time.estimate(3.0) == 10.0


@given(st.lists(st.tuples(st.floats(0.001, 20), st.floats(0, 30)), min_size=1), st.floats(0, 100))
def test_connect_time_stays_within_what_was_measured_and_fades(
    measured: list[tuple[float, float]], later: float
) -> None:
    connect_time, now = ConnectTime(), 0.0
    for seconds, pause in measured:
        now += pause
        connect_time.observe(seconds, now)
    estimate, faded = connect_time.estimate(now), connect_time.estimate(now + later)

    assert estimate is not None
    assert faded is not None
    assert faded <= estimate <= max(seconds for seconds, _ in measured) + 1e-9


def test_first_fills_in_the_policys_order() -> None:
    chooser = CHOOSERS["first"](lambda: 0.5)
    chooser.add("late", weight=1, streams=0, order=2)
    chooser.add("early", weight=1, streams=0, order=1)

    assert take(chooser, 2) == ["early", "early"]
    chooser.remove("early")
    assert chooser.choose() == "late"
    chooser.add("early", weight=1, streams=0, order=1)
    assert chooser.choose() == "early"


@given(weights, st.integers(0, 9))
def test_random_draws_by_weight(candidates: dict[str, int], seed: int) -> None:
    chosen = Counter(take(fill(WeightedRandom(dice(seed)), candidates), 2000))
    total = sum(candidates.values())

    for name, weight in candidates.items():
        part = weight / total
        # Six standard deviations of a binomial share.
        assert abs(chosen[name] / 2000 - part) <= 6 * (part * (1 - part) / 2000) ** 0.5


def test_random_draws_among_other_weights_when_one_is_excluded() -> None:
    chooser = fill(WeightedRandom(lambda: 0.0), {"a": 5, "c": 5, "b": 1})

    assert chooser.choose({"a", "c"}) == "b"
    chooser.remove("c")
    assert chooser.choose() == "a"
    chooser.remove("a")
    assert chooser.choose() == "b"
