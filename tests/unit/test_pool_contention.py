"""Another controller at the same Tor: named, bounded, never fought."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitloom.model import Purpose
from circuitloom.policy.types import Policy, WhenContended
from unit.pool_driver import GIVE_BACK, TAKE_OVER, Driver, balancing, conf_changed, opened, policy_of, sent

TWO = policy_of("one", "two")
ONLY_ONE = "only one of us can, end the other one"
ASIDE = replace(TWO, failover=replace(TWO.failover, when_contended=WhenContended.STAND_ASIDE))


def reset(driver: Driver) -> list[str]:
    return driver.receive(conf_changed("0"))


def test_one_reset_is_taken_back_at_once_and_named_when_no_reload_explains_it() -> None:
    driver = balancing(TWO)

    assert reset(driver) == [TAKE_OVER]
    assert driver.snapshot().notice == ""
    assert driver.wait(1) == []
    assert driver.said == [
        f"warning: another controller reset the option that makes streams wait for us: {ONLY_ONE}"
    ]
    assert driver.snapshot().notice == "another controller resets the option"
    assert driver.pool.next_deadline() is None


@pytest.mark.parametrize("policy", [TWO, ASIDE])
def test_reloads_of_tor_are_no_controller_however_many(policy: Policy) -> None:
    driver = balancing(policy)
    for _ in range(10):
        assert reset(driver) == [TAKE_OVER]
        assert driver.tell("SIGNAL RELOAD") == []
        assert driver.wait(1) == []

    assert driver.snapshot().notice == ""


def test_the_fourth_reset_in_a_minute_is_not_fought() -> None:
    driver = balancing(TWO)
    for _ in range(3):
        assert reset(driver) == [TAKE_OVER]
        driver.now += 2
    assert reset(driver) == [GIVE_BACK]
    assert driver.snapshot().state == "released"
    assert driver.snapshot().notice.startswith("standing aside for 60 s: another controller")

    assert driver.wait(59) == []
    assert driver.wait(1) == [TAKE_OVER]


def test_resets_that_are_rare_are_always_taken_back() -> None:
    driver = balancing(TWO)
    for _ in range(10):
        assert reset(driver) == [TAKE_OVER]
        driver.wait(25)


def test_a_policy_that_stands_aside_does_so_until_it_is_reloaded() -> None:
    driver = balancing(ASIDE)
    assert reset(driver) == [TAKE_OVER]

    assert driver.wait(1) == [GIVE_BACK]
    assert driver.snapshot().notice.startswith("standing aside until a reload: another controller reset")
    assert driver.pool.next_deadline() is None
    assert driver.wait(3600) == []
    assert driver.reload(ASIDE) == [TAKE_OVER]
    assert driver.snapshot().notice == ""


def test_standing_aside_releases_those_that_wait() -> None:
    driver = balancing(ASIDE)
    driver.tell(*opened(1), *opened(2))

    assert driver.tell(sent(1, 77)) == [GIVE_BACK]
    assert driver.tell(*opened(3)) == ["ATTACHSTREAM 3 0; Tor assigns streams now"]


def test_a_stream_that_somebody_else_moved_is_named_once_and_left_there() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1), *opened(2))

    assert driver.tell(sent(1, 77)) == []
    assert driver.said == [f"warning: another controller attaches streams that wait for us: {ONLY_ONE}"]
    assert driver.tell(sent(2, 77)) == []
    assert driver.said == []
    assert driver.snapshot().notice == "another controller attaches streams (2 so far)"
    assert driver.tell("STREAM 1 CONTROLLER_WAIT 0 example.com:80") == []


def test_tor_s_own_choice_is_nobody_else_s() -> None:
    driver = balancing(TWO)
    driver.tell(opened(1)[0], sent(1, 77))
    driver.tell(*opened(2, "x.onion:80"), sent(2, 78))

    assert driver.snapshot().notice == ""


def test_a_circuit_that_a_moved_stream_was_on_is_no_foreign_one() -> None:
    moving = policy_of("one", "two", purpose=Purpose.CONTROLLER, redispatch_seconds=1.0)
    driver = balancing(moving)
    driver.tell(*opened(1))
    assert driver.wait(1) == ["ATTACHSTREAM 1 31; two"]

    driver.tell(sent(1, 30), "STREAM 1 CONTROLLER_WAIT 0 example.com:80", sent(1, 31))
    assert driver.snapshot().notice == ""
