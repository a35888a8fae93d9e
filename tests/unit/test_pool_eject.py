"""Ejected circuits: out of the choice and back, by the circuit's own failures only, and never all of them."""

from __future__ import annotations

from dataclasses import replace

from circuitloom.model import CircuitOrdered, Order
from circuitloom.policy.types import Eject, Health, Isolation, Match, Role, Rule, Slot, WhenFull, WhenNone
from circuitloom.pool.blame import DEAD_CIRCUITS
from unit.pool_driver import Driver, balancing, closed, detached, opened, policy_of, sent

TWICE = Eject(consecutive_failures=2, base_seconds=30.0, max_percent=50)


def attach(driver: Driver, stream_id: int, target: str = "") -> str:
    """Where a new stream goes."""
    command = driver.tell(*opened(stream_id, target or f"host{stream_id}.example:80"))[0]
    return command.rpartition("; ")[2]


def fail(driver: Driver, stream_id: int, name: str, circuit_id: int, target: str = "") -> None:
    """The next stream whose turn is this circuit fails there for good."""
    while (went := attach(driver, stream_id, target)) != name:
        driver.tell(closed(stream_id))
        assert went, "it has no turn"
    host = target or f"host{stream_id}.example:80"
    driver.tell(
        f"STREAM {stream_id} FAILED {circuit_id} {host} REASON=END REMOTE_REASON=MISC", closed(stream_id)
    )


def eject(driver: Driver, name: str = "a", circuit_id: int = 30, *, first: int = 100) -> None:
    fail(driver, first, name, circuit_id)
    fail(driver, first + 1, name, circuit_id)
    assert driver.said[0].startswith(f"warning: circuit {name} ({circuit_id}) ejected for ")


def turns(driver: Driver, count: int = 6, *, first: int = 500) -> set[str]:
    """Where so many streams go, which then end."""
    names = set()
    for number in range(first, first + count):
        names.add(attach(driver, number, "other.example:80"))
        driver.tell(closed(number))
    return names


def test_an_ejected_circuit_takes_no_streams_until_its_time_is_over() -> None:
    driver = balancing(policy_of("a", "b", eject=TWICE))
    eject(driver)
    assert driver.said == ["warning: circuit a (30) ejected for 30 s: streams in a row failed on it"]

    assert driver.states() == {"a": "ejected", "b": "built"}
    assert [c.weight_share for c in driver.snapshot().circuits] == [0.0, 1.0]
    assert turns(driver) == {"b"}
    driver.wait(29.9)
    assert turns(driver) == {"b"}
    driver.wait(0.1)
    assert "info: circuit a (30) takes streams again" in driver.said
    assert turns(driver) == {"a", "b"}


def test_explain_says_why_and_for_how_long() -> None:
    driver = balancing(policy_of("a", "b", eject=TWICE))
    eject(driver)
    driver.now += 10

    why = {c.name: c.why for c in driver.pool.explain(None, now=driver.now).candidates}
    assert why == {
        "a": "ejected for 20 s more: streams in a row failed on it",
        "b": "takes streams in its turn",
    }


def test_a_success_begins_the_row_anew() -> None:
    driver = balancing(policy_of("a", "b", eject=TWICE))
    fail(driver, 100, "a", 30)
    assert attach(driver, 2) == "b"
    assert attach(driver, 1) == "a"
    driver.tell(sent(1, 30), "STREAM 1 SUCCEEDED 30 host1.example:80")
    fail(driver, 101, "a", 30)

    assert driver.states() == {"a": "built", "b": "built"}


def test_what_the_destination_does_is_not_held_against_a_circuit() -> None:
    names = tuple(f"c{number}" for number in range(DEAD_CIRCUITS + 1))
    driver = balancing(policy_of(*names, eject=TWICE))
    driver.tell(*opened(1, "dead.example:80"))
    for number in range(DEAD_CIRCUITS):
        driver.tell(*detached(1, 30 + number))
    driver.tell(closed(1))
    for stream_id in range(2, 12):
        # It stays on a circuit that it has cost already.
        assert attach(driver, stream_id, "dead.example:80") == "c0"
        driver.tell(
            f"STREAM {stream_id} FAILED 30 dead.example:80 REASON=END REMOTE_REASON=MISC", closed(stream_id)
        )

    assert "ejected" not in driver.states().values()


def test_one_of_two_is_the_most_and_the_other_serves_whatever_it_does() -> None:
    driver = balancing(policy_of("a", "b", eject=replace(TWICE, max_percent=100)))
    eject(driver)
    for stream_id in range(200, 204):
        fail(driver, stream_id, "b", 31)

    assert driver.states() == {"a": "ejected", "b": "built"}
    assert turns(driver) == {"b"}


