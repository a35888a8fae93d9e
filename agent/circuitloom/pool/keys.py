"""Gives each isolation key circuits of its own, as far as the policy allows.

Rules of this file:

* The first key gets the circuits that are built at the start; another one gets circuits when its first stream
  comes, and loses them when it has had no stream for a while, unless nobody else wants any.
* No key is begun that would take all keys together above ``max_circuits``.
* A new identity (NEWNYM) is a new key for all streams to come: fresh circuits are built at once, and the
  old ones end with their streams.
* Without isolation there is one key for all; a new identity renews its circuits, each when its successor is
  there: of an adopted one that is the next to be adopted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush

from circuitloom.kinds import Kind
from circuitloom.model import (
    Action,
    Announce,
    CircuitEvent,
    CircuitId,
    CloseCircuit,
    RecordedCircuit,
    Severity,
)
from circuitloom.policy.types import Isolation, Policy, Role, Slot
from circuitloom.pool.builder import Builder
from circuitloom.pool.circuits import Circuits, cost_of
from circuitloom.pool.isolation import ONE_FOR_ALL, IsolationKey
from circuitloom.pool.records import digest_of, fits, is_left, is_same, key_left, record
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.slots import SlotState


class Keys:
    """All circuits, by key.

    Args:
        policy: What to keep.
        builder: Asks Tor for circuits.
        rotation: Looks after their age and use.
        emit: Takes each action, in order.

    Attributes:
        has_made_room: Whether a key has ended since this was last set to False.
        claims: How often a key got circuits, or used one first; with each, ``records`` has changed.
    """

    def __init__(
        self, policy: Policy, *, builder: Builder, rotation: Rotation, emit: Callable[[Action], None]
    ) -> None:
        self._policy = policy
        self._builder = builder
        self._rotation = rotation
        self._emit = emit
        self._by_key: dict[IsolationKey, Circuits] = {}
        self._unclaimed: Circuits | None = None
        self._retired: list[Circuits] = []
        self._numbers = 0
        self.has_made_room = False
        self.claims = 0
        self._secret: bytes | None = None
        self._is_crowded = False
        self._deadlines: list[tuple[float, int, Circuits]] = []
        self._drained: set[str] = set()
        self._replenish()

    # --- what the pool asks --------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Circuits]:
        """Those that take new streams: each key's, and the unclaimed ones."""
        yield from self._by_key.values()
        if self._unclaimed is not None:
            yield self._unclaimed

    @property
    def all(self) -> list[Circuits]:
        """Also those that only finish what they have."""
        return [*self, *self._retired]

    @property
    def is_ready(self) -> bool:
        """Whether some key has enough circuits, or the next one will."""
        return any(circuits.is_ready for circuits in self)

    @property
    def is_usable(self) -> bool:
        """Whether any stream could be attached to anything."""
        return any(circuits.is_usable for circuits in self)

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        return self._deadlines[0][0] if self._deadlines else None

    def find(self, key: IsolationKey) -> Circuits | None:
        """The key's circuits.

        They are claimed or begun if it has none; None when ``max_circuits`` leaves no room for them.
        """
        circuits = self._by_key.get(key) or self._find_left(key)
        if circuits is None:
            circuits = self._unclaimed or self._begin()
            self._unclaimed = None
            if circuits is None:
                self._is_crowded = True
            else:
                circuits.claim(key)
                self._by_key[key] = circuits
                self.claims += 1
        return circuits

    def first_with(self, name: str) -> SlotState | None:
        """The slot of this name of the key that came first and still gets new streams; as rounds choose."""
        return next((c.slots[name] for c in self if name in c.slots and not c.is_expiring), None)

    def records(self) -> tuple[RecordedCircuit, ...]:
        """What the next agent has to know to take the circuits over."""
        return tuple(line for circuits in self for line in record(circuits, self._secret))

    def _find_left(self, key: IsolationKey) -> Circuits | None:
        """The circuits that another agent left for this key, if any; they are the key's from now on."""
        digest = digest_of(key, self._secret)
        circuits = None if digest is None else self._by_key.pop(key_left(digest), None)
        if circuits is not None:
            circuits.rename(key)
            self._by_key[key] = circuits
        return circuits

    # --- streams come and go -------------------------------------------------------------------------------

    def add_stream(self, circuits: Circuits) -> None:
        """One more stream has this key."""
        circuits.streams += 1

    def remove_stream(self, circuits: Circuits, *, now: float) -> None:
        """One stream less has this key; after the last one its circuits are kept for a while."""
        circuits.streams -= 1
        is_idle = circuits.streams == 0 and not circuits.is_retired
        if is_idle and self._policy.balance.isolation is Isolation.TOR:
            if circuits.is_expiring:
                self._retire(circuits)
            else:
                self._watch(circuits, now)

    # --- what happened -------------------------------------------------------------------------------------

    def adopt(
        self,
        records: Sequence[RecordedCircuit],
        there: Mapping[CircuitId, CircuitEvent],
        *,
        now: float,
    ) -> None:
        """Take over what another agent left, and have Tor close what nobody needs; before anything is built.

        Args:
            records: What it wrote down.
            there: The lines of circuit-status.
            now: The time (seconds of the pool's clock).
        """
        isolates = self._policy.balance.isolation is Isolation.TOR
        for line in records:
            event = there.get(line.circuit_id)
            if event is None or not is_same(line, event):
                continue
            group = self._group_for(line)
            slot = None if group is None else group.slots.get(line.name)
            if slot is not None and slot.circuit is None and fits(line, event, slot.slot, isolates=isolates):
                slot.owner.adopt(line, event, now=now)
            elif line.is_adopted:
                what = f"circuit {line.name} ({line.circuit_id}) is not taken over again"
                what = f"{what}: adopt it anew, or another"
                self._emit(Announce(Severity.WARNING, what, Kind.CIRCUIT_CLOSED, line.name, line.circuit_id))
            else:
                self._emit(CloseCircuit(line.circuit_id))
        if records:
            for circuits in list(self._by_key.values()):
                if not any(state.circuit for state in circuits.slots.values()):
                    self._retire(circuits)

    def _group_for(self, line: RecordedCircuit) -> Circuits | None:
        """The circuits of the key that a record is of, begun if need be; None if they have no place here."""
        isolates = self._policy.balance.isolation is Isolation.TOR
        if line.key is None:
            return self._unclaimed
        key = key_left(line.key)
        if (key == ONE_FOR_ALL) == isolates:
            return None
        circuits = self._by_key.get(key)
        if circuits is None:
            if self._unclaimed is not None:
                # What was made ready for the first key has not even been asked for yet.
                self._unclaimed.retire()
                self._unclaimed = None
            next_number, self._numbers = self._numbers, line.number
            circuits = self._begin()
            self._numbers = max(next_number, line.number + 1)
            if circuits is not None:
                circuits.claim(key)
                self._by_key[key] = circuits
        return circuits

    def handle_connected(self, there: Mapping[CircuitId, CircuitEvent], *, secret: bytes | None) -> None:
        """Compare all circuits with what Tor says there is.

        Args:
            there: The lines of circuit-status.
            secret: Tor's cookie, or None.
        """
        is_another_tor = self._secret not in {None, secret}
        self._secret = secret
        isolates = self._policy.balance.isolation is Isolation.TOR
        for circuits in self.all:
            circuits.streams = 0
            circuits.handle_connected(there, isolates=isolates)
        if is_another_tor:
            # What was left under the old secret nobody can recognise any more.
            for circuits in [self._by_key[key] for key in self._by_key if is_left(key)]:
                self._retire(circuits)

    def recounted(self, *, now: float) -> None:
        """All streams were counted anew."""
        for circuits in self.all:
            circuits.recounted()
            if circuits.streams == 0 and circuits.key not in {None, ONE_FOR_ALL} and not circuits.is_retired:
                self._watch(circuits, now)
        self.sweep()

    def handle_new_identity(self) -> None:
        """NEWNYM: every stream to come has a new epoch, so a new key (tor-facts 5)."""
        if self._policy.balance.isolation is Isolation.NONE:
            for circuits in self:
                circuits.renew()
            return
        for circuits in list(self._by_key.values()):
            circuits.is_expiring = True
            if circuits.streams == 0:
                self._retire(circuits)
        self._replenish()

    def renew_relays(self) -> None:
        """Another snapshot of the consensus is there."""
        for circuits in self.all:
            circuits.renew_relays()

    def drain(self, name: str) -> None:
        """Circuits of this name take no new streams, of any key."""
        self._drained.add(name)
        for circuits in self:
            circuits.handle_drained()

    def undrain(self, name: str) -> None:
        """Circuits of this name take streams again."""
        self._drained.discard(name)
        for circuits in self:
            circuits.handle_drained()

    def handle_deadline(self, *, now: float) -> None:
        """End the circuits of keys that have had no stream for long."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, circuits = heappop(self._deadlines)
            circuits.is_watched = False
            if circuits.is_retired or circuits.streams > 0:
                continue
            if circuits.idle_since + self._idle_seconds > now:
                self._watch(circuits, circuits.idle_since)
            elif self._is_crowded or self._has_others(circuits):
                self._is_crowded = False
                self._retire(circuits)
            else:
                # Nobody wants the room, and without these circuits the next stream would find none.
                self._watch(circuits, now)
        self.sweep()

    def replace_policy(self, policy: Policy) -> None:
        """Apply a new policy to every key's circuits; another isolation begins with fresh ones."""
        is_same = policy.balance.isolation is self._policy.balance.isolation
        self._policy = policy
        self._builder.tally.keep({slot.name for slot in policy.slots})
        self._builder.rebuild = policy.failover.rebuild
        for circuits in list(self):
            if is_same:
                circuits.replace_policy(policy, self._choose_slots(circuits.number))
            else:
                self._retire(circuits)
        # Those that are idle are so for another time now.
        looks = [(c.idle_since + self._idle_seconds, number, c) for _, number, c in self._deadlines]
        heapify(looks)
        self._deadlines = looks
        self._retire_surplus()
        self._replenish()

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        for key, circuits in self._by_key.items():
            assert circuits.key == key
            assert not circuits.is_retired
        assert self._unclaimed is None or self._unclaimed.key is None
        assert list(self), "somebody has to be ready for the next key"

    # --- keys come and go ----------------------------------------------------------------------------------

    @property
    def _idle_seconds(self) -> float:
        return self._policy.balance.keys.idle_seconds

    def _begin(self) -> Circuits | None:
        slots = self._choose_slots(self._numbers)
        in_use = sum(circuits.cost for circuits in self)
        if in_use and in_use + cost_of(slots) > self._policy.balance.keys.max_circuits:
            return None
        circuits = Circuits(
            self._policy,
            slots,
            number=self._numbers,
            drained=self._drained,
            builder=self._builder,
            rotation=self._rotation,
            emit=self._emit,
        )
        self._numbers += 1
        for state in circuits.slots.values():
            self._builder.want(state)
        return circuits

    def _retire_surplus(self) -> None:
        """End idle keys, the longest idle first, while there are more circuits than the policy allows."""
        surplus = sum(circuits.cost for circuits in self) - self._policy.balance.keys.max_circuits
        idle = [circuits for circuits in self._by_key.values() if circuits.streams == 0]
        for circuits in sorted(idle, key=lambda circuits: circuits.idle_since):
            if surplus <= 0 or not self._has_others(circuits):
                return
            surplus -= circuits.cost
            self._retire(circuits)

    def _choose_slots(self, number: int) -> Sequence[Slot]:
        """The slots of the policy that a key gets: all, or some active ones in rotation and the others.

        The others are the backups, and those for adopted circuits, of which nobody knows whose key they will
        serve.
        """
        wanted = self._policy.balance.keys.slots_per_key
        active = [slot for slot in self._policy.slots if slot.role is Role.ACTIVE and slot.adopt is None]
        if wanted is None or wanted >= len(active):
            return self._policy.slots
        start = number * wanted % len(active)
        chosen = {slot.name for slot in (active + active)[start : start + wanted]}
        rotating = {slot.name for slot in active}
        return [slot for slot in self._policy.slots if slot.name in chosen or slot.name not in rotating]

    def _has_others(self, circuits: Circuits) -> bool:
        """Whether there are circuits of another key, or unclaimed ones."""
        return any(other is not circuits for other in self)

    def _replenish(self) -> None:
        """Have circuits ready for the next key when no key has any, or a new identity begins."""
        if self._unclaimed is None and all(circuits.is_expiring for circuits in self):
            self._unclaimed = self._begin()

    def _retire(self, circuits: Circuits) -> None:
        if circuits.key is not None:
            self._by_key.pop(circuits.key, None)
        if circuits is self._unclaimed:
            self._unclaimed = None
        circuits.retire()
        self._retired.append(circuits)
        self.has_made_room = True
        if circuits.key is not None and circuits.key != ONE_FOR_ALL:
            what = f"key {circuits.number} is no longer used, its circuits end"
            self._emit(Announce(Severity.INFO, what, Kind.KEY_ENDED))
        self._replenish()
        self.sweep()

    def sweep(self) -> None:
        """Forget retired circuits of which nothing is left."""
        self._retired = [circuits for circuits in self._retired if not circuits.is_gone]

    def _watch(self, circuits: Circuits, since: float) -> None:
        circuits.idle_since = since
        if not circuits.is_watched:
            circuits.is_watched = True
            heappush(self._deadlines, (since + self._idle_seconds, circuits.number, circuits))
