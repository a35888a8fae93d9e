"""Streams that a circuit could not connect: tried elsewhere, within bounds; what becomes of the circuit."""

from __future__ import annotations

import pytest

from circuitloom.policy.types import Retry, Slot, WhenExhausted, WhenNone
from unit.pool_driver import Driver, balancing, built, closed, detached, isolating, opened, policy_of, sent

FOUR = ("a", "b", "c", "d")


def tried(attempts: int, exhausted: WhenExhausted = WhenExhausted.TOR) -> list[str]:
    """The commands for one stream that no circuit connects."""
    driver = balancing(policy_of(*FOUR, retry=Retry(attempts, exhausted=exhausted)))
    commands = driver.tell(*opened(1))
    for circuit_id in range(30, 31 + attempts):
        commands += driver.tell(*detached(1, circuit_id, "END REMOTE_REASON=EXITPOLICY"))
    return commands


# --- attempts ----------------------------------------------------------------------------------------------


def test_no_attempt_more_leaves_the_stream_to_tor_at_once() -> None:
    assert tried(0) == ["ATTACHSTREAM 1 30; a", "ATTACHSTREAM 1 0; failed on 1 circuits"]


def test_a_stream_is_attached_again_as_often_as_the_policy_says() -> None:
    assert tried(2) == [
        "ATTACHSTREAM 1 30; a",
        "ATTACHSTREAM 1 31; b",
        "ATTACHSTREAM 1 32; c",
        "ATTACHSTREAM 1 0; failed on 3 circuits",
    ]


def test_an_exhausted_stream_is_closed_when_the_policy_says_so() -> None:
    assert tried(1, WhenExhausted.CLOSE)[2:] == ["CLOSESTREAM 1 1; failed on 2 circuits"]


def test_a_refused_attach_is_no_attempt() -> None:
    driver = balancing(policy_of(*FOUR, retry=Retry(0)))
    driver.now += 60
    driver.tell(*opened(1))

    assert driver.refuse_attach(1, 30, '552 Unknown circuit "30"')[0] == "ATTACHSTREAM 1 31; b"


def test_a_stream_that_tor_could_not_connect_itself_is_a_retry_too() -> None:
    driver = balancing(policy_of(*FOUR, retry=Retry(1)))
    driver.tell(opened(1)[0])

    assert driver.tell(*detached(1, 17)) == ["ATTACHSTREAM 1 30; a"]
    assert driver.tell(*detached(1, 30)) == ["ATTACHSTREAM 1 0; failed on 2 circuits"]


def test_a_key_s_stream_is_tried_on_its_own_circuits_only() -> None:
    driver = balancing(isolating("one", "two"))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    driver.build(32, 33)
    driver.tell(sent(1, 30))

    assert driver.tell(*detached(1, 30)) == ["ATTACHSTREAM 1 31; two"]
    assert driver.tell(*detached(1, 31)) == ["ATTACHSTREAM 1 0; no other circuit can take it"]


# --- the budget --------------------------------------------------------------------------------------------


def burst(
    count: int, budget: float, exhausted: WhenExhausted = WhenExhausted.TOR
) -> tuple[Driver, list[str]]:
    """So many streams at once, each detached from its circuit; and what is done with them then."""
    driver = balancing(policy_of("one", "two", retry=Retry(2, budget, exhausted)))
    commands = [driver.tell(*opened(stream_id)) for stream_id in range(1, count + 1)]
    circuits = [int(command.split()[2].rstrip(";")) for (command,) in commands]
    again: list[str] = []
    for stream_id, circuit_id in enumerate(circuits, start=1):
        again += driver.tell(*detached(stream_id, circuit_id, "END REMOTE_REASON=EXITPOLICY"))
    return driver, again


def test_three_retries_are_always_allowed() -> None:
    _, commands = burst(4, budget=0.0)

    assert commands == [
        "ATTACHSTREAM 1 31; two",
        "ATTACHSTREAM 2 30; one",
        "ATTACHSTREAM 3 31; two",
        "ATTACHSTREAM 4 0; failed on 1 circuits",
    ]


def test_beyond_the_budget_streams_are_closed_when_the_policy_says_so() -> None:
    _, commands = burst(4, budget=0.0, exhausted=WhenExhausted.CLOSE)

    assert commands[3] == "CLOSESTREAM 4 1; failed on 1 circuits"


@pytest.mark.parametrize(("budget", "retried"), [(0.2, 8), (0.5, 20), (1.0, 40)])
def test_the_budget_is_a_part_of_the_unanswered_streams(budget: float, retried: int) -> None:
    _, commands = burst(40, budget)

    assert sum(" 0; " not in command for command in commands) == pytest.approx(retried, abs=1)


