"""Numbers that are counted while the pool works: what counts where, and what a histogram knows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.policy.types import Keys, Queue, Slot, WhenFull
from circuitloom.pool import Histogram
from circuitloom.pool.tally import BOUNDS_SECONDS, CircuitTally
from unit.pool_driver import TWO, Driver, balancing, closed, detached, isolating, opened, policy_of, sent


def tally(driver: Driver, name: str) -> CircuitTally:
    return driver.pool.tally.circuits[name]


def connected(stream_id: int, circuit_id: int) -> tuple[str, str]:
    return sent(stream_id, circuit_id), f"STREAM {stream_id} SUCCEEDED {circuit_id} example.com:80"


def test_a_class_ends_at_its_bound_and_the_last_one_has_no_end() -> None:
    histogram = Histogram((0.1, 0.2))
    for seconds in (0.0, 0.1, 0.15, 0.2, 0.21, 99.0):
        histogram.observe(seconds)

    assert histogram.counts == [2, 2, 2]
    assert histogram.count == 6
    assert histogram.sum_seconds == pytest.approx(99.66)


def test_several_of_the_same_are_as_many_of_one() -> None:
    once, thrice = Histogram(), Histogram()
    for _ in range(3):
        once.observe(0.25)
    thrice.observe(0.25, 3)

    assert once == thrice


def test_a_quantile_of_nothing_is_none() -> None:
    assert Histogram().quantile(0.5) is None


@pytest.mark.parametrize(
    ("part", "seconds"),
    [(0.25, 0.15), (0.5, 0.2), (0.75, 0.25), (1.0, 0.3)],
)
def test_within_a_class_they_are_evenly_spread(part: float, seconds: float) -> None:
    histogram = Histogram((0.1, 0.2, 0.3))
    histogram.observe(0.15, 4)
    histogram.observe(0.25, 4)

    assert histogram.quantile(part) == pytest.approx(seconds)


def test_beyond_the_last_bound_is_the_bound() -> None:
    histogram = Histogram((0.1, 0.2))
    histogram.observe(5.0)

    assert histogram.quantile(0.99) == 0.2


@given(
    st.lists(st.floats(min_value=0, max_value=10), min_size=1, max_size=50),
    st.sampled_from([0.01, 0.5, 0.99, 1.0]),
)
def test_a_quantile_is_in_the_class_of_the_true_one(times: list[float], part: float) -> None:
    histogram = Histogram()
    for seconds in times:
        histogram.observe(seconds)

    true = sorted(times)[max(0, -int(-part * len(times) // 1) - 1)]
    end = next(bound for bound in BOUNDS_SECONDS if bound >= true)
    start = max((bound for bound in BOUNDS_SECONDS if bound < end), default=0.0)
    quantile = histogram.quantile(part)
    assert quantile is not None
    assert start <= quantile <= end


def test_a_stream_that_is_connected_counts_once_with_its_time() -> None:
    driver = balancing()
    driver.tell(*opened(1))
    driver.now += 0.25
    driver.tell(*connected(1, 30))
    driver.tell(closed(1))

    primary = tally(driver, "primary")
    assert (primary.attached, primary.detached, primary.failed) == (1, 0, 0)
    assert primary.connects.count == 1
    assert primary.connects.sum_seconds == 0.25
    assert tally(driver, "backup").attached == 0
    (first, _) = driver.snapshot().circuits
    assert first.connects.quantile(1.0) == 0.3


def test_a_stream_that_is_tried_elsewhere_is_detached_there_and_retried() -> None:
    driver = balancing()
    driver.tell(*opened(1))
    driver.tell(*detached(1, 30))
    driver.tell(*connected(1, 31))

    assert tally(driver, "primary").detached == 1
    assert tally(driver, "backup").attached == 1
    assert tally(driver, "backup").connects.count == 1
    assert driver.pool.tally.retries == 1
    assert driver.snapshot().failed_total == 1


def test_a_stream_that_ends_without_a_connection_has_failed() -> None:
    driver = balancing()
    driver.tell(*opened(1))
    driver.tell(sent(1, 30), "STREAM 1 FAILED 30 example.com:80 REASON=END REMOTE_REASON=DONE", closed(1))

    primary = tally(driver, "primary")
    assert (primary.attached, primary.detached, primary.failed, primary.connects.count) == (1, 0, 1, 0)


def test_only_streams_that_had_to_wait_count_with_their_wait() -> None:
    one = policy_of(Slot("only", max_streams=1), when_full=WhenFull.QUEUE, queue=Queue(timeout_seconds=30.0))
    driver = balancing(one)
    driver.tell(*opened(1), *opened(2))
    assert driver.snapshot().streams_queued == 1
    driver.now += 4.0
    driver.tell(closed(1))

    assert driver.snapshot().streams_queued == 0
    assert driver.pool.tally.waits.count == 1
    assert driver.pool.tally.waits.sum_seconds == 4.0


def test_streams_that_the_policy_closes_are_counted() -> None:
    driver = balancing(policy_of(Slot("only", max_streams=1), when_full=WhenFull.REJECT))
    driver.tell(*opened(1), *opened(2))

    assert driver.pool.tally.closed == 1


def test_builds_count_by_their_end_and_those_that_are_built_by_their_time() -> None:
    driver = Driver(TWO)
    driver.connect()
    driver.now += 1.5
    driver.build(30)
    driver.tell("CIRC 30 CLOSED REASON=DESTROYED")
    driver.reply_to_build("551 Couldn't start circuit")

    assert tally(driver, "primary").built == 1
    assert driver.pool.tally.builds.counts[BOUNDS_SECONDS.index(1.5)] == 1
    assert tally(driver, "backup").build_failures == 1


def test_the_numbers_of_a_name_go_on_over_all_its_circuits_and_keys() -> None:
    driver = balancing(isolating("a", keys=Keys(max_circuits=2)))
    driver.tell(*opened(1, user="alice"))
    driver.tell(*opened(2, user="bob"))
    driver.build(31)

    assert driver.snapshot().circuits[0].key != driver.snapshot().circuits[1].key
    assert tally(driver, "a").attached == 2
    assert tally(driver, "a").built == 2


def test_a_name_that_leaves_the_policy_takes_its_numbers_along() -> None:
    driver = balancing()
    driver.tell(*opened(1))
    driver.reload(policy_of("backup", "other"))

    assert set(driver.pool.tally.circuits) == {"backup", "other"}


def test_a_name_that_comes_back_while_its_circuit_ends_is_counted_again() -> None:
    driver = balancing(policy_of("a", "b", min_active=2))
    driver.tell(*opened(1))
    driver.reload(policy_of("b", "c", min_active=2))
    driver.reload(policy_of("a", "b", min_active=2))
    for number in (2, 3):
        driver.tell(*opened(number))

    assert tally(driver, "a").attached == 1


def test_guards_are_counted_by_their_circuits() -> None:
    driver = balancing()

    assert driver.pool.guards() == (2,)

    driver.tell("CIRC 30 CLOSED REASON=DESTROYED")

    assert driver.pool.guards() == (1,)
