"""What to do: all that the core can ask for, on one screen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from circuitloom.kinds import Kind
from circuitloom.model.names import (
    CircuitId,
    Purpose,
    Severity,
    StreamId,
)


@dataclass(frozen=True, slots=True)
class TakeOver:
    """SETCONF __LeaveStreamsUnattached=1."""


@dataclass(frozen=True, slots=True)
class GiveBack:
    """RESETCONF __LeaveStreamsUnattached; ReleaseStream for each waiting stream goes with it."""


@dataclass(frozen=True, slots=True)
class AskWaiting:
    """GETINFO stream-status; the answer comes back in StillWaiting."""


class AttachStream(NamedTuple):
    """ATTACHSTREAM to one of our circuits; ``name`` is the policy's name of the circuit."""

    stream_id: StreamId
    circuit_id: CircuitId
    name: str


class ReleaseStream(NamedTuple):
    """ATTACHSTREAM to circuit 0: Tor chooses. ``why`` is for the log."""

    stream_id: StreamId
    why: str


class CloseStream(NamedTuple):
    """CLOSESTREAM; ``why`` is for the log."""

    stream_id: StreamId
    why: str


@dataclass(frozen=True, slots=True)
class BuildCircuit:
    """EXTENDCIRCUIT 0, and SETCIRCUITPURPOSE; ``build`` comes back in BuildAccepted or BuildRefused.

    Attributes:
        build: A number that names this attempt.
        name: The policy's name of the circuit.
        path: Fingerprints, or None: Tor chooses.
        purpose: What Tor is told that it is for.
    """

    build: int
    name: str
    path: tuple[str, ...] | None
    purpose: Purpose = Purpose.GENERAL


@dataclass(frozen=True, slots=True)
class CloseCircuit:
    """CLOSECIRCUIT; ``is_forced`` closes it with the streams on it, else IfUnused."""

    circuit_id: CircuitId
    is_forced: bool = False


@dataclass(frozen=True, slots=True)
class ProbeCircuit:
    """Open a stream of our own through Tor's SOCKS port; ProbeStarted and ProbeFinished answer.

    Attributes:
        probe: A number that names this probe.
        target: ``host:port``, IPv6 in brackets.
        user: The SOCKS user name, with ``password``; None: none is sent.
        password: As Tor shows it, latin-1.
    """

    probe: int
    target: str = field(repr=False)
    user: str | None = field(default=None, repr=False)
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class StopProbe:
    """End a probe's connection; nothing answers any more."""

    probe: int


class AttachProbe(NamedTuple):
    """ATTACHSTREAM of a probe's stream to the circuit that it is for; to 0 if it may not be a probe's."""

    stream_id: StreamId
    circuit_id: CircuitId


@dataclass(frozen=True, slots=True)
class Announce:
    """A line for the log: a change of state, in words.

    Attributes:
        severity: How much it matters.
        message: The words.
        kind: What it is about, in one.
        circuit: The policy's name of the circuit, if it is about one.
        circuit_id: Tor's id of it, once there is one.
        stream_id: Tor's id of the stream, if it is about one.
    """

    severity: Severity
    message: str
    kind: Kind = field(default=Kind.OTHER, compare=False)
    circuit: str = field(default="", compare=False)
    circuit_id: str = field(default="", compare=False)
    stream_id: str = field(default="", compare=False)


Action = (
    TakeOver
    | GiveBack
    | AskWaiting
    | AttachStream
    | ReleaseStream
    | CloseStream
    | BuildCircuit
    | CloseCircuit
    | ProbeCircuit
    | StopProbe
    | AttachProbe
    | Announce
)
