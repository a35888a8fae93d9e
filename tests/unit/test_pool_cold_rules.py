"""A rule's circuits that a key has never had: its streams wait for them, as for the first of all."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitloom.policy.types import ColdStart, Keys, Match, Policy, Rule, Slot, WhenNone
from unit.pool_driver import Driver, balancing, isolating, opened, policy_of

RULES = (Rule(Match(socks_user="*b*"), circuits=frozenset({"two"})),)


def policy(*, cold_start: ColdStart = ColdStart.WAIT, when_none: WhenNone = WhenNone.REJECT) -> Policy:
    keys = Keys(cold_start=cold_start)
    return replace(isolating(Slot("one"), Slot("two"), keys=keys, when_none=when_none), rules=RULES)


def half_warm(settings: Policy) -> Driver:
    """Alice has circuits; of bob's two, 32 is BUILT and his rule's, 33, is on its way."""
    driver = balancing(settings)
    driver.tell(*opened(1, user="alice"))
    assert driver.tell(*opened(2, user="bert"))[-2:] == ["EXTENDCIRCUIT 0; one", "EXTENDCIRCUIT 0; two"]
    driver.build(32)
    return driver


def test_a_stream_that_is_held_for_circuits_that_a_reload_removes_does_not_wait_for_ever() -> None:
    rules = (Rule(Match(), circuits=frozenset({"a"})),)
    driver = balancing(policy_of("a", "b", rules=rules, when_none=WhenNone.HOLD))
    driver.tell("CIRC 30 CLOSED REASON=DESTROYED")
    assert driver.tell(*opened(1)) == []

    commands = driver.reload(policy_of("b", when_none=WhenNone.HOLD))

    assert commands == ["CLOSESTREAM 1 1; the policy has none of its circuits any more"]


def test_they_wait_for_the_one_that_is_on_its_way() -> None:
    driver = half_warm(policy())

    assert driver.tell(*opened(3, user="bert")) == []
    assert driver.build(33) == ["ATTACHSTREAM 2 33; two", "ATTACHSTREAM 3 33; two"]


def test_they_wait_no_longer_than_for_the_first_of_all() -> None:
    driver = half_warm(policy())

    assert driver.wait(4.9) == []
    assert driver.wait(0.2) == ["CLOSESTREAM 2 1; its circuits were not built in time"]


def test_under_cold_start_tor_they_are_tor_s() -> None:
    driver = half_warm(policy(cold_start=ColdStart.TOR))

    assert driver.tell(*opened(3, user="bert")) == ["ATTACHSTREAM 3 0; its circuits are not built yet"]


@pytest.mark.parametrize(
    ("when_none", "commands"),
    [
        (WhenNone.REJECT, ["CLOSESTREAM 2 1; no circuit is usable"]),
        (WhenNone.TOR, ["ATTACHSTREAM 2 0; no circuit is usable"]),
        (WhenNone.HOLD, []),
    ],
)
def test_when_the_first_build_fails_it_is_as_the_policy_says(
    when_none: WhenNone, commands: list[str]
) -> None:
    driver = half_warm(policy(when_none=when_none))

    assert driver.reply_to_build("551 Couldn't start circuit") == commands


def test_one_that_was_there_and_is_lost_is_not_waited_for() -> None:
    driver = half_warm(policy())
    driver.build(33)
    driver.now += 60
    driver.tell("CIRC 33 CLOSED REASON=DESTROYED")

    assert driver.tell(*opened(3, user="bert")) == ["CLOSESTREAM 3 1; no circuit is usable"]


def test_one_that_a_reload_names_first_is_waited_for() -> None:
    driver = balancing(policy())
    new = replace(
        policy(),
        slots=(*policy().slots, Slot("three")),
        rules=(Rule(Match(), circuits=frozenset({"three"})),),
    )
    assert driver.reload(new) == ["EXTENDCIRCUIT 0; three"]

    assert driver.tell(*opened(1, user="alice")) == []
    assert driver.build(32) == ["ATTACHSTREAM 1 32; three"]
