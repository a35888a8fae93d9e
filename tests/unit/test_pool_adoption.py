"""Circuits that another controller built: taken into a slot, followed, let go, and never closed by us."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitloom import wire
from circuitloom.model import CircuitAdopted, Disconnected, Order, Purpose, SignalReceived
from circuitloom.model import CircuitOrdered as Ordered
from circuitloom.policy.types import Adopt, Keys, Policy, Role, Slot, WhenFull
from circuitloom.pool.blame import FAULTY_TARGETS
from unit.pool_driver import (
    GIVE_BACK,
    PATH,
    TAKE_OVER,
    Driver,
    built,
    closed,
    created,
    detached,
    isolating,
    keys_of,
    opened,
    policy_of,
    sent,
)

PAID = Slot("paid", adopt=Adopt())
REBUILT = Slot("paid", adopt=Adopt(rebuild=True))
BESIDE = policy_of("own", PAID, min_active=2)
ALONE = policy_of(PAID)
NOT_REPLACED = "and the agent did not build it: it is not replaced"


def adopt(driver: Driver, line: str, streams: str = "", name: str = "paid") -> list[str]:
    """The operator adopts a circuit; ``line`` is its line of circuit-status."""
    (circuit,) = wire.parse_circuits(line)
    return driver.give(CircuitAdopted(name, circuit, wire.parse_streams(streams)))


def adopting(policy: Policy = BESIDE) -> Driver:
    """In charge, with the agent's own circuits from 30 on, and 70 adopted."""
    driver = Driver(policy)
    driver.build(*range(30, 30 + len(driver.connect())))
    adopt(driver, built(70))
    assert driver.circuit("paid").circuit_id == "70"
    return driver


def test_an_empty_slot_is_neither_built_nor_waited_for() -> None:
    driver = Driver(BESIDE)

    assert driver.connect() == ["EXTENDCIRCUIT 0; own"]
    assert driver.build(30) == [TAKE_OVER]
    assert driver.states() == {"own": "built", "paid": "idle"}
    assert driver.circuit("paid").is_adopted


def test_an_adopted_circuit_is_balanced_and_served_by_rounds() -> None:
    driver = adopting()

    assert driver.said == ["info: circuit paid (70) adopted: alpha, beta, gamma"]
    assert driver.circuit("paid").is_adopted
    assert not driver.circuit("own").is_adopted
    taken = [command for number in (1, 2, 3, 4) for command in driver.tell(*opened(number))]
    assert sorted(command.split("; ")[1] for command in taken) == ["own", "own", "paid", "paid"]
    assert str(driver.pool.built()["paid"].circuit_id) == "70"


def test_where_all_circuits_are_adopted_the_first_one_takes_over() -> None:
    driver = Driver(ALONE)

    assert driver.connect() == []
    assert adopt(driver, built(70)) == [TAKE_OVER]
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 70; paid"]


def test_a_backup_serves_until_a_circuit_is_adopted() -> None:
    driver = Driver(policy_of(PAID, Slot("spare", role=Role.BACKUP)))
    driver.build(*range(30, 30 + len(driver.connect())))

    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 30; spare"]
    adopt(driver, built(70))
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 70; paid"]


def test_its_end_is_reported_and_nothing_is_built() -> None:
    driver = adopting()

    assert driver.tell(f"CIRC 70 CLOSED {PATH} PURPOSE=GENERAL REASON=REQUESTED") == []
    assert driver.said == [f"info: circuit paid (70) closed (REQUESTED), {NOT_REPLACED}"]
    assert driver.states() == {"own": "built", "paid": "idle"}
    driver.wait(3600)
    assert driver.states()["paid"] == "idle"


def test_with_rebuild_the_agent_builds_the_next_one_itself() -> None:
    driver = adopting(policy_of("own", REBUILT))
    driver.wait(60)

    assert driver.tell(f"CIRC 70 CLOSED {PATH} PURPOSE=GENERAL REASON=REQUESTED") == ["EXTENDCIRCUIT 0; paid"]
    driver.build(31)
    assert not driver.circuit("paid").is_adopted
    assert driver.states() == {"own": "built", "paid": "built"}


