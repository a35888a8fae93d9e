"""Slow start and degraded circuits: what of its weight a circuit has, and what the status says of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from circuitloom.policy import check_policy
from circuitloom.policy.health import Degrade
from circuitloom.policy.types import Eject
from circuitloom.status import status_document
from circuitloom.tables import status_table
from unit.pool_driver import Driver, balancing, closed, opened, policy_of, sent
from unit.test_pool_probes import TCP, Edge, probing

slowly = partial(policy_of, slow_start_seconds=10.0)
"""A policy in which a fresh circuit takes ten seconds to have all of its weight."""


def spread(driver: Driver, count: int, *, first: int) -> Counter[str]:
    """Where so many short streams go."""
    names: Counter[str] = Counter()
    for stream_id in range(first, first + count):
        names[driver.tell(*opened(stream_id))[0].rpartition("; ")[2]] += 1
        driver.tell(closed(stream_id))
    return names


def connect(driver: Driver, first: int, slow: str, seconds: float) -> None:
    """Each circuit connects a stream; one takes its time."""
    for stream_id in range(first, first + 4):
        command = driver.tell(*opened(stream_id))[0]
        circuit_id, _, name = command.removeprefix(f"ATTACHSTREAM {stream_id} ").partition("; ")
        started = driver.now
        driver.now += seconds if name == slow else 0.1
        driver.tell(
            sent(stream_id, int(circuit_id)),
            f"STREAM {stream_id} SUCCEEDED {circuit_id} example.com:80",
            closed(stream_id),
        )
        driver.now = started


def factors(driver: Driver) -> dict[str, float]:
    return {circuit.name: circuit.weight_factor for circuit in driver.snapshot().circuits}


def test_a_fresh_circuit_gets_its_share_over_the_window() -> None:
    driver = balancing(slowly("a", "b"))
    driver.now += 100
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")
    driver.build(32)
    assert factors(driver) == {"a": 0.1, "b": 1.0}
    assert [round(c.weight_share, 3) for c in driver.snapshot().circuits] == [0.091, 0.909]

    assert spread(driver, 110, first=1) == {"a": 10, "b": 100}
    driver.now += 5
    assert factors(driver) == {"a": 0.5, "b": 1.0}
    assert abs(spread(driver, 150, first=200)["a"] - 50) <= 1
    driver.now += 5
    assert spread(driver, 100, first=400) == {"a": 50, "b": 50}


def test_circuits_that_begin_together_share_as_ever() -> None:
    driver = balancing(slowly("a", "b"))

    assert spread(driver, 100, first=1) == {"a": 50, "b": 50}


def test_a_circuit_that_comes_back_from_an_ejection_begins_slowly() -> None:
    driver = balancing(slowly("a", "b", eject=Eject(1, 30.0, 50)))
    driver.now += 100
    spread(driver, 1, first=1)
    assert driver.tell(*opened(2, "h.example:80")) == ["ATTACHSTREAM 2 31; b"]
    driver.tell("STREAM 2 FAILED 31 h.example:80 REASON=END REMOTE_REASON=MISC", closed(2))
    driver.wait(30)

    assert factors(driver) == {"a": 1.0, "b": 0.1}
    assert spread(driver, 110, first=10) == {"a": 100, "b": 10}


def test_so_does_one_that_comes_back_early_because_others_went() -> None:
    once = partial(slowly, eject=Eject(consecutive_failures=1, max_percent=50))
    driver = balancing(once("a", "b", "c", "d"))
    driver.now += 100
    for stream_id, circuit_id in ((101, 30), (102, 31)):
        driver.tell(*opened(stream_id, f"host{stream_id}.example:80"))
        end = "REASON=END REMOTE_REASON=MISC"
        driver.tell(f"STREAM {stream_id} FAILED {circuit_id} host{stream_id}.example:80 {end}")
    assert driver.states() == {"a": "ejected", "b": "ejected", "c": "built", "d": "built"}

    driver.reload(once("a", "b", "c"))

    assert driver.said == ["info: circuit a (30) takes streams again"]
    assert factors(driver)["a"] == 0.1


def test_so_does_one_whose_probes_pass_again() -> None:
    driver = probing(TCP, "a", "b")
    policy = driver.pool.policy
    driver.reload(replace(policy, health=replace(policy.health, slow_start_seconds=10.0)))
    edge = Edge(driver, "30")
    edge.pass_time(31)
    assert driver.states()["a"] == "down"

    edge.bad.clear()
    edge.pass_time(60)

    assert driver.states() == {"a": "built", "b": "built"}
    assert factors(driver)["a"] < 1


def test_status_and_explain_show_it() -> None:
    driver = balancing(slowly("a", "b"))
    driver.now += 4
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")
    driver.build(32)
    driver.now += 3

    why = {c.name: c.why for c in driver.pool.explain(None, now=driver.now).candidates}
    assert why == {
        "a": "takes streams in its turn, with 30% of its weight",
        "b": "takes streams in its turn, with 70% of its weight",
    }
    document = status_document(
        driver.snapshot(), driver.pool.policy, reason="", tor_version="", guard_pid=None, country_of=str
    )
    assert [circuit["weight_factor"] for circuit in document["circuits"]] == [0.3, 0.7]
    lines = status_table(document).splitlines()
    assert [line.split()[:3] for line in lines[4:6]] == [["a", "built,", "fresh"], ["b", "built,", "fresh"]]
    del document["circuits"][0]["weight_factor"], document["circuits"][0]["is_degraded"]
    assert "a        built  " in status_table(document)


def test_a_circuit_much_slower_than_the_others_loses_weight_and_gets_it_back() -> None:
    driver = balancing(policy_of(*"abcd", degrade=Degrade(3.0, 2.0)))
    connect(driver, 1, "c", 6.0)
    for round_ in range(1, 12):
        driver.now += 2
        spread(driver, 1, first=100 * round_)
    assert factors(driver) == {"a": 1.0, "b": 1.0, "c": 0.1, "d": 1.0}
    assert [c.is_degraded for c in driver.snapshot().circuits] == [False, False, True, False]
    document = status_document(
        driver.snapshot(), driver.pool.policy, reason="", tor_version="", guard_pid=None, country_of=str
    )
    assert "c        built, slow " in status_table(document)
    assert spread(driver, 310, first=2000)["c"] in range(9, 12)

    # Nothing was measured for half a minute: nothing is known against it.
    driver.now += 30
    for round_ in range(1, 12):
        driver.now += 2
        spread(driver, 1, first=3000 + 100 * round_)
    assert set(factors(driver).values()) == {1.0}


def test_a_replaced_circuit_has_no_past() -> None:
    driver = balancing(policy_of(*"abcd", degrade=Degrade(3.0, 2.0)))
    connect(driver, 1, "c", 6.0)
    driver.now += 2
    spread(driver, 1, first=100)
    assert factors(driver)["c"] == 0.9
    driver.tell("CIRC 32 CLOSED REASON=FINISHED")
    driver.build(40)

    assert factors(driver)["c"] == 1.0


def test_a_reload_ends_and_begins_it() -> None:
    driver = balancing(slowly("a", "b"))
    assert factors(driver) == {"a": 0.1, "b": 0.1}
    driver.reload(policy_of("a", "b"))
    assert factors(driver) == {"a": 1.0, "b": 1.0}
    driver.reload(slowly("a", "b"))

    # What is there is not fresh any more.
    assert factors(driver) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("health: {slow_start: 5s}", []),
        (
            "health: {degrade: {}}",
            ["p:3:19: health.degrade: needs 3 circuits for each key, to tell the slow one"],
        ),
        (
            "balance: {algorithm: first}\nhealth: {slow_start: 5s, degrade: {}}",
            [
                "p:4:22: health.slow_start: `algorithm: first` knows no weights",
                "p:4:35: health.degrade: `algorithm: first` knows no weights",
            ],
        ),
    ],
)
def test_check_says_what_does_nothing(text: str, expected: list[str]) -> None:
    whole = f"version: 1\ncircuits: [{{name: a}}, {{name: b}}]\n{text}\n"
    warnings = [str(fault) for fault in check_policy(whole.encode(), name="p")[1]]

    assert len(warnings) == len(expected)
    assert all(warning.startswith(start) for warning, start in zip(warnings, expected, strict=True))
