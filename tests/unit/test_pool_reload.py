"""Another policy while circuits and streams are there: kept, drained, built before the old ones break."""

from __future__ import annotations

import pytest

from circuitloom.model import Disconnected, Purpose
from circuitloom.policy.types import Adopt, Algorithm, Role, Slot, WhenNone
from circuitloom.pool.builder import MAX_PARALLEL_BUILDS
from unit.pool_driver import GIVE_BACK, TAKE_OVER, Driver, balancing, built, created, opened, policy_of

ONLY = policy_of("only")
FIXED = ("A" * 40, "B" * 40, "C" * 40)
STANDBY = policy_of("primary", Slot("standby", role=Role.BACKUP))


def test_a_reload_of_the_same_policy_does_nothing() -> None:
    driver = balancing()

    assert driver.reload(policy_of("primary", "backup", min_active=2)) == []
    assert driver.said == []


def test_a_new_name_is_built_and_the_others_stay() -> None:
    driver = balancing()

    assert driver.reload(policy_of("third", "primary", "backup", min_active=2)) == ["EXTENDCIRCUIT 0; third"]
    assert driver.states() == {"third": "building", "primary": "built", "backup": "built"}


def test_a_name_that_is_gone_takes_no_more_streams_and_closes_when_empty() -> None:
    driver = balancing(policy_of("keep", "drop"))
    driver.tell(*opened(1), *opened(2), "STREAM 2 SENTCONNECT 31 a:80")

    assert driver.reload(policy_of("keep")) == []
    assert driver.states() == {"keep": "built", "drop": "draining"}
    assert driver.circuit("drop").age_seconds == 0
    assert driver.tell(*opened(3)) == ["ATTACHSTREAM 3 30; keep"]
    assert driver.tell("STREAM 2 CLOSED 31 a:80 REASON=DONE") == ["CLOSECIRCUIT 31 IfUnused"]
    assert driver.tell("CIRC 31 CLOSED REASON=REQUESTED") == []
    assert driver.said == ["info: circuit drop (31) closed (REQUESTED)"]
    assert driver.states() == {"keep": "built"}


def test_a_name_that_is_gone_and_idle_is_closed_at_once() -> None:
    assert balancing(policy_of("keep", "drop")).reload(policy_of("keep")) == ["CLOSECIRCUIT 31 IfUnused"]


def test_the_old_circuits_serve_until_the_new_ones_are_built() -> None:
    driver = balancing(policy_of("old"))
    driver.now += 60

    assert driver.reload(policy_of("new")) == ["EXTENDCIRCUIT 0; new"]
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 30; old"]
    driver.reply_to_build("250 EXTENDED 31")
    assert driver.tell(f"CIRC {built(31)}") == []
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 31; new"]
    assert driver.tell("STREAM 1 CLOSED 30 a:80 REASON=DONE") == ["CLOSECIRCUIT 30 IfUnused"]


def test_an_old_circuit_that_dies_before_its_successor_is_not_built_again() -> None:
    driver = balancing(policy_of("old"))
    driver.reload(policy_of("new"))
    driver.now += 60

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == [GIVE_BACK]
    assert driver.said[0] == "info: circuit old (30) closed (FINISHED)"
    assert driver.states() == {"new": "building"}


def test_a_name_that_comes_back_while_its_circuit_still_serves_keeps_it() -> None:
    driver = balancing(policy_of("old"))
    driver.reload(policy_of("new"))

    assert driver.reload(policy_of("old")) == []
    assert driver.reply_to_build("250 EXTENDED 31") == ["CLOSECIRCUIT 31 IfUnused"]
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 30; old"]


@pytest.mark.parametrize("is_same", [True, False])
def test_a_circuit_under_way_when_the_connection_was_lost_does_not_stay_in_tor(is_same: bool) -> None:
    """Of purpose controller Tor would keep it, unused, for good; an id alone may be somebody else's."""
    driver = Driver(policy_of("only", purpose=Purpose.CONTROLLER))
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")
    driver.tell(f"CIRC 30 LAUNCHED PURPOSE=CONTROLLER {created(30)}")
    driver.give(Disconnected())

    line = built(30, Purpose.CONTROLLER).replace(created(30), created(30 if is_same else 31))
    commands = driver.connect(circuits=line)

    closes = ["CLOSECIRCUIT 30 IfUnused"] if is_same else []
    assert commands == [*closes, "EXTENDCIRCUIT 0 purpose=controller; only"]


def test_a_draining_circuit_found_empty_after_a_reconnect_is_closed() -> None:
    driver = balancing(policy_of("keep", "drop"))
    driver.tell(*opened(1), *opened(2))
    driver.reload(policy_of("keep"))
    driver.give(Disconnected())

    assert driver.connect(circuits=f"{built(30)}\n{built(31)}\n") == ["CLOSECIRCUIT 31 IfUnused", TAKE_OVER]


