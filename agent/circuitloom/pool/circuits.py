"""The circuits of the pool: built, kept, replaced, and offered to the chooser.

Rules of this file:

* A *slot* is a circuit as the policy names it; Tor's circuits come and go in it.
* A circuit goes LAUNCHED -> BUILT -> DRAINING -> CLOSED, may skip states, and never goes back.
* A circuit is in the chooser exactly while it may take a stream: BUILT, below its limit, in a tier in use.
* Make before break: a circuit that no longer fits the policy serves until its successor is BUILT, and the
  circuits of slots that a reload removed serve until enough of the new ones are.
* A slot that loses a working circuit builds at once; one whose circuits fail waits, longer each time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from heapq import heappop, heappush

from circuitloom.balancing import CHOOSERS, Chooser
from circuitloom.model import (
    Action,
    Announce,
    BuildAccepted,
    BuildCircuit,
    BuildRefused,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    CloseCircuit,
    Severity,
)
from circuitloom.policy.types import Policy, Rebuild, Role
from circuitloom.pool.slots import Circuit, CircuitState, SlotState

MAX_PARALLEL_BUILDS = 16
"""Enough to fill 1,000 slots in seconds, few enough that a guard does not take us for a CREATE flood."""

BUILD_TIMEOUT_SECONDS = 90.0
"""Tor gives a build up itself (CircuitBuildTimeout, 60 s at first); this catches one that Tor forgot."""

_OUR_PURPOSES = frozenset({"GENERAL", "CONTROLLER"})


class Circuits:
    """Keeps one circuit BUILT in every slot and tells which one takes the next stream.

    Args:
        policy: What to keep.
        uniform: Gives a random number in [0, 1), for the jitter.
        emit: Takes each action, in order.
    """

    def __init__(
        self, policy: Policy, *, uniform: Callable[[], float], emit: Callable[[Action], None]
    ) -> None:
        self._uniform = uniform
        self._emit = emit
        self._rebuild: Rebuild = policy.failover.rebuild
        self._min_active = policy.failover.min_active
        self._algorithm = policy.balance.algorithm
        self._chooser: Chooser = CHOOSERS[self._algorithm]()
        self.slots: dict[str, SlotState] = {slot.name: SlotState(slot) for slot in policy.slots}
        self._outgoing: dict[str, Circuit] = {}
        self.by_id: dict[CircuitId, Circuit] = {}
        self._builds: dict[int, Circuit] = {}
        self._build_number = 0
        self._wanted: dict[str, SlotState] = {}
        self._under_way = 0
        self._deadlines: list[tuple[float, int, SlotState]] = []
        self._deadline_number = 0
        self._is_connected = False
        self.active_built = 0
        self.backup_built = 0

    # --- what the pool asks --------------------------------------------------------------------------------

    @property
    def backups_serve(self) -> bool:
        """Whether too few active circuits are left, so that backup circuits take streams as well."""
        return self.active_built < self._min_active

    @property
    def is_ready(self) -> bool:
        """Whether enough circuits are BUILT to take attachment over from Tor."""
        return self.active_built + (self.backup_built if self.backups_serve else 0) >= self._min_active

    @property
    def is_usable(self) -> bool:
        """Whether at least one circuit that may serve is BUILT, full or not."""
        return self.active_built > 0 or (self.backups_serve and self.backup_built > 0) or bool(self._outgoing)

    def choose(self, exclude: Collection[str]) -> Circuit | None:
        """The circuit for the next stream, or None when there is none below its limit."""
        circuit_id = self._chooser.choose(exclude)
        return None if circuit_id is None else self.by_id[CircuitId(circuit_id)]

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        while self._deadlines and self._is_stale(self._deadlines[0]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    # --- streams come and go -------------------------------------------------------------------------------

    def add_stream(self, circuit: Circuit) -> None:
        """One more stream is on the circuit."""
        circuit.streams += 1
        self._count_changed(circuit)

    def remove_stream(self, circuit: Circuit) -> None:
        """One stream less is on the circuit."""
        circuit.streams -= 1
        self._count_changed(circuit)
        if circuit.state is CircuitState.DRAINING and circuit.streams == 0:
            self._close(circuit)

    def _count_changed(self, circuit: Circuit) -> None:
        is_full = circuit.streams >= circuit.slot.slot.max_streams
        if circuit.is_candidate and not is_full:
            self._chooser.count_streams(circuit.circuit_id or "", circuit.streams)
        else:
            self._offer(circuit)

    # --- what happened -------------------------------------------------------------------------------------

    def handle_connected(self, reported: Iterable[CircuitEvent], *, now: float) -> None:
        """Keep the circuits that Tor still has, forget the others, and build what is missing.

        Ids start again at 1 after a restart of Tor (tor-facts 11), so a circuit is only believed to be ours
        when its creation time and path agree as well.
        """
        self._is_connected = True
        there = {event.circuit_id: event for event in reported}
        for circuit in list(self.by_id.values()):
            event = there.get(circuit.circuit_id or CircuitId(""))
            is_same = (
                event is not None
                and event.status is CircuitStatus.BUILT
                and event.path == circuit.path
                and event.keywords.get("TIME_CREATED", "") == circuit.created
            )
            if not is_same or circuit.state is CircuitState.LAUNCHED:
                self._forget(circuit)
            else:
                circuit.streams = 0
        for circuit in list(self._builds.values()):
            self._forget(circuit)
        for state in self.slots.values():
            state.failures = 0
            self._want(state)
        self._fill(now)

    def recounted(self) -> None:
        """The streams of all circuits were counted anew, after ``handle_connected``."""
        for circuit in list(self.by_id.values()):
            if circuit.state is CircuitState.DRAINING and circuit.streams == 0:
                self._close(circuit)
        self._restart_chooser()

    def handle_disconnected(self) -> None:
        """Builds that were asked for will never be answered; circuits may live on."""
        self._is_connected = False
        for circuit in list(self._builds.values()):
            self._forget(circuit)
        self._wanted.clear()
        self._deadlines.clear()

    def handle_network_ready(self, *, now: float) -> None:
        """Waiting any longer is of no use: Tor says that circuits can be built."""
        for state in self.slots.values():
            if state.retry_at is not None:
                self._want(state)
        self._fill(now)

    def handle_accepted(self, event: BuildAccepted, *, now: float) -> None:
        """Learn the id of a circuit that was asked for."""
        circuit = self._builds.pop(event.build, None)
        if circuit is None:
            # Its slot went, with a reload, before Tor answered.
            self._emit(CloseCircuit(event.circuit_id))
            return
        circuit.circuit_id = event.circuit_id
        self.by_id[event.circuit_id] = circuit
        self._add_deadline(circuit.deadline, circuit.slot)
        self._fill(now)

    def handle_refused(self, event: BuildRefused, *, now: float) -> None:
        """Tor did not start to build; try again later."""
        circuit = self._builds.get(event.build)
        if circuit is not None:
            self._build_failed(circuit, event.message, now)
            self._fill(now)

    def handle_event(self, event: CircuitEvent, *, now: float) -> None:
        """Follow one circuit; those that we did not ask for are nobody's business here."""
        circuit = self.by_id.get(event.circuit_id)
        if circuit is None:
            return
        circuit.created = event.keywords.get("TIME_CREATED", circuit.created)
        match event.status:
            case CircuitStatus.BUILT:
                if circuit.state is CircuitState.LAUNCHED:
                    circuit.path = event.path
                    self._built(circuit, now)
            case CircuitStatus.FAILED | CircuitStatus.CLOSED:
                self.lose(circuit, _reason(event), now=now)
            case CircuitStatus.PURPOSE_CHANGED:
                purpose = event.keywords.get("PURPOSE", "")
                if purpose not in _OUR_PURPOSES:
                    self.lose(circuit, f"Tor uses it for {purpose}", now=now)
            case _:
                pass

    def lose(self, circuit: Circuit, reason: str, *, now: float) -> None:
        """The circuit is gone, or of no more use; its slot builds another."""
        if circuit.state is CircuitState.LAUNCHED:
            self._build_failed(circuit, reason, now)
        elif circuit is circuit.slot.circuit and self._is_kept(circuit.slot):
            state = circuit.slot
            lived_seconds = now - circuit.built_at
            self._forget(circuit)
            if lived_seconds >= self._rebuild.initial_seconds:
                state.failures = 0
                self._emit(
                    Announce(Severity.INFO, f"circuit {circuit.label} closed ({reason}), building another")
                )
                self._want(state)
            else:
                self._back_off(state, f"circuit {circuit.label} closed at once ({reason})", now)
        else:
            self._forget(circuit)
            self._emit(Announce(Severity.INFO, f"circuit {circuit.label} closed ({reason})"))
        self._fill(now)

    def handle_deadline(self, *, now: float) -> None:
        """Start the builds whose time has come and give up those that hang."""
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heappop(self._deadlines)
            if self._is_stale(entry):
                continue
            state = entry[2]
            if state.building is not None:
                circuit = state.building
                self._close(circuit)
                self._build_failed(circuit, f"no answer in {BUILD_TIMEOUT_SECONDS:g} s", now)
            else:
                self._want(state)
        self._fill(now)

    def replace_policy(self, policy: Policy, *, now: float) -> None:
        """Keep what both policies name, build what is new, drain what is gone."""
        self._rebuild = policy.failover.rebuild
        self._min_active = policy.failover.min_active
        old = {name: circuit.slot for name, circuit in self._outgoing.items()} | self.slots
        self._outgoing = {}
        self.slots = {}
        for slot in policy.slots:
            state = old.pop(slot.name, None) or SlotState(slot)
            is_moved = state.slot.path != slot.path
            state.slot = slot
            self.slots[slot.name] = state
            if is_moved:
                # How the old path failed says nothing of the new one.
                state.failures = 0
                state.retry_at = None
            if is_moved and state.building is not None:
                self._abandon(state.building)
            if is_moved and state.circuit is not None:
                state.is_outdated = True
        for name, state in old.items():
            if state.building is not None:
                self._abandon(state.building)
            if state.circuit is not None:
                self._outgoing[name] = state.circuit
        self._wanted.clear()
        self._algorithm = policy.balance.algorithm
        self._restart_chooser()
        self._dismiss_outgoing()
        for state in self.slots.values():
            if state.retry_at is None:
                self._want(state)
        self._fill(now)

    def check_invariants(self, streams: Mapping[Circuit, int]) -> None:
        """Assert what must always hold; for tests.

        Args:
            streams: How many streams the pool has on each circuit.

        Raises:
            AssertionError: It does not.
        """
        for circuit_id, circuit in self.by_id.items():
            assert circuit.circuit_id == circuit_id
            assert circuit.state is not CircuitState.CLOSED
            assert circuit.streams == streams.get(circuit, 0)
            assert circuit.is_candidate == self._may_serve(circuit)
        for name, state in self.slots.items():
            assert state.slot.name == name
            assert state.circuit is None or state.circuit.state is CircuitState.BUILT
            assert state.building is None or state.building.state is CircuitState.LAUNCHED
            is_cared_for = state.retry_at is not None or name in self._wanted or not state.needs_build()
            assert is_cared_for or not self._is_connected
        built = [state.slot.role for state in self.slots.values() if state.circuit is not None]
        assert self.active_built == built.count(Role.ACTIVE)
        assert self.backup_built == built.count(Role.BACKUP)
        under_way = sum(1 for state in self.slots.values() if state.building is not None)
        assert self._under_way == under_way <= MAX_PARALLEL_BUILDS

    # --- one slot ------------------------------------------------------------------------------------------

    def _want(self, state: SlotState) -> None:
        state.retry_at = None
        if self._is_connected and state.needs_build():
            self._wanted[state.slot.name] = state

    def _fill(self, now: float) -> None:
        """Ask for wanted circuits, a few at a time."""
        while self._wanted and self._under_way < MAX_PARALLEL_BUILDS:
            state = self._wanted.pop(next(iter(self._wanted)))
            self._under_way += 1
            self._build_number += 1
            circuit = Circuit(state, self._build_number, now + BUILD_TIMEOUT_SECONDS)
            state.building = self._builds[self._build_number] = circuit
            self._emit(BuildCircuit(self._build_number, state.slot.name, state.slot.path))

    def _built(self, circuit: Circuit, now: float) -> None:
        state = circuit.slot
        circuit.state = CircuitState.BUILT
        circuit.built_at = now
        state.building = None
        self._under_way -= 1
        predecessor, state.circuit, state.is_outdated = state.circuit, circuit, False
        names = ", ".join(hop.nickname or hop.fingerprint[:8] for hop in circuit.path)
        self._emit(Announce(Severity.INFO, f"circuit {circuit.label} built: {names}"))
        self._tiers_changed(state, +1)
        self._offer(circuit)
        if predecessor is not None:
            self._drain(predecessor)
        self._dismiss_outgoing()
        self._fill(now)

    def _build_failed(self, circuit: Circuit, reason: str, now: float) -> None:
        self._forget(circuit)
        self._back_off(circuit.slot, f"circuit {circuit.label} could not be built ({reason})", now)

    def _back_off(self, state: SlotState, what: str, now: float) -> None:
        rebuild = self._rebuild
        # The exponent is bounded: 2 ** 1100 would not fit a float, and long before it the maximum holds.
        delay = min(rebuild.max_seconds, rebuild.initial_seconds * 2.0 ** min(state.failures, 32))
        delay *= 1 + rebuild.jitter * (2 * self._uniform() - 1)
        state.failures += 1
        state.retry_at = now + delay
        self._add_deadline(state.retry_at, state)
        self._emit(Announce(Severity.WARNING, f"{what}, trying again in {delay:.1f} s"))

    def _drain(self, circuit: Circuit) -> None:
        """No new streams; those on it finish, then it is closed."""
        was_serving = circuit.slot.circuit is circuit
        circuit.state = CircuitState.DRAINING
        if was_serving:
            circuit.slot.circuit = None
        self._tiers_changed(circuit.slot, -1)
        self._offer(circuit)
        if circuit.streams == 0:
            self._close(circuit)

    def _abandon(self, circuit: Circuit) -> None:
        """Nobody wants the circuit under way any more."""
        self._close(circuit)
        self._forget(circuit)

    def _close(self, circuit: Circuit) -> None:
        if circuit.circuit_id is not None:
            self._emit(CloseCircuit(circuit.circuit_id))

    def _forget(self, circuit: Circuit) -> None:
        """Take the circuit out of every table."""
        was_built = circuit.state is CircuitState.BUILT
        circuit.state = CircuitState.CLOSED
        self._builds.pop(circuit.build, None)
        if circuit.circuit_id is not None:
            self.by_id.pop(circuit.circuit_id, None)
        if circuit.slot.building is circuit:
            circuit.slot.building = None
            self._under_way -= 1
        if circuit.slot.circuit is circuit:
            circuit.slot.circuit = None
            if not self._is_kept(circuit.slot):
                self._outgoing.pop(circuit.slot.slot.name, None)
        if was_built:
            self._tiers_changed(circuit.slot, -1)
        self._offer(circuit)

    def _is_kept(self, state: SlotState) -> bool:
        """Whether the policy of now names the slot."""
        return self.slots.get(state.slot.name) is state

    def _dismiss_outgoing(self) -> None:
        """The circuits of the policy itself suffice: those of its predecessor take no more streams."""
        if self.is_ready:
            outgoing, self._outgoing = self._outgoing, {}
            for circuit in outgoing.values():
                self._drain(circuit)

    # --- the chooser ---------------------------------------------------------------------------------------

    def _may_serve(self, circuit: Circuit) -> bool:
        slot = circuit.slot.slot
        return (
            circuit.state is CircuitState.BUILT
            and circuit.streams < slot.max_streams
            and (slot.role is Role.ACTIVE or self.backups_serve or slot.name in self._outgoing)
        )

    def _offer(self, circuit: Circuit) -> None:
        """Put the circuit into the chooser, or take it out, as it may serve."""
        may_serve = self._may_serve(circuit)
        if may_serve == circuit.is_candidate:
            return
        circuit.is_candidate = may_serve
        circuit_id = circuit.circuit_id or ""
        if may_serve:
            self._chooser.add(circuit_id, weight=circuit.slot.slot.weight, streams=circuit.streams)
        else:
            self._chooser.remove(circuit_id)

    def _tiers_changed(self, state: SlotState, change: int) -> None:
        """Count a circuit in its tier; when the floor is crossed, backup circuits join or leave."""
        if not self._is_kept(state):
            return
        backups_served = self.backups_serve
        if state.slot.role is Role.ACTIVE:
            self.active_built += change
        else:
            self.backup_built += change
        if self.backups_serve != backups_served:
            for other in self.slots.values():
                if other.slot.role is Role.BACKUP and other.circuit is not None:
                    self._offer(other.circuit)

    def _restart_chooser(self) -> None:
        """Start fair again, after weights, limits, tiers or the algorithm changed."""
        self._chooser = CHOOSERS[self._algorithm]()
        built = [state for state in self.slots.values() if state.circuit is not None]
        self.active_built = sum(1 for state in built if state.slot.role is Role.ACTIVE)
        self.backup_built = len(built) - self.active_built
        for circuit in self.by_id.values():
            circuit.is_candidate = False
            self._offer(circuit)

    # --- deadlines -----------------------------------------------------------------------------------------

    def _add_deadline(self, at: float, state: SlotState) -> None:
        self._deadline_number += 1
        heappush(self._deadlines, (at, self._deadline_number, state))

    def _is_stale(self, entry: tuple[float, int, SlotState]) -> bool:
        at, _, state = entry
        if not self._is_kept(state):
            return True
        if state.building is not None:
            return state.building.deadline != at
        return state.retry_at != at


def _reason(event: CircuitEvent) -> str:
    reason = event.keywords.get("REASON", "no reason given")
    remote = event.keywords.get("REMOTE_REASON")
    return f"{reason}, {remote}" if remote else reason
