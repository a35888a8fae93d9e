"""A circuit, and the slot of the policy that it is in, as the pool keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from circuitloom.balancing import ConnectTime
from circuitloom.checks import Checkup
from circuitloom.model import CircuitId, Hop, Purpose
from circuitloom.paths import PortPolicy
from circuitloom.policy.types import Slot
from circuitloom.pool.isolation import IsolationKey
from circuitloom.pool.tally import CircuitTally, Histogram

if TYPE_CHECKING:
    from circuitloom.pool.circuits import Circuits


class CircuitState(StrEnum):
    """Where a circuit is in its life."""

    LAUNCHED = "launched"
    BUILT = "built"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(slots=True)
class Wear:
    """How much a circuit has served; ``Rotation`` keeps it.

    Attributes:
        lot: Drawn for it, in [0, 1): by how much it is replaced before others; None: not yet.
        used_since: When its first stream came (seconds of the pool's clock).
        streams_total: Streams that we attached to it.
        bytes_total: What it has carried, as far as Tor told it.
        is_spent: Whether that is enough.
        drains_since: Since when it takes no more streams (seconds of the pool's clock).
    """

    lot: float | None = None
    used_since: float | None = None
    streams_total: int = 0
    bytes_total: int = 0
    is_spent: bool = False
    drains_since: float | None = None


@dataclass(slots=True, eq=False)
class Circuit:
    """One circuit that we asked Tor for, or that another controller built for us.

    Attributes:
        slot: The slot it was built for.
        build: The number of the BuildCircuit action.
        deadline: While LAUNCHED, when the build is given up (seconds of the pool's clock).
        circuit_id: Tor's id; None until EXTENDCIRCUIT is answered.
        state: Where it is in its life.
        path: Its relays, once Tor told them, or as they were selected.
        created: Tor's TIME_CREATED; with id and path it tells this circuit from a later one with the same id.
        built_at: When it was BUILT (seconds of the pool's clock).
        streams: How many streams are on it, whoever attached them.
        is_candidate: Whether it is in the chooser.
        key: The key of the first stream on it, whoever attached that; None before.
        connect_time: How long it takes to connect a stream.
        connects: The same, of all streams so far.
        purpose: What Tor says that it is.
        failed_targets: Destinations that failed on it since one was connected; kept by ``Blame``.
        is_adopted: Whether another controller built it; then that one closes it, and we never do.
        wear: How much it has served.
        exit_ports: Which ports its exit accepts; None: not known.
        probes: How many of our probes' streams are on it; they are not among ``streams``.
        checkup: What its probes found; kept by ``Probes``.
        carried: Under ``isolation: none``, while circuits are probed: the isolation of its first stream.
    """

    slot: SlotState
    build: int
    deadline: float
    circuit_id: CircuitId | None = None
    state: CircuitState = CircuitState.LAUNCHED
    path: tuple[Hop, ...] = ()
    created: str = ""
    built_at: float = 0.0
    streams: int = 0
    is_candidate: bool = False
    key: IsolationKey | None = None
    connect_time: ConnectTime = field(default_factory=ConnectTime)
    connects: Histogram = field(default_factory=Histogram)
    purpose: Purpose = Purpose.GENERAL
    failed_targets: set[str] = field(default_factory=set, repr=False)
    is_adopted: bool = False
    wear: Wear = field(default_factory=Wear)
    exit_ports: PortPolicy | None = None
    probes: int = 0
    checkup: Checkup | None = None
    carried: IsolationKey | None = None

    def refuses(self, port: int) -> bool:
        """Whether its exit is known to refuse a port."""
        return self.exit_ports is not None and not self.exit_ports.accepts(port)

    @property
    def label(self) -> str:
        """How the log names it."""
        return f"{self.slot.slot.name} ({self.circuit_id})" if self.circuit_id else self.slot.slot.name


@dataclass(slots=True, eq=False)
class SlotState:
    """A slot of the policy and what is in it.

    Attributes:
        slot: What the policy says.
        owner: The circuits of the key that the slot is for.
        tally: What has happened under its name, of every key.
        circuit: The circuit that serves, if any.
        building: The circuit under way, if any.
        is_outdated: Whether ``circuit`` was built for a path that the policy no longer names.
        failures: Builds that failed since a circuit last lived.
        retry_at: When the next build may start, while it waits.
        attached_total: Streams attached, over all its circuits.
        failed_total: Of these, how many failed or were detached.
        has_adopted: Whether the slot had a circuit since it is one for adopted circuits.
        has_served: Whether it ever had one.
    """

    slot: Slot
    owner: Circuits
    tally: CircuitTally
    circuit: Circuit | None = None
    building: Circuit | None = None
    is_outdated: bool = False
    failures: int = 0
    retry_at: float | None = None
    attached_total: int = 0
    failed_total: int = 0
    has_adopted: bool = False
    has_served: bool = False

    @property
    def is_cold(self) -> bool:
        """Whether its first circuit is on its way, and nothing has failed yet."""
        return self.circuit is None and self.is_ours_to_build and not (self.has_served or self.failures)

    @property
    def is_ours_to_build(self) -> bool:
        """Whether the agent builds for the slot: not what another controller has to."""
        adopt = self.slot.adopt
        return adopt is None or (adopt.rebuild and self.has_adopted)

    def needs_build(self) -> bool:
        """Whether a circuit is missing, is ours to build, and none is under way."""
        is_missing = self.circuit is None or self.is_outdated
        return is_missing and self.building is None and self.is_ours_to_build
