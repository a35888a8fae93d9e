"""The circuits of one isolation key: built, kept and replaced.

Rules of this file:

* A *slot* is a circuit as the policy names it; Tor's circuits come and go in it.
* A circuit goes LAUNCHED -> BUILT -> DRAINING -> CLOSED, may skip states, and never goes back.
* Make before break: a circuit that no longer fits the policy serves until its successor is BUILT, and the
  circuits of slots that a reload removed serve until enough of the new ones are.
* A slot that loses a working circuit builds at once; one whose circuits fail waits, longer each time.
* A circuit on which Tor has put a stream of another key is of no use to this one, and is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from circuitloom.health import LEAST, WHOLE, Alarm
from circuitloom.kinds import Kind
from circuitloom.model import Action, CircuitEvent, CircuitId, CircuitStatus, Hop, Purpose, RecordedCircuit
from circuitloom.policy.health import PanicAction
from circuitloom.policy.types import Policy, Role, Slot
from circuitloom.pool.builder import Builder
from circuitloom.pool.isolation import UNKNOWN_KEY, IsolationKey
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.slots import Circuit, CircuitState, SlotState
from circuitloom.pool.succession import Succession

CONDEMNED_REST_SECONDS = 10.0
"""After a failed stream Tor closes a circuit at its next sweep, at most 30 s away, once it has no streams
(tor-facts 0). Replacing it is worth a build, but not one for each stream of a burst to a dead destination."""

_OUR_PURPOSES = frozenset(Purpose)


class Circuits(Succession):
    """Keeps one circuit BUILT in every slot and tells which one takes the next stream.

    Args:
        policy: What to keep.
        slots: The slots of the policy that this key gets.
        drained: Names of slots that take no new streams now.
        builder: Asks Tor for circuits.
        rotation: Looks after their age and use.
        emit: Takes each action, in order.

    Attributes:
        number: Names the key in status and log, where its values must not be shown.
        key: Whose circuits these are; None: nobody's yet.
        is_cold: Whether they have never been ready.
        is_expiring: Whether no new stream can have this key; those that have it still may come back.
        is_retired: Whether nobody has the key any more; the last circuits are ending.
        streams: How many streams have this key now.
        idle_since: When the last of them ended (seconds of the pool's clock).
        is_watched: Whether somebody will look at ``idle_since``.
    """

    def __init__(  # noqa: PLR0913 - each by name, and none can be made from another
        self,
        policy: Policy,
        slots: Sequence[Slot],
        *,
        number: int,
        drained: Collection[str],
        builder: Builder,
        rotation: Rotation,
        emit: Callable[[Action], None],
    ) -> None:
        super().__init__(policy, drained=drained, builder=builder, rotation=rotation, emit=emit)
        self.number = number
        self.key: IsolationKey | None = None
        # Nobody waits for circuits that only another controller can build.
        self.is_cold = any(slot.adopt is None for slot in slots)
        self.is_expiring = False
        self.is_retired = False
        self.streams = 0
        self.idle_since = 0.0
        self.is_watched = False
        self.slots = {slot.name: SlotState(slot, self, builder.tally.of(slot.name)) for slot in slots}
        self._slots_changed()

    # --- what the pool asks --------------------------------------------------------------------------------

    @property
    def cost(self) -> int:
        """How many of them count for ``max_circuits``."""
        return cost_of(state.slot for state in self.slots.values())

    @property
    def draining(self) -> list[Circuit]:
        """Circuits that take no more streams and still have some."""
        return [circuit for circuit in self._members if circuit.state is CircuitState.DRAINING]

    @property
    def members(self) -> Collection[Circuit]:
        """Every circuit that Tor has given an id, until its end."""
        return self._members.keys()

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left of them in Tor."""
        return not self._members and not any(state.building for state in self.slots.values())

    # --- streams come and go -------------------------------------------------------------------------------

    def add_stream(self, circuit: Circuit) -> None:
        """One more stream is on the circuit."""
        circuit.streams += 1
        self._count_changed(circuit)

    def remove_stream(self, circuit: Circuit) -> None:
        """One stream less is on the circuit."""
        circuit.streams -= 1
        self._count_changed(circuit)
        self.end_if_empty(circuit)

    def mark(self, circuit: Circuit, key: IsolationKey) -> None:
        """A stream of this key is on the circuit: no stream of another key may follow, ever."""
        if circuit.key is None:
            circuit.key = key
        elif key != circuit.key:
            # Tor, or another controller, put it there before our own was: two keys may share the circuit now.
            circuit.key = UNKNOWN_KEY
        if self.key is not None:
            self._expel(circuit)

    def claim(self, key: IsolationKey) -> None:
        """From now on these are the key's circuits."""
        self.key = key
        for circuit in list(self._members):
            self._expel(circuit)

    def _expel(self, circuit: Circuit) -> None:
        """Replace a circuit that another key has touched."""
        if circuit.key in {None, self.key} or circuit.state is not CircuitState.BUILT:
            return
        state = circuit.slot
        is_in_use = state.circuit is circuit and self._is_kept(state)
        self._drain(circuit)
        if is_in_use:
            self._builder.want(state)

    # --- what happened -------------------------------------------------------------------------------------

    def adopt(self, record: RecordedCircuit, line: CircuitEvent, *, now: float) -> None:
        """Take a BUILT circuit over that another agent had in this slot; ``recounted`` has to follow."""
        circuit = self._enter(self.slots[record.name], line, now=now)
        circuit.state = CircuitState.BUILT
        circuit.built_at = now
        circuit.key = self.key if record.is_used else None
        circuit.is_adopted = record.is_adopted
        circuit.slot.circuit = circuit

    def adopt_foreign(self, name: str, line: CircuitEvent, *, now: float) -> None:
        """Put a BUILT circuit of another controller into the slot; whichever is there drains."""
        state = self.slots[name]
        self._builder.unwant(state)
        state.failures = 0
        circuit = self._enter(state, line, now=now)
        circuit.is_adopted = True
        self._serve(circuit, "adopted", now=now)
        self.is_cold = self.is_cold and not self.is_ready

    def _enter(self, state: SlotState, line: CircuitEvent, *, now: float) -> Circuit:
        circuit = Circuit(state, 0, now, line.circuit_id, path=line.path)
        circuit.created = line.keywords.get("TIME_CREATED", "")
        state.has_served = True
        circuit.purpose = Purpose(line.keywords["PURPOSE"].lower())
        state.has_adopted = state.slot.adopt is not None
        self._builder.by_id[line.circuit_id] = circuit
        self._members[circuit] = None
        return circuit

    def rename(self, key: IsolationKey) -> None:
        """The key that stood for this one until a stream came is known now."""
        for circuit in self._members:
            if circuit.key == self.key:
                circuit.key = key
        self.key = key

    def handle_connected(self, there: Mapping[CircuitId, CircuitEvent], *, isolates: bool) -> None:
        """Keep the circuits that Tor still has, forget the others, and want what is missing.

        Ids start again at 1 after a restart of Tor (tor-facts 11), so a circuit is only believed to be ours
        when its creation time and path agree as well.

        A general circuit that was never used may have been, by Tor, while we were away: where keys are kept
        apart it is replaced.

        Args:
            there: The lines of circuit-status.
            isolates: Whether keys are kept apart.
        """
        for circuit in list(self._members):
            event = there.get(circuit.circuit_id or CircuitId(""))
            if event is not None and event.keywords.get("TIME_CREATED", "") != circuit.created:
                event = None
            if circuit.state is CircuitState.LAUNCHED:
                # What became of it nobody heard: another one is built, and this one must not stay for good.
                if event is not None:
                    self._builder.close(circuit)
                self._forget(circuit)
                continue
            if event is None or event.status is not CircuitStatus.BUILT or event.path != circuit.path:
                self._forget(circuit)
                if circuit.is_adopted:
                    self._say(
                        f"circuit {circuit.label} is gone: Tor has it no more", Kind.CIRCUIT_CLOSED, circuit
                    )
                continue
            circuit.streams = 0
            is_doubtful = isolates and circuit.key is None and circuit.purpose is Purpose.GENERAL
            if is_doubtful and circuit.state is CircuitState.BUILT:
                circuit.state = CircuitState.DRAINING
                self._vacate(circuit.slot)
        for state in self.slots.values():
            state.failures = 0
            self._builder.want(state)

    def recounted(self) -> None:
        """The streams of all circuits were counted anew, after ``handle_connected``."""
        for circuit in self.draining:
            self.end_if_empty(circuit)
        self._restart_chooser()
        self.is_cold = self.is_cold and not self.is_ready

    def forget_probes(self) -> None:
        """Nothing is known any more of the probes that were on circuits."""
        for circuit in self._members:
            circuit.probes = 0

    def enlist(self, circuit: Circuit) -> None:
        """Tor gave one of our circuits its id."""
        self._members[circuit] = None

    def discharge(self, circuit: Circuit) -> None:
        """One of our circuits is no more."""
        self._members.pop(circuit, None)

    def handle_event(self, circuit: Circuit, event: CircuitEvent, *, now: float) -> None:
        """Follow one of our circuits."""
        circuit.created = event.keywords.get("TIME_CREATED", circuit.created)
        purpose = event.keywords.get("PURPOSE", "").lower()
        if purpose in _OUR_PURPOSES:
            circuit.purpose = Purpose(purpose)
        match event.status:
            case CircuitStatus.BUILT:
                if circuit.state is CircuitState.LAUNCHED:
                    self._builder.planner.handle_built(circuit.path)
                    circuit.path = event.path
                    self._builder.finish(circuit, now=now)
                    self._serve(circuit, "built", now=now)
                    self.is_cold = self.is_cold and not self.is_ready
            case CircuitStatus.FAILED | CircuitStatus.CLOSED:
                missed = None
                if circuit.state is CircuitState.LAUNCHED:
                    missed = self._builder.planner.handle_failed(circuit.path, event.path, now=now)
                self.lose(circuit, _reason(event, missed), now=now)
            case CircuitStatus.PURPOSE_CHANGED:
                if purpose not in _OUR_PURPOSES:
                    self.lose(circuit, f"Tor uses it for {purpose.upper()}", now=now)
            case _:
                pass

    def lose(self, circuit: Circuit, reason: str, *, now: float) -> None:
        """The circuit is gone, or of no more use; its slot builds another."""
        state = circuit.slot
        if circuit.state is CircuitState.CLOSED:
            # Told already: each stream on its way there is refused one by one.
            return
        if circuit.state is CircuitState.LAUNCHED:
            self._builder.fail(circuit, reason, now)
        elif circuit is state.circuit and self._is_kept(state) and state.is_ours_to_build:
            lived_seconds = now - circuit.built_at
            self._forget(circuit)
            if lived_seconds >= self._builder.rebuild.initial_seconds:
                state.failures = 0
                self._say(
                    f"circuit {circuit.label} closed ({reason}), building another",
                    Kind.CIRCUIT_CLOSED,
                    circuit,
                )
                self._builder.want(state)
            else:
                self._builder.back_off(state, f"circuit {circuit.label} closed at once ({reason})", now)
        else:
            self._forget(circuit)
            suffix = ", and the agent did not build it: it is not replaced" if circuit.is_adopted else ""
            self._say(f"circuit {circuit.label} closed ({reason}){suffix}", Kind.CIRCUIT_CLOSED, circuit)

    def condemn(self, circuit: Circuit, *, now: float) -> None:
        """Tor will close the circuit soon, for a stream that failed on it: replace it before it is missed."""
        state = circuit.slot
        is_to_replace = state.is_ours_to_build and not state.is_outdated
        if circuit is state.circuit and is_to_replace and self._is_kept(state):
            state.is_outdated = True
            self._builder.want_at(state, max(now, circuit.built_at + CONDEMNED_REST_SECONDS))

    def replace(self, circuit: Circuit, why: str = "fails for several destinations") -> None:
        """The circuit fails whatever goes over it: have another at once, and this one until then."""
        state = circuit.slot
        is_to_replace = state.is_ours_to_build and state.building is None
        if circuit is state.circuit and is_to_replace and self._is_kept(state):
            what = f"circuit {circuit.label} {why}, building another"
            self._say(what, Kind.CIRCUIT_REPLACED, circuit)
            circuit.failed_targets.clear()
            state.is_outdated = True
            self._builder.want(state)

    def renew(self, name: str | None = None) -> None:
        """Replace every circuit, or the one of this name, each when its successor is BUILT.

        The successor of an adopted circuit is the next one that is adopted, unless the agent is to build it.
        """
        for state in self.slots.values():
            if state.is_ours_to_build and name in {None, state.slot.name}:
                state.is_outdated = state.circuit is not None
                if name is not None and state.circuit is not None:
                    self._rotation.end(state.circuit)
                self._builder.want(state)
            elif state.circuit is not None and name is None:
                what = f"circuit {state.circuit.label} serves on until another is adopted, or it closes"
                self._say(what, Kind.CIRCUIT_REPLACED, state.circuit)

    def handle_drained(self) -> None:
        """Other slots than before are drained now."""
        self._set_floor()
        self._restart_chooser()

    def retire(self) -> None:
        """No stream of this key comes any more: what runs finishes, nothing is built."""
        self.is_retired = True
        self._ejector.keep(())
        self._alarm = Alarm(None)
        for state in self.slots.values():
            self._builder.unwant(state)
        outgoing, self._outgoing = self._outgoing, {}
        serving = [state.circuit for state in self.slots.values() if state.circuit is not None]
        self.slots = {}
        for circuit in (*serving, *outgoing.values()):
            self._drain(circuit)
        self.active_built = self.backup_built = 0

    def replace_policy(self, policy: Policy, slots: Sequence[Slot]) -> None:
        """Keep what both policies name, build what is new, drain what is gone."""
        self._min_active = policy.failover.min_active
        self._policy = policy
        self._replace_health(policy.health)
        old = {name: circuit.slot for name, circuit in self._outgoing.items()} | self.slots
        self._outgoing = {}
        self.slots = {}
        for slot in slots:
            tally = self._builder.tally.of(slot.name)
            state = old.pop(slot.name, None) or SlotState(slot, self, tally)
            # One that was on its way out may come back to a name whose numbers were forgotten meanwhile.
            state.tally = tally
            is_moved = _origin(state.slot) != _origin(slot)
            state.has_adopted = state.has_adopted and slot.adopt is not None
            state.slot = slot
            self.slots[slot.name] = state
            if is_moved:
                # How the old path failed says nothing of the new one.
                state.failures = 0
                self._builder.unwant(state)
            if state.circuit is not None and (
                is_moved or (state.circuit.wear.is_spent and not self.is_expiring)
            ):
                # One that was spent on its way out got no successor.
                state.is_outdated = True
        for name, state in old.items():
            self._builder.unwant(state)
            if state.circuit is not None:
                self._outgoing[name] = state.circuit
        self._slots_changed()
        self._restart_chooser()
        self._dismiss_outgoing()
        self._review(self.slots.values())
        for state in self.slots.values():
            if state.retry_at is None:
                self._builder.want(state)

    def check_invariants(self, streams: Mapping[Circuit, int]) -> None:
        """Assert what must always hold; for tests.

        Args:
            streams: How many streams the pool has on each circuit.

        Raises:
            AssertionError: It does not.
        """
        for circuit in self._members:
            assert circuit.circuit_id is not None
            assert self._builder.by_id[circuit.circuit_id] is circuit
            assert circuit.state is not CircuitState.CLOSED
            assert (circuit.state is CircuitState.BUILT) == (circuit.slot.circuit is circuit)
            assert circuit.streams == streams.get(circuit, 0)
            assert circuit.is_candidate == self._may_serve(circuit)
            assert LEAST <= self._fitness.tenths(circuit) <= WHOLE
            if circuit.is_candidate and self.key is not None:
                assert circuit.key in {None, self.key}
        for name, state in self.slots.items():
            assert state.slot.name == name
            assert state.owner is self
            assert state.circuit is None or state.circuit.state is CircuitState.BUILT
            assert state.building is None or state.building.state is CircuitState.LAUNCHED
        built = [state.circuit for state in self.slots.values() if state.circuit and self._counts(state)]
        roles = [circuit.slot.slot.role for circuit in built if circuit not in self._ejector.out]
        assert self.active_built == roles.count(Role.ACTIVE)
        assert self.backup_built == roles.count(Role.BACKUP)
        assert not built or roles, "all are ejected"
        self._ejector.check_invariants()
        if self._alarm.rule is not None:
            assert self._alarm.is_on == (len(roles) < self._alarm.rule.threshold * len(built))
        if self.panic is PanicAction.ALL:
            assert all(circuit.is_candidate == self._may_serve(circuit) for circuit in self._ejector.out)
        elif self.panic is not None:
            assert not self.has_room(None)
        assert all(circuit in self._ejector for circuit in built)


def cost_of(slots: Iterable[Slot]) -> int:
    """How many circuits the agent may build for these slots."""
    return sum(slot.adopt is None or slot.adopt.rebuild for slot in slots)


def _origin(slot: Slot) -> object:
    """What decides whether the circuit of one slot can serve in another."""
    return (slot.path, slot.purpose) if slot.adopt is None else None


def _reason(event: CircuitEvent, missed: Hop | None) -> str:
    reason = event.keywords.get("REASON", "no reason given")
    remote = event.keywords.get("REMOTE_REASON")
    where = "" if missed is None else f" at {missed.label}"
    return f"{reason}, {remote}{where}" if remote else f"{reason}{where}"