def test_another_one_takes_its_place_before_it_drains_and_it_is_not_closed() -> None:
    driver = adopting(ALONE)
    driver.tell(*opened(1), sent(1, 70))

    assert adopt(driver, built(71)) == []
    assert [(c.circuit_id, c.state) for c in driver.snapshot().circuits] == [
        ("71", "built"),
        ("70", "draining"),
    ]
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 71; paid"]
    assert driver.tell(closed(1)) == []
    assert driver.said == ["info: circuit paid (70) is let go: who built it may close it"]
    assert [c.circuit_id for c in driver.snapshot().circuits] == ["71"]


def test_one_that_the_agent_built_meanwhile_drains_and_is_closed() -> None:
    driver = adopting(policy_of("own", REBUILT))
    driver.wait(60)
    driver.tell(f"CIRC 70 CLOSED {PATH} PURPOSE=GENERAL REASON=REQUESTED")
    driver.build(31)

    assert adopt(driver, built(72)) == ["CLOSECIRCUIT 31 IfUnused"]


def test_a_build_under_way_ends_when_a_circuit_is_adopted() -> None:
    driver = adopting(policy_of("own", REBUILT))
    driver.wait(60)
    driver.tell(f"CIRC 70 CLOSED {PATH} PURPOSE=GENERAL REASON=REQUESTED")
    driver.reply_to_build("250 EXTENDED 31")

    assert adopt(driver, built(72)) == ["CLOSECIRCUIT 31 IfUnused"]
    assert driver.circuit("paid").circuit_id == "72"


@pytest.mark.parametrize("policy", [policy_of("own"), policy_of("own", "paid")])
def test_a_reload_lets_it_go_and_does_not_close_it(policy: Policy) -> None:
    driver = adopting()
    commands = driver.reload(policy)
    commands += driver.build(*range(31, 31 + len(commands)))

    assert not [command for command in commands if command.startswith("CLOSECIRCUIT")]
    assert "70" not in {circuit.circuit_id for circuit in driver.snapshot().circuits}


def test_orders_to_close_or_replace_leave_it_alone_and_a_drain_holds() -> None:
    driver = adopting()

    assert driver.give(Ordered(Order.CLOSE, "paid")) == []
    stays = "info: circuit paid stays where another controller built it: that one may close it"
    assert driver.said == [stays]
    assert driver.give(Ordered(Order.ROTATE, "paid")) == []
    driver.give(Ordered(Order.DRAIN, "paid"))
    assert driver.circuit("paid").state == "drained"
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 30; own"]


def test_one_that_failed_a_stream_is_not_replaced_before_it_closes() -> None:
    driver = adopting(ALONE)
    driver.tell(*opened(1), *detached(1, 70))

    for _ in range(3):
        assert not [command for command in driver.wait(60) if command.startswith("EXTENDCIRCUIT")]
    assert driver.circuit("paid").circuit_id == "70"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (f"70 EXTENDED {PATH} PURPOSE=GENERAL", "it is EXTENDED: adopt it when it is BUILT"),
        (f"70 BUILT {PATH} PURPOSE=CONFLUX_LINKED", "its purpose is CONFLUX_LINKED: when one leg"),
        (f"70 BUILT {PATH} PURPOSE=HS_CLIENT_REND", "its purpose is HS_CLIENT_REND: it is for an onion"),
        (f"70 BUILT {PATH} PURPOSE=TESTING", "its purpose is TESTING: only GENERAL and CONTROLLER"),
        (f"70 BUILT ${'A' * 40}~alpha PURPOSE=GENERAL", "it has one hop"),
        (f"70 BUILT {PATH} BUILD_FLAGS=IS_INTERNAL,NEED_CAPACITY PURPOSE=GENERAL", "it is internal to Tor"),
        (built(30), "it is in the pool already, as own"),
    ],
)
def test_what_cannot_serve_is_refused_with_the_reason(line: str, why: str) -> None:
    driver = Driver(BESIDE)
    driver.connect()
    driver.build(30)
    number = line.partition(" ")[0]

    assert adopt(driver, line) == []
    assert len(driver.said) == 1
    assert driver.said[0].startswith(f"warning: circuit {number} is not adopted as paid: {why}")
    assert driver.states()["paid"] == "idle"


@pytest.mark.parametrize(
    ("name", "why"), [("own", "the agent builds this circuit itself"), ("other", "the policy names no such")]
)
def test_a_slot_that_is_not_for_it_is_refused(name: str, why: str) -> None:
    driver = Driver(BESIDE)
    driver.connect()
    adopt(driver, built(70), name=name)

    assert why in driver.said[0]