def test_another_path_is_built_before_the_old_one_is_left() -> None:
    driver = balancing(ONLY)
    fixed = ",".join(f"${fingerprint}" for fingerprint in FIXED)

    assert driver.reload(policy_of(Slot("only", path=FIXED))) == [f"EXTENDCIRCUIT 0 {fixed}; only"]
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 30; only"]
    driver.reply_to_build("250 EXTENDED 31")
    assert driver.tell(f"CIRC {built(31)}") == []
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 31; only"]
    assert [circuit.state for circuit in driver.snapshot().circuits] == ["built", "draining"]


def test_another_path_for_a_circuit_under_way_starts_over() -> None:
    driver = Driver()
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")
    fixed = ",".join(f"${fingerprint}" for fingerprint in FIXED)

    assert driver.reload(policy_of(Slot("primary", path=FIXED), "backup")) == [
        "CLOSECIRCUIT 30 IfUnused",
        f"EXTENDCIRCUIT 0 {fixed}; primary",
    ]


def test_a_circuit_whose_turn_has_not_come_and_that_others_have_to_build_now_is_not_built() -> None:
    names = [f"n{number}" for number in range(MAX_PARALLEL_BUILDS + 1)]
    driver = Driver(policy_of(*names))
    assert len(driver.connect()) == MAX_PARALLEL_BUILDS

    driver.reload(policy_of(*names[:-1], Slot(names[-1], adopt=Adopt())))

    commands = driver.build(*range(30, 30 + MAX_PARALLEL_BUILDS))
    assert [command for command in commands if command.startswith("EXTENDCIRCUIT")] == []


def test_the_outdated_circuit_s_end_does_not_start_a_second_build() -> None:
    driver = balancing(ONLY)
    driver.reload(policy_of(Slot("only", path=FIXED)))
    driver.now += 60

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == [GIVE_BACK]


def test_builds_of_names_that_are_gone_are_abandoned() -> None:
    driver = Driver(policy_of("a", "b", "c"))
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")

    assert driver.reload(policy_of("c")) == ["CLOSECIRCUIT 30 IfUnused"]
    assert driver.reply_to_build("250 EXTENDED 31") == ["CLOSECIRCUIT 31 IfUnused"]
    assert driver.tell(f"CIRC {built(30)}") == []
    assert driver.states() == {"c": "building"}


def test_a_wait_before_a_build_outlives_a_reload() -> None:
    driver = Driver(ONLY)
    driver.connect()
    driver.reply_to_build("551 Couldn't start circuit")

    assert driver.reload(policy_of("only", when_none=WhenNone.HOLD)) == []
    assert driver.wait(1) == ["EXTENDCIRCUIT 0; only"]


def test_the_deadlines_of_a_name_that_is_gone_are_void() -> None:
    driver = Driver(policy_of("gone", "stays"))
    driver.connect()
    driver.reply_to_build("551 Couldn't start circuit")
    driver.reload(policy_of("stays"))

    assert driver.pool.next_deadline() is None


def test_a_void_deadline_behind_a_due_one_is_passed_over() -> None:
    driver = Driver(policy_of("stays", "gone"))
    driver.connect()
    driver.reply_to_build("551 Couldn't start circuit")
    driver.now += 0.5
    driver.reply_to_build("551 Couldn't start circuit")
    driver.reload(policy_of("stays"))

    assert driver.wait(2) == ["EXTENDCIRCUIT 0; stays"]


def test_weights_and_limits_of_a_reload_count_from_the_next_stream_on() -> None:
    driver = balancing(policy_of("a", "b"))
    driver.tell(*opened(1), *opened(2))
    driver.reload(
        policy_of(Slot("a", weight=3), Slot("b", max_streams=1), algorithm=Algorithm.WEIGHTED_ROUND_ROBIN)
    )

    assert driver.tell(*opened(3), *opened(4)) == ["ATTACHSTREAM 3 30; a", "ATTACHSTREAM 4 30; a"]
    assert [round(circuit.weight_share, 2) for circuit in driver.snapshot().circuits] == [0.75, 0.25]
    assert [round(circuit.share, 2) for circuit in driver.snapshot().circuits] == [0.75, 0.25]


def test_a_backup_that_becomes_active_serves_at_once() -> None:
    driver = balancing(STANDBY)
    driver.reload(policy_of("primary", "standby"))

    assert driver.tell(*opened(1), *opened(2)) == ["ATTACHSTREAM 1 30; primary", "ATTACHSTREAM 2 31; standby"]
