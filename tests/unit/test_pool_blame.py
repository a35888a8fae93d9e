"""Whose fault a failure is: dead destinations cost few circuits, faulty circuits are replaced."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from circuitloom.model import CircuitId
from circuitloom.policy.types import Match, Retry, Rule, Slot, WhenExhausted
from circuitloom.pool.blame import DEAD_CIRCUITS, FAULTY_TARGETS, MAX_SUSPECTS, SUSPECT_SECONDS, Blame
from circuitloom.pool.dispatch import MAX_FAILURES_OF_DEAD
from circuitloom.pool.slots import Circuit
from unit.pool_driver import Driver, balancing, closed, detached, opened, policy_of

MANY = tuple(f"c{number}" for number in range(8))


def fail(driver: Driver, stream_id: int, target: str) -> list[str]:
    """A stream to a destination that no circuit connects; returns the circuits it was attached to.

    Tor gives an address up at its third failure.
    """
    circuits: list[str] = []
    commands = driver.tell(*opened(stream_id, target))
    while commands and commands[0].split()[2] != "0;":
        circuits.append(commands[0].split()[2].rstrip(";"))
        if len(circuits) == 3:
            driver.tell(f"STREAM {stream_id} FAILED {circuits[-1]} {target} REASON=END REMOTE_REASON=MISC")
            break
        commands = driver.tell(*detached(stream_id, int(circuits[-1])))
    driver.tell(closed(stream_id))
    return circuits


def test_a_dead_destination_stays_on_circuits_that_it_has_cost_already_until_tor_gives_it_up() -> None:
    driver = balancing(policy_of(*MANY))

    assert fail(driver, 1, "dead.example:80") == ["30", "31", "32"]
    assert fail(driver, 2, "dead.example:80") == ["30", "30", "30"]
    assert fail(driver, 3, "dead.example:80") == ["30", "30", "30"]


def test_where_the_policy_closes_it_fails_at_once() -> None:
    driver = balancing(policy_of(*MANY, retry=Retry(exhausted=WhenExhausted.CLOSE)))
    fail(driver, 1, "dead.example:80")

    driver.tell(*opened(2, "dead.example:80"))
    assert driver.tell(*detached(2, 30)) == ["CLOSESTREAM 2 1; failed on 1 circuits"]


def test_what_tor_does_not_count_may_be_the_circuits_fault_and_is_left_to_tor() -> None:
    """Three exits that a destination drops without a word are not all exits."""
    driver = balancing(policy_of(*MANY))
    fail(driver, 1, "dead.example:80")

    driver.tell(*opened(2, "dead.example:80"))
    assert driver.tell(*detached(2, 30, "TIMEOUT")) == ["ATTACHSTREAM 2 0; failed on 1 circuits"]


def test_a_stream_that_tor_never_gives_up_is_its_in_the_end() -> None:
    driver = balancing(policy_of(*MANY))
    fail(driver, 1, "dead.example:80")
    commands = driver.tell(*opened(2, "dead.example:80"))

    failures = 0
    while commands == ["ATTACHSTREAM 2 30; c0"]:
        failures += 1
        commands = driver.tell(*detached(2, 30))

    assert failures == MAX_FAILURES_OF_DEAD
    assert commands == [f"ATTACHSTREAM 2 0; failed on {failures} circuits"]


def test_streams_of_dead_destinations_use_no_retries_up() -> None:
    driver = balancing(policy_of(*MANY, retry=Retry(attempts=2, budget=0.0)))
    fail(driver, 1, "dead.example:80")
    for stream_id in range(100, 150):
        driver.tell(*opened(stream_id, "dead.example:80"))
        assert driver.tell(*detached(stream_id, 30)) == [f"ATTACHSTREAM {stream_id} 30; c0"]

    command = driver.tell(*opened(2, "alive.example:80"))[0]
    (again,) = driver.tell(*detached(2, int(command.split()[2].rstrip(";"))))
    assert again.split()[2] != "0;"


def test_a_destination_that_tor_gives_up_fails_on_the_last_circuit_as_well() -> None:
    driver = balancing(policy_of(*MANY))
    driver.tell(*opened(1, "dead.example:80"), *detached(1, 30), *detached(1, 31))
    driver.tell("STREAM 1 FAILED 32 dead.example:80 REASON=END REMOTE_REASON=MISC", closed(1))

    assert fail(driver, 2, "dead.example:80") == ["30", "30", "30"]


def test_the_end_of_a_circuit_says_nothing_of_a_destination() -> None:
    driver = balancing(policy_of(*MANY))
    driver.tell(*opened(1, "alive.example:80"), *detached(1, 30), *detached(1, 31))
    driver.tell("STREAM 1 FAILED 32 alive.example:80 REASON=DESTROY", closed(1))

    assert fail(driver, 2, "alive.example:80")[0] == "33"


def test_other_destinations_keep_all_circuits() -> None:
    driver = balancing(policy_of(*MANY))
    fail(driver, 1, "dead.example:80")
    fail(driver, 2, "dead.example:80")

    taken = [driver.tell(*opened(stream_id, "alive.example:80"))[0] for stream_id in range(10, 18)]
    assert {command.split()[2] for command in taken} == {f"{number};" for number in range(30, 38)}


def test_a_dead_destination_goes_elsewhere_when_its_circuits_are_gone() -> None:
    driver = balancing(policy_of(*MANY))
    fail(driver, 1, "dead.example:80")
    for circuit_id in (30, 31, 32):
        driver.tell(f"CIRC {circuit_id} CLOSED REASON=FINISHED")

    assert fail(driver, 2, "dead.example:80") == ["33", "33", "33"]
    assert fail(driver, 3, "dead.example:80") == ["33", "33", "33"]


def test_a_destination_that_answers_is_acquitted() -> None:
    driver = balancing(policy_of(*MANY))
    fail(driver, 1, "flaky.example:80")
    driver.tell(*opened(2, "flaky.example:80"), "STREAM 2 SUCCEEDED 30 flaky.example:80")

    assert len(fail(driver, 3, "flaky.example:80")) == 3


def test_a_destination_is_forgiven_in_time() -> None:
    driver = balancing(policy_of(*MANY))
    fail(driver, 1, "dead.example:80")
    driver.now += SUSPECT_SECONDS

    assert len(fail(driver, 2, "dead.example:80")) == 3


def test_a_full_circuit_takes_no_dead_destination_either() -> None:
    driver = balancing(policy_of(*(Slot(name, max_streams=1) for name in MANY)))
    fail(driver, 1, "dead.example:80")
    driver.tell(*(line for number in range(10, 18) for line in opened(number)))

    assert driver.tell(*opened(2, "dead.example:80")) == ["ATTACHSTREAM 2 0; all circuits are full"]


def test_a_circuit_that_fails_for_several_destinations_is_replaced_at_once() -> None:
    driver = balancing(policy_of("one", retry=Retry(0)))
    for number in range(FAULTY_TARGETS - 1):
        driver.tell(*opened(number, f"{number}.example:80"), *detached(number, 30, "END"))
    assert driver.pool.next_deadline() is None

    driver.tell(*opened(9, "9.example:80"))
    is_sent, is_detached, waits = detached(9, 30, "END")
    assert driver.tell(is_sent, is_detached, waits) == [
        "EXTENDCIRCUIT 0; one",
        "ATTACHSTREAM 9 0; failed on 1 circuits",
    ]
    assert driver.build(31) == ["CLOSECIRCUIT 30 IfUnused"]


def test_one_success_acquits_a_circuit() -> None:
    driver = balancing(policy_of("one", retry=Retry(0)))
    for number in range(2 * FAULTY_TARGETS):
        driver.tell(*opened(number, f"{number}.example:80"), *detached(number, 30, "END"))
        driver.tell(*opened(99), "STREAM 99 SUCCEEDED 30 example.com:80", closed(99))

    assert driver.pool.next_deadline() is None


def test_an_exit_that_does_not_serve_a_port_is_nobody_s_fault() -> None:
    driver = balancing(policy_of("one", retry=Retry(0)))
    for number in range(2 * FAULTY_TARGETS):
        driver.tell(*opened(number, f"{number}.example:25"))
        driver.tell(*detached(number, 30, "END REMOTE_REASON=EXITPOLICY"))

    assert driver.pool.next_deadline() is None


@given(
    st.lists(
        st.tuples(
            st.integers(0, 5), st.integers(0, 5), st.booleans(), st.sampled_from([0.0, 1.0, SUSPECT_SECONDS])
        ),
        max_size=100,
    )
)
def test_what_is_held_against_anybody_is_bounded_and_true(
    history: list[tuple[int, int, bool, float]],
) -> None:
    slot_of = balancing(policy_of("one"))
    slot = next(iter(slot_of.pool._keys)).slots["one"]
    circuits = [Circuit(slot, number, 0.0, CircuitId(str(number))) for number in range(6)]
    blame, now = Blame(), 0.0
    failed: dict[str, set[str]] = {}
    for target_number, circuit_number, is_success, seconds in history:
        now += seconds
        target, circuit = f"{target_number}.example:80", circuits[circuit_number]
        if is_success:
            blame.succeed(target, circuit)
            failed.pop(target, None)
            assert not circuit.failed_targets
        else:
            is_faulty = blame.fail(target, circuit, now=now)
            failed.setdefault(target, set()).add(str(circuit_number))
            assert is_faulty == (len(circuit.failed_targets) >= FAULTY_TARGETS)
        dead_on = blame.circuits_of_dead(target, now=now)
        assert len(dead_on) in {0, DEAD_CIRCUITS}
        assert set(dead_on) <= failed.get(target, set())


def test_memory_is_bounded() -> None:
    blame = Blame()
    slot = next(iter(balancing(policy_of("one")).pool._keys)).slots["one"]
    circuits = [Circuit(slot, number, 0.0, CircuitId(str(number))) for number in range(3)]
    for circuit in circuits:
        for number in range(2 * MAX_SUSPECTS):
            blame.fail(f"{number}.example:80", circuit, now=0.0)

    assert not blame.circuits_of_dead("0.example:80", now=0.0)
    assert all(len(circuit.failed_targets) <= MAX_SUSPECTS for circuit in circuits)


def test_nobody_is_blamed_for_a_destination_that_is_not_known() -> None:
    slot = next(iter(balancing(policy_of("one")).pool._keys)).slots["one"]
    circuit = Circuit(slot, 1, 0.0, CircuitId("1"))

    assert not Blame().fail("", circuit, now=0.0)
    assert not circuit.failed_targets


def test_a_dead_destination_stays_on_the_circuits_of_its_rule() -> None:
    rule = Rule(Match(socks_user="alice"), circuits=frozenset({MANY[5]}))
    driver = balancing(policy_of(*MANY, rules=(rule,)))
    fail(driver, 1, "dead.example:80")

    assert driver.tell(*opened(2, "dead.example:80", user="alice")) == [f"ATTACHSTREAM 2 35; {MANY[5]}"]
