"""Why a stream went where it went: a bounded memory of decisions, and what each circuit is good for now.

Rules of this file:

* A decision is remembered as the action that carried it out; remembering costs an append.
* What stood against each circuit is told as it is now, when somebody asks: a copy of every circuit with every
  stream would cost more than the stream.
* It holds ids, names of the policy and words of ours; a destination only while the policy lets it be shown, a
  SOCKS name never.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from circuitloom.health import HELD
from circuitloom.model import Action, AttachStream, CloseStream, ReleaseStream, StreamId
from circuitloom.policy.health import PanicAction
from circuitloom.policy.operating import Destinations
from circuitloom.policy.types import Policy, Role
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.slots import SlotState
from circuitloom.pool.streams import Stream

MAX_DECISIONS = 1000
"""Half a megabyte at most; a minute of a busy client."""

Decided = AttachStream | ReleaseStream | CloseStream


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided on a stream.

    Attributes:
        stream_id: Tor's id.
        seconds_ago: When.
        did: ``attach``, ``release`` (Tor chooses) or ``close``.
        circuit: The policy's name of the circuit, of an attachment.
        circuit_id: Tor's id of it.
        why: In words, unless it was attached in its turn.
        target: Where the stream goes, if the policy lets that be shown.
    """

    stream_id: str
    seconds_ago: float
    did: str
    circuit: str | None
    circuit_id: str | None
    why: str | None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A circuit, and whether it would take a stream now.

    Attributes:
        name: The policy's name.
        key: The number of the isolation key that it is for.
        circuit_id: Tor's id, once there is one.
        streams: On it now.
        max_streams: As the policy says.
        takes_streams: Whether it is chosen from.
        why: What stands against it, or that nothing does.
    """

    name: str
    key: int
    circuit_id: str | None
    streams: int
    max_streams: int
    takes_streams: bool
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Decisions, newest last, and the circuits as they are now."""

    decisions: tuple[Decision, ...]
    candidates: tuple[Candidate, ...]


class Decisions:
    """The last decisions."""

    def __init__(self) -> None:
        self._ring: deque[tuple[float, Decided, str | None]] = deque(maxlen=MAX_DECISIONS)

    def remember(
        self, actions: Iterable[Action], now: float, streams: Mapping[StreamId, Stream] | None
    ) -> None:
        """Keep those of the actions that decide on a stream.

        Args:
            actions: All that were decided.
            now: When (seconds of the pool's clock).
            streams: Where their destinations are found; None: they are not kept.
        """
        for action in actions:
            if isinstance(action, (AttachStream, ReleaseStream, CloseStream)):
                stream = None if streams is None else streams.get(action.stream_id)
                self._ring.append((now, action, None if stream is None else stream.target))

    def scrub(self) -> None:
        """Forget every destination."""
        self._ring = deque(((at, action, None) for at, action, _ in self._ring), maxlen=MAX_DECISIONS)

    def tell(self, stream_id: str | None, *, now: float) -> tuple[Decision, ...]:
        """The decisions on this stream, or on all, newest last."""
        return tuple(
            _decision(action, now - at, target)
            for at, action, target in self._ring
            if stream_id is None or action.stream_id == stream_id
        )


def candidates(keys: Iterable[Circuits], stream: Stream | None, *, now: float) -> tuple[Candidate, ...]:
    """What each circuit is good for now.

    Args:
        keys: The circuits of each key.
        stream: For this stream, if it is there yet: only circuits of its key, and not those it has tried.
        now: The time (seconds of the pool's clock).
    """
    return tuple(
        _candidate(state, circuits, stream, now)
        for circuits in keys
        if stream is None or stream.owner in {None, circuits}
        for state in circuits.slots.values()
    )


def _decision(action: Decided, seconds_ago: float, target: str | None) -> Decision:
    if isinstance(action, AttachStream):
        return Decision(action.stream_id, seconds_ago, "attach", action.name, action.circuit_id, None, target)
    did = "release" if isinstance(action, ReleaseStream) else "close"
    return Decision(action.stream_id, seconds_ago, did, None, None, action.why, target)


def shows_destinations(policy: Policy) -> bool:
    """Whether the policy lets anybody see where streams go."""
    return policy.log.destinations is Destinations.FULL


def _candidate(state: SlotState, circuits: Circuits, stream: Stream | None, now: float) -> Candidate:
    circuit = state.circuit
    circuit_id = circuit.circuit_id if circuit is not None else None
    is_tried = stream is not None and circuit_id in stream.tried
    is_refusing = stream is not None and state.slot.name in circuits.refusing(stream.target)
    takes_streams = circuit is not None and circuit.is_candidate and not is_tried and not is_refusing
    return Candidate(
        name=state.slot.name,
        key=circuits.number,
        circuit_id=circuit_id,
        streams=circuit.streams if circuit is not None else 0,
        max_streams=state.slot.max_streams,
        takes_streams=takes_streams,
        why=_against(is_tried=is_tried, is_refusing=is_refusing) or _why(state, circuits, now),
    )


def _against(*, is_tried: bool, is_refusing: bool) -> str:
    if is_tried:
        return "could not connect this stream"
    return "its exit refuses the port of this stream" if is_refusing else ""


def _why(state: SlotState, circuits: Circuits, now: float) -> str:
    if state.circuit is None:
        return "is being built" if state.retry_at is None else "waits to be built again"
    if state.circuit.is_candidate:
        factor = circuits.weight_factor(state.circuit, now=now)
        reduced = "" if factor == 1 else f", with {factor:.0%} of its weight"
        replaced = ", until its successor is built" if state.is_outdated else ""
        return f"takes streams in its turn{reduced}{replaced}"
    return _why_not(state, circuits, circuits.ejected_until(state.circuit), now)


def _why_not(state: SlotState, circuits: Circuits, ejected_until: float | None, now: float) -> str:
    if state.slot.name in circuits.drained:
        return "drained by the operator"
    if circuits.panic in {PanicAction.TOR, PanicAction.HOLD}:
        return "too few circuits are healthy, so none takes streams"
    if ejected_until == HELD and circuits.panic is None:
        return "down: its last probes failed"
    if ejected_until is not None and circuits.panic is None:
        return f"ejected for {max(0.0, ejected_until - now):.0f} s more: streams in a row failed on it"
    if state.slot.role is Role.BACKUP and not circuits.backups_serve:
        return "backup, and enough active circuits are there"
    return "full"