def test_nothing_is_adopted_without_a_connection() -> None:
    driver = adopting()
    driver.give(Disconnected())
    adopt(driver, built(71))

    assert "not connected to Tor" in driver.said[0]


def test_a_controller_circuit_may_be_adopted() -> None:
    driver = Driver(BESIDE)
    driver.connect()
    adopt(driver, built(70, Purpose.CONTROLLER))

    assert driver.states()["paid"] == "built"


def test_streams_that_are_on_it_already_are_counted() -> None:
    driver = Driver(BESIDE)
    driver.connect()
    driver.tell(*opened(8), sent(8, 70))
    driver.build(30)
    driver.tell(*opened(6))
    streams = (
        "7 SUCCEEDED 70 example.com:80\n8 SUCCEEDED 70 example.com:80\n9 SENTCONNECT 70 example.com:80\n"
        "10 SUCCEEDED 30 example.com:80\n11 DETACHED 70 example.com:80"
    )
    adopt(driver, built(70), streams)

    assert driver.circuit("paid").streams == 3
    driver.tell(closed(7), closed(8), closed(9))
    assert driver.circuit("paid").streams == 0


def test_a_stream_that_waits_here_is_left_to_the_events() -> None:
    policy = policy_of(
        Slot("own", max_streams=1),
        Slot("paid", max_streams=1, adopt=Adopt()),
        when_full=WhenFull.QUEUE,
    )
    driver = Driver(policy)
    driver.build(*range(30, 30 + len(driver.connect())))
    driver.tell(*opened(1), *opened(2))

    # Another controller has attached stream 2; its SENTCONNECT is still to be read.
    adopt(driver, built(70), "2 SENTCONNECT 70 example.com:80")
    driver.tell(sent(2, 70))
    assert driver.circuit("paid").streams == 1


# --- keys ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "streams", "why"),
    [
        (built(70), "7 SUCCEEDED 70 example.com:80", "streams are on it"),
        (f'{built(70)} SOCKS_USERNAME="u"', "", "a SOCKS user has used it"),
    ],
)
def test_where_keys_are_kept_apart_a_used_circuit_is_refused(line: str, streams: str, why: str) -> None:
    driver = Driver(isolating("own", PAID))
    driver.connect()
    adopt(driver, line, streams)

    assert why in driver.said[0]
    assert driver.states()["paid"] == "idle"


def test_it_serves_the_first_key_only() -> None:
    driver = adopting(isolating(Slot("paid", adopt=Adopt()), keys=Keys(max_circuits=1)))

    assert driver.tell(*opened(1, user="alice")) == ["ATTACHSTREAM 1 70; paid"]
    # Bob's streams do not wait for what only another controller can build.
    assert driver.tell(*opened(2, user="bob")) == ["ATTACHSTREAM 2 0; no circuit is usable"]
    assert keys_of(driver) == [(0, "paid", "70", "built"), (1, "paid", None, "idle")]


def test_one_that_tor_gives_to_another_key_is_let_go() -> None:
    driver = adopting(isolating("own", PAID))
    driver.tell(*opened(1, user="alice"))
    commands = driver.tell(*opened(2, user="bob"), sent(2, 70), closed(2))

    assert not [command for command in commands if command.startswith("CLOSECIRCUIT 70")]
    assert "70" not in {circuit.circuit_id for circuit in driver.snapshot().circuits if circuit.key == 0}


def test_without_a_key_that_gets_streams_there_is_no_place() -> None:
    driver = Driver(isolating("own", PAID, keys=Keys(max_circuits=1)))
    driver.connect()
    driver.build(30)
    driver.tell(*opened(1, user="alice"))
    driver.give(SignalReceived("NEWNYM"))
    adopt(driver, built(70))

    assert "no key that still gets streams has such a circuit" in driver.said[0]


def test_with_some_slots_for_each_key_every_key_may_have_an_adopted_one() -> None:
    driver = Driver(isolating("a", "b", PAID, keys=Keys(slots_per_key=1)))
    driver.build(*range(30, 30 + len(driver.connect())))

    assert driver.states() == {"a": "built", "paid": "idle"}


