"""Whose circuits a stream may use: what Tor keeps apart stays apart, also on circuits that Tor uses too."""

from __future__ import annotations

from typing import Any

import pytest

from circuitloom.policy.types import Slot, WhenNone
from circuitloom.pool.isolation import IsolationKey
from unit.pool_driver import (
    GIVE_BACK,
    TAKE_OVER,
    Driver,
    balancing,
    closed,
    detached,
    isolating,
    opened,
    policy_of,
    sent,
)

ONE = isolating("only")
TWO = isolating("one", "two")


def shares(first: dict[str, Any], second: dict[str, Any], fields: str) -> bool:
    """Whether a stream like ``second`` is attached to the circuit that one like ``first`` has used."""
    driver = balancing(ONE)
    assert driver.tell(*opened(1, fields=fields, **first)) == ["ATTACHSTREAM 1 30; only"]
    commands = driver.tell(*opened(2, fields=fields, **second))
    assert commands in (["ATTACHSTREAM 2 30; only"], ["EXTENDCIRCUIT 0; only"])
    return commands == ["ATTACHSTREAM 2 30; only"]


# --- which streams may share a circuit ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ("SOCKS_USERNAME", {"user": "alice"}, {"user": "bob"}),
        ("SOCKS_USERNAME", {"user": "alice"}, {"user": "Alice"}),
        ("SOCKS_USERNAME", {"user": None}, {"user": ""}),
        ("SOCKS_USERNAME,SOCKS_PASSWORD", {"user": "a", "password": "x"}, {"user": "a", "password": "y"}),
        ("SOCKS_PASSWORD", {"password": None}, {"password": ""}),
        ("CLIENTADDR", {"source": "127.0.0.1:4711"}, {"source": "127.0.0.2:4711"}),
        ("CLIENTADDR", {"source": "::1:4711"}, {"source": "::2:4711"}),
        ("CLIENTADDR", {"source": "[2001:db8::1]:9"}, {"source": "[2001:db8::2]:9"}),
        ("CLIENTADDR", {"source": None}, {"source": "127.0.0.1:4711"}),
        ("NYM_EPOCH", {"epoch": 0}, {"epoch": 1}),
        ("CLIENT_PROTOCOL", {"protocol": "SOCKS5"}, {"protocol": "TRANS"}),
        ("DESTADDR", {"target": "example.com:80"}, {"target": "example.net:80"}),
        ("DESTADDR", {"target": "[2001:db8::1]:80"}, {"target": "[2001:db8::2]:80"}),
        ("DESTPORT", {"target": "example.com:80"}, {"target": "example.com:443"}),
    ],
)
def test_streams_that_differ_in_a_field_do_not_share(
    fields: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert not shares(first, second, fields)
    assert not shares(second, first, fields)


@pytest.mark.parametrize(
    ("fields", "first", "second"),
    [
        ("SOCKS_USERNAME", {"user": "alice", "password": "x"}, {"user": "alice", "password": "y"}),
        ("SOCKS_USERNAME", {"user": ""}, {"user": ""}),
        ("CLIENTADDR", {"source": "127.0.0.1:1"}, {"source": "127.0.0.1:2"}),
        ("CLIENTADDR", {"source": "::1:4711"}, {"source": "::1:4712"}),
        ("CLIENTADDR", {"source": "[2001:db8::1]:1"}, {"source": "[2001:db8::1]:2"}),
        ("CLIENTADDR", {"source": None}, {"source": None}),
        ("SESSION_GROUP", {"user": "alice", "epoch": 0}, {"user": "bob", "epoch": 1}),
        ("DESTADDR", {"target": "Example.COM:80"}, {"target": "example.com:443"}),
        ("DESTPORT", {"target": "example.com:80"}, {"target": "[2001:db8::1]:80"}),
    ],
)
def test_streams_that_differ_elsewhere_only_do_share(
    fields: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    assert shares(first, second, fields)


def test_streams_with_different_fields_do_not_share_whatever_the_values() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="x", password="x", fields="SOCKS_USERNAME"))  # noqa: S106 - a key, no secret

    assert driver.tell(*opened(2, user="x", password="x", fields="SOCKS_PASSWORD")) == [  # noqa: S106 - the same
        "EXTENDCIRCUIT 0; only"
    ]


