"""What a pool tells of itself; nothing here changes it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from circuitloom.model import CircuitAdopted, CircuitId, RecordedCircuit, StreamId
from circuitloom.policy.types import Policy, WhenExceeded, WhenNone
from circuitloom.pool.adoption import place_for
from circuitloom.pool.attacher import Attacher
from circuitloom.pool.builder import Builder
from circuitloom.pool.built import built_circuits
from circuitloom.pool.contention import Contention
from circuitloom.pool.decisions import Decisions, Explanation, candidates
from circuitloom.pool.keys import Keys
from circuitloom.pool.probes import Probes
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.slots import Circuit, SlotState
from circuitloom.pool.snapshot import PoolSnapshot, count_guards, panic_notice, snapshot_circuits
from circuitloom.pool.streams import Stream
from circuitloom.pool.tally import Tally


class Attachment(StrEnum):
    """Who attaches new streams."""

    DISCONNECTED = "disconnected"
    RELEASED = "released"
    BALANCING = "balancing"
    STOPPING = "stopping"


class Told:
    """The questions that a pool answers; ``Pool`` sets what they are answered from."""

    _policy: Policy
    _builder: Builder
    _rotation: Rotation
    _keys: Keys
    _attacher: Attacher
    _probes: Probes
    _contention: Contention
    _decisions: Decisions
    _shown_streams: Mapping[StreamId, Stream] | None
    _attachment: Attachment
    _since: float

    @property
    def policy(self) -> Policy:
        """The policy in force, with the weights that the operator gave."""
        return self._policy

    @property
    def is_in_charge(self) -> bool:
        """Whether new streams wait for us."""
        return self._attachment is Attachment.BALANCING

    @property
    def is_stopping(self) -> bool:
        """Whether everything is given back for good."""
        return self._attachment is Attachment.STOPPING

    @property
    def is_ready(self) -> bool:
        """Whether we are connected and enough circuits are BUILT to take over."""
        return self._attachment in {Attachment.RELEASED, Attachment.BALANCING} and self._keys.is_ready

    def built(self) -> dict[str, Circuit]:
        """The circuit that a round serves for each name; none without a connection."""
        is_connected = self._attachment in {Attachment.RELEASED, Attachment.BALANCING}
        return built_circuits(self._keys) if is_connected else {}

    @property
    def is_of_probe(self) -> bool:
        """Whether the last event was of a probe's stream, which is no user's."""
        return self._probes.has_taken

    def is_probed(self, circuit_id: CircuitId) -> bool:
        """Whether the circuit's last probe passed, or the policy has none."""
        circuit = self._builder.by_id.get(circuit_id)
        return circuit is not None and self._probes.is_passed(circuit)

    def why_not_adopted(self, event: CircuitAdopted) -> str | None:
        """What the pool has against this circuit; None: it takes it when it is given the event."""
        place = self._place_for(event)
        return place if isinstance(place, str) else None

    def explain(self, stream_id: StreamId | None, *, now: float) -> Explanation:
        """Why this stream, or each of the last ones, went where it went."""
        stream = None if stream_id is None else self._attacher.streams.get(stream_id)
        return Explanation(self._decisions.tell(stream_id, now=now), candidates(self._keys, stream, now=now))

    def shown_target(self, stream_id: StreamId) -> str:
        """`` to host:port``, if the policy lets destinations be shown and it is known; else nothing."""
        stream = None if self._shown_streams is None else self._shown_streams.get(stream_id)
        return f" to {stream.target}" if stream is not None and stream.target else ""

    def snapshot(self, *, now: float) -> PoolSnapshot:
        """The state as values, for the status."""
        return PoolSnapshot(
            state=self._attachment.value,
            since_seconds=now - self._since,
            algorithm=self._policy.balance.algorithm.value,
            is_ready=self._keys.is_ready,
            circuits=snapshot_circuits(self._keys, now=now),
            streams_active=len(self._attacher.streams),
            streams_waiting=len(self._attacher.waiting),
            attached_total=self._attacher.attached_total,
            released_total=self._attacher.released_total,
            failed_total=self._attacher.failed_total,
            notice=self._contention.notice or panic_notice(self._keys),
            streams_queued=self._attacher.queued,
            probe_problem=self._probes.problem,
        )

    def guards(self) -> tuple[int, ...]:
        """How many built circuits begin at each first relay, the most first."""
        return count_guards(self._keys)

    @property
    def tally(self) -> Tally:
        """What has happened so far; only to be read."""
        return self._builder.tally

    @property
    def attached_total(self) -> int:
        """Attachments so far."""
        return self._attacher.attached_total

    @property
    def claims(self) -> int:
        """Changes with every key that gets circuits: then ``records`` has to be written down at once."""
        return self._keys.claims

    def records(self) -> tuple[RecordedCircuit, ...]:
        """What the next agent has to know to take the circuits over."""
        return self._keys.records()

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        counts: dict[Circuit, int] = {}
        self._attacher.check_invariants(counts)
        self._keys.check_invariants()
        for circuits in self._keys.all:
            circuits.check_invariants(counts)
        self._builder.check_invariants(
            [state for circuits in self._keys.all for state in circuits.slots.values()]
        )
        self._probes.check_invariants()
        self._rotation.check_invariants(self._builder.by_id.values())
        assert self._attacher.is_in_charge == self.is_in_charge
        waiting = self._attacher.waiting
        if self._attachment in {Attachment.RELEASED, Attachment.STOPPING}:
            assert not waiting
        if self._attachment is Attachment.BALANCING:
            for stream in waiting:
                owner = stream.owner
                if stream.wait_until is None:
                    assert self._policy.failover.when_none is WhenNone.HOLD
                    assert owner is not None
                    assert not owner.is_usable_among(stream.among, stream.target)
                elif owner is None:
                    assert self._policy.balance.keys.when_exceeded is WhenExceeded.QUEUE
                else:
                    is_queued = stream.is_queued and not owner.has_room(stream.among, stream.target)
                    assert owner.is_cold or owner.is_cold_among(stream.among) or is_queued

    def _place_for(self, event: CircuitAdopted) -> SlotState | str:
        if self._attachment not in {Attachment.RELEASED, Attachment.BALANCING}:
            return "the agent is not connected to Tor, or stopping"
        return place_for(event, self._policy, keys=self._keys, builder=self._builder)
