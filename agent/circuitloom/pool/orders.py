"""What an operator asks of the circuits while the agent runs.

Rules of this file:

* A drained circuit stays BUILT and takes no new stream; backup circuits stand in for it as for a missing one.
* A drain lasts until ``ready``, over reloads and for keys to come; a weight lasts until the next reload.
* An order concerns the circuits of that name of every key; one that another controller built is not closed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from circuitloom.kinds import Kind
from circuitloom.model import Action, Announce, CircuitOrdered, CloseCircuit, Order, Severity
from circuitloom.policy.types import Policy
from circuitloom.pool.builder import Builder
from circuitloom.pool.keys import Keys


def carry_out(
    event: CircuitOrdered, policy: Policy, *, keys: Keys, builder: Builder, emit: Callable[[Action], None]
) -> Policy:
    """Do as the operator asks.

    Args:
        event: The order.
        policy: The policy in force.
        keys: All circuits.
        builder: The circuits by id.
        emit: Takes each action, in order.

    Returns:
        The policy in force from now on.
    """
    name = event.name
    if all(slot.name != name for slot in policy.slots):
        return policy
    match event.order:
        case Order.DRAIN:
            keys.drain(name)
            message = f"circuit {name} takes no new streams: drained by the operator"
        case Order.READY:
            keys.undrain(name)
            message = f"circuit {name} takes streams again: made ready by the operator"
        case Order.WEIGHT:
            slots = tuple(
                dataclasses.replace(slot, weight=event.weight) if slot.name == name else slot
                for slot in policy.slots
            )
            policy = dataclasses.replace(policy, slots=slots)
            keys.replace_policy(policy)
            message = f"circuit {name} has weight {event.weight} until the next reload"
        case Order.ROTATE:
            message = _rotate(name, keys)
        case _:
            named = [circuit for circuit in builder.by_id.items() if circuit[1].slot.slot.name == name]
            for circuit_id, circuit in named:
                if not circuit.is_adopted:
                    emit(CloseCircuit(circuit_id, is_forced=True))
            message = f"circuit {name} is closed with its streams as the operator asked"
            if any(circuit.is_adopted for _, circuit in named):
                message = f"circuit {name} stays where another controller built it: that one may close it"
    emit(Announce(Severity.INFO, message, Kind.ORDERED, name))
    return policy


def _rotate(name: str, keys: Keys) -> str:
    for circuits in keys:
        circuits.renew(name)
    states = [circuits.slots[name] for circuits in keys if name in circuits.slots]
    if states and not any(state.is_ours_to_build for state in states):
        return f"circuit {name} is another controller's to build: adopt one to replace it"
    return f"circuit {name} is replaced as the operator asked, make before break"
