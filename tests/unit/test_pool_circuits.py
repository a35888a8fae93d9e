"""Circuits: built, kept, replaced, drained; and which tier takes streams."""

from __future__ import annotations

import pytest

from circuitloom.model import BuildAccepted, CircuitId
from circuitloom.policy.types import Rebuild, Role, Slot
from unit.pool_driver import (
    GIVE_BACK,
    PATH,
    TAKE_OVER,
    Driver,
    balancing,
    built,
    created,
    opened,
    policy_of,
)

ONLY = policy_of("only")
FIXED = ("A" * 40, "B" * 40, "C" * 40)
OTHER = ("C" * 40, "B" * 40, "A" * 40)
STANDBY = policy_of("primary", Slot("standby", role=Role.BACKUP))


# --- building ----------------------------------------------------------------------------------------------


def test_a_path_of_the_policy_is_asked_for_hop_by_hop() -> None:
    fixed, other = (",".join(f"${fingerprint}" for fingerprint in path) for path in (FIXED, OTHER))
    driver = Driver(policy_of(Slot("a", path=FIXED), Slot("b", path=OTHER)))

    assert driver.connect() == [f"EXTENDCIRCUIT 0 {fixed}; a", f"EXTENDCIRCUIT 0 {other}; b"]


def test_the_events_of_a_build_are_followed() -> None:
    driver = Driver(ONLY)
    driver.connect()
    assert driver.states() == {"only": "building"}
    driver.reply_to_build("250 EXTENDED 30")

    assert (
        driver.tell(
            f"CIRC 30 LAUNCHED PURPOSE=GENERAL {created(30)}",
            f"CIRC 30 EXTENDED ${'A' * 40}~alpha PURPOSE=GENERAL {created(30)}",
            f"CIRC 30 GUARD_WAIT {PATH} PURPOSE=GENERAL {created(30)}",
        )
        == []
    )
    assert driver.circuit("only").circuit_id == "30"
    assert driver.tell(f"CIRC {built(30)}") == [TAKE_OVER]
    driver.now += 3
    circuit = driver.circuit("only")
    assert (circuit.state, circuit.path, circuit.age_seconds) == ("built", ("alpha", "beta", "gamma"), 3)


def test_a_relay_without_nickname_is_named_by_its_fingerprint() -> None:
    driver = Driver(ONLY)
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")
    driver.tell(f"CIRC 30 BUILT ${'A' * 40},${'B' * 40}~beta PURPOSE=GENERAL {created(30)}")

    assert driver.said[0] == "info: circuit only (30) built: AAAAAAAA, beta"
    assert driver.circuit("only").path == ("A" * 40, "beta")


def test_a_circuit_that_is_built_again_after_an_extension_stays_what_it_was() -> None:
    driver = balancing(ONLY)

    assert driver.tell(f"CIRC {built(30).replace('~gamma', '~gamma,$' + 'D' * 40)}") == []
    assert driver.circuit("only").path == ("alpha", "beta", "gamma")


def test_circuits_that_others_built_are_nobody_s_business() -> None:
    driver = balancing(ONLY)

    assert driver.tell(f"CIRC {built(99)}", "CIRC 99 CLOSED REASON=FINISHED") == []
    assert driver.states() == {"only": "built"}


def test_a_refused_build_is_tried_again_later_each_time() -> None:
    driver = Driver(ONLY)
    driver.connect()

    for delay in (1, 2, 4):
        assert driver.reply_to_build('552 No such router "nobody"') == []
        assert driver.said == [
            f'warning: circuit only could not be built (No such router "nobody"), trying again in {delay}.0 s'
        ]
        assert driver.states() == {"only": "backoff"}
        assert driver.wait(delay - 0.01) == []
        assert driver.wait(0.01) == ["EXTENDCIRCUIT 0; only"]


def test_the_delay_of_builds_has_a_maximum_however_many_failed() -> None:
    driver = Driver(policy_of("only", rebuild=Rebuild(initial_seconds=1, max_seconds=5, jitter=0)))
    driver.connect()
    for _ in range(1200):
        driver.reply_to_build("551 Couldn't start circuit")
        driver.wait(5)

    driver.reply_to_build("551 Couldn't start circuit")
    assert driver.said[0].endswith("trying again in 5.0 s")


@pytest.mark.parametrize(("uniform", "delay"), [(0.0, "0.8"), (0.5, "1.0"), (1.0, "1.2")])
def test_the_delay_is_spread_by_the_jitter(uniform: float, delay: str) -> None:
    driver = Driver(ONLY, uniform=uniform)
    driver.connect()
    driver.reply_to_build("551 Couldn't start circuit")

    assert driver.said[0].endswith(f"trying again in {delay} s")