def test_without_the_section_nobody_is_ejected() -> None:
    driver = balancing(policy_of("a", "b"))
    for stream_id in range(200, 204):
        fail(driver, stream_id, "a", 30)

    assert driver.states() == {"a": "built", "b": "built"}


def test_when_the_others_go_the_ejected_one_serves() -> None:
    driver = balancing(policy_of("a", "b", eject=TWICE))
    eject(driver)
    driver.now += 5
    driver.tell("CIRC 31 CLOSED REASON=FINISHED")

    assert "info: circuit a (30) takes streams again" in driver.said
    assert driver.snapshot().state == "balancing"
    assert turns(driver) == {"a"}
    # What was planned for its return finds nothing to do.
    driver.wait(60)
    assert turns(driver) == {"a"}


def test_the_successor_of_an_ejected_circuit_starts_clean() -> None:
    driver = balancing(policy_of("a", "b", eject=TWICE))
    eject(driver)
    driver.give(CircuitOrdered(Order.ROTATE, "a"))
    driver.build(40)
    assert driver.circuit("a").state == "built"
    fail(driver, 200, "a", 40)
    assert driver.circuit("a").state == "built"
    fail(driver, 201, "a", 40)

    assert driver.said[0] == "warning: circuit a (40) ejected for 30 s: streams in a row failed on it"


def test_each_further_ejection_is_longer() -> None:
    driver = balancing(policy_of("a", "b", eject=TWICE))
    eject(driver)
    driver.wait(30)
    eject(driver, first=200)

    assert driver.said[0] == "warning: circuit a (30) ejected for 60 s: streams in a row failed on it"


def test_backup_circuits_stand_in_at_once_also_for_those_that_wait() -> None:
    spare = Slot("spare", role=Role.BACKUP)
    driver = balancing(policy_of(Slot("a", max_streams=1), spare, when_full=WhenFull.QUEUE, eject=TWICE))
    fail(driver, 100, "a", 30)
    driver.tell(*opened(1))
    assert driver.tell(*opened(2)) == []
    commands = driver.tell("STREAM 1 FAILED 30 host.example:80 REASON=END REMOTE_REASON=MISC")

    assert "ATTACHSTREAM 2 31; spare" in commands
    assert turns(driver) == {"spare"}
    driver.wait(30)
    assert driver.states() == {"a": "built", "spare": "built"}


def test_an_expelled_circuit_brings_an_ejected_one_back_for_those_that_wait() -> None:
    slots = (Slot("a", max_streams=1), Slot("b", max_streams=1))
    policy = policy_of(*slots, isolation=Isolation.TOR, when_full=WhenFull.QUEUE, eject=TWICE)
    driver = balancing(policy)
    eject(driver)
    driver.tell(*opened(1))
    assert driver.tell(*opened(2)) == []
    bob, _ = opened(9, user="bob")

    # Tor, or another controller, puts a stream of another key on the circuit that serves.
    assert "ATTACHSTREAM 2 30; a" in driver.tell(bob, sent(9, 31))


def test_a_drained_circuit_is_no_member_and_comes_back_clean() -> None:
    driver = balancing(policy_of("a", "b", "c", "d", eject=TWICE))
    eject(driver, "a", 30)
    eject(driver, "b", 31, first=200)
    driver.give(CircuitOrdered(Order.DRAIN, "d"))
    assert "info: circuit a (30) takes streams again" in driver.said
    driver.give(CircuitOrdered(Order.DRAIN, "b"))
    assert driver.states() == {"a": "built", "b": "drained", "c": "built", "d": "drained"}
    driver.give(CircuitOrdered(Order.READY, "b"))

    assert driver.states()["b"] == "built"


def test_a_rule_whose_circuits_are_all_ejected_has_none_that_is_usable() -> None:
    rule = Rule(Match(socks_user="alice"), circuits=frozenset({"a"}))
    policy = policy_of("a", "b", eject=TWICE, rules=(rule,), when_none=WhenNone.HOLD)
    driver = balancing(policy)
    eject(driver)
    assert driver.tell(*opened(1, user="alice")) == []

    assert driver.wait(30) == ["ATTACHSTREAM 1 30; a"]


def test_a_reload_with_another_rule_begins_anew_and_with_the_same_does_not() -> None:
    policy = policy_of("a", "b", eject=TWICE)
    driver = balancing(policy)
    eject(driver)
    driver.reload(policy)
    assert driver.states()["a"] == "ejected"
    driver.reload(replace(policy, health=Health(None)))

    assert driver.states()["a"] == "built"
    assert turns(driver) == {"a", "b"}


def test_the_end_of_a_key_ends_its_ejections() -> None:
    driver = balancing(policy_of("a", "b", eject=TWICE))
    eject(driver)
    driver.reload(policy_of("x", "y", eject=TWICE))
    driver.build(40, 41)

    driver.wait(60)
    assert not [line for line in driver.said if "streams again" in line]
    assert turns(driver) == {"x", "y"}
