"""A pool fed with control lines as Tor prints them; what it asks for comes back as command lines.

What stands behind ``;`` in a command goes to the log only: the circuit's name, or why.
"""

from __future__ import annotations

from dataclasses import replace

from circuitloom import wire
from circuitloom.errors import ControlProtocolError
from circuitloom.model import (
    LEAVE_UNATTACHED,
    Action,
    Announce,
    AskWaiting,
    AttachProbe,
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
    ProbeCircuit,
    ProbeFinished,
    ProbeOutcome,
    ProbeStarted,
    Purpose,
    RecordedCircuit,
    ReleaseStream,
    StopProbe,
    StreamId,
    TakeOver,
    TakeOverRefused,
)
from circuitloom.paths import Relays
from circuitloom.policy.health import Degrade, Panic
from circuitloom.policy.probing import Probe
from circuitloom.policy.rotation import Rotation
from circuitloom.policy.types import (
    Algorithm,
    Balance,
    Eject,
    Failover,
    Health,
    Isolation,
    Keys,
    Policy,
    Queue,
    Rebuild,
    Retry,
    Rule,
    Slot,
    WhenExceeded,
    WhenFull,
    WhenNone,
)
from circuitloom.pool import CircuitSnapshot, Pool, PoolSnapshot
from circuitloom.wire import ControlCodec, DirectoryNews, Reply, TorWarning

TAKE_OVER = "SETCONF __LeaveStreamsUnattached=1"
GIVE_BACK = "RESETCONF __LeaveStreamsUnattached"
ASK_WAITING = "GETINFO stream-status"
WITHOUT_ARGUMENTS = {TakeOver: TAKE_OVER, GiveBack: GIVE_BACK, AskWaiting: ASK_WAITING}
PATH = f"${'A' * 40}~alpha,${'B' * 40}~beta,${'C' * 40}~gamma"
FIRST_CIRCUIT = 30


def policy_of(
    *slots: Slot | str,
    when_none: WhenNone = WhenNone.TOR,
    min_active: int = 1,
    rebuild: Rebuild | None = None,
    algorithm: Algorithm = Algorithm.ROUND_ROBIN,
    isolation: Isolation = Isolation.NONE,
    keys: Keys | None = None,
    retry: Retry | None = None,
    purpose: Purpose = Purpose.GENERAL,
    redispatch_seconds: float | None = None,
    when_full: WhenFull = WhenFull.TOR,
    queue: Queue | None = None,
    rules: tuple[Rule, ...] = (),
    eject: Eject | None = None,
    probe: Probe | None = None,
    rotation: Rotation | None = None,
    panic: Panic | None = None,
    slow_start_seconds: float | None = None,
    degrade: Degrade | None = None,
) -> Policy:
    """A policy; a slot with nothing but a name may be given as that."""
    return Policy(
        tuple(replace(Slot(slot) if isinstance(slot, str) else slot, purpose=purpose) for slot in slots),
        balance=Balance(
            algorithm, isolation, keys or Keys(), purpose, when_full=when_full, queue=queue or Queue()
        ),
        failover=Failover(when_none, min_active, rebuild or Rebuild(), retry or Retry(), redispatch_seconds),
        rules=rules,
        health=Health(eject, panic, slow_start_seconds, degrade, probe),
        rotation=rotation or Rotation(),
    )


def isolating(
    *slots: Slot | str, keys: Keys | None = None, when_none: WhenNone = WhenNone.TOR, min_active: int = 1
) -> Policy:
    """A policy that keeps apart what Tor keeps apart."""
    return policy_of(
        *slots, when_none=when_none, min_active=min_active, isolation=Isolation.TOR, keys=keys or Keys()
    )


TWO = policy_of("primary", "backup", min_active=2)


def created(circuit_id: int | str) -> str:
    """The creation time that Tor tells of a circuit."""
    return f"TIME_CREATED=2026-11-22T11:00:00.{int(circuit_id):06d}"