def test_a_failed_build_is_tried_again_later() -> None:
    driver = Driver(ONLY)
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")

    assert (
        driver.tell(
            f"CIRC 30 FAILED REASON=DESTROYED REMOTE_REASON=CONNECTFAILED PURPOSE=GENERAL {created(30)}"
        )
        == []
    )
    assert driver.said == [
        "warning: circuit only (30) could not be built (DESTROYED, CONNECTFAILED), trying again in 1.0 s"
    ]
    assert driver.tell("CIRC 30 CLOSED") == []


def test_a_build_that_tor_gave_up_and_measures_on_is_not_ours_any_more() -> None:
    driver = Driver(ONLY)
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")

    assert (
        driver.tell(
            f"CIRC 30 FAILED REASON=TIMEOUT PURPOSE=GENERAL {created(30)}",
            f"CIRC_MINOR 30 PURPOSE_CHANGED PURPOSE=MEASURE_TIMEOUT {created(30)} OLD_PURPOSE=GENERAL",
            f"CIRC {built(30).replace('GENERAL', 'MEASURE_TIMEOUT')}",
            "CIRC 30 CLOSED REASON=MEASUREMENT_EXPIRED",
        )
        == []
    )
    assert driver.states() == {"only": "backoff"}
    assert driver.wait(1) == ["EXTENDCIRCUIT 0; only"]


def test_a_purpose_that_is_not_ours_ends_a_build_without_a_failed_event() -> None:
    driver = Driver(ONLY)
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")

    driver.tell("CIRC_MINOR 30 PURPOSE_CHANGED PURPOSE=MEASURE_TIMEOUT OLD_PURPOSE=GENERAL")
    (said,) = driver.said
    assert said.startswith("warning: circuit only (30) could not be built (Tor uses it for MEASURE_TIMEOUT)")
    assert driver.tell(f"CIRC {built(30)}") == []


@pytest.mark.parametrize("purpose", ["GENERAL", "CONTROLLER"])
def test_a_purpose_that_may_carry_streams_changes_nothing(purpose: str) -> None:
    driver = balancing(ONLY)

    assert driver.tell(f"CIRC_MINOR 30 PURPOSE_CHANGED PURPOSE={purpose}") == []
    assert driver.states() == {"only": "built"}


def test_a_build_that_hangs_is_given_up() -> None:
    driver = Driver(ONLY)
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")

    assert driver.wait(89) == []
    assert driver.wait(1) == ["CLOSECIRCUIT 30 IfUnused"]
    assert driver.said == [
        "warning: circuit only (30) could not be built (no answer in 90 s), trying again in 1.0 s"
    ]


def test_a_build_that_is_not_even_answered_is_given_up_when_a_deadline_is_due() -> None:
    driver = Driver(policy_of("only", rebuild=Rebuild(initial_seconds=90, max_seconds=90)))
    driver.connect()
    driver.reply_to_build("551 Couldn't start circuit")
    driver.tell("STATUS_CLIENT NOTICE ENOUGH_DIR_INFO")

    assert driver.wait(90) == []
    assert driver.said[0].startswith("warning: circuit only could not be built (no answer in 90 s)")
    assert driver.reply_to_build("250 EXTENDED 30") == ["CLOSECIRCUIT 30 IfUnused"]


def test_a_refusal_of_a_build_that_was_given_up_is_no_news() -> None:
    driver = Driver(policy_of("only", rebuild=Rebuild(initial_seconds=90, max_seconds=90)))
    driver.connect()
    driver.reply_to_build("551 Couldn't start circuit")
    driver.tell("STATUS_CLIENT NOTICE ENOUGH_DIR_INFO")
    driver.wait(90)

    assert driver.reply_to_build("551 Couldn't start circuit") == []
    assert driver.said == []


def test_tor_s_word_that_circuits_can_be_built_ends_the_wait() -> None:
    driver = Driver()
    driver.connect()
    driver.reply_to_build("551 Couldn't start circuit")
    driver.reply_to_build("250 EXTENDED 31")

    assert driver.tell("STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED") == ["EXTENDCIRCUIT 0; primary"]
    assert driver.wait(1.0) == []


