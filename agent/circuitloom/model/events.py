"""What happened: what Tor tells the core, and what the operator asks of it.

An event's ``repr`` never shows a target or a SOCKS name: events end up in tracebacks and assertions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from circuitloom.model.names import (
    _FRESH,
    NO_KEYWORDS,
    CircuitId,
    CircuitStatus,
    Order,
    ProbeOutcome,
    StreamId,
    StreamStatus,
)


class StreamEvent(NamedTuple):
    """A STREAM event, or a line of ``GETINFO stream-status``.

    Only what a decision needs is read: the target of NEW, NEWRESOLVE, CONTROLLER_WAIT and of ended streams,
    the keywords of NEW, NEWRESOLVE, DETACHED, FAILED and CLOSED; elsewhere they are empty.
    """

    stream_id: StreamId
    status: StreamStatus
    circuit_id: CircuitId
    target: str = ""
    keywords: Mapping[str, str] = NO_KEYWORDS

    def __repr__(self) -> str:
        return f"<stream {self.stream_id} {self.status} circuit {self.circuit_id}>"


def waits_for_controller(line: StreamEvent) -> bool:
    """Whether a line of ``GETINFO stream-status`` may be a stream that waits for a controller.

    Tor shows one that it is choosing a circuit for in the same words. For that one ATTACHSTREAM is refused,
    harmlessly (tor-facts 4), until Tor has chosen: then it is torn off its circuit, and bytes it sent before
    the reply are lost (tor-facts 0). A directory stream never waits; no purpose is shown, but its target
    tells: ``1.2.3.4.$FINGERPRINT.exit:port`` (tor-facts 1).
    """
    return line.status in _FRESH and ".$" not in line.target


class Hop(NamedTuple):
    """One relay of a circuit's path."""

    fingerprint: str
    nickname: str

    @property
    def label(self) -> str:
        """What a person knows it by."""
        return self.nickname or self.fingerprint[:8]


class CircuitEvent(NamedTuple):
    """A CIRC event, a CIRC_MINOR PURPOSE_CHANGED, or a line of ``GETINFO circuit-status``."""

    circuit_id: CircuitId
    status: CircuitStatus
    path: tuple[Hop, ...] = ()
    keywords: Mapping[str, str] = NO_KEYWORDS

    def __repr__(self) -> str:
        return f"<circuit {self.circuit_id} {self.status}>"


class CircuitBandwidth(NamedTuple):
    """A CIRC_BW event: what a circuit has carried since the last one, about a second ago."""

    circuit_id: CircuitId
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class ConfChanged:
    """Options of the running Tor changed (CONF_CHANGED); None means the default came back."""

    values: Mapping[str, str | None]


def dirtiness_seconds(value: str | None) -> float | None:
    """The seconds of MaxCircuitDirtiness as Tor tells it; None: not known."""
    if value is None:
        return 600.0  # Tor's default
    return float(value) if value.isdecimal() else None


@dataclass(frozen=True, slots=True)
class SignalReceived:
    """Tor got a signal, by a controller or the system (SIGNAL event): RELOAD, NEWNYM, ..."""

    name: str


@dataclass(frozen=True, slots=True)
class NetworkReady:
    """Tor said that circuits can be built now (STATUS_CLIENT ENOUGH_DIR_INFO or CIRCUIT_ESTABLISHED)."""


@dataclass(frozen=True, slots=True)
class StillWaiting:
    """The answer to AskWaiting: the streams that may wait for a controller."""

    stream_ids: frozenset[StreamId]


@dataclass(frozen=True, slots=True)
class RecordedCircuit:
    """A circuit that an agent before us built, as it wrote it down.

    Attributes:
        name: Of its slot in the policy.
        circuit_id: Tor's id.
        created: Tor's TIME_CREATED.
        path: Fingerprints from the first hop on.
        is_used: Whether it was known to carry its key's streams.
        number: Of the key it is for; circuits of one key have one number.
        key: The keyed hash of that key; None: nobody's yet.
        is_adopted: Whether another controller built it.
    """

    name: str
    circuit_id: CircuitId
    created: str
    path: tuple[str, ...]
    is_used: bool
    number: int
    key: str | None
    is_adopted: bool = False