def built(circuit_id: int | str, purpose: Purpose = Purpose.GENERAL) -> str:
    """A circuit that is BUILT: the event without ``650 CIRC``, or the line of circuit-status."""
    word = purpose.value.upper()
    return f"{circuit_id} BUILT {PATH} BUILD_FLAGS=NEED_CAPACITY PURPOSE={word} {created(circuit_id)}"


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
        self._purpose = policy.balance.purpose

    # --- what arrives --------------------------------------------------------------------------------------

    def tell(self, *lines: str) -> list[str]:
        """Asynchronous events, each one line without its ``650``."""
        return self.receive("".join(f"650 {line}\r\n" for line in lines))

    def receive(self, text: str) -> list[str]:
        """Whatever Tor sends, with its line ends; no replies."""
        actions: list[Action] = []
        for message in self._codec.feed(text.encode("latin-1")):
            assert not isinstance(message, Reply | TorWarning | DirectoryNews)
            actions += self.pool.handle(message, now=self.now)
        return self._commands(actions)

    def give(self, event: Event) -> list[str]:
        """An event that is not Tor's."""
        return self._commands(self.pool.handle(event, now=self.now))

    def connect(
        self,
        *,
        circuits: str = "",
        streams: str = "",
        option: str = "0",
        reserved: str = "250 MapAddress",
        records: tuple[RecordedCircuit, ...] = (),
        secret: bytes | None = None,
        max_dirtiness_seconds: float | None = None,
    ) -> list[str]:
        """The connection is up; GETINFO circuit-status and stream-status, and GETCONF, answer this."""
        self._builds.clear()
        return self.give(
            Connected(
                wire.parse_circuits(circuits),
                wire.parse_streams(streams),
                leave_unattached=option == "1",
                reserved=wire.parse_reserved(self._reply(reserved)),
                records=records,
                secret=secret,
                max_dirtiness_seconds=max_dirtiness_seconds,
            )
        )

    def reply_to_build(self, text: str) -> list[str]:
        """The reply to the oldest EXTENDCIRCUIT that has none yet."""
        reply = self._reply(text)
        build = self._builds.pop(0)
        if reply.is_ok:
            return self.give(BuildAccepted(build, wire.extended_circuit_id(reply)))
        return self.give(BuildRefused(build, reply.text))

    def build(self, *circuit_ids: int) -> list[str]:
        """The oldest builds that have no reply yet get these circuits, which are BUILT; then all as asked."""
        commands: list[str] = []
        for circuit_id in circuit_ids:
            commands += self.reply_to_build(f"250 EXTENDED {circuit_id}")
        events = (f"CIRC {built(circuit_id, self._purpose)}" for circuit_id in circuit_ids)
        return commands + self.tell(*events)

    def refuse_attach(self, stream_id: int, circuit_id: int, text: str) -> list[str]:
        """The reply to ``ATTACHSTREAM stream_id circuit_id``."""
        reply = self._reply(text)
        return self.give(
            AttachRefused(StreamId(str(stream_id)), CircuitId(str(circuit_id)), reply.code, reply.text)
        )

    def refuse_take_over(self, text: str) -> list[str]:
        """The reply to SETCONF."""
        return self.give(TakeOverRefused(self._reply(text).text))

    def start_probe(self, probe: int, source: str | None) -> list[str]:
        """A probe's connection is up, and its request leaves."""
        return self.give(ProbeStarted(probe, source))

    def end_probe(self, probe: int, outcome: ProbeOutcome, detail: str = "") -> list[str]:
        """A probe's connection has ended."""
        return self.give(ProbeFinished(probe, outcome, detail))

    def reserve(self, text: str) -> list[str]:
        """The reply to GETCONF of the options that map addresses."""
        return self.give(wire.parse_reserved(self._reply(text)))

    def learn(self, relays: Relays) -> list[str]:
        """A snapshot of the consensus."""
        return self._commands(self.pool.renew_relays(relays, now=self.now))

    def build_as_asked(self, command: str, circuit_id: int) -> list[str]:
        """The oldest build without reply, of this EXTENDCIRCUIT, gets this circuit, BUILT over its path."""
        commands = self.reply_to_build(f"250 EXTENDED {circuit_id}")
        path = command.partition(";")[0].split(" ")[2]
        return commands + self.tell(f"CIRC {circuit_id} BUILT {path} PURPOSE=GENERAL {created(circuit_id)}")

    def reload(self, policy: Policy) -> list[str]:
        """The policy was read again."""
        self._purpose = policy.balance.purpose
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
    asked = len(driver.connect())
    driver.build(*range(FIRST_CIRCUIT, FIRST_CIRCUIT + asked))
    assert driver.snapshot().state == "balancing"
    return driver


