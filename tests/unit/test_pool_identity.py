"""Keys over time: renewed by a new identity, found again after a reconnect, changed by a reload."""

from __future__ import annotations

from circuitloom.model import Disconnected
from circuitloom.policy.types import ColdStart, Keys, WhenExceeded, WhenNone
from unit.pool_driver import (
    GIVE_BACK,
    TAKE_OVER,
    balancing,
    bounded,
    built,
    closed,
    detached,
    isolating,
    keys_of,
    opened,
    policy_of,
    sent,
    two_keys,
)

ONE = isolating("only")
TWO = isolating("one", "two", min_active=2)


# --- a new identity ----------------------------------------------------------------------------------------


def test_a_new_identity_gets_circuits_before_its_first_stream_comes() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), sent(1, 30))

    assert driver.tell("SIGNAL NEWNYM") == ["EXTENDCIRCUIT 0; only"]
    assert driver.said == ["info: a new identity was asked for: renewing all circuits"]
    assert driver.build(31) == []
    assert driver.tell(*opened(2, user="alice", epoch=1)) == ["ATTACHSTREAM 2 31; only"]


def test_the_old_identity_s_circuits_end_with_its_last_stream() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), *opened(2, user="alice"), "SIGNAL NEWNYM")
    driver.build(31)

    assert driver.tell(closed(1)) == []
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 30 IfUnused"]
    assert driver.said == ["info: key 0 is no longer used, its circuits end"]


def test_an_old_identity_without_streams_ends_at_once_and_its_successor_is_built() -> None:
    driver = two_keys()
    driver.tell(closed(1))

    assert driver.tell("SIGNAL NEWNYM") == ["CLOSECIRCUIT 30 IfUnused", "EXTENDCIRCUIT 0; only"]
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 31 IfUnused", GIVE_BACK]
    assert driver.build(32) == [TAKE_OVER]


def test_an_old_identity_that_was_idle_ends_once() -> None:
    driver = two_keys()
    driver.tell(closed(2))
    assert driver.tell("SIGNAL NEWNYM") == ["CLOSECIRCUIT 31 IfUnused", "EXTENDCIRCUIT 0; only"]

    assert driver.wait(60) == []
    assert driver.said == []


def test_a_stream_of_the_old_identity_is_tried_on_its_own_circuits_again() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"), "SIGNAL NEWNYM")
    driver.build(32, 33)

    assert driver.tell(*detached(1, 30)) == ["ATTACHSTREAM 1 31; two"]


def test_a_new_identity_waits_while_its_circuits_are_built() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), "SIGNAL NEWNYM")

    assert driver.tell(*opened(2, user="alice", epoch=1)) == []
    assert driver.build(31) == ["ATTACHSTREAM 2 31; only"]


def test_circuits_that_nobody_has_claimed_are_fresh_enough() -> None:
    driver = balancing(ONE)

    assert driver.tell("SIGNAL NEWNYM") == []
    assert driver.tell(*opened(1, user="alice", epoch=1)) == ["ATTACHSTREAM 1 30; only"]


def test_a_second_new_identity_needs_no_second_set() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), "SIGNAL NEWNYM")
    driver.build(31)

    assert driver.tell("SIGNAL NEWNYM") == []


def test_without_isolation_a_new_identity_renews_every_circuit_before_the_old_ones_go() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.tell(*opened(1), sent(1, 30))

    assert driver.tell("SIGNAL NEWNYM") == ["EXTENDCIRCUIT 0; one", "EXTENDCIRCUIT 0; two"]
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 31; two"]
    assert driver.build(32) == []
    assert driver.build(33) == []
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 31 IfUnused"]
    assert driver.tell(*opened(3), *opened(4)) == ["ATTACHSTREAM 3 32; one", "ATTACHSTREAM 4 33; two"]


# --- a new connection --------------------------------------------------------------------------------------


def test_a_key_found_again_after_a_reconnect_keeps_its_circuits() -> None:
    driver = two_keys()
    driver.give(Disconnected())

    assert driver.connect(
        circuits=f"{built(30)}\n{built(31)}\n",
        streams="1 SUCCEEDED 30 203.0.113.7:80\n2 SENTCONNECT 31 a:1\n3 NEW 0 b:80\n",
        option="1",
    ) == [TAKE_OVER, "ATTACHSTREAM 3 0; what isolates it is not known"]
    assert [circuit.streams for circuit in driver.snapshot().circuits] == [1, 1]
    assert driver.tell(*opened(4, user="bob"), *opened(5, user="alice")) == [
        "ATTACHSTREAM 4 31; only",
        "ATTACHSTREAM 5 30; only",
    ]


def test_a_key_that_does_not_come_back_after_a_reconnect_is_idle_from_then_on() -> None:
    driver = two_keys()
    driver.give(Disconnected())
    driver.connect(circuits=f"{built(30)}\n{built(31)}\n", option="1")
    driver.tell(*opened(3, user="alice"))

    assert driver.wait(59.9) == []
    assert driver.wait(0.1) == ["CLOSECIRCUIT 31 IfUnused"]