@dataclass(frozen=True, slots=True)
class Connected:
    """The control connection is up; this is what Tor says there is.

    Attributes:
        circuits: The lines of ``GETINFO circuit-status``.
        streams: The lines of ``GETINFO stream-status``.
        leave_unattached: The option's value: True when somebody before us did not give back.
        reserved: Addresses that Tor rewrites, perhaps to an onion service; their streams stay Tor's.
        records: Circuits that an agent before us left, at the first connection.
        secret: Tor's cookie, to write keys down with; None: there is none.
        max_dirtiness_seconds: Tor's MaxCircuitDirtiness; None: not known.
    """

    circuits: tuple[CircuitEvent, ...] = ()
    streams: tuple[StreamEvent, ...] = ()
    leave_unattached: bool = False
    reserved: Reserved | None = None
    records: tuple[RecordedCircuit, ...] = ()
    secret: bytes | None = field(default=None, repr=False)
    max_dirtiness_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The control connection is gone; the option in Tor stays as it was."""


@dataclass(frozen=True, slots=True)
class BuildAccepted:
    """EXTENDCIRCUIT was answered with the id of a new circuit."""

    build: int
    circuit_id: CircuitId


@dataclass(frozen=True, slots=True)
class BuildRefused:
    """EXTENDCIRCUIT was refused; ``message`` is Tor's text."""

    build: int
    message: str


@dataclass(frozen=True, slots=True)
class AttachRefused:
    """ATTACHSTREAM was refused (tor-facts 2 lists code and text of each case)."""

    stream_id: StreamId
    circuit_id: CircuitId
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class TakeOverRefused:
    """SETCONF of the option was refused; ``message`` is Tor's text."""

    message: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The agent is to stop and give everything back."""


@dataclass(frozen=True, slots=True)
class CircuitOrdered:
    """The operator asked something of a circuit of the policy.

    Attributes:
        order: What.
        name: The policy's name of the circuit; an unknown one changes nothing.
        weight: Its new weight, of an order of WEIGHT.
    """

    order: Order
    name: str
    weight: int = 1


@dataclass(frozen=True, slots=True)
class CircuitAdopted:
    """The operator gave a circuit that another controller built to a slot; this is what Tor says of it.

    Attributes:
        name: The policy's name of the slot.
        line: Its line of ``GETINFO circuit-status``.
        streams: The lines of ``GETINFO stream-status``, of all circuits.
    """

    name: str
    line: CircuitEvent
    streams: tuple[StreamEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class ProbeStarted:
    """A probe's connection to the SOCKS port is up, and its request leaves after this.

    Attributes:
        probe: Of ProbeCircuit.
        source: The connection's own address, as Tor will show it: ``127.0.0.1:4711``; None: a Unix socket.
    """

    probe: int
    source: str | None


@dataclass(frozen=True, slots=True)
class ProbeFinished:
    """A probe has ended; ``detail`` says why it reached no SOCKS port."""

    probe: int
    outcome: ProbeOutcome
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The time given by ``next_deadline()`` has come."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What Tor maps to something else before it connects (VirtualAddrNetwork, MapAddress).

    Attaching such a stream ourselves can kill it: behind the mapping may stand an onion service, which only
    circuit 0 can serve (tor-facts 1). As an event: this is what Tor maps from now on.

    Attributes:
        prefixes: Networks of virtual addresses, such as ``127.192.0.0/10``.
        hosts: Names and addresses with a mapping, lower case; ``.example.com`` for ``*.example.com``.
    """

    prefixes: tuple[str, ...] = ()
    hosts: frozenset[str] = frozenset()


Event = (
    StreamEvent
    | CircuitEvent
    | CircuitBandwidth
    | ConfChanged
    | SignalReceived
    | NetworkReady
    | StillWaiting
    | Connected
    | Disconnected
    | BuildAccepted
    | BuildRefused
    | AttachRefused
    | TakeOverRefused
    | Reserved
    | StopRequested
    | CircuitOrdered
    | CircuitAdopted
    | ProbeStarted
    | ProbeFinished
    | DeadlinePassed
)
