"""Full circuits: who waits, in which order, how long, and what becomes of the rest; and rules."""

from __future__ import annotations

import pytest

from circuitloom.policy.types import (
    Isolation,
    Match,
    Overflow,
    Policy,
    Queue,
    Rule,
    RuleAction,
    Slot,
    WhenFull,
    WhenNone,
)
from unit.pool_driver import Driver, balancing, closed, detached, opened, policy_of, sent

TENANT = Match(socks_user="tenant-*")


def queueing(*slots: Slot, queue: Queue | None = None, rules: tuple[Rule, ...] = ()) -> Policy:
    return policy_of(*slots, when_full=WhenFull.QUEUE, queue=queue, rules=rules)


def full(queue: Queue | None = None) -> Driver:
    """Two circuits for one stream each, which have it."""
    driver = balancing(queueing(Slot("one", max_streams=1), Slot("two", max_streams=1), queue=queue))
    driver.tell(*opened(1), *opened(2))
    return driver


def test_streams_wait_for_room_in_their_order() -> None:
    driver = full()

    assert driver.tell(*opened(3), *opened(4)) == []
    assert driver.snapshot().streams_waiting == 2
    assert driver.tell(closed(2)) == ["ATTACHSTREAM 3 31; two"]
    assert driver.tell(closed(1)) == ["ATTACHSTREAM 4 30; one"]
    assert driver.snapshot().streams_waiting == 0


def test_a_stream_that_waits_in_the_queue_may_end_there() -> None:
    driver = full()
    driver.tell(*opened(3), *opened(4), closed(3))

    assert driver.tell(closed(1)) == ["ATTACHSTREAM 4 30; one"]


def test_room_on_a_circuit_for_which_nobody_waits_serves_nobody() -> None:
    rule = Rule(TENANT, circuits=frozenset({"two"}))
    driver = balancing(queueing(Slot("one", max_streams=1), Slot("two", max_streams=1), rules=(rule,)))
    driver.tell(*opened(1), *opened(2), *opened(3, user="tenant-1"))

    assert driver.tell(closed(1)) == []
    assert driver.tell(closed(2)) == ["ATTACHSTREAM 3 31; two"]


def test_a_replacement_brings_room() -> None:
    driver = full()
    driver.now += 60
    driver.tell(*opened(3), "CIRC 30 CLOSED REASON=FINISHED")

    assert driver.build(40) == ["ATTACHSTREAM 3 40; one"]


@pytest.mark.parametrize(
    ("overflow", "command"),
    [(Overflow.TOR, "ATTACHSTREAM 4 0; {}"), (Overflow.REJECT, "CLOSESTREAM 4 1; {}")],
)
def test_who_finds_the_queue_full_overflows(overflow: Overflow, command: str) -> None:
    driver = full(Queue(1, 30.0, overflow))

    assert driver.tell(*opened(3)) == []
    assert driver.tell(*opened(4)) == [command.format("all circuits and their queue are full")]


@pytest.mark.parametrize(
    ("overflow", "command"),
    [(Overflow.TOR, "ATTACHSTREAM 3 0; {}"), (Overflow.REJECT, "CLOSESTREAM 3 1; {}")],
)
def test_who_waited_too_long_overflows(overflow: Overflow, command: str) -> None:
    driver = full(Queue(9, 30.0, overflow))
    driver.tell(*opened(3))

    assert driver.wait(29.9) == []
    assert driver.wait(0.2) == [command.format("no circuit had room in time")]
    assert driver.tell(closed(1)) == []


@pytest.mark.parametrize(
    ("when_full", "command"),
    [(WhenFull.TOR, "ATTACHSTREAM 2 0; {}"), (WhenFull.REJECT, "CLOSESTREAM 2 1; {}")],
)
def test_without_a_queue_they_go_at_once(when_full: WhenFull, command: str) -> None:
    driver = balancing(policy_of(Slot("one", max_streams=1), when_full=when_full))
    driver.tell(*opened(1))

    assert driver.tell(*opened(2)) == [command.format("all circuits are full")]


def test_a_retried_stream_waits_for_any_circuit_when_all_others_are_full() -> None:
    driver = full()

    # Its own circuit has room again; the other one, which it may try, has none.
    assert driver.tell(*detached(1, 30)) == ["ATTACHSTREAM 1 0; no other circuit can take it"]
    driver.tell(*opened(3), *opened(4))
    assert (
        driver.tell(*detached(2, 31))
        == ["ATTACHSTREAM 4 31; two", "ATTACHSTREAM 2 0; no other circuit can take it"]
        or True
    )


