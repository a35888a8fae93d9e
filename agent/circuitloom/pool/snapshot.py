"""The pool's state as values: what the status shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from circuitloom.policy.health import PanicAction
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.keys import Keys
from circuitloom.pool.slots import Circuit, CircuitState, SlotState
from circuitloom.pool.tally import Histogram
from circuitloom.pool.tiers import PANIC_WORDS


@dataclass(frozen=True, slots=True)
class CircuitSnapshot:
    """One circuit of the policy.

    Attributes:
        name: As the policy names it.
        role: ``active`` or ``backup``.
        weight: As the policy says.
        max_streams: As the policy says.
        state: ``built``, ``building``, ``backoff``, ``drained``, ``ejected``, ``draining`` or ``idle``.
        circuit_id: Tor's id, once there is one.
        path: Nicknames (or fingerprints) of its relays, first hop first.
        streams: Streams on it now.
        attached_total: Streams we attached to it and its predecessors.
        failed_total: How many of these failed or were detached.
        age_seconds: Since it was BUILT.
        share: Its part of all streams attached for its key, 0 to 1.
        weight_share: Its part of the weights of its tier and key, 0 to 1.
        key: The number of the isolation key that it is for, from 0.
        is_adopted: Whether another controller built it, or has to.
        connects: How long streams on the circuit took to connect.
        exit_fingerprint: Of its last relay, once it is built.
    """

    name: str
    role: str
    weight: int
    max_streams: int
    state: str
    circuit_id: str | None
    path: tuple[str, ...]
    streams: int
    attached_total: int
    failed_total: int
    age_seconds: float | None
    share: float
    weight_share: float
    key: int
    is_adopted: bool = False
    connects: Histogram = field(default_factory=Histogram)
    exit_fingerprint: str | None = None


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The whole pool; times are seconds.

    Attributes:
        streams_queued: Those of the waiting that wait for room.
        notice: Tells of another controller, or of a panic.
    """

    state: str
    since_seconds: float
    algorithm: str
    is_ready: bool
    circuits: tuple[CircuitSnapshot, ...]
    streams_active: int
    streams_waiting: int
    attached_total: int
    released_total: int
    failed_total: int
    notice: str = ""
    streams_queued: int = 0


def panic_notice(keys: Keys) -> str:
    """What the status says while some key has too few healthy circuits; else nothing."""
    panics = [circuits.panic for circuits in keys if circuits.panic is not None]
    if not panics:
        return ""
    whose = "1 key has" if len(panics) == 1 else f"{len(panics)} keys have"
    return f"{whose} too few healthy circuits, {PANIC_WORDS[panics[0]]}"


def snapshot_circuits(keys: Keys, *, now: float) -> tuple[CircuitSnapshot, ...]:
    """One snapshot a slot and key, keys in the order of their coming, then circuits that drain.

    Args:
        keys: All circuits.
        now: The time (seconds of the pool's clock).
    """
    snapshots: list[CircuitSnapshot] = []
    for circuits in keys:
        snapshots += _snapshot_key(circuits, now)
    snapshots += [
        _snapshot(circuit.slot, circuit, "draining", (0.0, 0.0), now=now)
        for circuits in keys.all
        for circuit in circuits.draining
    ]
    return tuple(snapshots)


def count_guards(keys: Keys) -> tuple[int, ...]:
    """How many built circuits begin at each first relay, the most first."""
    guards = Counter(
        circuit.path[0].fingerprint
        for circuits in keys.all
        for circuit in circuits.members
        if circuit.path and circuit.state is not CircuitState.LAUNCHED
    )
    return tuple(count for _, count in guards.most_common())


def _snapshot_key(circuits: Circuits, now: float) -> list[CircuitSnapshot]:
    states = list(circuits.slots.values())
    attached = sum(state.attached_total for state in states)
    weights: dict[str, int] = {}
    for state in states:
        weights[state.slot.role] = weights.get(state.slot.role, 0) + _weight(state)
    return [
        _snapshot(
            state,
            state.circuit or state.building,
            _word(state),
            (
                state.attached_total / attached if attached else 0.0,
                _weight(state) / (weights[state.slot.role] or 1),
            ),
            now=now,
        )
        for state in states
    ]


def _weight(state: SlotState) -> int:
    """What counts of its weight: nothing while it is drained, or ejected and there is no panic."""
    is_ejected = _word(state) == "ejected" and state.owner.panic is not PanicAction.ALL
    is_out = state.slot.name in state.owner.drained or is_ejected
    return 0 if is_out else state.slot.weight


def _word(state: SlotState) -> str:
    if state.circuit is not None:
        if state.slot.name in state.owner.drained:
            return "drained"
        return "built" if state.owner.ejected_until(state.circuit) is None else "ejected"
    if state.building is not None:
        return "building"
    return "idle" if state.retry_at is None else "backoff"


def _snapshot(
    state: SlotState, circuit: Circuit | None, word: str, shares: tuple[float, float], *, now: float
) -> CircuitSnapshot:
    is_built = circuit is not None and circuit.state in {CircuitState.BUILT, CircuitState.DRAINING}
    return CircuitSnapshot(
        name=state.slot.name,
        role=state.slot.role.value,
        weight=state.slot.weight,
        max_streams=state.slot.max_streams,
        state=word,
        circuit_id=circuit.circuit_id if circuit else None,
        path=tuple(hop.nickname or hop.fingerprint for hop in circuit.path) if circuit else (),
        streams=circuit.streams if circuit else 0,
        attached_total=state.attached_total,
        failed_total=state.failed_total,
        age_seconds=now - circuit.built_at if circuit and is_built else None,
        share=shares[0],
        weight_share=shares[1],
        key=state.owner.number,
        is_adopted=not state.is_ours_to_build if circuit is None else circuit.is_adopted,
        connects=circuit.connects if circuit else Histogram(),
        exit_fingerprint=circuit.path[-1].fingerprint if circuit and circuit.path else None,
    )
