"""A Tor that exists only in a simulation: what it answers to the core, and when.

Rules of this file:

* It follows tor-facts: replies come in order, a stream that a circuit's end takes with it fails, whoever
  waits for a controller is given up after SocksTimeout, and what is handed back goes over Tor's own circuits.
* Everything it tells is put on the agenda and reaches the core later, at the earliest behind what is there.
* A circuit connects a stream in a time of its own, four times as long on the slowest as on the fastest one.
* Bytes are not simulated: nothing is ever told of bandwidth. What else the core asks for is left undone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from heapq import heappop, heappush

from circuitloom.model import (
    LEAVE_UNATTACHED,
    TOR_CHOOSES,
    Action,
    AttachRefused,
    AttachStream,
    BuildAccepted,
    BuildCircuit,
    CircuitAdopted,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    CloseCircuit,
    CloseStream,
    ConfChanged,
    Event,
    GiveBack,
    Hop,
    Purpose,
    ReleaseStream,
    StreamEvent,
    StreamId,
    StreamStatus,
    TakeOver,
)
from circuitloom.simulation.arrivals import Arrival

SOCKS_TIMEOUT_SECONDS = 120.0
"""Tor's default; whoever is not attached by then has failed (tor-facts 4)."""

FASTEST_CONNECT_SECONDS = 0.125
SPREAD = 4.0
"""How many times longer the slowest circuit takes to connect a stream."""

BUILD_RATIO = 4.0
"""A circuit is built hop by hop: some round trips longer than one for a stream."""

CONNECT_WOBBLE = 0.1
"""What one stream differs from the next on the same circuit, up or down."""

NOT_OURS = CircuitId("own")
"""Every circuit that Tor builds and keeps for itself."""


@dataclass(slots=True, eq=False)
class TorStream:
    """A stream of the simulated Tor; ``circuit_id`` is None until it is on its way."""

    stream_id: StreamId
    arrival: Arrival = field(repr=False)
    circuit_id: CircuitId | None = None
    is_waiting: bool = False
    is_open: bool = False


@dataclass(slots=True, eq=False)
class TorCircuit:
    """A circuit of the simulated Tor."""

    circuit_id: CircuitId
    name: str
    connect_seconds: float
    purpose: Purpose
    path: tuple[Hop, ...]
    is_built: bool = False
    streams: dict[StreamId, TorStream] = field(default_factory=dict)

    @property
    def keywords(self) -> dict[str, str]:
        """What Tor tells with each event of it."""
        return {"PURPOSE": self.purpose.value.upper(), "TIME_CREATED": f"circuit {self.circuit_id}"}


