"""What an operator asks while the agent runs: drain, ready, weight, rotate, close."""

from __future__ import annotations

from circuitloom.model import CircuitOrdered, Order
from circuitloom.policy.types import Algorithm, Match, Role, Rule, Slot, WhenFull
from unit.pool_driver import GIVE_BACK, TAKE_OVER, Driver, balancing, isolating, opened, policy_of, sent


def order(driver: Driver, what: Order, name: str, weight: int = 1) -> list[str]:
    return driver.give(CircuitOrdered(what, name, weight))


def attached(driver: Driver, first: int, count: int) -> list[str]:
    """The names of the circuits that take these streams, in order."""
    commands = driver.tell(*(line for number in range(first, first + count) for line in opened(number)))
    return [command.partition("; ")[2] for command in commands]


def test_a_drained_circuit_takes_no_new_stream_and_keeps_what_it_has() -> None:
    driver = balancing()
    driver.tell(*opened(1), sent(1, 30))

    assert order(driver, Order.DRAIN, "primary") == []
    assert driver.said == ["info: circuit primary takes no new streams: drained by the operator"]
    assert attached(driver, 2, 4) == ["backup"] * 4
    assert driver.states() == {"primary": "drained", "backup": "built"}
    assert driver.circuit("primary").streams == 1
    assert (driver.circuit("primary").weight_share, driver.circuit("backup").weight_share) == (0, 1)


def test_ready_brings_a_drained_circuit_back_without_a_build() -> None:
    driver = balancing()
    order(driver, Order.DRAIN, "primary")

    assert order(driver, Order.READY, "primary") == []
    assert sorted(attached(driver, 1, 4)) == ["backup", "backup", "primary", "primary"]


def test_backups_stand_in_for_a_drained_circuit() -> None:
    driver = balancing(policy_of("primary", Slot("standby", role=Role.BACKUP)))

    order(driver, Order.DRAIN, "primary")

    assert attached(driver, 1, 2) == ["standby", "standby"]


def test_when_all_are_drained_tor_assigns_until_one_is_ready() -> None:
    driver = balancing(policy_of("only"))

    assert order(driver, Order.DRAIN, "only") == [GIVE_BACK]
    assert order(driver, Order.READY, "only") == [TAKE_OVER]


def test_nobody_waits_for_room_on_circuits_of_a_rule_that_are_drained() -> None:
    rules = (Rule(Match(), circuits=frozenset({"a"})),)
    driver = balancing(policy_of("a", "b", rules=rules, when_full=WhenFull.QUEUE))
    order(driver, Order.DRAIN, "a")

    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 0; no circuit is usable"]


def test_nobody_waits_for_a_drained_circuit_whose_name_is_gone() -> None:
    driver = balancing(policy_of("a", "b"))
    order(driver, Order.DRAIN, "a")
    driver.reload(policy_of("c"))

    assert driver.tell("CIRC 31 CLOSED REASON=DESTROYED") == [GIVE_BACK]


def test_a_drained_circuit_that_dies_is_built_again_and_stays_drained() -> None:
    driver = balancing()
    driver.now += 60
    order(driver, Order.DRAIN, "primary")

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == ["EXTENDCIRCUIT 0; primary"]
    driver.build(32)
    assert driver.states() == {"primary": "drained", "backup": "built"}
    assert attached(driver, 1, 2) == ["backup", "backup"]


def test_a_drain_holds_over_a_reload_and_for_keys_to_come() -> None:
    policy = isolating("primary", "backup")
    driver = balancing(policy)
    order(driver, Order.DRAIN, "primary")
    driver.reload(policy)
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))

    assert driver.build(32, 33) == ["ATTACHSTREAM 2 33; backup"]


def test_a_weight_shows_in_the_shares_until_the_next_reload() -> None:
    policy = policy_of("a", "b", algorithm=Algorithm.WEIGHTED_ROUND_ROBIN)
    driver = balancing(policy)

    assert order(driver, Order.WEIGHT, "a", 3) == []
    assert attached(driver, 1, 8).count("a") == 6
    assert driver.circuit("a").weight_share == 0.75
    driver.reload(policy)
    assert attached(driver, 9, 8).count("a") == 4


def test_rotate_builds_the_successor_before_the_circuit_ends() -> None:
    driver = balancing()
    driver.tell(*opened(1), sent(1, 30))

    assert order(driver, Order.ROTATE, "primary") == ["EXTENDCIRCUIT 0; primary"]
    assert driver.build(32) == []
    assert driver.states() == {"primary": "draining", "backup": "built"}
    assert "primary" in attached(driver, 2, 2)


def test_close_ends_the_circuit_with_its_streams_and_builds_another() -> None:
    driver = balancing()
    driver.now += 60

    assert order(driver, Order.CLOSE, "primary") == ["CLOSECIRCUIT 30"]
    assert driver.tell("CIRC 30 CLOSED REASON=REQUESTED") == ["EXTENDCIRCUIT 0; primary"]


def test_an_order_for_an_unknown_circuit_changes_nothing() -> None:
    driver = balancing()

    for what in Order:
        assert order(driver, what, "nobody") == []
        assert driver.said == []
    assert driver.states() == {"primary": "built", "backup": "built"}
