"""Which circuits of one isolation key may take a stream: tiers, drained slots, and the chooser.

Rules of this file:

* A circuit is in the chooser exactly while it may take a stream: BUILT, below its limit, in a tier in use.
* Backup circuits serve while fewer active ones than the floor are BUILT and not ejected, and no longer.
* Of the circuits that count in a tier at least one is not ejected, so there is always one that may serve.
* In a panic (too few of them healthy) either ejected circuits serve as well, or none does until it is over.
* A slot for an adopted circuit is not in the floor, so nobody waits for it; a circuit in it counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from functools import partial

from circuitloom.health import HELD, WHOLE, Alarm, Ejector, Fitness
from circuitloom.kinds import Kind
from circuitloom.model import Action, Announce, CircuitId, Severity
from circuitloom.policy.health import PanicAction
from circuitloom.policy.types import Health, Policy, Role
from circuitloom.pool.builder import Builder
from circuitloom.pool.choosing import Choosers
from circuitloom.pool.refusals import Refusals, port_of
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.slots import Circuit, CircuitState, SlotState

PANIC_WORDS = {
    PanicAction.ALL: "ejected ones take streams as well",
    PanicAction.TOR: "streams are left to Tor",
    PanicAction.HOLD: "streams wait",
}


class Tiers:
    """The slots of one key, and which of their circuits takes the next stream.

    Args:
        policy: What to keep.
        drained: Names of slots that take no new streams now.
        builder: Knows the circuits by id.
        rotation: Looks after their age and use.
        emit: Takes each action, in order.

    Attributes:
        drained: Changed by whoever gave it.
        slots: By name; a subclass fills it and then calls ``_slots_changed``.
        active_built: How many active circuits are BUILT, not drained and not ejected.
        backup_built: How many backup ones are.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        drained: Collection[str],
        builder: Builder,
        rotation: Rotation,
        emit: Callable[[Action], None],
    ) -> None:
        self.drained = drained
        self._builder = builder
        self._rotation = rotation
        self._emit = emit
        self._min_active = policy.failover.min_active
        self._policy = policy
        self._chooser = Choosers(policy, builder.uniform)
        self._ejector = Ejector[Circuit](policy.health.eject)
        self._alarm = Alarm(policy.health.panic)
        self._fitness = Fitness[Circuit](policy.health.slow_start_seconds, policy.health.degrade)
        self._refusals = Refusals()
        self.slots: dict[str, SlotState] = {}
        self._outgoing: dict[str, Circuit] = {}
        self._members: dict[Circuit, None] = {}
        self.active_built = 0
        self.backup_built = 0

    @property
    def backups_serve(self) -> bool:
        """Whether too few active circuits are left, so that backup circuits take streams as well."""
        return self.active_built < self._floor

    @property
    def is_ready(self) -> bool:
        """Whether enough circuits are BUILT to begin with; for ejected ones others serve."""
        serving = self.active_built + (self.backup_built if self.backups_serve else 0)
        return serving + len(self._ejector.out) >= self._floor

    @property
    def is_usable(self) -> bool:
        """Whether at least one circuit that may serve is BUILT, full or not."""
        return (
            self.active_built > 0
            or (self.backups_serve and self.backup_built > 0)
            or any(name not in self.drained for name in self._outgoing)
        )

    def is_usable_among(self, names: frozenset[str] | None, target: str = "") -> bool:
        """Whether one of these circuits (None: of all) may serve a stream to a target, full or not."""
        refusing = self.refusing(target)
        if refusing:
            names = (frozenset((*self.slots, *self._outgoing)) if names is None else names) - refusing
        if names is None:
            return self.is_usable
        names = names.difference(self.drained)
        return any(
            (state := self.slots.get(name)) is not None
            and state.circuit is not None
            and not self._is_out(state.circuit)
            and (state.slot.role is Role.ACTIVE or self.backups_serve)
            for name in names
        ) or not names.isdisjoint(self._outgoing)

    def is_cold_among(self, names: frozenset[str] | None) -> bool:
        """Whether none of these circuits (None: not asked) serves yet, and the first of one is on its way."""
        return (
            names is not None
            and any((state := self.slots.get(name)) is not None and state.is_cold for name in names)
            and not self.is_usable_among(names)
        )

    def has_room(self, names: frozenset[str] | None, target: str = "") -> bool:
        """Whether at least one of these circuits (None: of all) may take a stream to a target now."""
        return self._chooser.has_any(names, self.refusing(target))

    def queue_port(self, target: str) -> int:
        """The port by which streams have to be told apart while they wait for room; 0: none."""
        return port_of(target) if self._refusals.are_there(self._members) else 0

    def refusing(self, target: str) -> frozenset[str]:
        """Names of the circuits whose exits are known to refuse the port of a target."""
        return self._refusals.to(target, self._members)

    def choose(
        self,
        tried: Collection[str],
        *,
        now: float,
        sticky: str | None = None,
        among: frozenset[str] | None = None,
        target: str = "",
    ) -> Circuit | None:
        """The circuit for the next stream, or None when there is none below its limit.

        Args:
            tried: Ids of circuits that must not be chosen.
            now: The time (seconds of the pool's clock).
            sticky: Streams with the same value go to one circuit, if the policy asks for that.
            among: Names of the only circuits that may be chosen; None: all.
            target: Where it goes (``host:port``): exits that refuse its port are not chosen.
        """
        if self._fitness.review_at <= now:
            for changed in self._fitness.review(partial(self._measured, now), now=now):
                self._chooser.scale(changed.slot.slot.name, self._fitness.tenths(changed))
        exclude = list(self.refusing(target))
        exclude += [
            circuit.slot.slot.name
            for circuit_id in tried
            if (circuit := self._builder.by_id.get(CircuitId(circuit_id))) and circuit.is_candidate
        ]
        name = self._chooser.choose(exclude, now=now, sticky=sticky, among=among)
        if name is None:
            return None
        state = self.slots.get(name)
        return self._outgoing[name] if state is None else state.circuit

    def candidate(
        self, circuit_ids: Collection[CircuitId], among: frozenset[str] | None, target: str = ""
    ) -> Circuit | None:
        """One of these that may take a stream, without a turn of the chooser; None if none may.

        Args:
            circuit_ids: Of the circuits.
            among: Names of the only circuits that may be taken; None: all.
            target: Where the stream goes.
        """
        refusing = self.refusing(target)
        for circuit_id in circuit_ids:
            circuit = self._builder.by_id.get(circuit_id)
            if circuit is None or not circuit.is_candidate or circuit.slot.owner is not self:
                continue
            name = circuit.slot.slot.name
            if name not in refusing and (among is None or name in among):
                return circuit
        return None

    @property
    def panic(self) -> PanicAction | None:
        """What streams do because too few circuits are healthy; None: there are enough."""
        return self._alarm.action

    # --- health --------------------------------------------------------------------------------------------

    def succeed(self, circuit: Circuit) -> None:
        """A stream was connected on the circuit."""
        self._ejector.succeed(circuit)

    def fail(self, circuit: Circuit, *, now: float) -> float | None:
        """A stream failed on the circuit, by the circuit's fault.

        Args:
            circuit: Which.
            now: The time (seconds of the pool's clock).

        Returns:
            Until when it is ejected from now on (seconds of the pool's clock); None if it is not.
        """
        until = self._ejector.fail(circuit, now=now)
        if until is not None:
            self._tiers_changed(circuit.slot, -1)
            self._offer(circuit)
        return until

    def take_down(self, circuit: Circuit) -> bool:
        """The circuit's probes failed: it takes no streams until ``bring_up``, if there is room for that.

        Returns:
            Whether it is down, and was not before.
        """
        until = self._ejector.until(circuit)
        if until == HELD or not self._ejector.hold(circuit):
            return False
        if until is None:
            self._tiers_changed(circuit.slot, -1)
            self._offer(circuit)
        return True

    def bring_up(self, circuit: Circuit) -> None:
        """The circuit's probes pass again, or nobody probes any more; harmless when it was not down."""
        if self._ejector.let_in(circuit):
            self._readmit([circuit])

    def readmit_due(self, *, now: float) -> None:
        """Those whose time is over take streams again."""
        self._readmit(self._ejector.due(now=now))

    def ejected_until(self, circuit: Circuit) -> float | None:
        """When a circuit that is out takes streams again (seconds of the pool's clock).

        ``HELD`` if its probes decide that; None if it does now.
        """
        return self._ejector.until(circuit)

    def _replace_health(self, health: Health) -> None:
        """The policy says something else of health now; ``_restart_chooser`` has to follow."""
        if health.eject != self._ejector.rule:
            self._ejector = Ejector(health.eject)
        if health.panic != self._alarm.rule:
            self._alarm = Alarm(health.panic)
        if (health.slow_start_seconds, health.degrade) != (
            self._fitness.slow_start_seconds,
            self._fitness.degrade,
        ):
            self._fitness = Fitness(health.slow_start_seconds, health.degrade)

    def weight_factor(self, circuit: Circuit, *, now: float) -> float:
        """Which part (0.1 to 1) of its weight the circuit has now (seconds of the pool's clock)."""
        return self._fitness.tenths_at(circuit, now=now) / WHOLE

    def is_degraded(self, circuit: Circuit) -> bool:
        """Whether it has lost weight because it is much slower than the others."""
        return self._fitness.is_degraded(circuit)

    def _measured(self, now: float) -> dict[Circuit, float]:
        """How long each circuit that serves took lately to connect a stream (seconds)."""
        return {
            state.circuit: seconds
            for state in self.slots.values()
            if state.circuit is not None and (seconds := state.circuit.connect_time.recent(now)) is not None
        }

    def _is_out(self, circuit: Circuit) -> bool:
        return circuit in self._ejector.out and self.panic is not PanicAction.ALL

    def _watch_health(self) -> None:
        """Circuits came, went, or were ejected: too few of them may be healthy now, or enough again."""
        members = len(self._ejector)
        healthy = members - len(self._ejector.out)
        if not self._alarm.count(healthy=healthy, members=members):
            return
        for circuit in self._members:
            self._offer(circuit)
        if self._alarm.action is None:
            self._say(f"enough circuits are healthy again: {healthy} of {members}", Kind.PANIC_ENDED)
        else:
            what = f"only {healthy} of {members} circuits are healthy: {PANIC_WORDS[self._alarm.action]}"
            self._emit(Announce(Severity.WARNING, what, Kind.PANIC))

    def _readmit(self, circuits: Iterable[Circuit]) -> None:
        for circuit in circuits:
            self._fitness.begin(circuit, now=self._rotation.now)
            self._tiers_changed(circuit.slot, +1)
            self._offer(circuit)
            self._say(f"circuit {circuit.label} takes streams again", Kind.CIRCUIT_READMITTED, circuit)

    # --- what a subclass tells -----------------------------------------------------------------------------

    def _count_changed(self, circuit: Circuit) -> None:
        is_full = circuit.streams >= circuit.slot.slot.max_streams
        if circuit.is_candidate and not is_full:
            self._chooser.count_streams(circuit.slot.slot.name, circuit.streams)
        else:
            self._offer(circuit)

    def _is_kept(self, state: SlotState) -> bool:
        """Whether the policy of now names the slot."""
        return self.slots.get(state.slot.name) is state

    def _slots_changed(self) -> None:
        """Number the slots, and set the floor."""
        self._order = {name: number for number, name in enumerate(self.slots)}
        self._set_floor()

    def _set_floor(self) -> None:
        """A key that gets fewer slots than the policy's floor has all of its own as floor."""
        active = [state for state in self.slots.values() if state.slot.role is Role.ACTIVE]
        # When every one of them is drained, the backup circuits have to serve.
        expected = sum(1 for state in active if self._counts(state) and state.slot.adopt is None)
        self._floor = max(1, min(self._min_active, expected))

    def _counts(self, state: SlotState) -> bool:
        """Whether the slot's circuit counts in its tier: not while it is drained."""
        return state.slot.name not in self.drained

    def _may_serve(self, circuit: Circuit) -> bool:
        slot = circuit.slot.slot
        return (
            circuit.state is CircuitState.BUILT
            and circuit.streams < slot.max_streams
            and slot.name not in self.drained
            and not self._is_out(circuit)
            and self.panic in {None, PanicAction.ALL}
            and (slot.role is Role.ACTIVE or self.backups_serve or slot.name in self._outgoing)
        )

    def _offer(self, circuit: Circuit) -> None:
        """Put the circuit into the chooser, or take it out, as it may serve."""
        may_serve = self._may_serve(circuit)
        if may_serve == circuit.is_candidate:
            return
        circuit.is_candidate = may_serve
        slot = circuit.slot.slot
        if may_serve:
            self._chooser.add(
                slot.name,
                weight=slot.weight,
                streams=circuit.streams,
                order=self._order.get(slot.name, len(self._order)),
                connect_time=circuit.connect_time,
            )
            self._chooser.scale(slot.name, self._fitness.tenths(circuit))
        else:
            self._chooser.remove(slot.name)

    def _join(self, circuit: Circuit) -> None:
        """The circuit serves in its slot from now on."""
        circuit.slot.has_served = True
        self._refusals.forget()
        if self._is_kept(circuit.slot) and self._counts(circuit.slot):
            self._ejector.add(circuit)
        self._tiers_changed(circuit.slot, +1)

    def _leave(self, circuit: Circuit) -> None:
        """The circuit serves no longer; of fewer circuits fewer may be ejected."""
        self._fitness.forget(circuit)
        self._refusals.forget()
        was_ejected = circuit in self._ejector.out
        back = self._ejector.remove(circuit)
        if was_ejected:
            self._watch_health()
        else:
            self._tiers_changed(circuit.slot, -1)
        self._readmit(back)

    def _tiers_changed(self, state: SlotState, change: int) -> None:
        """Count a circuit in its tier; when the floor is crossed, backup circuits join or leave."""
        if not self._is_kept(state) or not self._counts(state):
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
        self._watch_health()

    def _restart_chooser(self) -> None:
        """Start fair again, after weights, limits, tiers or the algorithm changed."""
        self._chooser = Choosers(self._policy, self._builder.uniform)
        self._refusals.forget()
        built = [state.circuit for state in self.slots.values() if state.circuit and self._counts(state)]
        back = self._ejector.keep(built)
        for circuit in built:
            if circuit.checkup is not None and circuit.checkup.is_down:
                # Another rule of ejection, or the end of a drain, makes it no better.
                self._ejector.hold(circuit)
        roles = [circuit.slot.slot.role for circuit in built if circuit not in self._ejector.out]
        self.active_built = roles.count(Role.ACTIVE)
        self.backup_built = roles.count(Role.BACKUP)
        for circuit in back:
            self._fitness.begin(circuit, now=self._rotation.now)
        for circuit in self._members:
            circuit.is_candidate = False
        self._watch_health()
        for circuit in self._members:
            self._offer(circuit)
        for circuit in back:
            self._say(f"circuit {circuit.label} takes streams again", Kind.CIRCUIT_READMITTED, circuit)

    def _say(self, message: str, kind: Kind = Kind.OTHER, circuit: Circuit | None = None) -> None:
        name, circuit_id = ("", "") if circuit is None else (circuit.slot.slot.name, circuit.circuit_id or "")
        self._emit(Announce(Severity.INFO, message, kind, name, circuit_id))
