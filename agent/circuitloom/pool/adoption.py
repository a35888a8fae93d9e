"""Circuits from elsewhere: whether one that another controller built may serve, and its way into the pool.

Rules of this file:

* Only a circuit that Tor would take any stream of ours on: BUILT, more than one hop, GENERAL or CONTROLLER.
* It serves the key that came first of those that still get new streams, as rounds do.
* Where keys are kept apart, a circuit that carries a stream, or that Tor shows a SOCKS user of, is nobody's
  any more. Of streams that have ended Tor shows nothing else: for these whoever adopts it answers.
"""

from __future__ import annotations

from circuitloom.model import CircuitAdopted, CircuitEvent, CircuitStatus, Purpose
from circuitloom.policy.types import Isolation, Policy
from circuitloom.pool.builder import Builder
from circuitloom.pool.keys import Keys
from circuitloom.pool.slots import SlotState

_SOCKS = ("SOCKS_USERNAME", "SOCKS_PASSWORD")

_INTERNAL_FLAGS = frozenset({"IS_INTERNAL", "ONEHOP_TUNNEL"})
"""Of BUILD_FLAGS (control-spec 4.1.1): circuits that Tor keeps for onion services and directories."""


_WHY_NOT = {
    "CONFLUX": "when one leg of a Conflux set closes, all streams of the set end",
    "HS": "it is for an onion service, and leads to no exit",
}
"""By the first word of a purpose."""


def place_for(event: CircuitAdopted, policy: Policy, *, keys: Keys, builder: Builder) -> SlotState | str:
    """The slot that the circuit can take, or why there is none for it.

    Args:
        event: The circuit, and the policy's name of the slot that it is for.
        policy: The policy in force.
        keys: All circuits.
        builder: The circuits by id.
    """
    slot = next((slot for slot in policy.slots if slot.name == event.name), None)
    if slot is None:
        return "the policy names no such circuit"
    if slot.adopt is None:
        return "the agent builds this circuit itself: give it `adopt` in the policy"
    ours = builder.by_id.get(event.line.circuit_id)
    if ours is not None:
        return f"it is in the pool already, as {ours.slot.slot.name}"
    fault = _unfit(event.line)
    if fault is None and policy.balance.isolation is Isolation.TOR:
        fault = _used(event)
    no_place = "no key that still gets streams has such a circuit: raise balance.keys.max_circuits"
    return fault or keys.first_with(event.name) or no_place


def _unfit(line: CircuitEvent) -> str | None:
    """Why Tor would not take, or not keep, our streams on the circuit (tor-facts 1 and 8)."""
    if line.status is not CircuitStatus.BUILT:
        return f"it is {line.status}: adopt it when it is BUILT"
    purpose = line.keywords.get("PURPOSE", "unknown")
    if purpose.lower() not in frozenset(Purpose):
        family = purpose.partition("_")[0]
        why = _WHY_NOT.get(family, "only GENERAL and CONTROLLER circuits take streams")
        return f"its purpose is {purpose}: {why}"
    if len(line.path) < 2:
        return "it has one hop: Tor puts no stream on it"
    if not _INTERNAL_FLAGS.isdisjoint(line.keywords.get("BUILD_FLAGS", "").split(",")):
        return "it is internal to Tor, and leads to no exit"
    return None


def _used(event: CircuitAdopted) -> str | None:
    """Why the circuit may belong to a key that we do not know."""
    circuit_id = event.line.circuit_id
    if any(stream.circuit_id == circuit_id for stream in event.streams):
        return "streams are on it, and `isolation: tor` lets no others share it"
    if any(event.line.keywords.get(word) for word in _SOCKS):
        return "a SOCKS user has used it, and `isolation: tor` lets no others share it"
    return None
