"""The policy as frozen dataclasses: what the rest of the agent reads.

Rules of this file:

* Every value is final: units are resolved (seconds, fractions), counts are expanded, defaults are filled in.
* Defaults live in the JSON Schema and are repeated here only for construction in code; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network

from circuitloom.model import Purpose
from circuitloom.policy.health import Degrade, Panic
from circuitloom.policy.operating import Log, Metrics
from circuitloom.policy.path_types import Diversity, PathRules
from circuitloom.policy.probing import Probe
from circuitloom.policy.rotation import Rotation

DEFAULT_CONTROL_PATH = "/run/tor/control"
DEFAULT_ADMIN_SOCKET = "/run/circuitloom/admin.sock"


class Algorithm(StrEnum):
    """How a circuit is chosen for a new stream."""

    ROUND_ROBIN = "round-robin"
    WEIGHTED_ROUND_ROBIN = "weighted-round-robin"
    LEAST_STREAMS = "least-streams"
    POWER_OF_TWO = "power-of-two"
    FIRST = "first"
    RANDOM = "random"


class StickyBy(StrEnum):
    """What streams must have in common to go to one circuit."""

    NONE = "none"
    SOCKS_USER = "socks-user"
    DESTINATION = "destination"
    SOURCE = "source"


class WhenFull(StrEnum):
    """What a stream does when every circuit that may take it is full."""

    QUEUE = "queue"
    TOR = "tor"
    REJECT = "reject"


class Overflow(StrEnum):
    """What becomes of a stream that finds the queue full, or waited in it for too long."""

    TOR = "tor"
    REJECT = "reject"


class RuleAction(StrEnum):
    """Where a rule sends streams that get no circuit of ours."""

    TOR = "tor"
    REJECT = "reject"


class Isolation(StrEnum):
    """Whether streams that Tor keeps apart are kept apart here: ``tor`` does, ``none`` does not."""

    TOR = "tor"
    NONE = "none"


class ColdStart(StrEnum):
    """What a stream does whose key has no circuits yet."""

    WAIT = "wait"
    TOR = "tor"


class WhenExceeded(StrEnum):
    """What a stream does whose key would need more circuits than are allowed."""

    TOR = "tor"
    QUEUE = "queue"
    REJECT = "reject"


class WhenExhausted(StrEnum):
    """What becomes of a stream that was tried often enough."""

    TOR = "tor"
    CLOSE = "close"


class Role(StrEnum):
    """Whether a circuit always takes streams, or only below ``failover.min_active``."""

    ACTIVE = "active"
    BACKUP = "backup"


class WhenNone(StrEnum):
    """What happens to streams while no circuit is usable."""

    TOR = "tor"
    HOLD = "hold"
    REJECT = "reject"


class WhenContended(StrEnum):
    """What the agent does when another controller attaches streams or resets the option."""

    TAKE_BACK = "take-back"
    STAND_ASIDE = "stand-aside"


class Schedule(StrEnum):
    """Whether a round serves one circuit in turn, or each circuit."""

    ALTERNATE = "alternate"
    EVERY_CIRCUIT = "every-circuit"


class OnFailure(StrEnum):
    """What happens when a round cannot serve its circuit."""

    NEXT_CIRCUIT = "next-circuit"
    SKIP = "skip"
    DRAIN = "drain"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A control socket in the file system."""

    path: str

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A control port on the loopback interface; ``host`` is an IP literal."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


ControlAddress = UnixAddress | TcpAddress


@dataclass(frozen=True, slots=True)
class TorControl:
    """Where Tor's control port is and how we prove who we are (None: cookie, SAFECOOKIE or null)."""

    control: ControlAddress = UnixAddress(DEFAULT_CONTROL_PATH)
    password_file: str | None = None