def test_the_order_of_the_fields_does_not_matter() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, fields="SESSION_GROUP,NYM_EPOCH"))

    assert driver.tell(*opened(2, fields="NYM_EPOCH,SESSION_GROUP")) == ["ATTACHSTREAM 2 30; only"]


def test_without_isolation_all_share() -> None:
    driver = balancing(policy_of("only"))

    assert driver.tell(*opened(1, user="alice"), *opened(2, user="bob"), *opened(3, fields=None)) == [
        "ATTACHSTREAM 1 30; only",
        "ATTACHSTREAM 2 30; only",
        "ATTACHSTREAM 3 30; only",
    ]


def test_a_stream_of_which_tor_does_not_say_what_isolates_it_is_tor_s() -> None:
    driver = balancing(ONE)

    assert driver.tell(*opened(1, user="alice", fields=None)) == [
        "ATTACHSTREAM 1 0; what isolates it is not known"
    ]


def test_a_stream_whose_announcement_was_missed_is_tor_s() -> None:
    assert balancing(ONE).tell(opened(1, user="alice")[1]) == [
        "ATTACHSTREAM 1 0; what isolates it is not known"
    ]


def test_a_stream_announced_again_keeps_its_key() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"), opened(1, user="bob")[0])

    assert driver.tell(*detached(1, 30)) == ["ATTACHSTREAM 1 31; two"]


def test_a_key_shows_its_fields_and_no_values() -> None:
    key = IsolationKey(("CLIENTADDR", "SOCKS_USERNAME"), ("127.0.0.1", "alice"))

    assert repr(key) == "<key of CLIENTADDR, SOCKS_USERNAME>"


# --- Tor's own streams on our circuits ---------------------------------------------------------------------


def released(stream_id: int, user: str) -> str:
    """A stream that Tor assigns."""
    return opened(stream_id, user=user)[0]


def used_before_taking_over(user: str) -> Driver:
    """Circuit 30 is BUILT, Tor puts a stream of this user on it, and then 31 is BUILT."""
    driver = Driver(isolating("one", "two", min_active=2))
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")
    driver.reply_to_build("250 EXTENDED 31")
    driver.tell("CIRC 30 BUILT", released(1, user), sent(1, 30))
    assert driver.tell("CIRC 31 BUILT") == [TAKE_OVER]
    driver.now += 60
    return driver


def test_a_circuit_that_tor_used_for_another_key_is_replaced_when_the_first_key_claims_it() -> None:
    driver = used_before_taking_over("bob")

    assert driver.tell(*opened(2, user="alice"), *opened(3, user="alice")) == [
        "ATTACHSTREAM 2 31; two",
        "EXTENDCIRCUIT 0; one",
        "ATTACHSTREAM 3 31; two",
    ]
    assert [(c.name, c.state, c.circuit_id) for c in driver.snapshot().circuits] == [
        ("one", "building", None),
        ("two", "built", "31"),
        ("one", "draining", "30"),
    ]
    assert driver.tell(closed(1)) == ["CLOSECIRCUIT 30 IfUnused"]


def test_a_circuit_that_tor_used_for_the_key_itself_is_kept() -> None:
    driver = used_before_taking_over("alice")

    assert driver.tell(*opened(2, user="alice"), *opened(3, user="alice")) == [
        "ATTACHSTREAM 2 30; one",
        "ATTACHSTREAM 3 31; two",
    ]


def test_a_circuit_that_another_key_has_left_is_replaced_all_the_same() -> None:
    driver = used_before_taking_over("bob")
    driver.tell(closed(1))

    assert driver.tell(*opened(2, user="alice")) == [
        "CLOSECIRCUIT 30 IfUnused",
        "ATTACHSTREAM 2 31; two",
        "EXTENDCIRCUIT 0; one",
    ]


def test_a_circuit_of_the_key_that_tor_gives_to_another_is_replaced() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"))

    assert driver.tell(*opened(2, "x.onion:80", user="bob")) == [
        "ATTACHSTREAM 2 0; only Tor can serve this address"
    ]
    assert driver.tell(sent(2, 31)) == ["EXTENDCIRCUIT 0; two"]
    assert driver.tell(*opened(3, user="alice")) == ["ATTACHSTREAM 3 30; one"]


