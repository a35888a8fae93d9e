"""Where streams go when circuits are full, when others move them, and when Tor refuses to attach."""

from __future__ import annotations

import pytest

from circuitloom.policy.types import Slot, WhenNone
from unit.pool_driver import GIVE_BACK, balancing, opened, policy_of

# --- limits ------------------------------------------------------------------------------------------------


def test_a_full_circuit_is_passed_over_until_a_stream_ends() -> None:
    driver = balancing(policy_of(Slot("small", max_streams=1), "large"))

    assert driver.tell(*opened(1), *opened(2), *opened(3)) == [
        "ATTACHSTREAM 1 30; small",
        "ATTACHSTREAM 2 31; large",
        "ATTACHSTREAM 3 31; large",
    ]
    driver.tell("STREAM 1 CLOSED 30 a:80 REASON=DONE")
    assert driver.tell(*opened(4), *opened(5)) == ["ATTACHSTREAM 4 31; large", "ATTACHSTREAM 5 30; small"]


def test_when_all_circuits_are_full_tor_takes_the_stream() -> None:
    driver = balancing(policy_of(Slot("small", max_streams=1)))

    assert driver.tell(*opened(1), *opened(2)) == [
        "ATTACHSTREAM 1 30; small",
        "ATTACHSTREAM 2 0; all circuits are full",
    ]


# --- Tor chooses, or another controller does ---------------------------------------------------------------


def test_a_released_stream_that_tor_puts_on_our_circuit_is_counted_there() -> None:
    driver = balancing(policy_of(Slot("small", max_streams=1)))
    driver.tell(*opened(1), *opened(2), "STREAM 2 SENTCONNECT 30 a:80")

    assert driver.circuit("small").streams == 2
    driver.tell("STREAM 2 SUCCEEDED 30 a:80", "STREAM 2 CLOSED 30 a:80 REASON=DONE")
    assert driver.circuit("small").streams == 1


def test_a_stream_that_another_controller_moves_is_counted_where_it_is() -> None:
    driver = balancing()
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 30 a:80")

    assert driver.tell("STREAM 1 CONTROLLER_WAIT 0 a:80", "STREAM 1 SENTCONNECT 31 a:80") == []
    assert [circuit.streams for circuit in driver.snapshot().circuits] == [0, 1]
    assert driver.tell("STREAM 1 SUCCEEDED 17 a:80") == []
    assert [circuit.streams for circuit in driver.snapshot().circuits] == [0, 0]


def test_a_stream_that_another_controller_attaches_waits_no_longer() -> None:
    driver = balancing(policy_of("only", when_none=WhenNone.HOLD))
    driver.tell("CIRC 30 CLOSED REASON=FINISHED", *opened(1))

    assert driver.tell("STREAM 1 SENTCONNECT 17 a:80") == []
    assert driver.snapshot().streams_waiting == 0


# --- refusals of ATTACHSTREAM ------------------------------------------------------------------------------


def test_a_stream_that_ended_meanwhile_is_forgotten() -> None:
    driver = balancing()
    driver.tell(*opened(1))

    assert driver.refuse_attach(1, 30, '552 Unknown stream "1"') == []
    assert driver.snapshot().streams_active == 0
    assert driver.circuit("primary").streams == 0
    assert driver.refuse_attach(1, 30, '552 Unknown stream "1"') == []


def test_a_circuit_that_closed_meanwhile_is_replaced_and_the_stream_goes_elsewhere() -> None:
    driver = balancing()
    driver.now += 60
    driver.tell(*opened(1))

    assert driver.refuse_attach(1, 30, '552 Unknown circuit "30"') == [
        "ATTACHSTREAM 1 31; backup",
        "EXTENDCIRCUIT 0; primary",
    ]
    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == []


def test_many_attaches_to_a_circuit_that_closed_are_told_once() -> None:
    driver = balancing()
    driver.now += 60
    driver.tell(*opened(1), *opened(2), *opened(3))

    driver.refuse_attach(1, 30, '552 Unknown circuit "30"')
    assert driver.said == ["info: circuit primary (30) closed (Tor attaches nothing to it), building another"]
    assert driver.refuse_attach(3, 30, '552 Unknown circuit "30"') == ["ATTACHSTREAM 3 31; backup"]
    assert driver.said == []


def test_a_circuit_that_tor_extends_is_of_no_more_use() -> None:
    driver = balancing()
    driver.now += 60
    driver.tell(*opened(1))

    assert driver.refuse_attach(1, 30, "551 Can't attach stream to non-open origin circuit") == [
        "ATTACHSTREAM 1 31; backup",
        "EXTENDCIRCUIT 0; primary",
    ]


def test_a_refusal_without_known_meaning_sends_the_stream_to_another_circuit() -> None:
    driver = balancing()
    driver.tell(*opened(1))

    assert driver.refuse_attach(1, 30, "551 Something new") == ["ATTACHSTREAM 1 31; backup"]
    assert driver.states() == {"primary": "built", "backup": "built"}


@pytest.mark.parametrize(
    "text", ["555 Connection is not managed by controller.", "551 Unable to attach stream"]
)
def test_a_stream_that_tor_handles_or_ended_is_left_alone(text: str) -> None:
    driver = balancing()
    driver.tell(*opened(1))

    assert driver.refuse_attach(1, 30, text) == []
    assert driver.circuit("primary").streams == 0


def test_a_refusal_for_a_circuit_that_the_stream_has_left_is_old_news() -> None:
    driver = balancing()
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 31 a:80")

    assert driver.refuse_attach(1, 30, '552 Unknown circuit "30"') == []
    assert driver.states() == {"primary": "built", "backup": "built"}
    driver.tell("STREAM 1 DETACHED 31 a:80 REASON=TIMEOUT")
    assert driver.refuse_attach(1, 30, '552 Unknown circuit "30"') == []


def test_a_refused_release_is_told_unless_tor_serves_the_stream_already() -> None:
    driver = balancing()
    driver.tell(*opened(1, "example.onion:80"))

    assert driver.refuse_attach(1, 0, "555 Connection is not managed by controller.") == []
    assert driver.said == []
    assert driver.refuse_attach(1, 0, "551 Unable to attach stream") == []
    assert driver.said == ["warning: Tor does not take stream 1 back"]


def test_the_last_circuit_refused_sends_the_stream_back_to_tor() -> None:
    driver = balancing(policy_of("only"))
    driver.tell(*opened(1))

    assert driver.refuse_attach(1, 30, '552 Unknown circuit "30"') == [
        "ATTACHSTREAM 1 0; no circuit is usable",
        GIVE_BACK,
    ]
