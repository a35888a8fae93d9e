"""A pool fed with control lines as Tor prints them; what it asks for comes back as command lines.

What stands behind ``;`` in a command goes to the log only: the circuit's name, or why.
"""

from __future__ import annotations

from circuitloom import wire
from circuitloom.errors import ControlProtocolError
from circuitloom.model import (
    LEAVE_UNATTACHED,
    Action,
    Announce,
    AttachRefused,
    AttachStream,
    BuildAccepted,
    BuildCircuit,
    BuildRefused,
    CircuitId,
    CloseCircuit,
    CloseStream,
    Connected,
    DeadlinePassed,
    Event,
    GiveBack,
    ReleaseStream,
    StreamId,
    TakeOver,
    TakeOverRefused,
)
from circuitloom.policy.types import Algorithm, Balance, Failover, Policy, Rebuild, Slot, WhenNone
from circuitloom.pool import CircuitSnapshot, Pool, PoolSnapshot
from circuitloom.wire import ControlCodec, Reply

TAKE_OVER = "SETCONF __LeaveStreamsUnattached=1"
GIVE_BACK = "RESETCONF __LeaveStreamsUnattached"
PATH = f"${'A' * 40}~alpha,${'B' * 40}~beta,${'C' * 40}~gamma"
FIRST_CIRCUIT = 30


def policy_of(
    *slots: Slot | str,
    when_none: WhenNone = WhenNone.TOR,
    min_active: int = 1,
    rebuild: Rebuild | None = None,
    algorithm: Algorithm = Algorithm.ROUND_ROBIN,
) -> Policy:
    """A policy; a slot with nothing but a name may be given as that."""
    return Policy(
        tuple(Slot(slot) if isinstance(slot, str) else slot for slot in slots),
        balance=Balance(algorithm),
        failover=Failover(when_none, min_active, rebuild or Rebuild()),
    )


TWO = policy_of("primary", "backup", min_active=2)


def created(circuit_id: int | str) -> str:
    """The creation time that Tor tells of a circuit."""
    return f"TIME_CREATED=2026-11-22T11:00:00.{int(circuit_id):06d}"


def built(circuit_id: int | str) -> str:
    """A circuit that is BUILT: the event without ``650 CIRC``, or the line of circuit-status."""
    return f"{circuit_id} BUILT {PATH} BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL {created(circuit_id)}"


class Driver:
    """A pool and the two ends of its control connection; the invariants are checked after each step.

    Attributes:
        now: The time; tests move it.
        said: What the last step announced.
    """

    def __init__(self, policy: Policy = TWO, *, uniform: float = 0.5) -> None:
        self.now = 1000.0
        self.said: list[str] = []
        self.pool = Pool(policy, uniform=lambda: uniform, now=self.now)
        self._codec = ControlCodec()
        self._builds: list[int] = []

    # --- what arrives --------------------------------------------------------------------------------------

    def tell(self, *lines: str) -> list[str]:
        """Asynchronous events, each one line without its ``650``."""
        return self.receive("".join(f"650 {line}\r\n" for line in lines))

    def receive(self, text: str) -> list[str]:
        """Whatever Tor sends, with its line ends; no replies."""
        actions: list[Action] = []
        for message in self._codec.feed(text.encode("latin-1")):
            assert not isinstance(message, Reply)
            actions += self.pool.handle(message, now=self.now)
        return self._commands(actions)

    def give(self, event: Event) -> list[str]:
        """An event that is not Tor's."""
        return self._commands(self.pool.handle(event, now=self.now))

    def connect(
        self, *, circuits: str = "", streams: str = "", option: str = "0", reserved: str = "250 MapAddress"
    ) -> list[str]:
        """The connection is up; GETINFO circuit-status and stream-status, and GETCONF, answer this."""
        self._builds.clear()
        return self.give(
            Connected(
                wire.parse_circuits(circuits),
                wire.parse_streams(streams),
                leave_unattached=option == "1",
                reserved=wire.parse_reserved(self._reply(reserved)),
            )
        )

    def reply_to_build(self, text: str) -> list[str]:
        """The reply to the oldest EXTENDCIRCUIT that has none yet."""
        reply = self._reply(text)
        build = self._builds.pop(0)
        if reply.is_ok:
            return self.give(BuildAccepted(build, wire.extended_circuit_id(reply)))
        return self.give(BuildRefused(build, reply.text))

    def refuse_attach(self, stream_id: int, circuit_id: int, text: str) -> list[str]:
        """The reply to ``ATTACHSTREAM stream_id circuit_id``."""
        reply = self._reply(text)
        return self.give(
            AttachRefused(StreamId(str(stream_id)), CircuitId(str(circuit_id)), reply.code, reply.text)
        )

    def refuse_take_over(self, text: str) -> list[str]:
        """The reply to SETCONF."""
        return self.give(TakeOverRefused(self._reply(text).text))

    def reserve(self, text: str) -> list[str]:
        """The reply to GETCONF of the options that map addresses."""
        return self.give(wire.parse_reserved(self._reply(text)))

    def reload(self, policy: Policy) -> list[str]:
        """The policy was read again."""
        return self._commands(self.pool.replace_policy(policy, now=self.now))

    def wait(self, seconds: float) -> list[str]:
        """Time passes; the service calls when a deadline is due."""
        self.now += seconds
        deadline = self.pool.next_deadline()
        if deadline is None or deadline > self.now:
            self.said = []
            return []
        return self.give(DeadlinePassed())

    # --- what it comes to ----------------------------------------------------------------------------------

    def snapshot(self) -> PoolSnapshot:
        return self.pool.snapshot(now=self.now)

    def circuit(self, name: str) -> CircuitSnapshot:
        """The first circuit of this name."""
        return next(circuit for circuit in self.snapshot().circuits if circuit.name == name)

    def states(self) -> dict[str, str]:
        return {circuit.name: circuit.state for circuit in self.snapshot().circuits}

    def _commands(self, actions: list[Action]) -> list[str]:
        self.said = [f"{a.severity}: {a.message}" for a in actions if isinstance(a, Announce)]
        self._builds += [action.build for action in actions if isinstance(action, BuildCircuit)]
        self.pool.check_invariants()
        return [_command(action) for action in actions if not isinstance(action, Announce)]

    def _reply(self, text: str) -> Reply:
        (reply,) = ControlCodec().feed(text.encode("latin-1") + b"\r\n")
        if not isinstance(reply, Reply):
            raise ControlProtocolError("not a reply")
        return reply


