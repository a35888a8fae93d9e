"""What the pool tells its chooser: order, connect times, and what streams stick by."""

from __future__ import annotations

import dataclasses

import pytest

from circuitloom.model import CircuitId as Id
from circuitloom.model import Purpose, StreamEvent, StreamId, StreamStatus
from circuitloom.policy.types import Algorithm, Policy, Slot, StickyBy
from circuitloom.pool.choosing import sticky_value
from unit.pool_driver import balancing, closed, detached, opened, policy_of, sent


def sticking(by: StickyBy, *slots: str) -> Policy:
    policy = policy_of(*slots)
    return dataclasses.replace(policy, balance=dataclasses.replace(policy.balance, sticky=by))


def circuit_of(commands: list[str]) -> str:
    """The circuit that the only ATTACHSTREAM among the commands names."""
    (attach,) = [command for command in commands if command.startswith("ATTACHSTREAM")]
    return attach.split()[2].rstrip(";")


def test_first_fills_a_circuit_and_then_the_next_in_the_policys_order() -> None:
    driver = balancing(policy_of(Slot("one", max_streams=2), Slot("two"), algorithm=Algorithm.FIRST))

    circuits = [circuit_of(driver.tell(*opened(stream))) for stream in (1, 2, 3)]
    driver.tell(closed(1))

    assert circuits == ["30", "30", "31"]
    assert circuit_of(driver.tell(*opened(4))) == "30"


def test_power_of_two_avoids_the_circuit_that_connects_slowly() -> None:
    driver = balancing(policy_of("one", "two", algorithm=Algorithm.POWER_OF_TWO))
    # Each gets one while nobody has measured it.
    slow, fast = (circuit_of(driver.tell(*opened(stream))) for stream in (1, 2))
    driver.now += 0.1
    driver.tell(f"STREAM 2 SUCCEEDED {fast} example.com:80")
    driver.now += 1.9
    driver.tell(f"STREAM 1 SUCCEEDED {slow} example.com:80")
    taken = [circuit_of(driver.tell(*opened(stream))) for stream in range(3, 9)]

    assert slow != fast
    assert taken == [fast] * 6


def test_power_of_two_avoids_the_circuit_that_did_not_answer() -> None:
    driver = balancing(policy_of("one", "two", algorithm=Algorithm.POWER_OF_TWO))
    silent, good = (circuit_of(driver.tell(*opened(stream))) for stream in (1, 2))
    driver.tell(f"STREAM 2 SUCCEEDED {good} example.com:80")
    driver.now += 10
    assert circuit_of(driver.tell(*detached(1, int(silent), "TIMEOUT"))) == good
    driver.tell(f"STREAM 1 SUCCEEDED {good} example.com:80")

    assert [circuit_of(driver.tell(*opened(stream))) for stream in range(3, 9)] == [good] * 6


def test_streams_to_one_destination_stick_to_one_circuit_and_to_its_successor() -> None:
    driver = balancing(sticking(StickyBy.DESTINATION, "a", "b", "c", "d"))
    homes = {
        host: circuit_of(driver.tell(*opened(n, f"{host}.example:80"))) for n, host in enumerate("klmn", 1)
    }
    again = {
        host: circuit_of(driver.tell(*opened(n, f"{host}.example:80"))) for n, host in enumerate("klmn", 11)
    }
    driver.tell(f"CIRC {homes['k']} CLOSED REASON=FINISHED")
    during = {
        host: circuit_of(driver.tell(*opened(n, f"{host}.example:80"))) for n, host in enumerate("klmn", 21)
    }

    assert homes == again
    assert {host for host in homes if homes[host] != during[host]} == {
        host for host in homes if homes[host] == homes["k"]
    }
    driver.now += 60
    driver.wait(0)
    driver.build(40)
    assert circuit_of(driver.tell(*opened(31, "k.example:80"))) == "40"


def test_a_successor_takes_the_place_of_a_candidate_that_still_serves() -> None:
    driver = balancing(policy_of("one", "two", algorithm=Algorithm.FIRST))
    driver.tell("SIGNAL NEWNYM")
    driver.build(40, 41)

    assert circuit_of(driver.tell(*opened(1))) == "40"


def test_a_circuit_that_was_tried_is_not_chosen_but_its_successor_is() -> None:
    driver = balancing(policy_of("one", "two", algorithm=Algorithm.FIRST))
    driver.tell(*opened(1), sent(1, 30))

    assert circuit_of(driver.tell(*detached(1, 30)[1:])) == "31"


@pytest.mark.parametrize(
    ("by", "value"),
    [
        (StickyBy.NONE, None),
        (StickyBy.SOCKS_USER, "alice"),
        (StickyBy.DESTINATION, "example.com"),
        (StickyBy.SOURCE, "[::1]"),
    ],
)
def test_what_a_stream_sticks_by(by: StickyBy, value: str | None) -> None:
    keywords = {"SOCKS_USERNAME": "alice", "SOURCE_ADDR": "[::1]:4711"}
    event = StreamEvent(StreamId("1"), StreamStatus.NEW, Id("0"), "Example.COM:80", keywords)

    assert sticky_value(event, by) == value


@pytest.mark.parametrize("by", list(StickyBy))
def test_a_stream_without_it_sticks_to_nothing(by: StickyBy) -> None:
    assert sticky_value(StreamEvent(StreamId("1"), StreamStatus.NEW, Id("0")), by) is None


def test_sticky_values_are_not_shown() -> None:
    driver = balancing(sticking(StickyBy.DESTINATION, "a", "b"))
    driver.tell(*opened(1, "secret.example:80"))

    assert "secret" not in repr(driver.pool._attacher.streams)


def test_a_stream_that_moves_for_want_of_an_answer_counts_against_its_circuit() -> None:
    policy = policy_of(
        "one", "two", algorithm=Algorithm.POWER_OF_TWO, purpose=Purpose.CONTROLLER, redispatch_seconds=3.0
    )
    driver = balancing(policy)
    _, good = (circuit_of(driver.tell(*opened(stream))) for stream in (1, 2))
    driver.tell(f"STREAM 2 SUCCEEDED {good} example.com:80")
    assert circuit_of(driver.wait(3.1)) == good

    assert [circuit_of(driver.tell(*opened(stream))) for stream in range(3, 9)] == [good] * 6