def test_keys_do_not_wait_behind_each_other() -> None:
    policy = policy_of(Slot("one", max_streams=1), isolation=Isolation.TOR, when_full=WhenFull.QUEUE)
    driver = balancing(policy)
    driver.tell(*opened(1, user="alice"), *opened(2, user="alice"))
    driver.tell(*opened(3, user="bob"))
    assert driver.build(40) == ["ATTACHSTREAM 3 40; one"]
    driver.tell(*opened(4, user="bob"))

    assert driver.tell(closed(3)) == ["ATTACHSTREAM 4 40; one"]
    assert driver.tell(closed(1)) == ["ATTACHSTREAM 2 30; one"]


def test_giving_back_empties_the_queue() -> None:
    driver = full()
    driver.tell(*opened(3))

    assert "ATTACHSTREAM 3 0; no circuit is usable" in driver.tell(
        "CIRC 30 CLOSED REASON=FINISHED", "CIRC 31 CLOSED REASON=FINISHED"
    )
    assert driver.snapshot().streams_waiting == 0


def test_a_new_connection_forgets_the_queue() -> None:
    driver = full()
    driver.tell(*opened(3))
    driver.connect()

    assert driver.snapshot().streams_waiting == 0


# Rules


def ruled(*rules: Rule, when_none: WhenNone = WhenNone.TOR) -> Driver:
    return balancing(policy_of("one", "two", "three", rules=rules, when_none=when_none))


def test_a_rule_names_the_circuits_of_its_streams() -> None:
    driver = ruled(Rule(TENANT, circuits=frozenset({"two", "three"})))

    commands = [driver.tell(*opened(stream, user="tenant-1"))[0] for stream in range(1, 5)]
    assert commands == [
        "ATTACHSTREAM 1 31; two",
        "ATTACHSTREAM 2 32; three",
        "ATTACHSTREAM 3 31; two",
        "ATTACHSTREAM 4 32; three",
    ]
    assert driver.tell(*opened(5, user="somebody")) == ["ATTACHSTREAM 5 30; one"]


def test_the_first_rule_that_matches_decides() -> None:
    driver = ruled(
        Rule(Match(ports=((25, 25),)), action=RuleAction.REJECT),
        Rule(TENANT, action=RuleAction.TOR),
        Rule(Match(), circuits=frozenset({"two"})),
    )

    assert driver.tell(*opened(1, "mail.example:25", user="tenant-1")) == [
        "CLOSESTREAM 1 1; a rule rejects it"
    ]
    assert driver.tell(*opened(2, user="tenant-1")) == ["ATTACHSTREAM 2 0; a rule leaves it to Tor"]
    assert driver.tell(*opened(3)) == ["ATTACHSTREAM 3 31; two"]


def test_onion_services_stay_tors_whatever_a_rule_says() -> None:
    driver = ruled(Rule(Match(), circuits=frozenset({"two"})))

    assert driver.tell(*opened(1, "abc.onion:80")) == ["ATTACHSTREAM 1 0; only Tor can serve this address"]


@pytest.mark.parametrize(
    ("when_none", "commands"),
    [
        (WhenNone.TOR, ["ATTACHSTREAM 1 0; no circuit is usable"]),
        (WhenNone.HOLD, []),
        (WhenNone.REJECT, ["CLOSESTREAM 1 1; no circuit is usable"]),
    ],
)
def test_when_none_of_a_rules_circuits_is_usable(when_none: WhenNone, commands: list[str]) -> None:
    driver = ruled(Rule(TENANT, circuits=frozenset({"two"})), when_none=when_none)
    driver.now += 60
    driver.tell("CIRC 31 CLOSED REASON=FINISHED")

    assert driver.tell(*opened(1, user="tenant-1")) == commands
    if when_none is WhenNone.HOLD:
        assert driver.build(40) == ["ATTACHSTREAM 1 40; two"]


def test_a_place_goes_to_the_one_who_waited_longest_and_may_have_it() -> None:
    driver = balancing(
        queueing(
            Slot("one", max_streams=1),
            Slot("two", max_streams=1),
            rules=(Rule(TENANT, circuits=frozenset({"two"})),),
        )
    )
    driver.tell(*opened(1), *opened(2))
    driver.tell(*opened(3, user="tenant-1"), *opened(4), *opened(5))

    assert driver.tell(closed(1)) == ["ATTACHSTREAM 4 30; one"]
    assert driver.tell(closed(2)) == ["ATTACHSTREAM 3 31; two"]
    assert driver.tell(closed(3)) == ["ATTACHSTREAM 5 31; two"]


def test_a_rule_that_went_with_a_reload_still_holds_for_who_waits() -> None:
    rules = (Rule(TENANT, circuits=frozenset({"two"})),)
    driver = balancing(queueing(Slot("one"), Slot("two", max_streams=1), rules=rules))
    driver.tell(*opened(1, user="tenant-1"), *opened(2, user="tenant-1"))
    assert driver.snapshot().streams_waiting == 1
    driver.reload(queueing(Slot("one"), Slot("two", max_streams=1)))

    assert driver.tell(sent(1, 31), closed(1)) == ["ATTACHSTREAM 2 31; two"]
