"""Circuits for each isolation key: claimed, begun, bounded, ended when idle, renewed by a new identity."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitloom.policy.types import ColdStart, Keys, Role, Slot, WhenExceeded, WhenNone
from unit.pool_driver import (
    GIVE_BACK,
    Driver,
    balancing,
    bounded,
    built,
    closed,
    isolating,
    keys_of,
    opened,
    policy_of,
    two_keys,
)

ONE = isolating("only")
TWO = isolating("one", "two", min_active=2)


# --- the first key, and another ----------------------------------------------------------------------------


def test_the_first_key_gets_the_circuits_built_at_the_start() -> None:
    driver = balancing(TWO)

    assert driver.tell(*opened(1, user="alice"), *opened(2, user="alice")) == [
        "ATTACHSTREAM 1 30; one",
        "ATTACHSTREAM 2 31; two",
    ]
    assert keys_of(driver) == [(0, "one", "30", "built"), (0, "two", "31", "built")]


def test_another_key_s_first_streams_wait_for_circuits_of_their_own() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"))

    assert driver.tell(*opened(2, user="bob")) == ["EXTENDCIRCUIT 0; one", "EXTENDCIRCUIT 0; two"]
    assert driver.tell(*opened(3, user="bob")) == []
    assert driver.snapshot().streams_waiting == 2
    assert driver.build(32) == []
    assert driver.build(33) == ["ATTACHSTREAM 2 32; one", "ATTACHSTREAM 3 33; two"]
    assert driver.tell(*opened(4, user="alice"), *opened(5, user="bob")) == [
        "ATTACHSTREAM 4 31; two",
        "ATTACHSTREAM 5 32; one",
    ]
    assert keys_of(driver) == [
        (0, "one", "30", "built"),
        (0, "two", "31", "built"),
        (1, "one", "32", "built"),
        (1, "two", "33", "built"),
    ]


def test_those_that_waited_long_enough_are_tor_s() -> None:
    driver = balancing(isolating("only", keys=Keys(wait_seconds=3)))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    driver.now += 1
    driver.tell(*opened(3, user="bob"))

    assert driver.wait(1.9) == []
    assert driver.wait(0.1) == ["ATTACHSTREAM 2 0; its circuits were not built in time"]
    assert driver.wait(1) == ["ATTACHSTREAM 3 0; its circuits were not built in time"]
    assert driver.build(31) == []
    assert driver.tell(*opened(4, user="bob")) == ["ATTACHSTREAM 4 31; only"]


def test_those_that_waited_long_enough_fail_where_tor_is_not_to_choose() -> None:
    policy = isolating("only", keys=Keys(wait_seconds=3))
    driver = balancing(replace(policy, failover=replace(policy.failover, when_none=WhenNone.REJECT)))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))

    assert driver.wait(3) == ["CLOSESTREAM 2 1; its circuits were not built in time"]


def test_a_stream_that_ends_while_it_waits_is_not_waited_for() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"), closed(2))

    assert driver.snapshot().streams_waiting == 0
    assert driver.wait(5) == []
    assert driver.build(31) == []


def test_a_stream_that_ended_is_passed_over_when_others_have_waited_long_enough() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"), *opened(3, user="bob"), closed(3))

    assert driver.wait(5) == ["ATTACHSTREAM 2 0; its circuits were not built in time"]


def test_a_cold_key_s_streams_are_tor_s_when_the_policy_says_so() -> None:
    driver = balancing(isolating("only", keys=Keys(cold_start=ColdStart.TOR)))
    driver.tell(*opened(1, user="alice"))

    assert driver.tell(*opened(2, user="bob")) == [
        "ATTACHSTREAM 2 0; its circuits are not built yet",
        "EXTENDCIRCUIT 0; only",
    ]
    assert driver.build(31) == []
    assert driver.tell(*opened(3, user="bob")) == ["ATTACHSTREAM 3 31; only"]


def test_what_is_not_attached_claims_nothing() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, "x.onion:80", user="bob"), *opened(2, user="bob", fields=None))

    assert driver.tell(*opened(3, user="alice")) == ["ATTACHSTREAM 3 30; only"]


def test_a_key_with_fewer_slots_than_the_floor_is_ready_with_its_own() -> None:
    policy = isolating("a", "b", "c", min_active=3, keys=Keys(slots_per_key=1))
    driver = balancing(policy)

    assert driver.tell(*opened(1, user="alice")) == ["ATTACHSTREAM 1 30; a"]


def test_limits_hold_within_a_key() -> None:
    driver = balancing(isolating(Slot("small", max_streams=1)))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))

    assert driver.build(31) == ["ATTACHSTREAM 2 31; small"]
    assert driver.tell(*opened(3, user="bob")) == ["ATTACHSTREAM 3 0; all circuits are full"]


# --- no more circuits than allowed -------------------------------------------------------------------------


def test_a_key_for_which_there_is_no_room_is_tor_s() -> None:
    assert bounded().tell(*opened(2, user="bob")) == ["ATTACHSTREAM 2 0; no room for circuits of its key"]


def test_a_key_for_which_there_is_no_room_is_refused_when_the_policy_says_so() -> None:
    assert bounded(WhenExceeded.REJECT).tell(*opened(2, user="bob")) == [
        "CLOSESTREAM 2 1; no room for circuits of its key"
    ]


def test_a_key_for_which_there_is_no_room_waits_when_the_policy_says_so() -> None:
    driver = bounded(WhenExceeded.QUEUE)

    assert driver.tell(*opened(2, user="bob")) == []
    assert driver.wait(4.9) == []
    assert driver.wait(0.1) == ["ATTACHSTREAM 2 0; its circuits were not built in time"]


def test_an_idle_key_makes_room_for_one_that_waits() -> None:
    driver = bounded(WhenExceeded.QUEUE, idle_seconds=3)
    driver.tell(closed(1))
    driver.now += 1
    assert driver.tell(*opened(2, user="bob")) == []

    assert driver.wait(1.9) == []
    assert driver.wait(0.1) == [
        "CLOSECIRCUIT 30 IfUnused",
        "EXTENDCIRCUIT 0; only",
        GIVE_BACK,
        "ATTACHSTREAM 2 0; no circuit is usable",
    ]


def test_room_made_while_another_key_serves_is_used_at_once() -> None:
    keys = Keys(max_circuits=2, when_exceeded=WhenExceeded.QUEUE, idle_seconds=3)
    driver = balancing(isolating("only", keys=keys))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    driver.build(31)
    driver.tell(closed(1))
    driver.now += 1
    assert driver.tell(*opened(3, user="carol")) == []

    assert driver.wait(2) == ["CLOSECIRCUIT 30 IfUnused", "EXTENDCIRCUIT 0; only"]
    assert driver.build(32) == ["ATTACHSTREAM 3 32; only"]


def test_room_made_by_the_last_stream_of_an_old_identity_is_used_at_once() -> None:
    keys = Keys(max_circuits=2, when_exceeded=WhenExceeded.QUEUE)
    driver = balancing(isolating("only", keys=keys))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    driver.build(31)
    driver.tell("SIGNAL NEWNYM")
    driver.tell(*opened(3, user="alice", epoch=1), *opened(4, user="bob", epoch=1))
    assert driver.tell(closed(1)) == ["CLOSECIRCUIT 30 IfUnused", "EXTENDCIRCUIT 0; only"]
    assert driver.build(32) == ["ATTACHSTREAM 3 32; only"]

    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 31 IfUnused", "EXTENDCIRCUIT 0; only"]
    assert driver.build(33) == ["ATTACHSTREAM 4 33; only"]


def test_one_key_always_gets_its_circuits() -> None:
    driver = balancing(isolating("a", "b", keys=Keys(max_circuits=1)))

    assert driver.tell(*opened(1, user="alice")) == ["ATTACHSTREAM 1 30; a"]


# --- fewer circuits for each key ---------------------------------------------------------------------------


def test_keys_get_slots_in_rotation_and_every_backup() -> None:
    policy = isolating(
        "a", "b", "c", Slot("spare", role=Role.BACKUP), keys=Keys(slots_per_key=2, max_circuits=9)
    )
    driver = Driver(policy)

    assert driver.connect() == ["EXTENDCIRCUIT 0; a", "EXTENDCIRCUIT 0; b", "EXTENDCIRCUIT 0; spare"]
    driver.build(30, 31, 32)
    driver.tell(*opened(1, user="alice"))
    assert driver.tell(*opened(2, user="bob")) == [
        "EXTENDCIRCUIT 0; a",
        "EXTENDCIRCUIT 0; c",
        "EXTENDCIRCUIT 0; spare",
    ]
    assert driver.tell(*opened(3, user="carol")) == [
        "EXTENDCIRCUIT 0; b",
        "EXTENDCIRCUIT 0; c",
        "EXTENDCIRCUIT 0; spare",
    ]
    assert driver.tell(*opened(4, user="dave")) == ["ATTACHSTREAM 4 0; no room for circuits of its key"]


@pytest.mark.parametrize("slots_per_key", [2, 3])
def test_as_many_slots_for_each_key_as_there_are_is_all(slots_per_key: int) -> None:
    driver = Driver(isolating("a", "b", keys=Keys(slots_per_key=slots_per_key)))

    assert driver.connect() == ["EXTENDCIRCUIT 0; a", "EXTENDCIRCUIT 0; b"]


# --- a key that is used no more ----------------------------------------------------------------------------


def test_an_idle_key_loses_its_circuits() -> None:
    driver = two_keys()
    driver.tell(closed(2))

    assert driver.wait(59.9) == []
    assert driver.wait(0.1) == ["CLOSECIRCUIT 31 IfUnused"]
    assert driver.said == ["info: key 1 is no longer used, its circuits end"]
    assert driver.tell("CIRC 31 CLOSED REASON=REQUESTED") == []
    assert keys_of(driver) == [(0, "only", "30", "built")]
    assert driver.tell(*opened(3, user="bob")) == ["EXTENDCIRCUIT 0; only"]


def test_a_key_that_is_used_again_is_idle_from_then_on() -> None:
    driver = two_keys()
    driver.tell(closed(2))
    driver.now += 30
    driver.tell(*opened(3, user="bob"), closed(3))

    assert driver.wait(30) == []
    assert driver.wait(29.9) == []
    assert driver.wait(0.1) == ["CLOSECIRCUIT 31 IfUnused"]


def test_a_key_in_use_when_its_time_comes_keeps_its_circuits() -> None:
    driver = two_keys()
    driver.tell(closed(2))
    driver.now += 30
    driver.tell(*opened(3, user="bob"))

    assert driver.wait(30) == []
    assert driver.wait(600) == []
    driver.tell(closed(3))
    assert driver.wait(60) == ["CLOSECIRCUIT 31 IfUnused"]


def test_the_last_key_keeps_its_circuits_until_another_comes() -> None:
    driver = balancing(isolating("only", keys=Keys(idle_seconds=60)))
    driver.tell(*opened(1, user="alice"), closed(1))

    assert driver.wait(60) == []
    assert driver.wait(600) == []
    assert driver.tell(*opened(2, user="alice"), closed(2)) == ["ATTACHSTREAM 2 30; only"]
    assert driver.tell(*opened(3, user="bob")) == ["EXTENDCIRCUIT 0; only"]
    assert driver.build(31) == ["ATTACHSTREAM 3 31; only"]
    assert driver.wait(60) == ["CLOSECIRCUIT 30 IfUnused"]


def test_a_build_under_way_for_an_idle_key_is_abandoned() -> None:
    driver = balancing(isolating("only", keys=Keys(idle_seconds=2)))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"), closed(2))
    driver.reply_to_build("250 EXTENDED 31")

    assert driver.wait(2) == ["CLOSECIRCUIT 31 IfUnused"]
    assert driver.tell(f"CIRC {built(31)}") == []


def test_without_isolation_nothing_is_idle() -> None:
    driver = balancing(policy_of("only", keys=Keys(idle_seconds=1)))
    driver.tell(*opened(1), closed(1))

    assert driver.pool.next_deadline() is None


@pytest.mark.parametrize(("seconds", "rest"), [(20.0, 10.0), (600.0, 590.0)])
def test_a_reload_says_how_long_those_may_be_idle_that_are(seconds: float, rest: float) -> None:
    driver = two_keys(idle_seconds=60.0)
    driver.tell(closed(1))
    driver.now += 10.0

    driver.reload(isolating("only", keys=Keys(idle_seconds=seconds)))

    assert driver.wait(rest - 0.1) == []
    assert driver.wait(0.1) == ["CLOSECIRCUIT 30 IfUnused"]


def test_a_reload_that_allows_fewer_circuits_ends_idle_keys_first() -> None:
    driver = balancing(isolating("only"))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"), *opened(3, user="carol"))
    driver.build(31, 32)
    driver.tell(closed(1))
    driver.now += 1
    driver.tell(closed(2))

    assert driver.reload(isolating("only", keys=Keys(max_circuits=2))) == ["CLOSECIRCUIT 30 IfUnused"]
    assert driver.reload(isolating("only", keys=Keys(max_circuits=1))) == ["CLOSECIRCUIT 31 IfUnused"]
    assert [circuit for _, _, circuit, state in keys_of(driver) if state == "built"] == ["32"]