@dataclass(frozen=True, slots=True)
class Keys:
    """How many circuits isolation may cost.

    Attributes:
        max_circuits: Of all keys together.
        slots_per_key: How many of the active circuits each key gets; None: all.
        idle_seconds: How long a key without streams keeps its circuits.
        cold_start: What the first streams of a key do.
        wait_seconds: How long they wait at most, for circuits or for room; then they are Tor's.
        when_exceeded: What streams of a key do for which there is no room.
    """

    max_circuits: int = 256
    slots_per_key: int | None = None
    idle_seconds: float = 600.0
    cold_start: ColdStart = ColdStart.WAIT
    wait_seconds: float = 5.0
    when_exceeded: WhenExceeded = WhenExceeded.TOR


@dataclass(frozen=True, slots=True)
class Queue:
    """Where streams wait for room.

    Attributes:
        length: How many of one key may wait at once, for the same circuits.
        timeout_seconds: How long each waits at most.
        overflow: What becomes of those beyond either.
    """

    length: int = 1024
    timeout_seconds: float = 30.0
    overflow: Overflow = Overflow.TOR


@dataclass(frozen=True, slots=True)
class Match:
    """What streams a rule is for: those for which every condition holds; what is empty or None is none.

    Attributes:
        ports: Ranges of destination ports, both ends included.
        hosts: Names of destinations, lower case; each stands for all names below it as well.
        socks_user: A glob for the SOCKS user name.
        sources: Networks of client addresses.
        session_group: The SessionGroup of Tor's listener.
    """

    ports: tuple[tuple[int, int], ...] = ()
    hosts: tuple[str, ...] = ()
    socks_user: str | None = None
    sources: tuple[IPv4Network | IPv6Network, ...] = ()
    session_group: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """What happens to the streams that match: ``circuits`` names those that may take them, or ``action``."""

    match: Match
    circuits: frozenset[str] | None = None
    action: RuleAction | None = None


@dataclass(frozen=True, slots=True)
class Balance:
    """How streams are spread, which may share a circuit, and what the circuits are to Tor.

    Attributes:
        algorithm: How a circuit is chosen.
        isolation: Which streams may share one.
        keys: What isolation may cost.
        when_full: What happens when all circuits are full.
        queue: Where streams wait then.
        sticky: What streams have in common that go to one circuit.
        sticky_load: Above how many times its part of all streams a circuit takes no more of these; None: no
            such bound.
        purpose: What Tor is told that they are for.
    """

    algorithm: Algorithm = Algorithm.WEIGHTED_ROUND_ROBIN
    isolation: Isolation = Isolation.TOR
    keys: Keys = field(default_factory=Keys)
    purpose: Purpose = Purpose.GENERAL
    sticky: StickyBy = StickyBy.NONE
    sticky_load: float | None = None
    when_full: WhenFull = WhenFull.QUEUE
    queue: Queue = field(default_factory=Queue)


