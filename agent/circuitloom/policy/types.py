"""The policy as frozen dataclasses: what the rest of the agent reads.

Rules of this file:

* Every value is final: units are resolved (seconds, fractions), counts are expanded, defaults are filled in.
* Defaults live in the JSON Schema and are repeated here only for construction in code; a test compares them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

DEFAULT_CONTROL_PATH = "/run/tor/control"
DEFAULT_ADMIN_SOCKET = "/run/circuitloom/admin.sock"


class Algorithm(StrEnum):
    """How a circuit is chosen for a new stream."""

    ROUND_ROBIN = "round-robin"
    WEIGHTED_ROUND_ROBIN = "weighted-round-robin"
    LEAST_STREAMS = "least-streams"


class Role(StrEnum):
    """Whether a circuit always takes streams, or only below ``failover.min_active``."""

    ACTIVE = "active"
    BACKUP = "backup"


class WhenNone(StrEnum):
    """What happens to streams while no circuit is usable."""

    TOR = "tor"
    HOLD = "hold"
    REJECT = "reject"


class LogLevel(StrEnum):
    """The least severe lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """``journal`` prefixes each line with ``<priority>``; ``auto`` does so under systemd only."""

    AUTO = "auto"
    JOURNAL = "journal"
    PLAIN = "plain"


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
class Balance:
    """How streams are spread."""

    algorithm: Algorithm = Algorithm.WEIGHTED_ROUND_ROBIN


@dataclass(frozen=True, slots=True)
class Slot:
    """One circuit that the policy asks for; Tor's circuits come and go in it.

    Attributes:
        name: Unique in the policy; ``count: 8`` of ``swarm`` gives ``swarm-1`` to ``swarm-8``.
        weight: Its share against the other circuits' weights.
        role: Active, or backup.
        path: Fingerprints (40 upper-case hex digits, no ``$``) from the first hop on, or None: Tor chooses.
        max_streams: How many streams it may carry at once.
    """

    name: str
    weight: int = 1
    role: Role = Role.ACTIVE
    path: tuple[str, ...] | None = None
    max_streams: int = 256


@dataclass(frozen=True, slots=True)
class Rebuild:
    """Backoff between failed builds of a circuit: doubling from initial to max, spread by jitter (0 to 1)."""

    initial_seconds: float = 1.0
    max_seconds: float = 60.0
    jitter: float = 0.2


@dataclass(frozen=True, slots=True)
class Failover:
    """What happens when circuits are missing.

    Attributes:
        when_none: What happens to streams while no circuit is usable.
        min_active: Below this many usable active circuits, backup circuits take streams as well; also how
            many must be BUILT before attachment is taken over from Tor.
        rebuild: Backoff of builds.
    """

    when_none: WhenNone = WhenNone.TOR
    min_active: int = 1
    rebuild: Rebuild = field(default_factory=Rebuild)


@dataclass(frozen=True, slots=True)
class Log:
    """What is logged, and how."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True)
class Admin:
    """Where the agent answers ``circuitloom status``."""

    socket: str = DEFAULT_ADMIN_SOCKET


@dataclass(frozen=True, slots=True)
class Policy:
    """A whole policy, checked."""

    slots: tuple[Slot, ...]
    tor: TorControl = field(default_factory=TorControl)
    balance: Balance = field(default_factory=Balance)
    failover: Failover = field(default_factory=Failover)
    log: Log = field(default_factory=Log)
    admin: Admin = field(default_factory=Admin)
