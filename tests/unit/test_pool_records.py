"""A new agent takes over what the one before left in Tor, and nothing that may be somebody else's."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitloom.model import Disconnected, Purpose, RecordedCircuit
from circuitloom.policy.types import Keys, Policy, Slot
from circuitloom.pool.isolation import ONE_FOR_ALL, IsolationKey
from circuitloom.pool.records import digest_of, key_left
from unit.pool_driver import Driver, balancing, built, isolating, keys_of, opened, policy_of

SECRET = b"c" * 32
BOTH = f"{built(30)}\n{built(31)}\n"
TWO = policy_of("one", "two", min_active=2)
ISOLATED = isolating("one", "two", min_active=2)


def left_by(policy: Policy, *users: str) -> tuple[RecordedCircuit, ...]:
    """What an agent writes down after a stream of each user on each circuit."""
    driver = Driver(policy)
    asked = len(driver.connect(secret=SECRET))
    driver.build(*range(30, 30 + asked))
    for number, user in enumerate(users):
        for circuit in range(asked):
            driver.tell(*opened(100 + 10 * number + circuit, user=user))
    return driver.pool.records()


def restart(
    policy: Policy, records: tuple[RecordedCircuit, ...], circuits: str = BOTH
) -> tuple[Driver, list[str]]:
    driver = Driver(policy)
    return driver, driver.connect(circuits=circuits, records=records, secret=SECRET)


def controlled(policy: Policy) -> Policy:
    """The same with circuits of purpose controller, which Tor does not use itself."""
    slots = tuple(replace(slot, purpose=Purpose.CONTROLLER) for slot in policy.slots)
    return replace(policy, slots=slots, balance=replace(policy.balance, purpose=Purpose.CONTROLLER))


def test_what_is_written_down_names_each_circuit_and_its_key() -> None:
    records = left_by(ISOLATED, "alice")

    assert [(record.name, record.circuit_id, record.is_used) for record in records] == [
        ("one", "30", True),
        ("two", "31", True),
    ]
    assert records[0].path == ("A" * 40, "B" * 40, "C" * 40)
    assert records[0].key == records[1].key
    assert "alice" not in repr(records)


def test_a_key_is_not_written_down_without_a_secret() -> None:
    driver = balancing(ISOLATED)
    driver.tell(*opened(1, user="alice"))

    assert driver.pool.records() == ()


def test_one_key_for_all_needs_no_secret() -> None:
    driver = balancing(TWO)
    driver.tell(*opened(1))

    assert [record.key for record in driver.pool.records()] == ["all", "all"]


def test_a_new_agent_balances_at_once_over_the_circuits_of_the_old_one() -> None:
    driver, commands = restart(TWO, left_by(TWO, "alice"))

    assert commands == ["SETCONF __LeaveStreamsUnattached=1"]
    assert driver.tell(*opened(1), *opened(2)) == ["ATTACHSTREAM 1 30; one", "ATTACHSTREAM 2 31; two"]


def test_the_same_user_gets_the_same_circuits_again() -> None:
    driver, commands = restart(ISOLATED, left_by(ISOLATED, "alice"))

    assert commands == ["SETCONF __LeaveStreamsUnattached=1"]
    assert driver.tell(*opened(1, user="alice")) == ["ATTACHSTREAM 1 30; one"]
    assert [(name, circuit) for _, name, circuit, _ in keys_of(driver)] == [("one", "30"), ("two", "31")]


def test_another_user_gets_circuits_of_its_own() -> None:
    driver, _ = restart(ISOLATED, left_by(ISOLATED, "alice"))

    assert driver.tell(*opened(1, user="bob")) == ["EXTENDCIRCUIT 0; one", "EXTENDCIRCUIT 0; two"]
    assert driver.tell(*opened(2, user="alice")) == ["ATTACHSTREAM 2 30; one"]


def test_two_users_get_each_their_own_again() -> None:
    first = Driver(ISOLATED)
    first.connect(secret=SECRET)
    first.build(30, 31)
    first.tell(*opened(1, user="alice"), *opened(2, user="alice"), *opened(3, user="bob"))
    first.build(32, 33)
    first.tell(*opened(4, user="bob"))
    circuits = BOTH + f"{built(32)}\n{built(33)}\n"
    driver, _ = restart(ISOLATED, first.pool.records(), circuits)

    assert driver.tell(*opened(5, user="bob")) == ["ATTACHSTREAM 5 32; one"]
    assert driver.tell(*opened(6, user="alice")) == ["ATTACHSTREAM 6 30; one"]


def test_circuits_of_a_user_who_does_not_come_back_end_when_somebody_else_is_there() -> None:
    driver, _ = restart(ISOLATED, left_by(ISOLATED, "alice"))
    driver.tell(*opened(1, user="bob"))
    driver.build(32, 33)

    assert driver.wait(600) == ["CLOSECIRCUIT 30 IfUnused", "CLOSECIRCUIT 31 IfUnused"]


def test_streams_on_the_circuits_are_counted() -> None:
    driver = Driver(TWO)
    driver.connect(circuits=BOTH, streams="7 SUCCEEDED 30 a:80\n", records=left_by(TWO, "a"), secret=SECRET)

    assert driver.circuit("one").streams == 1


def test_a_general_circuit_that_was_never_used_may_have_been_by_tor() -> None:
    _, commands = restart(ISOLATED, left_by(ISOLATED))

    assert commands[:2] == ["CLOSECIRCUIT 30 IfUnused", "CLOSECIRCUIT 31 IfUnused"]


def test_a_controller_circuit_that_was_never_used_is_still_nobody_s() -> None:
    policy = controlled(ISOLATED)
    circuits = f"{built(30, Purpose.CONTROLLER)}\n{built(31, Purpose.CONTROLLER)}\n"
    driver, commands = restart(policy, left_by(policy), circuits)

    assert commands == ["SETCONF __LeaveStreamsUnattached=1"]
    assert driver.tell(*opened(1, user="bob")) == ["ATTACHSTREAM 1 30; one"]


def test_of_one_user_the_circuits_that_had_a_stream_and_those_that_had_none() -> None:
    policy = controlled(ISOLATED)
    first = Driver(policy)
    first.connect(secret=SECRET)
    first.build(30, 31)
    first.tell(*opened(1, user="alice"))
    circuits = f"{built(30, Purpose.CONTROLLER)}\n{built(31, Purpose.CONTROLLER)}\n"
    driver, _ = restart(policy, first.pool.records(), circuits)

    assert driver.tell(*opened(2, user="alice"), *opened(3, user="alice")) == [
        "ATTACHSTREAM 2 30; one",
        "ATTACHSTREAM 3 31; two",
    ]
    assert [record.is_used for record in driver.pool.records()] == [True, True]


def test_a_slot_without_circuit_is_not_written_down() -> None:
    driver = balancing(TWO)
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")

    assert [record.name for record in driver.pool.records()] == ["two"]


def test_a_key_none_of_whose_circuits_fit_the_policy_any_more_begins_anew() -> None:
    driver, commands = restart(isolating("other", min_active=1), left_by(ISOLATED, "alice"))

    assert commands == ["CLOSECIRCUIT 30 IfUnused", "CLOSECIRCUIT 31 IfUnused", "EXTENDCIRCUIT 0; other"]
    assert [name for _, name, *_ in keys_of(driver)] == ["other"]


def test_a_key_for_which_the_policy_of_now_has_no_room_is_not_taken_over() -> None:
    before = Driver(ISOLATED)
    before.connect(secret=SECRET)
    before.build(30, 31)
    before.tell(*(line for number in (1, 2) for line in opened(number, user="alice")), *opened(3, user="bob"))
    before.build(32, 33)
    before.tell(*opened(4, user="bob"), *opened(5, user="bob"))
    policy = isolating("one", "two", keys=Keys(max_circuits=2), min_active=2)
    driver, commands = restart(policy, before.pool.records(), BOTH + f"{built(32)}\n{built(33)}\n")

    assert commands[:2] == ["CLOSECIRCUIT 32 IfUnused", "CLOSECIRCUIT 33 IfUnused"]
    assert driver.tell(*opened(6, user="alice")) == ["ATTACHSTREAM 6 30; one"]


@pytest.mark.parametrize(
    "line",
    [
        "30 EXTENDED",
        built(30).replace("000030", "000099"),
        built(30).replace("B" * 40, "D" * 40),
        built(29),
    ],
)
def test_a_circuit_that_is_not_the_same_is_left_alone(line: str) -> None:
    _, commands = restart(TWO, left_by(TWO, "a"), f"{line}\n{built(31)}\n")

    assert commands == ["EXTENDCIRCUIT 0; one"]


@pytest.mark.parametrize(
    "policy",
    [
        policy_of("other", "two", min_active=2),
        policy_of(Slot("one", path=("A" * 40, "E" * 40)), "two", min_active=2),
    ],
)
def test_a_circuit_that_no_longer_fits_the_policy_is_closed_when_it_is_unused(policy: Policy) -> None:
    _, commands = restart(policy, left_by(TWO, "a"))

    assert commands[0] == "CLOSECIRCUIT 30 IfUnused"
    assert len(commands) == 2
    assert commands[1].startswith("EXTENDCIRCUIT 0")


def test_a_given_path_that_is_the_circuit_s_fits() -> None:
    path = ("A" * 40, "B" * 40, "C" * 40)
    _, commands = restart(policy_of(Slot("one", path=path), "two", min_active=2), left_by(TWO, "a"))

    assert commands == ["SETCONF __LeaveStreamsUnattached=1"]


def test_another_isolation_takes_nothing_over() -> None:
    for before, after in ((TWO, ISOLATED), (ISOLATED, TWO)):
        _, commands = restart(after, left_by(before, "alice"))

        assert commands[:2] == ["CLOSECIRCUIT 30 IfUnused", "CLOSECIRCUIT 31 IfUnused"]


def test_a_restart_of_tor_ends_what_only_a_hash_is_known_of() -> None:
    driver, _ = restart(ISOLATED, left_by(ISOLATED, "alice"))

    assert driver.connect(secret=b"d" * 32) == ["EXTENDCIRCUIT 0; one", "EXTENDCIRCUIT 0; two"]
    assert [key for key, *_ in keys_of(driver)] == [1, 1]


def test_what_was_taken_over_is_written_down_for_the_one_after_next() -> None:
    records = left_by(ISOLATED, "alice")
    driver, _ = restart(ISOLATED, records)

    assert driver.pool.records() == records


def test_a_key_whose_circuits_are_being_built_keeps_its_place_over_a_reconnect() -> None:
    driver = balancing(ISOLATED)
    driver.tell(*opened(1, user="alice"), "CIRC 30 CLOSED REASON=FINISHED", "CIRC 31 CLOSED REASON=FINISHED")
    driver.give(Disconnected())
    driver.connect()

    assert [key for key, *_ in keys_of(driver)] == [0, 0]


def test_a_key_of_which_nothing_is_left_in_tor_begins_anew() -> None:
    driver, commands = restart(
        ISOLATED, left_by(ISOLATED, "alice"), circuits=built(30).replace("B" * 40, "D" * 40)
    )

    assert commands == ["EXTENDCIRCUIT 0; one", "EXTENDCIRCUIT 0; two"]
    assert driver.tell(*opened(1, user="alice")) == ["ATTACHSTREAM 1 0; Tor assigns streams now"]


def test_one_slot_takes_one_circuit() -> None:
    first, second = left_by(TWO, "a")
    _, commands = restart(TWO, (first, replace(second, name="one")))

    assert commands == ["CLOSECIRCUIT 31 IfUnused", "EXTENDCIRCUIT 0; two"]


def test_digests_tell_keys_apart_and_hide_them() -> None:
    alice = IsolationKey(("SOCKS_USERNAME",), ("alice",))
    bob = IsolationKey(("SOCKS_USERNAME",), ("bob",))
    digest = digest_of(alice, SECRET)

    assert digest is not None
    assert "alice" not in digest
    assert digest not in {digest_of(bob, SECRET), digest_of(alice, b"another")}
    assert digest_of(key_left(digest), SECRET) == digest
    assert key_left("all") == ONE_FOR_ALL