def test_one_that_fails_for_several_destinations_is_not_the_agents_to_replace() -> None:
    driver = adopting(ALONE)
    commands = [
        command
        for number in range(FAULTY_TARGETS + 1)
        for command in driver.tell(*opened(number + 1, f"d{number}.example:80"), *detached(number + 1, 70))
    ]

    assert not [command for command in commands if command.startswith("EXTENDCIRCUIT")]
    assert driver.circuit("paid").circuit_id == "70"


# --- a new identity, and rotation --------------------------------------------------------------------------


def test_without_isolation_a_new_identity_leaves_it_until_another_is_adopted() -> None:
    driver = adopting()

    assert driver.tell("SIGNAL NEWNYM") == ["EXTENDCIRCUIT 0; own"]
    assert "info: circuit paid (70) serves on until another is adopted, or it closes" in driver.said
    driver.build(31)
    taken = [command for number in (1, 2) for command in driver.tell(*opened(number))]
    assert {command.split(" ", 2)[2] for command in taken} == {"31; own", "70; paid"}
    adopt(driver, built(71))
    assert driver.circuit("paid").circuit_id == "71"


def test_without_isolation_a_new_identity_replaces_one_that_the_agent_may_build() -> None:
    driver = adopting(policy_of("own", REBUILT, min_active=2))

    assert driver.tell("SIGNAL NEWNYM") == ["EXTENDCIRCUIT 0; own", "EXTENDCIRCUIT 0; paid"]
    assert driver.circuit("paid").circuit_id == "70"
    driver.build(31, 32)
    assert driver.circuit("paid").circuit_id == "32"


def test_where_keys_are_kept_apart_a_new_identity_lets_it_go() -> None:
    driver = adopting(isolating("own", PAID))
    driver.tell(*opened(1, user="alice"), sent(1, 70))
    driver.tell("SIGNAL NEWNYM")
    commands = driver.tell(closed(1))

    assert not [command for command in commands if command.startswith("CLOSECIRCUIT 70")]
    assert "70" not in {circuit.circuit_id for circuit in driver.snapshot().circuits}


def test_an_order_to_rotate_it_says_whose_it_is() -> None:
    driver = adopting()

    assert driver.give(Ordered(Order.ROTATE, "paid")) == []
    assert driver.said == ["info: circuit paid is another controller's to build: adopt one to replace it"]


# --- a new agent, a new Tor ---------------------------------------------------------------------------------


def next_agent(policy: Policy, before: Driver, line: str = built(70)) -> tuple[Driver, list[str]]:
    records = before.pool.records()
    driver = Driver(policy)
    return driver, driver.connect(circuits=line, records=tuple(r for r in records if r.name == "paid"))


def test_the_next_agent_takes_it_over_again() -> None:
    driver, commands = next_agent(ALONE, adopting(ALONE))

    assert commands == [TAKE_OVER]
    assert driver.circuit("paid").is_adopted
    assert driver.tell(f"CIRC 70 CLOSED {PATH} PURPOSE=GENERAL REASON=FINISHED") == [GIVE_BACK]
    assert NOT_REPLACED in driver.said[0]


def test_the_next_agent_never_closes_what_it_has_no_place_for() -> None:
    driver, commands = next_agent(policy_of("paid"), adopting(ALONE))

    assert commands == ["EXTENDCIRCUIT 0; paid"]
    assert driver.said == ["warning: circuit paid (70) is not taken over again: adopt it anew, or another"]


def test_a_circuit_of_ours_is_closed_where_only_adopted_ones_are_wanted() -> None:
    record = replace(adopting(ALONE).pool.records()[0], is_adopted=False)
    driver = Driver(ALONE)

    assert driver.connect(circuits=built(70), records=(record,)) == ["CLOSECIRCUIT 70 IfUnused"]


def test_it_is_kept_over_a_reconnect_and_reported_when_tor_has_it_no_more() -> None:
    driver = adopting(ALONE)
    driver.give(Disconnected())
    driver.connect(circuits=built(70))
    assert driver.circuit("paid").circuit_id == "70"
    driver.give(Disconnected())
    driver.connect(circuits=f"70 BUILT {PATH} PURPOSE=GENERAL {created(99)}")

    assert "info: circuit paid (70) is gone: Tor has it no more" in driver.said
    assert driver.states() == {"paid": "idle"}
