"""What the pool offers to rounds: the circuits that serve, and replacing one."""

from __future__ import annotations

from circuitloom.model import CircuitId, Disconnected
from unit.pool_driver import Driver, balancing, two_keys


def test_rounds_serve_what_is_built_while_tor_is_there() -> None:
    driver = Driver()
    assert driver.pool.built() == {}
    assert not driver.pool.is_ready
    driver = balancing()
    assert driver.pool.is_ready
    assert set(driver.pool.built()) == {circuit.name for circuit in driver.snapshot().circuits}
    driver.give(Disconnected())

    assert driver.pool.built() == {}
    assert not driver.pool.is_ready


def test_a_slot_without_circuit_is_served_by_nobody() -> None:
    driver = balancing()
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")

    assert set(driver.pool.built()) == {"backup"}


def test_of_several_keys_the_first_ones_circuits_are_served() -> None:
    driver = two_keys()
    first = {c.name: c.circuit_id for c in driver.snapshot().circuits if c.key == 0}

    assert {name: circuit.circuit_id for name, circuit in driver.pool.built().items()} == first


def test_a_circuit_is_replaced_make_before_break() -> None:
    driver = balancing()
    served = next(iter(driver.pool.built().values()))
    assert served.circuit_id is not None
    driver.wait(60)
    driver.pool.replace_circuit(served.circuit_id, now=driver.now)

    assert driver.wait(0) == [f"EXTENDCIRCUIT 0; {served.slot.slot.name}"]
    assert driver.pool.replace_circuit(CircuitId("999"), now=driver.now) == []
    assert served in driver.pool.built().values()