@dataclass(frozen=True, slots=True)
class Adopt:
    """A slot for a circuit that another controller builds.

    Attributes:
        rebuild: Whether the agent builds one itself when that closes.
    """

    rebuild: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """One circuit that the policy asks for; Tor's circuits come and go in it.

    Attributes:
        name: Unique in the policy; ``count: 8`` of ``swarm`` gives ``swarm-1`` to ``swarm-8``.
        weight: Its share against the other circuits' weights.
        role: Active, or backup.
        path: Fingerprints (40 upper-case hex digits, no ``$``) from the first hop on; or what relays that the
            agent selects must be; or None: Tor chooses.
        max_streams: How many streams it may carry at once.
        purpose: What it is to Tor.
        adopt: Whether its circuit comes from elsewhere; None: the agent builds it.
    """

    name: str
    weight: int = 1
    role: Role = Role.ACTIVE
    path: tuple[str, ...] | PathRules | None = None
    max_streams: int = 256
    purpose: Purpose = Purpose.GENERAL
    adopt: Adopt | None = None


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Backoff between failed builds of a circuit: doubling from initial to max, spread by jitter (0 to 1)."""

    initial_seconds: float = 1.0
    max_seconds: float = 60.0
    jitter: float = 0.2


@dataclass(frozen=True, slots=True)
class Retry:
    """When a stream that Tor detached goes to another circuit.

    Attributes:
        attempts: How often one stream is attached again.
        budget: The part (0 to 1) of all unanswered streams that may be such; a few always may.
        exhausted: What becomes of a stream beyond attempts or budget.
    """

    attempts: int = 2
    budget: float = 0.2
    exhausted: WhenExhausted = WhenExhausted.TOR


@dataclass(frozen=True, slots=True)
class Failover:
    """What happens when circuits are missing.

    Attributes:
        when_none: What happens to streams while no circuit is usable.
        min_active: Below this many usable active circuits, backup circuits take streams as well; also how
            many must be BUILT before attachment is taken over from Tor.
        retry: What happens to streams that a circuit could not connect.
        rebuild: Backoff of builds.
        redispatch_seconds: After how long without an answer a stream moves to another circuit; None: never.
        when_contended: What happens when another controller is at work.
    """

    when_none: WhenNone = WhenNone.TOR
    min_active: int = 1
    rebuild: Rebuild = field(default_factory=Rebuild)
    retry: Retry = field(default_factory=Retry)
    redispatch_seconds: float | None = None
    when_contended: WhenContended = WhenContended.TAKE_BACK


@dataclass(frozen=True, slots=True)
class Eject:
    """When a circuit takes no streams for a while.

    Attributes:
        consecutive_failures: After how many streams in a row that failed by its fault.
        base_seconds: For how long the first time; each further time as much longer.
        max_percent: How many of a key's circuits may be out at once; one always serves.
    """

    consecutive_failures: int = 5
    base_seconds: float = 30.0
    max_percent: int = 50


@dataclass(frozen=True, slots=True)
class Health:
    """What happens to circuits that do badly; what is None does not.

    Attributes:
        eject: When one takes no streams for a while.
        panic: What happens when that leaves too few.
        slow_start_seconds: How long a fresh circuit takes to have all of its weight.
        degrade: When a slow one loses weight.
        probe: How it is found out whether they do.
    """

    eject: Eject | None = None
    panic: Panic | None = None
    slow_start_seconds: float | None = None
    degrade: Degrade | None = None
    probe: Probe | None = None


@dataclass(frozen=True, slots=True)
class Admin:
    """Where the agent answers ``circuitloom status``."""

    socket: str = DEFAULT_ADMIN_SOCKET


@dataclass(frozen=True, slots=True)
class Rounds:
    """A program that is run for one circuit after the other.

    Attributes:
        command: The program's absolute path, and its arguments.
        interval_seconds: From one round to the next.
        first_after_seconds: From the moment that circuits are ready to the first round.
        rounds: How many; None: no end.
        schedule: Which circuits a round serves.
        timeout_seconds: How long one run may take.
        env: ``NAME`` (passed on) or ``NAME=VALUE``.
        on_failure: What happens when a circuit cannot be served.
        require_probe: Whether Tor is asked first if the circuit is there, and its last probe has to have
            passed.
    """

    command: tuple[str, ...]
    interval_seconds: float = 45.0
    first_after_seconds: float = 2.0
    rounds: int | None = None
    schedule: Schedule = Schedule.ALTERNATE
    timeout_seconds: float = 30.0
    env: tuple[str, ...] = ()
    on_failure: OnFailure = OnFailure.NEXT_CIRCUIT
    require_probe: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy, checked."""

    slots: tuple[Slot, ...]
    tor: TorControl = field(default_factory=TorControl)
    balance: Balance = field(default_factory=Balance)
    failover: Failover = field(default_factory=Failover)
    health: Health = field(default_factory=Health)
    rotation: Rotation = field(default_factory=Rotation)
    log: Log = field(default_factory=Log)
    admin: Admin = field(default_factory=Admin)
    rules: tuple[Rule, ...] = ()
    rounds: Rounds | None = None
    metrics: Metrics = field(default_factory=Metrics)
    diversity: Diversity = field(default_factory=Diversity)

    @property
    def path_rules(self) -> tuple[PathRules, ...]:
        """Of the circuits whose relays the agent selects."""
        return tuple(slot.path for slot in self.slots if isinstance(slot.path, PathRules))

    @property
    def uses_countries(self) -> bool:
        """Whether any of them asks where a relay is."""
        return any(rules.uses_countries for rules in self.path_rules)
