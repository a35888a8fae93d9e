"""Why a stream went where it went, and what stands against each circuit."""

from __future__ import annotations

from circuitloom.model import CircuitOrdered, Order, StreamId
from circuitloom.policy.types import Role, Slot
from circuitloom.pool.decisions import MAX_DECISIONS
from unit.pool_driver import Driver, balancing, detached, isolating, opened, policy_of


def why(driver: Driver, stream_id: str | None = None) -> dict[str, str]:
    asked = None if stream_id is None else StreamId(stream_id)
    explanation = driver.pool.explain(asked, now=driver.now)
    return {candidate.name: candidate.why for candidate in explanation.candidates}


def test_each_circuit_says_what_stands_against_it() -> None:
    driver = balancing(
        policy_of("ready", Slot("full", max_streams=1), "drained", Slot("spare", role=Role.BACKUP))
    )
    driver.tell(*opened(1), *opened(2))
    driver.give(CircuitOrdered(Order.DRAIN, "drained"))

    assert why(driver) == {
        "ready": "takes streams in its turn",
        "full": "full",
        "drained": "drained by the operator",
        "spare": "backup, and enough active circuits are there",
    }


def test_a_circuit_that_is_not_there_says_whether_it_is_under_way() -> None:
    driver = balancing()
    driver.now += 60
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")
    assert why(driver)["primary"] == "is being built"
    driver.reply_to_build("551 Couldn't start circuit")

    assert why(driver)["primary"] == "waits to be built again"


def test_a_circuit_that_failed_the_stream_says_so_for_that_stream_only() -> None:
    driver = balancing()
    driver.tell(*opened(1), *detached(1, 30))

    assert why(driver, "1") == {
        "primary": "could not connect this stream",
        "backup": "takes streams in its turn",
    }
    assert why(driver)["primary"] == "takes streams in its turn, until its successor is built"
    assert [
        (decision.did, decision.circuit, decision.circuit_id)
        for decision in driver.pool.explain(StreamId("1"), now=driver.now).decisions
    ] == [("attach", "primary", "30"), ("attach", "backup", "31")]


def test_a_stream_s_circuits_are_those_of_its_key() -> None:
    driver = balancing(isolating("only"))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))

    keys = [[c.key for c in driver.pool.explain(StreamId(i), now=driver.now).candidates] for i in "12"]
    assert keys == [[0], [1]]


def test_a_released_stream_has_its_reason_and_its_time() -> None:
    driver = balancing()
    driver.tell(*opened(1, "abcdefghij.onion:80"))
    driver.now += 5

    (decision,) = driver.pool.explain(StreamId("1"), now=driver.now).decisions
    assert (decision.did, decision.seconds_ago, decision.circuit) == ("release", 5.0, None)
    assert decision.why == "only Tor can serve this address"


def test_the_memory_is_bounded() -> None:
    driver = balancing(policy_of(Slot("a", max_streams=10_000)))
    for number in range(MAX_DECISIONS + 10):
        driver.tell(*opened(number + 1))

    decisions = driver.pool.explain(None, now=driver.now).decisions
    assert len(decisions) == MAX_DECISIONS
    assert decisions[-1].stream_id == str(MAX_DECISIONS + 10)
