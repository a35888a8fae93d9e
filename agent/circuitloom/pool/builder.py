"""Asks Tor for circuits: a few at a time, at once when one is missed, later and later when they fail.

Rules of this file:

* One builder serves all keys, so that many keys together are no flood of CREATE cells either.
* A build that Tor neither finishes nor refuses is given up after a bound.
* One circuit that is built shows that the network works: whoever waits for no fault of its own path, because
  all failed together, need not wait any longer.
* Every circuit of ours that has an id is in ``by_id``, until its end.
* A circuit for which no relays are found holds nobody else up.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from circuitloom.kinds import Kind
from circuitloom.model import (
    Action,
    Announce,
    BuildAccepted,
    BuildCircuit,
    BuildRefused,
    CircuitId,
    CloseCircuit,
    Severity,
)
from circuitloom.paths import NoPath
from circuitloom.policy.path_types import PathRules
from circuitloom.policy.types import Rebuild
from circuitloom.pool.planner import Planner
from circuitloom.pool.slots import Circuit, CircuitState, SlotState
from circuitloom.pool.tally import Tally

MAX_PARALLEL_BUILDS = 16
"""Enough to fill 1,000 slots in seconds, few enough that a guard does not take us for a CREATE flood."""

BUILD_TIMEOUT_SECONDS = 90.0
"""Tor gives a build up itself (CircuitBuildTimeout, 60 s at first); this catches one that Tor forgot."""


class Builder:
    """Circuits on their way, and all circuits by Tor's id.

    Args:
        rebuild: Backoff between failed builds; a reload may replace it.
        uniform: Gives a random number in [0, 1), for the jitter.
        planner: Selects relays.
        emit: Takes each action, in order.

    Attributes:
        uniform: As given.
        planner: As given.
        by_id: Circuits of ours that Tor has given an id.
        tally: What has happened so far.
    """

    def __init__(
        self,
        rebuild: Rebuild,
        *,
        uniform: Callable[[], float],
        planner: Planner,
        emit: Callable[[Action], None],
    ) -> None:
        self.rebuild = rebuild
        self.uniform = uniform
        self.planner = planner
        self._emit = emit
        self.by_id: dict[CircuitId, Circuit] = {}
        self.tally = Tally()
        self._builds: dict[int, Circuit] = {}
        self._build_number = 0
        self._wanted: dict[SlotState, None] = {}
        self._unplanned: dict[SlotState, None] = {}
        self._under_way = 0
        self._deadlines: list[tuple[float, int, SlotState]] = []
        self._backing_off: dict[SlotState, None] = {}
        self._deadline_number = 0
        self._is_connected = False

    # --- what is wanted ------------------------------------------------------------------------------------

    def want(self, state: SlotState) -> None:
        """The slot's circuit is missing or on its way out: build one as soon as it is its turn."""
        state.retry_at = None
        self._backing_off.pop(state, None)
        self._unplanned.pop(state, None)
        if self._is_connected and state.needs_build():
            self._wanted[state] = None

    def unwant(self, state: SlotState) -> None:
        """The slot is gone: end what is under way for it."""
        self._wanted.pop(state, None)
        self._unplanned.pop(state, None)
        self._backing_off.pop(state, None)
        state.retry_at = None
        if state.building is not None:
            circuit = state.building
            self.close(circuit)
            self.forget(circuit)

    @property
    def is_anything_wanted(self) -> bool:
        """Whether ``fill`` may have something to do."""
        return bool(self._wanted)

    def fill(self, now: float) -> None:
        """Ask for what is wanted, a few at a time."""
        while self._wanted and self._under_way < MAX_PARALLEL_BUILDS:
            state = next(iter(self._wanted))
            del self._wanted[state]
            slot = state.slot
            hops = self.planner.plan(state, slot.path, now=now) if isinstance(slot.path, PathRules) else ()
            if hops is None:
                self._unplanned[state] = None
                continue
            if isinstance(hops, NoPath):
                self._wait(state, f"circuit {slot.name} cannot be built: {hops.why}", now)
                continue
            self._under_way += 1
            self._build_number += 1
            circuit = Circuit(state, self._build_number, now + BUILD_TIMEOUT_SECONDS, path=hops)
            state.building = self._builds[self._build_number] = circuit
            path = tuple(hop.fingerprint for hop in hops) if isinstance(slot.path, PathRules) else slot.path
            self._emit(BuildCircuit(self._build_number, slot.name, path, slot.purpose))

    def back_off(self, state: SlotState, what: str, now: float) -> None:
        """Try again later, or as soon as another circuit shows that the network works."""
        self._wait(state, what, now)
        self._backing_off[state] = None

    def _wait(self, state: SlotState, what: str, now: float) -> None:
        """Try again later; the wait doubles with each failure."""
        rebuild = self.rebuild
        # The exponent is bounded: 2 ** 1100 would not fit a float, and long before it the maximum holds.
        delay = min(rebuild.max_seconds, rebuild.initial_seconds * 2.0 ** min(state.failures, 32))
        delay *= 1 + rebuild.jitter * (2 * self.uniform() - 1)
        state.failures += 1
        self.want_at(state, now + delay)
        what = f"{what}, trying again in {delay:.1f} s"
        self._emit(Announce(Severity.WARNING, what, Kind.CIRCUIT_FAILED, state.slot.name))

    def want_at(self, state: SlotState, at: float) -> None:
        """Build for the slot, but not before ``at`` (seconds of the pool's clock)."""
        state.retry_at = at
        self._add_deadline(at, state)

    # --- what happened -------------------------------------------------------------------------------------

    def handle_connected(self) -> None:
        """Commands can be sent again; builds asked for before will never be answered."""
        self.handle_disconnected()
        self._is_connected = True

    def handle_disconnected(self) -> None:
        """Nothing can be asked for now."""
        self._is_connected = False
        for circuit in list(self._builds.values()):
            self.forget(circuit)
        self._wanted.clear()
        self._unplanned.clear()
        self._backing_off.clear()
        self.planner.relays = None
        self._deadlines.clear()

    def handle_accepted(self, event: BuildAccepted) -> None:
        """Learn the id of a circuit that was asked for."""
        circuit = self._builds.pop(event.build, None)
        if circuit is None:
            # Its slot went, with a reload, before Tor answered.
            self._emit(CloseCircuit(event.circuit_id))
            return
        circuit.circuit_id = event.circuit_id
        self.by_id[event.circuit_id] = circuit
        circuit.slot.owner.enlist(circuit)
        self._add_deadline(circuit.deadline, circuit.slot)

    def handle_refused(self, event: BuildRefused, *, now: float) -> None:
        """Tor did not start to build; try again later."""
        circuit = self._builds.get(event.build)
        if circuit is not None:
            self.fail(circuit, event.message, now)

    def handle_relays(self) -> None:
        """There is a snapshot to select relays from: whoever waited for one has its turn."""
        for state in list(self._unplanned):
            self.want(state)

    def handle_network_ready(self) -> None:
        """Waiting any longer is of no use: Tor says that circuits can be built."""
        for _, _, state in self._deadlines:
            if state.retry_at is not None:
                self.want(state)

    def handle_deadline(self, *, now: float) -> None:
        """Start the builds whose time has come and give up those that hang."""
        while self._deadlines and self._deadlines[0][0] <= now:
            entry = heappop(self._deadlines)
            if self._is_stale(entry):
                continue
            state = entry[2]
            if state.building is not None:
                circuit = state.building
                self.close(circuit)
                self.fail(circuit, f"no answer in {BUILD_TIMEOUT_SECONDS:g} s", now)
            else:
                self.want(state)

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        while self._deadlines and self._is_stale(self._deadlines[0]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    # --- one circuit ---------------------------------------------------------------------------------------

    def finish(self, circuit: Circuit, *, now: float) -> None:
        """The circuit is BUILT."""
        circuit.slot.tally.built += 1
        self.tally.builds.observe(now - (circuit.deadline - BUILD_TIMEOUT_SECONDS))
        circuit.slot.building = None
        self._under_way -= 1
        for state in [state for state in self._backing_off if not isinstance(state.slot.path, tuple)]:
            self.want(state)

    def fail(self, circuit: Circuit, reason: str, now: float) -> None:
        """The circuit under way will not be BUILT."""
        circuit.slot.tally.build_failures += 1
        self.forget(circuit)
        self.back_off(circuit.slot, f"circuit {circuit.label} could not be built ({reason})", now)

    def close(self, circuit: Circuit) -> None:
        """Have Tor close the circuit, if it has one."""
        if circuit.circuit_id is not None:
            self._emit(CloseCircuit(circuit.circuit_id))

    def forget(self, circuit: Circuit) -> None:
        """Take the circuit out of every table of this file."""
        circuit.state = CircuitState.CLOSED
        self._builds.pop(circuit.build, None)
        if circuit.circuit_id is not None:
            self.by_id.pop(circuit.circuit_id, None)
        if circuit.slot.building is circuit:
            circuit.slot.building = None
            self._under_way -= 1
        circuit.slot.owner.discharge(circuit)

    def check_invariants(self, slots: list[SlotState]) -> None:
        """Assert what must always hold; for tests.

        Args:
            slots: The slots of all keys.

        Raises:
            AssertionError: It does not.
        """
        for state in slots:
            is_waiting = state.retry_at is not None or state in self._wanted or state in self._unplanned
            assert is_waiting or not state.needs_build() or not self._is_connected
        under_way = sum(1 for state in slots if state.building is not None)
        assert self._under_way == under_way <= MAX_PARALLEL_BUILDS
        for circuit_id, circuit in self.by_id.items():
            assert circuit.circuit_id == circuit_id

    def _add_deadline(self, at: float, state: SlotState) -> None:
        self._deadline_number += 1
        heappush(self._deadlines, (at, self._deadline_number, state))

    @staticmethod
    def _is_stale(entry: tuple[float, int, SlotState]) -> bool:
        at, _, state = entry
        if state.building is not None:
            return state.building.deadline != at
        return state.retry_at != at
