"""Tor as a value: what it answers to commands, and when, for tests of the pure core.

It follows tor-facts: replies come at once and in order, events are queued and come later; a stream that a
circuit's end takes with it fails; ATTACHSTREAM is judged in Tor's own order. It also asserts what must never
be asked of a real Tor.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from circuitloom.model import (
    LEAVE_UNATTACHED,
    TOR_CHOOSES,
    Action,
    AskWaiting,
    AttachProbe,
    AttachRefused,
    AttachStream,
    BuildAccepted,
    BuildCircuit,
    BuildRefused,
    CircuitAdopted,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    CloseCircuit,
    CloseStream,
    ConfChanged,
    Connected,
    Event,
    GiveBack,
    Hop,
    Purpose,
    ReleaseStream,
    SignalReceived,
    StillWaiting,
    StreamEvent,
    StreamId,
    StreamStatus,
    TakeOver,
)

PATH = (Hop("A" * 40, "alpha"), Hop("B" * 40, "beta"), Hop("C" * 40, "gamma"))


@dataclass
class TorStream:
    """state: wait (CONTROLLER_WAIT), choosing (CIRCUIT_WAIT), connecting (CONNECT_WAIT), open."""

    stream_id: StreamId
    target: str
    purpose: str
    state: str = "wait"
    circuit_id: CircuitId = TOR_CHOOSES
    user: str = ""
    probe: int = 0


@dataclass
class TorCircuit:
    circuit_id: CircuitId
    created: str
    is_built: bool = False
    purpose: Purpose = Purpose.GENERAL
    users: set[str] = field(default_factory=set)
    is_foreign: bool = False
    path: tuple[Hop, ...] = PATH


@dataclass
class SimulatedTor:
    """One Tor process."""

    starts: int = 0
    leave_unattached: bool = False
    refuses_builds: bool = False
    isolates: bool = False
    epoch: int = 0
    streams: dict[StreamId, TorStream] = field(default_factory=dict)
    circuits: dict[CircuitId, TorCircuit] = field(default_factory=dict)
    events: deque[Event] = field(default_factory=deque)
    ids: int = 0
    log: list[Action] = field(default_factory=list)

    # --- what the agent asks -------------------------------------------------------------------------------

    def perform(self, actions: list[Action]) -> list[Event]:
        """Carry out actions; return the replies that the agent gets at once."""
        replies: list[Event] = []
        for action in actions:
            self.log.append(action)
            match action:
                case TakeOver():
                    self._set_option(is_set=True)
                case GiveBack():
                    self._set_option(is_set=False)
                case AskWaiting():
                    streams = self.streams.values()
                    fresh = (s.stream_id for s in streams if s.state in {"wait", "choosing"})
                    replies.append(StillWaiting(frozenset(fresh)))
                case AttachStream() | ReleaseStream() | AttachProbe():
                    is_release = isinstance(action, ReleaseStream)
                    circuit_id = TOR_CHOOSES if is_release else action[1]
                    replies += self._attach(action.stream_id, CircuitId(circuit_id))
                case CloseStream(stream_id, _):
                    self.end_stream(stream_id, StreamStatus.FAILED)
                case BuildCircuit():
                    replies.append(self._build(action))
                case CloseCircuit(circuit_id, is_forced):
                    there = self.circuits.get(circuit_id)
                    assert there is None or not there.is_foreign, "another controller's circuit was closed"
                    if is_forced or not any(
                        stream.circuit_id == circuit_id for stream in self.streams.values()
                    ):
                        self.end_circuit(circuit_id)
        return replies

    def _set_option(self, *, is_set: bool) -> None:
        if self.leave_unattached != is_set:
            self.leave_unattached = is_set
            self.events.append(ConfChanged({LEAVE_UNATTACHED: "1" if is_set else "0"}))

    def _build(self, action: BuildCircuit) -> Event:
        if self.refuses_builds:
            return BuildRefused(action.build, "Couldn't start circuit")
        created = f"start {self.starts}, {self.ids + 1}"
        circuit = TorCircuit(CircuitId(self._next_id()), created, purpose=action.purpose)
        circuit.path = tuple(Hop(relay, "") for relay in action.path) if action.path else PATH
        self.circuits[circuit.circuit_id] = circuit
        self._tell_circuit(circuit, CircuitStatus.LAUNCHED)
        return BuildAccepted(action.build, circuit.circuit_id)

    def _attach(self, stream_id: StreamId, circuit_id: CircuitId) -> list[Event]:
        stream = self.streams.get(stream_id)
        if stream is None:
            return [AttachRefused(stream_id, circuit_id, 552, f'Unknown stream "{stream_id}"')]
        circuit = self.circuits.get(circuit_id)
        if circuit is None and circuit_id != TOR_CHOOSES:
            return [AttachRefused(stream_id, circuit_id, 552, f'Unknown circuit "{circuit_id}"')]
        assert not stream.purpose.startswith("DIR"), "a directory stream was touched"
        if stream.state == "connecting":
            under = self.circuits.get(stream.circuit_id)
            assert under is not None, "a stream on its way over nobody's circuit was moved"
            assert under.purpose is Purpose.CONTROLLER, "its early data would be lost"
            stream.state = "wait"
            stream.circuit_id = TOR_CHOOSES
            self._tell_stream(stream, StreamStatus.CONTROLLER_WAIT)
        if stream.state != "wait":
            return [AttachRefused(stream_id, circuit_id, 555, "Connection is not managed by controller.")]
        if circuit is None:
            stream.state = "choosing"
            return []
        if not circuit.is_built:
            message = "Can't attach stream to non-open origin circuit"
            return [AttachRefused(stream_id, circuit_id, 551, message)]
        assert not stream.target.rpartition(":")[0].endswith((".onion", ".exit")), "this kills the stream"
        is_resolve = stream.purpose == "DNS_REQUEST"
        assert not (is_resolve and circuit.purpose is Purpose.CONTROLLER), "this aborts Tor"
        if self.isolates and circuit.users - {stream.user}:
            # Tor may have given the circuit to somebody else a moment ago; after we were told it is a breach.
            news = {event.circuit_id for event in self.events if isinstance(event, StreamEvent)}
            assert circuit_id in news, "streams of two users share a circuit"
        self._put_on(stream, circuit_id)
        return []

    # --- what happens to Tor -------------------------------------------------------------------------------

    def open_stream(
        self,
        target: str = "example.com:80",
        purpose: str = "USER",
        user: str | None = "alice",
        *,
        source: str = "127.0.0.1:4711",
        probe: int = 0,
    ) -> StreamId:
        if purpose.startswith("DIR"):
            target = f"203.0.113.9.${'D' * 40}.exit:9001"  # as Tor names them; its status shows no purpose
        stream = TorStream(
            StreamId(self._next_id()), target, purpose, user=f"{user} {self.epoch}", probe=probe
        )
        self.streams[stream.stream_id] = stream
        status = StreamStatus.NEWRESOLVE if purpose == "DNS_REQUEST" else StreamStatus.NEW
        self._tell_stream(
            stream,
            status,
            PURPOSE=purpose,
            SOURCE_ADDR=source,
            **({} if user is None else {"SOCKS_USERNAME": user}),
            NYM_EPOCH=str(self.epoch),
            ISO_FIELDS="SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH",
        )
        if purpose.startswith("DIR") or not self.leave_unattached:
            stream.state = "choosing"
        else:
            self._tell_stream(stream, StreamStatus.CONTROLLER_WAIT)
        return stream.stream_id

    def choose_for(self, stream_id: StreamId) -> None:
        """Tor attaches one of its own: to one of our circuits, as it does, or to another."""
        stream = self.streams[stream_id]
        if stream.state == "choosing":
            built = [
                circuit
                for circuit in self.circuits.values()
                if circuit.is_built and circuit.users <= {stream.user} and circuit.purpose is Purpose.GENERAL
            ]
            # Its directory and onion streams are internal, and match no circuit of ours (tor-facts 5).
            is_internal = stream.purpose.startswith("DIR") or ".onion:" in stream.target
            is_ours = built and not is_internal
            self._put_on(stream, built[0].circuit_id if is_ours else CircuitId("9999"))

    def answer(self, stream_id: StreamId, outcome: str) -> None:
        """The exit answers: ``ok``, ``detach`` or ``fail``."""
        stream = self.streams[stream_id]
        if stream.state != "connecting":
            return
        if outcome == "ok":
            stream.state = "open"
            self._tell_stream(stream, StreamStatus.SUCCEEDED)
        elif outcome == "detach":
            self._tell_stream(stream, StreamStatus.DETACHED, REASON="END", REMOTE_REASON="MISC")
            if self.leave_unattached and not stream.purpose.startswith("DIR"):
                stream.state = "wait"
                self._tell_stream(stream, StreamStatus.CONTROLLER_WAIT)  # it carries the old circuit's id
            else:
                stream.state = "choosing"
            stream.circuit_id = TOR_CHOOSES
        else:
            self.end_stream(stream_id, StreamStatus.FAILED)

    def hang_up(self, probe: int) -> None:
        """The agent closes the connection of a probe."""
        for stream in list(self.streams.values()):
            if stream.probe == probe:
                self.end_stream(stream.stream_id)

    def end_stream(self, stream_id: StreamId, first: StreamStatus = StreamStatus.CLOSED) -> None:
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            if first is StreamStatus.FAILED:
                self._tell_stream(stream, StreamStatus.FAILED, REASON="END")
            self._tell_stream(stream, StreamStatus.CLOSED, REASON="DONE")

    def finish_build(self, circuit_id: CircuitId, *, is_success: bool, reached: int = 0) -> None:
        """It is BUILT, or FAILED with so many hops reached."""
        circuit = self.circuits[circuit_id]
        if circuit.is_built:
            return
        if is_success:
            circuit.is_built = True
            self._tell_circuit(circuit, CircuitStatus.BUILT)
        else:
            del self.circuits[circuit_id]
            self._tell_circuit(
                circuit,
                CircuitStatus.FAILED,
                circuit.path[:reached],
                REASON="DESTROYED",
                REMOTE_REASON="CONNECTFAILED",
            )

    def end_circuit(self, circuit_id: CircuitId) -> None:
        circuit = self.circuits.pop(circuit_id, None)
        if circuit is None:
            return
        status = CircuitStatus.CLOSED if circuit.is_built else CircuitStatus.FAILED
        self._tell_circuit(circuit, status, REASON="REQUESTED")
        for stream in list(self.streams.values()):
            if stream.circuit_id == circuit_id:
                self.end_stream(stream.stream_id, StreamStatus.FAILED)

    def build_for_another(self, purpose: Purpose) -> CircuitId:
        """Another controller has a circuit built."""
        created = f"start {self.starts}, {self.ids} of another"
        circuit = TorCircuit(CircuitId(self._next_id()), created, purpose=purpose, is_foreign=True)
        self.circuits[circuit.circuit_id] = circuit
        self._tell_circuit(circuit, CircuitStatus.LAUNCHED)
        self.finish_build(circuit.circuit_id, is_success=True)
        return circuit.circuit_id

    def adopted(self, name: str, circuit_id: CircuitId) -> CircuitAdopted:
        """What the agent learns when its operator names a circuit: a reply, so it overtakes events."""
        line = self._line(self.circuits[circuit_id])
        return CircuitAdopted(name, line, tuple(map(self._status, self.streams.values())))

    def reload(self) -> None:
        """SIGHUP: torrc is read again, and the option is not in it."""
        self._set_option(is_set=False)
        self.events.append(SignalReceived("RELOAD"))

    def reset_option(self) -> None:
        """Another controller's SETCONF."""
        self._set_option(is_set=False)

    def new_identity(self) -> None:
        """NEWNYM."""
        self.epoch += 1
        self.events.append(SignalReceived("NEWNYM"))

    def restart(self) -> None:
        self.starts += 1
        self.leave_unattached = False
        self.streams.clear()
        self.circuits.clear()
        self.events.clear()
        self.ids = 0

    def connected(self) -> Connected:
        """What a new connection is told; events of before are for nobody."""
        self.events.clear()
        circuits = tuple(map(self._line, self.circuits.values()))
        streams = tuple(map(self._status, self.streams.values()))
        return Connected(circuits, streams, self.leave_unattached)

    def waiting(self) -> list[StreamId]:
        return [stream.stream_id for stream in self.streams.values() if stream.state == "wait"]

    # --- inside --------------------------------------------------------------------------------------------

    def _next_id(self) -> str:
        self.ids += 1
        return str(self.ids)

    @staticmethod
    def _line(circuit: TorCircuit) -> CircuitEvent:
        """Its line of circuit-status."""
        keywords = {"TIME_CREATED": circuit.created, "PURPOSE": circuit.purpose.value.upper()}
        if circuit.is_built:
            return CircuitEvent(circuit.circuit_id, CircuitStatus.BUILT, PATH, keywords)
        return CircuitEvent(circuit.circuit_id, CircuitStatus.EXTENDED, (), keywords)

    @staticmethod
    def _status(stream: TorStream) -> StreamEvent:
        """Its line of stream-status."""
        statuses = {
            "wait": StreamStatus.NEW,
            "choosing": StreamStatus.NEW,
            "connecting": StreamStatus.SENTCONNECT,
            "open": StreamStatus.SUCCEEDED,
        }
        return StreamEvent(stream.stream_id, statuses[stream.state], stream.circuit_id, stream.target)

    def _put_on(self, stream: TorStream, circuit_id: CircuitId) -> None:
        stream.state = "connecting"
        stream.circuit_id = circuit_id
        if circuit_id in self.circuits:
            self.circuits[circuit_id].users.add(stream.user)
        is_resolve = stream.purpose == "DNS_REQUEST"
        self._tell_stream(stream, StreamStatus.SENTRESOLVE if is_resolve else StreamStatus.SENTCONNECT)

    def _tell_stream(self, stream: TorStream, status: StreamStatus, **keywords: str) -> None:
        self.events.append(StreamEvent(stream.stream_id, status, stream.circuit_id, stream.target, keywords))

    def _tell_circuit(
        self, circuit: TorCircuit, status: CircuitStatus, path: tuple[Hop, ...] = (), **keywords: str
    ) -> None:
        path = circuit.path if status is CircuitStatus.BUILT else path
        keywords["TIME_CREATED"] = circuit.created
        keywords["PURPOSE"] = circuit.purpose.value.upper()
        self.events.append(CircuitEvent(circuit.circuit_id, status, path, keywords))