def balancing(policy: Policy = TWO) -> Driver:
    """A pool in charge, with circuits 30, 31, ... BUILT in the policy's order."""
    driver = Driver(policy)
    driver.connect()
    for circuit_id in range(FIRST_CIRCUIT, FIRST_CIRCUIT + len(policy.slots)):
        driver.reply_to_build(f"250 EXTENDED {circuit_id}")
    for circuit_id in range(FIRST_CIRCUIT, FIRST_CIRCUIT + len(policy.slots)):
        driver.tell(f"CIRC {built(circuit_id)}")
    assert driver.snapshot().state == "balancing"
    return driver


def opened(stream_id: int, target: str = "example.com:80", purpose: str = "USER") -> tuple[str, str]:
    """What Tor tells of a new stream that waits for a controller."""
    isolation = "CLIENT_PROTOCOL=SOCKS5 NYM_EPOCH=0 SESSION_GROUP=-4 ISO_FIELDS=CLIENTADDR,SESSION_GROUP"
    return (
        f"STREAM {stream_id} NEW 0 {target} SOURCE_ADDR=127.0.0.1:4711 PURPOSE={purpose} {isolation}",
        f"STREAM {stream_id} CONTROLLER_WAIT 0 {target} {isolation}",
    )


def conf_changed(value: str | None) -> str:
    """CONF_CHANGED of the option, with its line ends."""
    line = LEAVE_UNATTACHED if value is None else f"{LEAVE_UNATTACHED}={value}"
    return f"650-CONF_CHANGED\r\n650-{line}\r\n650 OK\r\n"


def _command(action: Action) -> str:
    match action:
        case TakeOver():
            text = TAKE_OVER
        case GiveBack():
            text = GIVE_BACK
        case AttachStream(stream_id, circuit_id, name):
            text = f"ATTACHSTREAM {stream_id} {circuit_id}; {name}"
        case ReleaseStream(stream_id, why):
            text = f"ATTACHSTREAM {stream_id} 0; {why}"
        case CloseStream(stream_id, why):
            text = f"CLOSESTREAM {stream_id} 1; {why}"
        case BuildCircuit(_, name, path):
            text = f"{wire.extend_circuit(path).decode().strip()}; {name}"
        case CloseCircuit(circuit_id):
            text = f"CLOSECIRCUIT {circuit_id} IfUnused"
        case Announce():
            raise AssertionError("announcements are no commands")
    return text