class Agenda:
    """What is to happen, in the order of its time, and of its coming where the time is the same."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0

    def add(self, at: float, what: Callable[[], None]) -> None:
        """Have something done at a time (seconds)."""
        self._number += 1
        heappush(self._entries, (at, self._number, what))

    @property
    def next_at(self) -> float | None:
        """When the next thing is due (seconds), if there is any."""
        return self._entries[0][0] if self._entries else None

    def take(self) -> Callable[[], None]:
        """The next thing; it is taken off."""
        return heappop(self._entries)[2]


class SimulatedTor:
    """One Tor process.

    Args:
        agenda: What is to happen.
        tell: Takes each event for the core, when it is due.
        uniform: Gives a random number in [0, 1).

    Attributes:
        now: The time (seconds); whoever drives the simulation sets it.
        streams: Those that live, by id.
    """

    def __init__(self, agenda: Agenda, tell: Callable[[Event], None], uniform: Callable[[], float]) -> None:
        self._agenda = agenda
        self._tell = tell
        self._uniform = uniform
        self._circuits: dict[CircuitId, TorCircuit] = {}
        self._is_held = False
        self._out_until: dict[str, float] = {}
        self._ids = 0
        self.now = 0.0
        self.streams: dict[StreamId, TorStream] = {}

    # --- what the core asks --------------------------------------------------------------------------------

    def perform(self, actions: Iterable[Action]) -> None:
        """Carry out what the core asks for."""
        for action in actions:
            match action:
                case TakeOver():
                    self._set_option(is_set=True)
                case GiveBack():
                    self._set_option(is_set=False)
                case AttachStream():
                    self._attach(action.stream_id, action.circuit_id)
                case ReleaseStream():
                    self._attach(action.stream_id, TOR_CHOOSES)
                case CloseStream():
                    self._end(action.stream_id, StreamStatus.FAILED, "MISC")
                case BuildCircuit():
                    self._build(action)
                case CloseCircuit():
                    circuit = self._circuits.get(action.circuit_id)
                    if circuit is not None and (action.is_forced or not circuit.streams):
                        self._end_circuit(circuit, "REQUESTED")
                case _:
                    pass

    def _set_option(self, *, is_set: bool) -> None:
        if self._is_held != is_set:
            self._is_held = is_set
            self._send(ConfChanged({LEAVE_UNATTACHED: "1" if is_set else "0"}))

    def _build(self, action: BuildCircuit) -> None:
        path = tuple(Hop(fingerprint, "") for fingerprint in action.path or ("A" * 40, "B" * 40, "C" * 40))
        circuit = self._new_circuit(action.name, action.purpose, path)
        self._send(BuildAccepted(action.build, circuit.circuit_id))
        self._say(circuit, CircuitStatus.LAUNCHED)
        at = self.now + circuit.connect_seconds * BUILD_RATIO
        self._agenda.add(at, lambda: self._finish_build(circuit))

    def _new_circuit(self, name: str, purpose: Purpose, path: tuple[Hop, ...]) -> TorCircuit:
        seconds = FASTEST_CONNECT_SECONDS * SPREAD ** self._uniform()
        circuit = TorCircuit(CircuitId(self._next_id()), name, seconds, purpose, path)
        self._circuits[circuit.circuit_id] = circuit
        return circuit

    def _finish_build(self, circuit: TorCircuit) -> None:
        if circuit.circuit_id not in self._circuits:
            return
        if self._out_until.get(circuit.name, 0.0) > self.now:
            del self._circuits[circuit.circuit_id]
            self._say(circuit, CircuitStatus.FAILED, REASON="DESTROYED", REMOTE_REASON="CONNECTFAILED")
            return
        circuit.is_built = True
        self._say(circuit, CircuitStatus.BUILT)

    def _attach(self, stream_id: StreamId, circuit_id: CircuitId) -> None:
        stream = self.streams.get(stream_id)
        circuit = self._circuits.get(circuit_id)
        if stream is None:
            self._send(AttachRefused(stream_id, circuit_id, 552, f'Unknown stream "{stream_id}"'))
        elif circuit is None and circuit_id != TOR_CHOOSES:
            self._send(AttachRefused(stream_id, circuit_id, 552, f'Unknown circuit "{circuit_id}"'))
        elif stream.is_open:
            message = "Connection is not managed by controller."
            self._send(AttachRefused(stream_id, circuit_id, 555, message))
        else:
            self._leave(stream)
            self._put_on(stream, circuit)

    # --- what happens to Tor -------------------------------------------------------------------------------

    def adopted(self, name: str) -> CircuitAdopted:
        """Have another controller build a circuit, and the operator give it to a slot of the policy."""
        path = (Hop("D" * 40, ""), Hop("E" * 40, ""), Hop("F" * 40, ""))
        circuit = self._new_circuit(name, Purpose.GENERAL, path)
        circuit.is_built = True
        return CircuitAdopted(
            name, CircuitEvent(circuit.circuit_id, CircuitStatus.BUILT, path, circuit.keywords)
        )

    def open_stream(self, arrival: Arrival) -> StreamId:
        """A client asks for a connection, or a name."""
        stream = TorStream(StreamId(self._next_id()), arrival)
        self.streams[stream.stream_id] = stream
        status = StreamStatus.NEWRESOLVE if arrival.is_resolve else StreamStatus.NEW
        self._say_stream(stream, status, dict(arrival.keywords))
        if not self._is_held:
            self._put_on(stream, None)
            return stream.stream_id
        stream.is_waiting = True
        self._say_stream(stream, StreamStatus.CONTROLLER_WAIT)
        at = self.now + SOCKS_TIMEOUT_SECONDS
        self._agenda.add(at, lambda: self._give_up(stream))
        return stream.stream_id

    def name_of(self, circuit_id: CircuitId) -> str | None:
        """The policy's name of a circuit, if it lives."""
        circuit = self._circuits.get(circuit_id)
        return None if circuit is None else circuit.name

    def lose(self, name: str, *, outage_seconds: float) -> list[StreamId]:
        """End every circuit of this name, built or not; returns the streams that end with them."""
        self._out_until[name] = self.now + outage_seconds
        cut: list[StreamId] = []
        for circuit in [circuit for circuit in self._circuits.values() if circuit.name == name]:
            if circuit.is_built:
                cut += circuit.streams
                self._end_circuit(circuit, "DESTROYED")
        return cut

    def _give_up(self, stream: TorStream) -> None:
        if stream.is_waiting:
            self._end(stream.stream_id, StreamStatus.FAILED, "TIMEOUT")

    def _put_on(self, stream: TorStream, circuit: TorCircuit | None) -> None:
        """Send the stream over the circuit, or over one of Tor's own."""
        stream.is_waiting = False
        stream.circuit_id = NOT_OURS if circuit is None else circuit.circuit_id
        if circuit is not None:
            circuit.streams[stream.stream_id] = stream
        self._say_stream(
            stream, StreamStatus.SENTRESOLVE if stream.arrival.is_resolve else StreamStatus.SENTCONNECT
        )
        seconds = stream.arrival.connect_seconds
        if seconds is None:
            own = FASTEST_CONNECT_SECONDS * SPREAD**0.5
            seconds = own if circuit is None else circuit.connect_seconds
            seconds *= 1 + CONNECT_WOBBLE * (2 * self._uniform() - 1)
        circuit_id = stream.circuit_id
        self._agenda.add(self.now + seconds, lambda: self._answer(stream, circuit_id))

    def _answer(self, stream: TorStream, circuit_id: CircuitId) -> None:
        """The far end answers, unless the stream is gone or elsewhere by now."""
        if self.streams.get(stream.stream_id) is not stream or stream.circuit_id != circuit_id:
            return
        if stream.arrival.failure is not None:
            self._end(stream.stream_id, StreamStatus.FAILED, "END", stream.arrival.failure)
            return
        stream.is_open = True
        self._say_stream(stream, StreamStatus.SUCCEEDED)
        at = self.now + (0.0 if stream.arrival.is_resolve else stream.arrival.open_seconds)
        self._agenda.add(at, lambda: self._end(stream.stream_id, StreamStatus.CLOSED, "DONE"))

    def _end(self, stream_id: StreamId, first: StreamStatus, reason: str, remote_reason: str = "") -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            return
        stream.is_waiting = False
        keywords = {"REASON": reason} | ({"REMOTE_REASON": remote_reason} if remote_reason else {})
        if first is StreamStatus.FAILED:
            self._say_stream(stream, StreamStatus.FAILED, keywords)
        self._say_stream(stream, StreamStatus.CLOSED, keywords)
        self._leave(stream)

    def _leave(self, stream: TorStream) -> None:
        circuit = self._circuits.get(stream.circuit_id or TOR_CHOOSES)
        if circuit is not None:
            circuit.streams.pop(stream.stream_id, None)
        stream.circuit_id = None

    def _end_circuit(self, circuit: TorCircuit, reason: str) -> None:
        del self._circuits[circuit.circuit_id]
        status = CircuitStatus.CLOSED if circuit.is_built else CircuitStatus.FAILED
        self._say(circuit, status, REASON=reason)
        for stream_id in list(circuit.streams):
            self._end(stream_id, StreamStatus.FAILED, "DESTROY")

    # --- inside --------------------------------------------------------------------------------------------

    def _next_id(self) -> str:
        self._ids += 1
        return str(self._ids)

    def _send(self, event: Event) -> None:
        self._agenda.add(self.now, lambda: self._tell(event))

    def _say(self, circuit: TorCircuit, status: CircuitStatus, **keywords: str) -> None:
        path = circuit.path if status is CircuitStatus.BUILT else ()
        self._send(CircuitEvent(circuit.circuit_id, status, path, circuit.keywords | keywords))

    def _say_stream(
        self, stream: TorStream, status: StreamStatus, keywords: dict[str, str] | None = None
    ) -> None:
        circuit_id = stream.circuit_id or TOR_CHOOSES
        self._send(StreamEvent(stream.stream_id, status, circuit_id, stream.arrival.target, keywords or {}))
