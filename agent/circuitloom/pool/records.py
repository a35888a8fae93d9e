"""What the next agent has to know to take this one's circuits over.

Rules of this file:

* A circuit is taken over only when Tor still shows the very same one, and it is what the policy asks for now.
* A circuit that another controller built goes only into a slot for such, and is never closed for not fitting.
* An isolation key is written down only as a keyed hash. Its secret is Tor's cookie: who has that can ask Tor
  itself, and with the next start of Tor the hash and the circuits are worth nothing.
* While nobody is in charge Tor may put any stream on a general circuit that was never used, and nothing tells
  of it later. Such a circuit belongs to nobody any more where keys are kept apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from circuitloom.model import CircuitEvent, CircuitStatus, Purpose, RecordedCircuit
from circuitloom.policy.path_types import PathRules
from circuitloom.policy.types import Slot
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.isolation import ONE_FOR_ALL, IsolationKey

_ALL = "all"
_LEFT = ("left by another agent",)


def digest_of(key: IsolationKey | None, secret: bytes | None) -> str | None:
    """How a key is written down; None: not at all.

    Args:
        key: None: nobody's.
        secret: Tor's cookie; without one no key can be hidden, so none is written down.
    """
    if key == ONE_FOR_ALL:
        return _ALL
    if key is None or secret is None:
        return None
    if is_left(key):
        return key.values[0]
    text = repr((key.fields, key.values)).encode()
    return hashlib.blake2b(text, key=secret[:64], digest_size=16).hexdigest()


def key_left(digest: str) -> IsolationKey:
    """Stands for a key of which only the hash is known, until a stream has it."""
    return ONE_FOR_ALL if digest == _ALL else IsolationKey(_LEFT, (digest,))


def is_left(key: IsolationKey) -> bool:
    """Whether the key stands for one of which only the hash is known."""
    return key.fields == _LEFT


def record(circuits: Circuits, secret: bytes | None) -> Iterable[RecordedCircuit]:
    """The circuits of one key that serve now; none when the key cannot be written down."""
    key = digest_of(circuits.key, secret)
    if circuits.key is not None and key is None:
        return
    for state in circuits.slots.values():
        circuit = state.circuit
        if circuit is not None and circuit.circuit_id is not None:
            yield RecordedCircuit(
                name=state.slot.name,
                circuit_id=circuit.circuit_id,
                created=circuit.created,
                path=tuple(hop.fingerprint for hop in circuit.path),
                is_used=circuit.key is not None,
                number=circuits.number,
                key=key,
                is_adopted=circuit.is_adopted,
            )


def is_same(record: RecordedCircuit, line: CircuitEvent | None) -> bool:
    """Whether Tor shows the recorded circuit; ids and paths come again, creation times do not."""
    return (
        line is not None
        and line.status is CircuitStatus.BUILT
        and line.keywords.get("TIME_CREATED") == record.created
        and tuple(hop.fingerprint for hop in line.path) == record.path
    )


def fits(record: RecordedCircuit, line: CircuitEvent, slot: Slot, *, isolates: bool) -> bool:
    """Whether the circuit is what the policy asks for in this slot, and surely nobody else's."""
    purpose = line.keywords.get("PURPOSE", "").lower()
    is_sure = record.is_used or purpose == Purpose.CONTROLLER or not isolates
    if record.is_adopted:
        return slot.adopt is not None and is_sure
    is_ours_to_build = slot.adopt is None or slot.adopt.rebuild
    # Rules of a path can be judged only when the relays are known; until then the circuit serves.
    is_as_asked = isinstance(slot.path, PathRules) or slot.path in {None, record.path}
    return is_ours_to_build and purpose == slot.purpose and is_as_asked and is_sure