def test_a_circuit_that_tor_gives_to_another_while_we_attach_to_it_is_replaced() -> None:
    driver = balancing(TWO)
    driver.tell(released(2, "bob"))

    assert driver.tell(*opened(1, user="alice"), sent(2, 30), sent(1, 30)) == [
        "ATTACHSTREAM 1 30; one",
        "EXTENDCIRCUIT 0; one",
    ]
    assert driver.tell(*opened(3, user="alice")) == ["ATTACHSTREAM 3 31; two"]
    assert driver.tell(closed(1)) == []
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 30 IfUnused"]


def test_an_unclaimed_circuit_that_two_keys_have_used_is_nobody_s() -> None:
    driver = used_before_taking_over("alice")
    driver.tell(released(2, "bob"), sent(2, 30))

    assert driver.tell(*opened(3, user="alice")) == ["ATTACHSTREAM 3 31; two", "EXTENDCIRCUIT 0; one"]


def test_a_stream_of_unknown_key_expels_a_circuit_used_or_not() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"))

    driver.tell(*opened(2, fields=None), *opened(3, fields=None))
    # Tor may have put it there before it heard that alice was to be there.
    assert driver.tell(sent(2, 30)) == ["EXTENDCIRCUIT 0; one"]
    assert driver.tell(sent(3, 31)) == ["EXTENDCIRCUIT 0; two"]


def test_tor_s_own_stream_of_the_same_key_changes_nothing() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1, user="alice"), *opened(2, "x.onion:80", user="alice"))

    assert driver.tell(sent(2, 31)) == []
    assert driver.tell(*opened(3, user="alice")) == ["ATTACHSTREAM 3 31; two"]


def test_without_isolation_tor_s_own_streams_change_nothing() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.tell(*opened(1, user="alice"), *opened(2, "x.onion:80", user="bob"))

    assert driver.tell(sent(2, 30), *opened(3, user="alice"), *opened(4, user="alice")) == [
        "ATTACHSTREAM 3 31; two",
        "ATTACHSTREAM 4 30; one",
    ]


def test_the_last_circuit_expelled_leaves_the_key_s_streams_to_tor_until_the_next_is_built() -> None:
    driver = balancing(ONE)
    driver.tell(released(2, "bob"), sent(2, 30))

    assert driver.tell(*opened(1, user="alice")) == [
        "ATTACHSTREAM 1 0; no circuit is usable",
        "EXTENDCIRCUIT 0; only",
    ]
    assert driver.build(31) == [GIVE_BACK, TAKE_OVER]
    assert driver.tell(*opened(3, user="alice")) == ["ATTACHSTREAM 3 31; only"]


def test_a_circuit_of_the_old_policy_that_another_key_uses_serves_no_longer() -> None:
    driver = balancing(isolating("old"))
    driver.tell(*opened(1, user="alice"), closed(1))
    driver.now += 60
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")
    driver.build(31)
    driver.reload(isolating("new", when_none=WhenNone.REJECT))
    assert driver.states() == {"new": "building"}

    driver.tell(released(2, "bob"), sent(2, 31))
    assert driver.states() == {"new": "building", "old": "draining"}
    assert driver.tell(*opened(3, user="alice")) == ["CLOSESTREAM 3 1; no circuit is usable"]
    assert driver.build(32) == []
    assert driver.tell(*opened(4, user="alice")) == ["ATTACHSTREAM 4 32; new"]
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 31 IfUnused"]


def test_a_circuit_whose_successor_serves_is_expelled_no_more() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), sent(1, 30), released(2, "bob"))
    driver.reload(isolating(Slot("only", path=("A" * 40,))))
    driver.build(31)

    assert driver.tell(sent(2, 30)) == []
    assert [circuit.state for circuit in driver.snapshot().circuits] == ["built", "draining"]
    assert driver.tell(closed(1)) == []
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 30 IfUnused"]


def test_a_circuit_that_drains_already_is_expelled_no_more() -> None:
    driver = balancing(isolating("keep", "drop"))
    driver.tell(*opened(1, user="alice"), *opened(2, user="alice"), sent(2, 31))
    driver.reload(isolating("keep"))

    driver.tell(released(3, "bob"))
    assert driver.tell(sent(3, 31)) == []
    assert driver.states() == {"keep": "built", "drop": "draining"}


# --- one key's circuits are gone, another's serve ----------------------------------------------------------


