"""Circuits of purpose controller: what they refuse, and streams that move before Tor gives them up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitloom.model import Purpose
from circuitloom.policy.types import Policy, Retry, Slot
from unit.pool_driver import Driver, balancing, closed, detached, isolating, opened, policy_of, sent

NO_RESOLVE = "only Tor's own circuits resolve names under purpose controller"


def moving(*slots: str | Slot, seconds: float | None = 3.0, retry: Retry | None = None) -> Policy:
    """A policy under which streams may move."""
    return policy_of(
        *(slots or ("one", "two", "three")),
        purpose=Purpose.CONTROLLER,
        redispatch_seconds=seconds,
        retry=retry,
    )


def resolving(stream_id: int) -> tuple[str, str]:
    new, waits = opened(stream_id, purpose="DNS_REQUEST")
    return new.replace(" NEW ", " NEWRESOLVE "), waits


# --- the purpose -------------------------------------------------------------------------------------------


def test_circuits_are_asked_for_with_their_purpose() -> None:
    assert Driver(moving()).connect()[0] == "EXTENDCIRCUIT 0 purpose=controller; one"


def test_a_name_is_never_resolved_on_a_controller_circuit() -> None:
    assert balancing(moving()).tell(*resolving(1)) == [f"ATTACHSTREAM 1 0; {NO_RESOLVE}"]


def test_a_name_is_resolved_on_a_general_circuit() -> None:
    assert balancing(policy_of("one", "two")).tell(*resolving(1)) == ["ATTACHSTREAM 1 30; one"]


def test_a_circuit_that_was_built_for_a_controller_resolves_nothing_after_a_reload_either() -> None:
    driver = balancing(moving("one", seconds=None))
    driver.reload(policy_of("one"))

    assert driver.tell(*resolving(1)) == [f"ATTACHSTREAM 1 0; {NO_RESOLVE}"]
    assert driver.build(31) == ["CLOSECIRCUIT 30 IfUnused"]
    assert driver.tell(*resolving(2)) == ["ATTACHSTREAM 2 31; one"]


def test_a_stream_whose_beginning_nobody_saw_may_resolve_for_all_we_know() -> None:
    _, waits = opened(7)

    assert balancing(moving()).tell(waits) == [f"ATTACHSTREAM 7 0; {NO_RESOLVE}"]


def test_a_resolve_that_waited_before_we_came_is_left_to_tor() -> None:
    driver = Driver(moving("one"))
    driver.connect()
    driver.build(30)

    driver.tell("CIRC_MINOR 30 PURPOSE_CHANGED PURPOSE=CONTROLLER OLD_PURPOSE=GENERAL")
    assert (
        driver.connect(
            circuits="30 BUILT $" + "A" * 40 + "~alpha,$" + "B" * 40 + "~beta,$" + "C" * 40 + "~gamma "
            "PURPOSE=CONTROLLER TIME_CREATED=2026-11-22T11:00:00.000030",
            streams="5 NEWRESOLVE 0 example.com:0",
            option="1",
        )[-1]
        == f"ATTACHSTREAM 5 0; {NO_RESOLVE}"
    )


def test_another_controller_s_change_of_purpose_is_seen() -> None:
    driver = balancing(policy_of("one"))
    driver.tell("CIRC_MINOR 30 PURPOSE_CHANGED PURPOSE=CONTROLLER OLD_PURPOSE=GENERAL")

    assert driver.tell(*resolving(1)) == [f"ATTACHSTREAM 1 0; {NO_RESOLVE}"]


# --- moving ------------------------------------------------------------------------------------------------


def test_an_unanswered_stream_moves_in_time() -> None:
    driver = balancing(moving())
    assert driver.tell(*opened(1), sent(1, 30)) == ["ATTACHSTREAM 1 30; one"]

    assert driver.wait(2.9) == []
    assert driver.wait(0.1) == ["ATTACHSTREAM 1 31; two"]
    # What Tor tells of the move is no news.
    assert driver.tell("STREAM 1 CONTROLLER_WAIT 0 example.com:80", sent(1, 31)) == []
    assert driver.circuit("one").failed_total == 1
    assert driver.circuit("two").streams == 1


def test_it_moves_again_as_often_as_the_policy_retries_and_then_stays() -> None:
    driver = balancing(moving("a", "b", "c", "d", retry=Retry(2)))
    driver.tell(*opened(1))

    assert driver.wait(3) == ["ATTACHSTREAM 1 31; b"]
    assert driver.wait(3) == ["ATTACHSTREAM 1 32; c"]
    assert driver.wait(3) == []
    assert driver.pool.next_deadline() is None


@pytest.mark.parametrize("answer", ["STREAM 1 SUCCEEDED 30 example.com:80", closed(1)])
def test_an_answered_stream_stays(answer: str) -> None:
    driver = balancing(moving())
    driver.tell(*opened(1), sent(1, 30), answer)

    assert driver.pool.next_deadline() is None
    assert driver.wait(3) == []


def test_a_stream_with_nowhere_to_go_stays_until_tor_detaches_it() -> None:
    driver = balancing(moving("only"))
    driver.tell(*opened(1))

    assert driver.wait(3) == []


def test_beyond_the_budget_streams_stay() -> None:
    driver = balancing(moving(retry=Retry(2, 0.0)))
    for stream_id in range(1, 6):
        driver.tell(*opened(stream_id))

    assert len(driver.wait(3)) == 3


def test_nothing_moves_on_general_circuits_or_without_being_asked_to() -> None:
    for policy in (policy_of("one", "two"), moving(seconds=None)):
        driver = balancing(policy)
        driver.tell(*opened(1))

        assert driver.wait(9) == []


def test_a_stream_never_moves_to_a_general_circuit() -> None:
    driver = balancing(policy_of("one"))
    driver.reload(moving("one", "two"))
    driver.build(31, 32)
    driver.tell("CIRC_MINOR 32 PURPOSE_CHANGED PURPOSE=GENERAL OLD_PURPOSE=CONTROLLER")
    commands = driver.tell(*opened(1), *opened(2))
    assert commands == ["ATTACHSTREAM 1 31; one", "ATTACHSTREAM 2 32; two"]

    # From the controller circuit it could only go to the general one; from there it may not go.
    assert driver.wait(3) == []


def test_a_stream_stays_on_a_circuit_that_was_made_a_general_one_meanwhile() -> None:
    driver = balancing(moving())
    driver.tell(*opened(1), "CIRC_MINOR 30 PURPOSE_CHANGED PURPOSE=GENERAL OLD_PURPOSE=CONTROLLER")

    assert driver.wait(3) == []


def test_a_reload_that_ends_redispatch_ends_it_for_streams_under_way() -> None:
    driver = balancing(moving())
    driver.tell(*opened(1))
    driver.reload(moving(seconds=None))

    assert driver.wait(3) == []


def test_a_move_that_tor_refuses_because_the_stream_was_answered_is_forgotten() -> None:
    driver = balancing(moving())
    driver.tell(*opened(1), sent(1, 30))
    driver.wait(3)

    assert driver.refuse_attach(1, 31, "555 Connection is not managed by controller.") == []
    assert driver.tell("STREAM 1 SUCCEEDED 30 example.com:80") == []
    assert driver.circuit("one").streams == 1
    assert driver.circuit("two").streams == 0


def test_an_answer_on_the_way_when_the_stream_moved_is_believed() -> None:
    driver = balancing(moving())
    driver.tell(*opened(1), sent(1, 30))
    driver.wait(3)

    assert driver.tell("STREAM 1 SUCCEEDED 30 example.com:80") == []
    assert driver.refuse_attach(1, 31, "555 Connection is not managed by controller.") == []
    assert driver.circuit("one").streams == 1


def test_a_detachment_told_after_the_move_does_not_move_it_once_more() -> None:
    driver = balancing(moving())
    driver.tell(*opened(1), sent(1, 30))
    driver.wait(3)
    _, is_detached, waits = detached(1, 30, "TIMEOUT")

    assert driver.tell(is_detached, waits, sent(1, 31)) == []
    assert driver.circuit("two").streams == 1


def test_a_stream_keeps_to_the_circuits_of_its_key() -> None:
    policy = moving("one", "two")
    balance = replace(isolating("one", "two").balance, purpose=Purpose.CONTROLLER)
    driver = balancing(replace(policy, balance=balance))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    assert driver.build(32, 33) == ["ATTACHSTREAM 2 32; one"]

    assert driver.wait(3) == ["ATTACHSTREAM 1 31; two", "ATTACHSTREAM 2 33; two"]