def opened(
    stream_id: int,
    target: str = "example.com:80",
    purpose: str = "USER",
    *,
    user: str | None = None,
    password: str | None = None,
    source: str | None = "127.0.0.1:4711",
    epoch: int = 0,
    protocol: str = "SOCKS5",
    fields: str | None = "SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH",
) -> tuple[str, str]:
    """What Tor tells of a new stream that waits for a controller; what is None it does not tell."""
    address = "" if source is None else f" SOURCE_ADDR={source}"
    words = [
        None if user is None else f'SOCKS_USERNAME="{user}"',
        None if password is None else f'SOCKS_PASSWORD="{password}"',
        f"CLIENT_PROTOCOL={protocol} NYM_EPOCH={epoch} SESSION_GROUP=-4",
        None if fields is None else f"ISO_FIELDS={fields}",
    ]
    isolation = " ".join(word for word in words if word is not None)
    return (
        f"STREAM {stream_id} NEW 0 {target}{address} PURPOSE={purpose} {isolation}",
        f"STREAM {stream_id} CONTROLLER_WAIT 0 {target} {isolation}",
    )


def sent(stream_id: int, circuit_id: int) -> str:
    """The stream is on its way over the circuit, whoever put it there."""
    return f"STREAM {stream_id} SENTCONNECT {circuit_id} example.com:80"


def detached(stream_id: int, circuit_id: int, reason: str = "END REMOTE_REASON=MISC") -> tuple[str, str, str]:
    """The stream was sent, could not be connected, and waits again."""
    return (
        sent(stream_id, circuit_id),
        f"STREAM {stream_id} DETACHED {circuit_id} example.com:80 REASON={reason}",
        f"STREAM {stream_id} CONTROLLER_WAIT {circuit_id} example.com:80",
    )


def closed(stream_id: int) -> str:
    """The stream's regular end."""
    return f"STREAM {stream_id} CLOSED 30 example.com:80 REASON=DONE"


def bounded(when_exceeded: WhenExceeded = WhenExceeded.TOR, idle_seconds: float = 600.0) -> Driver:
    """One circuit is all that is allowed; it is alice's, and stream 1 is on it."""
    keys = Keys(max_circuits=1, idle_seconds=idle_seconds, when_exceeded=when_exceeded)
    driver = balancing(isolating("only", keys=keys))
    assert driver.tell(*opened(1, user="alice")) == ["ATTACHSTREAM 1 30; only"]
    return driver


def keys_of(driver: Driver) -> list[tuple[int, str, str | None, str]]:
    """Key, name, id and state of each circuit."""
    return [(c.key, c.name, c.circuit_id, c.state) for c in driver.snapshot().circuits]


def two_keys(idle_seconds: float = 60.0) -> Driver:
    """Alice has circuit 30, bob has 31, each a stream."""
    driver = balancing(isolating("only", keys=Keys(idle_seconds=idle_seconds)))
    driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))
    driver.build(31)
    return driver


def conf_changed(value: str | None) -> str:
    """CONF_CHANGED of the option, with its line ends."""
    line = LEAVE_UNATTACHED if value is None else f"{LEAVE_UNATTACHED}={value}"
    return f"650-CONF_CHANGED\r\n650-{line}\r\n650 OK\r\n"


def _command(action: Action) -> str:  # noqa: C901 - one case for each action
    match action:
        case TakeOver() | GiveBack() | AskWaiting():
            text = WITHOUT_ARGUMENTS[type(action)]
        case AttachStream(stream_id, circuit_id, name):
            text = f"ATTACHSTREAM {stream_id} {circuit_id}; {name}"
        case ReleaseStream(stream_id, why):
            text = f"ATTACHSTREAM {stream_id} 0; {why}"
        case CloseStream(stream_id, why):
            text = f"CLOSESTREAM {stream_id} 1; {why}"
        case BuildCircuit(_, name, path, purpose):
            words = wire.extend_circuit(path).decode().strip()
            if purpose is not Purpose.GENERAL:
                words += f" purpose={purpose}"
            text = f"{words}; {name}"
        case CloseCircuit(circuit_id, is_forced):
            text = f"CLOSECIRCUIT {circuit_id}" + ("" if is_forced else " IfUnused")
        case ProbeCircuit(probe, target, user, password):
            text = f"PROBE {probe} {target}" + ("" if user is None else f" as {user}:{password}")
        case StopProbe(probe):
            text = f"STOP {probe}"
        case AttachProbe(stream_id, circuit_id):
            text = f"ATTACHSTREAM {stream_id} {circuit_id}; probe"
        case Announce():
            raise AssertionError("announcements are no commands")
    return text