@pytest.mark.parametrize(
    ("when_none", "commands"),
    [
        (WhenNone.TOR, ["ATTACHSTREAM 3 0; no circuit is usable"]),
        (WhenNone.REJECT, ["CLOSESTREAM 3 1; no circuit is usable"]),
        (WhenNone.HOLD, []),
    ],
)
def test_when_none_holds_for_each_key(when_none: WhenNone, commands: list[str]) -> None:
    driver = balancing(isolating("only", when_none=when_none))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    assert driver.build(31) == ["ATTACHSTREAM 2 31; only"]
    driver.now += 60

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == ["EXTENDCIRCUIT 0; only"]
    assert driver.tell(*opened(3, user="alice")) == commands
    assert driver.tell(*opened(4, user="bob")) == ["ATTACHSTREAM 4 31; only"]
    is_held = when_none is WhenNone.HOLD
    assert driver.wait(30) == []
    assert driver.build(32) == (["ATTACHSTREAM 3 32; only"] if is_held else [])


# --- a reload that changes isolation -----------------------------------------------------------------------


def test_turning_isolation_off_begins_with_fresh_circuits() -> None:
    driver = balancing(ONE)
    driver.tell(*opened(1, user="alice"), sent(1, 30))

    assert driver.reload(policy_of("only")) == ["EXTENDCIRCUIT 0; only", GIVE_BACK]
    assert driver.said[0] == "info: key 0 is no longer used, its circuits end"
    assert driver.build(31) == [TAKE_OVER]
    assert driver.tell(*opened(2, user="alice"), *opened(3, user="bob")) == [
        "ATTACHSTREAM 2 31; only",
        "ATTACHSTREAM 3 31; only",
    ]
    assert driver.tell(closed(1)) == ["CLOSECIRCUIT 30 IfUnused"]


def test_turning_isolation_on_begins_with_fresh_circuits() -> None:
    driver = balancing(policy_of("only"))
    driver.tell(*opened(1, user="alice"))

    assert driver.reload(ONE) == ["EXTENDCIRCUIT 0; only", GIVE_BACK]
    assert driver.build(31) == [TAKE_OVER]
    assert driver.tell(*opened(2, user="bob"), *opened(3, user="carol")) == [
        "ATTACHSTREAM 2 31; only",
        "EXTENDCIRCUIT 0; only",
    ]


def test_a_stream_announced_before_isolation_was_turned_off_shares_as_all_do() -> None:
    driver = balancing(isolating("only", when_none=WhenNone.HOLD))
    new, waits = opened(1, user="alice")
    driver.tell(new)
    driver.reload(policy_of("only", when_none=WhenNone.HOLD))
    driver.build(31)

    assert driver.tell(waits, *opened(2, user="bob")) == [
        "ATTACHSTREAM 1 31; only",
        "ATTACHSTREAM 2 31; only",
    ]


def test_a_stream_announced_before_isolation_was_turned_on_is_tor_s() -> None:
    driver = balancing(policy_of("only", when_none=WhenNone.HOLD))
    new, waits = opened(1, user="alice")
    driver.tell(new)
    driver.reload(isolating("only", when_none=WhenNone.HOLD))
    driver.build(31)

    assert driver.tell(waits, *opened(2, user="bob")) == [
        "ATTACHSTREAM 1 0; what isolates it is not known",
        "ATTACHSTREAM 2 31; only",
    ]


def test_a_stream_detached_after_isolation_was_changed_is_tor_s() -> None:
    driver = balancing(isolating("one", "two", when_none=WhenNone.HOLD))
    driver.tell(*opened(1, user="alice"), sent(1, 30))
    driver.reload(policy_of("one", "two", when_none=WhenNone.HOLD))
    driver.build(32, 33)

    assert driver.tell(
        "STREAM 1 DETACHED 30 example.com:80 REASON=TIMEOUT", "STREAM 1 CONTROLLER_WAIT 30 example.com:80"
    ) == ["CLOSECIRCUIT 30 IfUnused", "ATTACHSTREAM 1 0; the circuits of its key end"]


def test_a_stream_that_another_controller_moves_among_its_keys_circuits_costs_none() -> None:
    driver = balancing(isolating("one", "two"))
    driver.tell(*opened(1, user="alice"), *opened(2, user="alice"))

    assert driver.tell(sent(1, 31)) == []
    assert [circuit.state for circuit in driver.snapshot().circuits] == ["built", "built"]