def test_a_stream_of_nobody_knows_whom_on_an_unused_circuit_expels_it_after_a_reconnect() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"))
    driver.give(Disconnected())

    commands = driver.connect(
        circuits=f"{built(30)}\n{built(31)}\n", streams="1 SUCCEEDED 30 a:80\n9 SUCCEEDED 31 b:80\n"
    )
    assert commands == ["EXTENDCIRCUIT 0; two"]
    assert keys_of(driver)[-1] == (0, "two", "31", "draining")


def test_a_general_circuit_that_tor_may_have_used_meanwhile_is_replaced_after_a_reconnect() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"))
    driver.give(Disconnected())

    commands = driver.connect(circuits=f"{built(30)}\n{built(31)}\n", streams="1 SUCCEEDED 30 a:80\n")
    assert commands == ["CLOSECIRCUIT 31 IfUnused", "EXTENDCIRCUIT 0; two"]


def test_circuits_that_end_are_forgotten_after_a_reconnect() -> None:
    driver = two_keys()
    driver.tell("SIGNAL NEWNYM")
    driver.give(Disconnected())

    assert driver.connect() == ["EXTENDCIRCUIT 0; only"] * 3
    assert [key for key, *_ in keys_of(driver)] == [0, 1, 2]


# --- a reload ----------------------------------------------------------------------------------------------


def test_a_new_name_is_built_for_every_key() -> None:
    driver = two_keys()

    assert driver.reload(isolating("only", "more")) == ["EXTENDCIRCUIT 0; more", "EXTENDCIRCUIT 0; more"]


def test_a_reload_of_slots_per_key_keeps_what_each_key_still_gets() -> None:
    driver = balancing(isolating("a", "b"))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    driver.build(32, 33)

    assert driver.reload(isolating("a", "b", keys=Keys(slots_per_key=1))) == ["CLOSECIRCUIT 31 IfUnused"]
    assert [(key, name) for key, name, _, state in keys_of(driver) if state == "built"] == [
        (0, "a"),
        (1, "b"),
    ]
    assert driver.reload(isolating("a", "b")) == ["EXTENDCIRCUIT 0; b", "EXTENDCIRCUIT 0; a"]


def test_more_room_serves_those_that_wait_for_it() -> None:
    driver = bounded(WhenExceeded.QUEUE)
    driver.tell(*opened(2, user="bob"))

    assert driver.reload(isolating("only", keys=Keys(max_circuits=2))) == ["EXTENDCIRCUIT 0; only"]
    assert driver.build(31) == ["ATTACHSTREAM 2 31; only"]


def test_a_reload_decides_anew_on_those_for_which_there_is_no_room() -> None:
    driver = bounded(WhenExceeded.QUEUE)
    driver.tell(*opened(2, user="bob"))

    assert driver.reload(isolating("only", keys=Keys(max_circuits=1, when_exceeded=WhenExceeded.REJECT))) == [
        "CLOSESTREAM 2 1; no room for circuits of its key"
    ]


def test_a_reload_decides_anew_on_those_whose_key_is_cold() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))

    assert driver.reload(isolating("only", keys=Keys(cold_start=ColdStart.TOR))) == [
        "ATTACHSTREAM 2 0; its circuits are not built yet"
    ]


def test_those_that_wait_for_a_key_that_ends_with_a_reload_are_tor_s() -> None:
    driver = balancing(isolating("only", when_none=WhenNone.HOLD))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))

    assert driver.reload(policy_of("only", when_none=WhenNone.HOLD)) == [
        "EXTENDCIRCUIT 0; only",
        "ATTACHSTREAM 2 0; the circuits of its key end",
    ]


def test_those_that_wait_for_room_share_once_isolation_is_off() -> None:
    driver = bounded(WhenExceeded.QUEUE)
    driver.tell(*opened(2, user="bob"))

    assert driver.reload(policy_of("only", when_none=WhenNone.HOLD)) == ["EXTENDCIRCUIT 0; only"]
    assert driver.build(31) == ["ATTACHSTREAM 2 31; only"]
    assert driver.tell(*opened(3, user="carol")) == ["ATTACHSTREAM 3 31; only"]


def test_another_idle_time_counts_for_keys_that_are_idle_already() -> None:
    driver = two_keys(idle_seconds=60)
    driver.tell(closed(2))
    driver.reload(isolating("only", keys=Keys(idle_seconds=90)))

    assert driver.wait(60) == []
    assert driver.wait(29.9) == []
    assert driver.wait(0.1) == ["CLOSECIRCUIT 31 IfUnused"]


def test_an_old_identity_that_ended_with_a_reload_ends_once() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), sent(1, 30), *opened(2, user="alice"), sent(2, 30), "SIGNAL NEWNYM")
    driver.reload(policy_of("only"))
    driver.reload(ONE)
    driver.tell("STREAM 1 CLOSED 30 a:80 REASON=DONE")

    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 30 IfUnused"]
    assert driver.said == []
    assert [circuit.circuit_id for circuit in driver.snapshot().circuits].count("30") == 1