def test_no_more_than_sixteen_are_built_at_once() -> None:
    driver = Driver(policy_of(*(f"c{number}" for number in range(20))))

    assert len(driver.connect()) == 16
    assert driver.reply_to_build("250 EXTENDED 30") == []
    assert driver.states()["c19"] == "idle"
    assert driver.tell(f"CIRC {built(30)}") == ["EXTENDCIRCUIT 0; c16", TAKE_OVER]
    assert driver.reply_to_build("551 Couldn't start circuit") == ["EXTENDCIRCUIT 0; c17"]


# --- a circuit's end ---------------------------------------------------------------------------------------


def test_a_circuit_that_served_is_replaced_at_once() -> None:
    driver = balancing()
    driver.now += 60

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == ["EXTENDCIRCUIT 0; primary"]
    assert driver.said == ["info: circuit primary (30) closed (FINISHED), building another"]


def test_a_circuit_that_closes_at_once_waits_before_it_is_built_again() -> None:
    driver = balancing()
    driver.now += 0.5

    assert driver.tell("CIRC 30 CLOSED") == []
    assert driver.said == [
        "warning: circuit primary (30) closed at once (no reason given), trying again in 1.0 s"
    ]
    assert driver.wait(1) == ["EXTENDCIRCUIT 0; primary"]


def test_a_circuit_that_tor_takes_for_itself_is_replaced() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.now += 60

    assert driver.tell("CIRC_MINOR 30 PURPOSE_CHANGED PURPOSE=CONFLUX_UNLINKED OLD_PURPOSE=GENERAL") == [
        "EXTENDCIRCUIT 0; one"
    ]
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 31; two"]


def test_a_failed_build_between_long_lives_does_not_count_for_ever() -> None:
    driver = balancing(policy_of("one", "two"))
    for circuit_id in (30, 32):
        driver.now += 60
        driver.tell(f"CIRC {circuit_id} CLOSED REASON=FINISHED")
        driver.reply_to_build("551 Couldn't start circuit")
        assert driver.said[0].endswith("trying again in 1.0 s")
        driver.wait(1)
        driver.reply_to_build(f"250 EXTENDED {circuit_id + 2}")
        driver.tell(f"CIRC {built(circuit_id + 2)}")
        if circuit_id == 30:
            driver.tell("CIRC 31 CLOSED REASON=FINISHED")


# --- tiers -------------------------------------------------------------------------------------------------


def test_a_backup_takes_no_streams_while_the_floor_holds() -> None:
    assert balancing(STANDBY).tell(*opened(1), *opened(2)) == [
        "ATTACHSTREAM 1 30; primary",
        "ATTACHSTREAM 2 30; primary",
    ]


def test_a_backup_takes_streams_below_the_floor_and_only_then() -> None:
    driver = balancing(STANDBY)
    driver.now += 60
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")

    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 31; standby"]
    driver.reply_to_build("250 EXTENDED 32")
    driver.tell(f"CIRC {built(32)}")
    assert driver.tell(*opened(2), *opened(3)) == [
        "ATTACHSTREAM 2 32; primary",
        "ATTACHSTREAM 3 32; primary",
    ]


def test_backups_make_up_the_floor_when_taking_over() -> None:
    driver = Driver(policy_of("a", "b", Slot("spare", role=Role.BACKUP), min_active=2))
    driver.connect()
    for circuit_id in (30, 31, 32):
        driver.reply_to_build(f"250 EXTENDED {circuit_id}")

    assert driver.tell(f"CIRC {built(30)}") == []
    assert driver.tell(f"CIRC {built(32)}") == [TAKE_OVER]
    assert driver.tell(*opened(1), *opened(2)) == ["ATTACHSTREAM 1 30; a", "ATTACHSTREAM 2 32; spare"]
    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == []
    assert driver.tell("CIRC 32 CLOSED REASON=FINISHED") == [GIVE_BACK]


def test_an_unknown_build_s_circuit_is_closed() -> None:
    assert balancing(ONLY).give(BuildAccepted(99, CircuitId("77"))) == ["CLOSECIRCUIT 77 IfUnused"]


def test_one_circuit_that_is_built_ends_the_wait_of_those_that_failed_with_it() -> None:
    driver = Driver(policy_of("one", "two", Slot("given", path=("A" * 40, "B" * 40))))
    driver.connect()
    for _ in range(3):
        driver.reply_to_build("551 Couldn't start circuit")
    assert driver.wait(0.9) == []
    driver.now += 0.1
    (again, *_) = driver.wait(0)
    assert again == "EXTENDCIRCUIT 0; one"
    driver.reply_to_build("551 Couldn't start circuit")
    driver.build(30)

    # "one" failed twice and would wait longer; the given path may be the fault of its own relays.
    assert driver.states() == {"one": "building", "two": "built", "given": "building"}