@pytest.mark.parametrize("end", ["STREAM 1 SUCCEEDED 31 example.com:80", closed(1), sent(1, 17)])
def test_an_answered_retry_makes_room_in_the_budget(end: str) -> None:
    driver, _ = burst(3, budget=0.0)
    driver.tell(*opened(4))
    driver.tell(*opened(5))
    assert driver.tell(*detached(4, 30)) == ["ATTACHSTREAM 4 0; failed on 1 circuits"]

    driver.tell(end)
    assert driver.tell(*detached(5, 31)) == ["ATTACHSTREAM 5 30; one"]


# --- condemned circuits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reason",
    ["TIMEOUT", "END REMOTE_REASON=MISC", "END REMOTE_REASON=RESOLVEFAILED", "END REMOTE_REASON=NOROUTE"],
)
def test_a_circuit_that_tor_will_close_is_replaced_before_it_is_missed(reason: str) -> None:
    driver = balancing(policy_of("one", "two"))
    driver.now += 60
    driver.tell(*opened(1))

    assert driver.tell(*detached(1, 30, reason)) == ["ATTACHSTREAM 1 31; two"]
    assert driver.wait(0) == ["EXTENDCIRCUIT 0; one"]
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 30; one"]
    assert driver.build(32) == []
    assert driver.tell(closed(2)) == ["CLOSECIRCUIT 30 IfUnused"]
    assert driver.tell(*opened(3), *opened(4)) == ["ATTACHSTREAM 3 31; two", "ATTACHSTREAM 4 32; one"]


@pytest.mark.parametrize("reason", ["END REMOTE_REASON=EXITPOLICY", "END REMOTE_REASON=HIBERNATING", "END"])
def test_a_circuit_that_tor_keeps_is_kept(reason: str) -> None:
    driver = balancing(policy_of("one", "two"))
    driver.now += 60
    driver.tell(*opened(1), *detached(1, 30, reason))

    assert driver.pool.next_deadline() is None


def test_a_fresh_circuit_rests_before_it_is_replaced() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.now += 4
    driver.tell(*opened(1), *detached(1, 30))

    assert driver.wait(5.9) == []
    assert driver.wait(0.1) == ["EXTENDCIRCUIT 0; one"]


def test_a_burst_of_failures_replaces_a_circuit_once() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.tell(*opened(1), *opened(2), *opened(3), *detached(1, 30))
    driver.now += 5
    driver.tell(*detached(3, 30))

    assert driver.wait(5) == ["EXTENDCIRCUIT 0; one"]
    driver.tell(*opened(4), *detached(4, 30))
    assert driver.wait(60) == []
    assert driver.build(32) == ["CLOSECIRCUIT 30 IfUnused"]


def test_a_condemned_circuit_that_tor_closes_first_is_replaced_at_once() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.tell(*opened(1), *detached(1, 30))
    driver.now += 5

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == ["EXTENDCIRCUIT 0; one"]
    assert driver.wait(5) == []


def test_a_circuit_that_drains_already_is_not_replaced() -> None:
    driver = balancing(policy_of("keep", "drop"))
    driver.tell(*opened(1), *opened(2), *opened(4), sent(2, 31), sent(4, 31))
    driver.reload(policy_of("keep", retry=Retry(0)))

    assert driver.tell(*detached(2, 31)) == ["ATTACHSTREAM 2 0; failed on 1 circuits"]
    assert driver.wait(60) == []


def test_a_circuit_whose_slot_a_reload_removed_is_not_replaced() -> None:
    driver = balancing(policy_of("old"))
    driver.tell(*opened(1))
    driver.reload(policy_of("new"))
    driver.reply_to_build("250 EXTENDED 31")

    driver.tell(*detached(1, 30))
    assert driver.wait(60) == []
    assert driver.tell(f"CIRC {built(31)}") == ["CLOSECIRCUIT 30 IfUnused"]


def test_a_condemned_circuit_s_slot_that_a_reload_removes_is_not_built() -> None:
    driver = balancing(policy_of("keep", Slot("drop")))
    driver.tell(*opened(1), *opened(2), *detached(2, 31))
    driver.reload(policy_of("keep"))

    assert driver.pool.next_deadline() is None


def test_tor_s_word_that_circuits_can_be_built_ends_a_condemned_circuit_s_rest() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.tell(*opened(1), *detached(1, 30))

    assert driver.tell("STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED") == ["EXTENDCIRCUIT 0; one"]


def test_a_stream_that_is_held_after_it_was_attached_does_not_end_with_its_first_wait() -> None:
    driver = balancing(isolating("only", when_none=WhenNone.HOLD))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    driver.build(31)
    driver.now += 2
    is_sent, is_detached, waits = detached(2, 31, "TIMEOUT")

    assert driver.tell(is_sent, is_detached, "CIRC 31 CLOSED", waits) == ["EXTENDCIRCUIT 0; only"]
    assert driver.wait(3) == []
    assert driver.build(32) == ["ATTACHSTREAM 2 32; only"]
