"""The pool's state as values: what the status shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from circuitloom.checks import Checkup
from circuitloom.health import HELD
from circuitloom.policy.health import PanicAction
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.keys import Keys
from circuitloom.pool.slots import Circuit, CircuitState, SlotState
from circuitloom.pool.tally import Histogram
from circuitloom.pool.tiers import PANIC_WORDS


@dataclass(frozen=True, slots=True)
class ProbeSnapshot:
    """What the probes of one circuit found.

    Attributes:
        health: ``up``, ``down``, ``unknown`` (no check was decided yet) or ``skipped`` (it is not checked).
        last: ``passed`` or ``failed``, of the last check that was decided.
        in_a_row: How many checks before it, and with it, found the same.
        seconds_ago: When it was decided.
        why_not: Why the circuit is not checked, in words; empty: it is.
    """

    health: str
    last: str | None
    in_a_row: int
    seconds_ago: float | None
    why_not: str


@dataclass(frozen=True, slots=True)
class CircuitSnapshot:
    """One circuit of the policy.

    Attributes:
        name: As the policy names it.
        role: ``active`` or ``backup``.
        weight: As the policy says.
        max_streams: As the policy says.
        state: ``built``, ``building``, ``backoff``, ``drained``, ``ejected``, ``down``, ``draining`` or
            ``idle``.
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
        weight_factor: Which part of its weight counts now, 0.1 to 1: less while it is fresh or degraded.
        is_degraded: Whether it has lost weight because it is much slower than the others.
        connects: How long streams on the circuit took to connect.
        exit_fingerprint: Of its last relay, once it is built.
        probe: What its probes found; None: nothing is probed, or there is no circuit.
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
    weight_factor: float = 1.0
    is_degraded: bool = False
    connects: Histogram = field(default_factory=Histogram)
    exit_fingerprint: str | None = None
    probe: ProbeSnapshot | None = None


@dataclass(frozen=True, slots=True)
class PoolSnapshot:
    """The whole pool; times are seconds.

    Attributes:
        streams_queued: Those of the waiting that wait for room.
        notice: Tells of another controller, or of a panic.
        probe_problem: Tells why probes do not work.
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
    probe_problem: str = ""


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
    weights: dict[str, float] = {}
    for state in states:
        weights[state.slot.role] = weights.get(state.slot.role, 0.0) + _weight(state, now)
    return [
        _snapshot(
            state,
            state.circuit or state.building,
            _word(state),
            (
                state.attached_total / attached if attached else 0.0,
                _weight(state, now) / (weights[state.slot.role] or 1.0),
            ),
            now=now,
        )
        for state in states
    ]


def _weight(state: SlotState, now: float) -> float:
    """What counts of its weight: nothing while it is drained, or out and there is no panic."""
    is_away = _word(state) in {"ejected", "down"} and state.owner.panic is not PanicAction.ALL
    if is_away or state.slot.name in state.owner.drained:
        return 0.0
    factor = 1.0 if state.circuit is None else state.owner.weight_factor(state.circuit, now=now)
    return state.slot.weight * factor


def _word(state: SlotState) -> str:
    if state.circuit is not None:
        if state.slot.name in state.owner.drained:
            return "drained"
        until = state.owner.ejected_until(state.circuit)
        return "built" if until is None else "down" if until == HELD else "ejected"
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
        weight_factor=state.owner.weight_factor(circuit, now=now) if circuit else 1.0,
        is_degraded=circuit is not None and state.owner.is_degraded(circuit),
        connects=circuit.connects if circuit else Histogram(),
        exit_fingerprint=circuit.path[-1].fingerprint if circuit and circuit.path else None,
        probe=_snapshot_probe(circuit.checkup, now) if circuit and circuit.checkup else None,
    )


def _snapshot_probe(checkup: Checkup, now: float) -> ProbeSnapshot:
    health = (
        "skipped" if checkup.why_not else "down" if checkup.is_down else "up" if checkup.last else "unknown"
    )
    return ProbeSnapshot(
        health=health,
        last=checkup.last,
        in_a_row=checkup.in_a_row,
        seconds_ago=now - checkup.last_at if checkup.last else None,
        why_not=checkup.why_not,
    )
