"""The decision core: events and the time in, actions out.

Rules of this file:

* Nothing here waits, reads a clock, draws a random number or writes a line.
* Every stream that Tor holds for us is attached, handed to Tor, closed as the policy says, or waits with a
  circuit on its way; ``check_invariants`` states it.
* Taking attachment over and giving it back are one pair: whoever sends SETCONF is in charge of every stream
  that waits until RESETCONF, and releases each of them with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from circuitloom.kinds import Kind
from circuitloom.model import (
    LEAVE_UNATTACHED,
    Action,
    Announce,
    AttachRefused,
    BuildAccepted,
    BuildRefused,
    CircuitAdopted,
    CircuitBandwidth,
    CircuitEvent,
    CircuitId,
    CircuitOrdered,
    ConfChanged,
    Connected,
    DeadlinePassed,
    Disconnected,
    Event,
    GiveBack,
    NetworkReady,
    ProbeFinished,
    ProbeStarted,
    Reserved,
    Severity,
    SignalReceived,
    StillWaiting,
    StopRequested,
    StreamEvent,
    TakeOver,
    TakeOverRefused,
)
from circuitloom.paths import Relays
from circuitloom.policy.types import Policy, WhenContended, WhenNone
from circuitloom.pool.attacher import Attacher
from circuitloom.pool.builder import Builder
from circuitloom.pool.contention import PAUSE_SECONDS, Contention
from circuitloom.pool.decisions import Decisions, shows_destinations
from circuitloom.pool.keys import Keys
from circuitloom.pool.orders import carry_out
from circuitloom.pool.planner import Planner
from circuitloom.pool.probes import Probes
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.told import Attachment, Told

TAKE_OVER_RETRY_SECONDS = 10.0
"""Tor refuses SETCONF of this option only in a state that does not pass in a moment."""


FOR_EVER = float("inf")


class Pool(Told):
    """Circuits, streams, and who is in charge, as one state machine.

    Args:
        policy: What to do.
        uniform: Gives a random number in [0, 1).
        now: The time (seconds of a clock that never goes back).
    """

    def __init__(self, policy: Policy, *, uniform: Callable[[], float], now: float) -> None:
        self._policy = policy
        self._actions: list[Action] = []
        self._planner = Planner(policy.diversity, uniform=uniform)
        self._builder = Builder(
            policy.failover.rebuild, uniform=uniform, planner=self._planner, emit=self._emit
        )
        self._rotation = Rotation(policy.rotation, uniform=uniform)
        self._keys = Keys(policy, builder=self._builder, rotation=self._rotation, emit=self._emit)
        self._attacher = Attacher(
            policy,
            keys=self._keys,
            builder=self._builder,
            rotation=self._rotation,
            emit=self._emit,
            on_foreign=self._on_foreign,
        )
        self._probes = Probes(
            policy,
            keys=self._keys,
            rotation=self._rotation,
            uniform=uniform,
            emit=self._emit,
            on_change=self._attacher.reshuffle,
        )
        self._contention = Contention()
        self._on_stream = self._attacher.on_stream
        self._decisions = Decisions()
        self._shown_streams = self._attacher.streams if shows_destinations(policy) else None
        self._attachment = Attachment.DISCONNECTED
        self._since = now
        self._take_over_at: float | None = None
        self._dispatch: dict[type[Any], Callable[[Any, float], None]] = {
            CircuitEvent: self._on_circuit,
            ConfChanged: self._on_conf_changed,
            SignalReceived: self._on_signal,
            NetworkReady: self._on_network_ready,
            StillWaiting: self._on_still_waiting,
            Connected: self._on_connected,
            Disconnected: self._on_disconnected,
            BuildAccepted: self._on_build_accepted,
            BuildRefused: self._on_build_refused,
            AttachRefused: self._on_attach_refused,
            TakeOverRefused: self._on_take_over_refused,
            Reserved: self._on_reserved,
            StopRequested: self._on_stop,
            CircuitOrdered: self._on_ordered,
            CircuitAdopted: self._on_adopted,
            ProbeStarted: self._on_probe_started,
            ProbeFinished: self._on_probe_finished,
            DeadlinePassed: self._on_deadline,
        }

    # --- what the service calls ----------------------------------------------------------------------------

    def handle(self, event: Event, *, now: float) -> list[Action]:
        """Take one event.

        Args:
            event: What happened.
            now: The time (seconds of the clock given to the constructor).

        Returns:
            What to do, in this order.
        """
        actions = self._begin(now)
        probes = self._probes
        if isinstance(event, StreamEvent):
            if not (probes.is_on and probes.take(event)):
                self._on_stream[event.status](event)
            if self._attacher.freed:
                self._attacher.serve_queued()
            # A stream may have ended a key, whose room others wait for, or had its circuit taken out, so that
            # others serve, or begun a key: then there is something to build.
            if self._keys.has_made_room or self._attacher.is_reshuffled:
                self._evaluate(now)
            elif self._builder.is_anything_wanted:
                self._builder.fill(now)
        elif isinstance(event, CircuitBandwidth):
            # As frequent as streams: those that wait are not looked at for it.
            self._on_bandwidth(event)
            self._builder.fill(now)
        else:
            self._dispatch[type(event)](event, now)
            self._evaluate(now)
        return self._end(actions, now)

    def next_deadline(self) -> float | None:
        """When a DeadlinePassed event is due (seconds), or None."""
        deadlines = (
            self._builder.next_deadline(),
            self._keys.next_deadline(),
            self._attacher.next_deadline(),
            # Standing aside for good has no end to wait for.
            None if self._take_over_at == FOR_EVER else self._take_over_at,
            self._contention.verdict_at,
            self._probes.next_deadline(),
        )
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def replace_policy(self, policy: Policy, *, now: float) -> list[Action]:
        """Go on with another policy: circuits that both name are kept, with their streams."""
        actions = self._begin(now)
        is_blind = policy.uses_countries and not self._policy.uses_countries
        self._policy = policy
        self._attacher.replace_policy(policy)
        # Those that begin with this policy have no time yet.
        self._probes.set_time(now)
        self._planner.diversity = policy.diversity
        if is_blind or not policy.path_rules:
            # Where relays are was not asked for until now: without that an avoided one looks like any other.
            self._planner.relays = None
        self._keys.replace_policy(policy)
        self._rotation.replace_rule(policy.rotation, self._builder.by_id.values())
        self._probes.replace_policy(policy)
        self._contention.begin_anew()
        if self._take_over_at == FOR_EVER:
            self._take_over_at = None
        self._evaluate(now)
        self._shown_streams = self._attacher.streams if shows_destinations(policy) else None
        if self._shown_streams is None:
            self._decisions.scrub()
        return self._end(actions, now)

    def renew_relays(self, relays: Relays, *, now: float) -> list[Action]:
        """Go on with another snapshot of the consensus; what waits for one is built."""
        actions = self._begin(now)
        self._planner.relays = relays
        self._builder.handle_relays()
        self._keys.renew_relays()
        self._evaluate(now)
        return self._end(actions, now)

    def replace_circuit(self, circuit_id: CircuitId, *, now: float) -> list[Action]:
        """Replace a circuit, make before break; nothing happens if it is not ours any more."""
        actions = self._begin(now)
        circuit = self._builder.by_id.get(circuit_id)
        if circuit is not None:
            circuit.slot.owner.condemn(circuit, now=now)
            self._evaluate(now)
        return self._end(actions, now)

    def _begin(self, now: float) -> list[Action]:
        """What is decided from here on is collected in the list, and it is ``now``."""
        actions: list[Action] = []
        self._actions = actions
        self._attacher.now = self._rotation.now = now
        if self._probes.is_on:
            self._probes.set_time(now)
        return actions

    def _end(self, actions: list[Action], now: float) -> list[Action]:
        """Whatever asked for a decision, ``explain`` knows it."""
        if actions:
            self._decisions.remember(actions, now, self._shown_streams)
        return actions

    def _emit(self, action: Action) -> None:
        self._actions.append(action)

    # --- circuits ------------------------------------------------------------------------------------------

    def _on_circuit(self, event: CircuitEvent, now: float) -> None:
        """Follow a circuit; those that we did not ask for are nobody's business here."""
        circuit = self._builder.by_id.get(event.circuit_id)
        if circuit is not None:
            circuit.slot.owner.handle_event(circuit, event, now=now)
            self._keys.sweep()

    def _on_bandwidth(self, event: CircuitBandwidth) -> None:
        circuit = self._builder.by_id.get(event.circuit_id)
        if circuit is not None:
            self._rotation.count_bytes(circuit, event.read_bytes + event.written_bytes)

    def _on_build_accepted(self, event: BuildAccepted, _now: float) -> None:
        self._builder.handle_accepted(event)

    def _on_build_refused(self, event: BuildRefused, now: float) -> None:
        self._builder.handle_refused(event, now=now)

    def _on_network_ready(self, _event: NetworkReady, _now: float) -> None:
        self._builder.handle_network_ready()
        self._attacher.doubt_anew()

    def _on_still_waiting(self, event: StillWaiting, _now: float) -> None:
        self._attacher.handle_still_waiting(event)

    def _on_attach_refused(self, event: AttachRefused, _now: float) -> None:
        if not self._probes.handle_refused(event):
            self._attacher.handle_refused(event)

    def _on_probe_started(self, event: ProbeStarted, _now: float) -> None:
        self._probes.handle_started(event)

    def _on_probe_finished(self, event: ProbeFinished, _now: float) -> None:
        self._probes.handle_finished(event)

    def _on_deadline(self, _event: DeadlinePassed, now: float) -> None:
        if self._take_over_at is not None and self._take_over_at <= now:
            self._take_over_at = None
        if self._contention.is_foreign(now) and self.is_in_charge:
            self._contend("another controller reset the option that makes streams wait for us", now)
        self._keys.handle_deadline(now=now)
        self._builder.handle_deadline(now=now)
        self._attacher.handle_deadline()
        self._probes.handle_deadline()

    # --- who is in charge ----------------------------------------------------------------------------------

    def _evaluate(self, now: float) -> None:
        """Take over, give back, or serve those that waited, as the circuits now are."""
        self._keys.has_made_room = self._attacher.is_reshuffled = False
        self._builder.fill(now)
        if self._attachment is Attachment.RELEASED:
            if self._keys.is_ready and self._take_over_at is None:
                self._enter(Attachment.BALANCING, now)
                self._emit(TakeOver())
                self._emit(Announce(Severity.INFO, "taking stream attachment over from Tor", Kind.TAKEN_OVER))
        elif (
            self._attachment is Attachment.BALANCING
            and self._policy.failover.when_none is WhenNone.TOR
            and not self._keys.is_usable
        ):
            self._give_back(Attachment.RELEASED, "no circuit is usable", now)
        if self._attachment is Attachment.BALANCING and self._attacher.waiting:
            self._attacher.serve_waiting()
        self._builder.fill(now)

    def _enter(self, attachment: Attachment, now: float) -> None:
        self._attachment = attachment
        self._attacher.is_in_charge = self.is_in_charge
        self._probes.set_in_charge(is_in_charge=self.is_in_charge)
        self._since = now

    def _give_back(self, attachment: Attachment, why: str, now: float) -> None:
        self._enter(attachment, now)
        self._emit(GiveBack())
        severity = Severity.INFO if attachment is Attachment.STOPPING else Severity.WARNING
        self._emit(Announce(severity, f"giving stream attachment back to Tor: {why}", Kind.GIVEN_BACK))
        self._attacher.release_waiting(why)

    def _on_conf_changed(self, event: ConfChanged, now: float) -> None:
        self._rotation.handle_conf_changed(event.values, self._builder.by_id.values())
        if not self.is_in_charge or event.values.get(LEAVE_UNATTACHED, "1") not in {"0", None}:
            return
        if self._contention.reset(now):
            self._stand_aside("another controller resets the option again and again", now, PAUSE_SECONDS)
            return
        # A SIGHUP to Tor re-reads torrc and so resets the option (tor-facts 4); no stream has to wait until
        # we know whether it was that.
        self._emit(TakeOver())
        self._emit(
            Announce(
                Severity.WARNING, "Tor reset the option: taking stream attachment over again", Kind.TAKEN_OVER
            )
        )

    def _on_foreign(self) -> None:
        now = self._attacher.now
        is_to_be_told = self._contention.attached(now)
        if is_to_be_told or self._policy.failover.when_contended is WhenContended.STAND_ASIDE:
            self._contend("another controller attaches streams that wait for us", now)

    def _contend(self, what: str, now: float) -> None:
        """Another controller is at work: say so, and leave Tor to it if that is the policy."""
        if self._policy.failover.when_contended is WhenContended.STAND_ASIDE:
            self._stand_aside(what, now, FOR_EVER)
        else:
            self._emit(
                Announce(Severity.WARNING, f"{what}: only one of us can, end the other one", Kind.CONTENDED)
            )

    def _stand_aside(self, what: str, now: float, seconds: float) -> None:
        until = "until a reload" if seconds == FOR_EVER else f"for {seconds:g} s"
        self._take_over_at = now + seconds
        self._give_back(Attachment.RELEASED, f"{what}, standing aside {until}", now)
        self._contention.begin_anew()
        self._contention.notice = f"standing aside {until}: {what}"

    def _on_reserved(self, event: Reserved, _now: float) -> None:
        self._attacher.reserve(event)

    def _on_signal(self, event: SignalReceived, _now: float) -> None:
        if event.name == "RELOAD":
            self._contention.reloaded()
            self._emit(Announce(Severity.INFO, "Tor re-read its configuration", Kind.TOR_RELOADED))
        elif event.name == "NEWNYM":
            what = "a new identity was asked for: renewing all circuits"
            self._emit(Announce(Severity.INFO, what, Kind.NEW_IDENTITY))
            self._keys.handle_new_identity()

    def _on_take_over_refused(self, event: TakeOverRefused, now: float) -> None:
        if self._attachment is Attachment.STOPPING:
            return
        self._take_over_at = now + TAKE_OVER_RETRY_SECONDS
        self._give_back(Attachment.RELEASED, f"Tor refused ({event.message})", now)

    def _on_ordered(self, event: CircuitOrdered, _now: float) -> None:
        self._policy = carry_out(event, self._policy, keys=self._keys, builder=self._builder, emit=self._emit)
        self._attacher.replace_policy(self._policy)

    def _on_adopted(self, event: CircuitAdopted, now: float) -> None:
        place = self._place_for(event)
        if isinstance(place, str):
            what = f"circuit {event.line.circuit_id} is not adopted as {event.name}"
            self._emit(
                Announce(
                    Severity.WARNING,
                    f"{what}: {place}",
                    Kind.CIRCUIT_ADOPTED,
                    event.name,
                    event.line.circuit_id,
                )
            )
            return
        place.owner.adopt_foreign(event.name, event.line, now=now)
        for stream in event.streams:
            if stream.circuit_id == event.line.circuit_id:
                self._attacher.locate(stream)

    def _on_stop(self, _event: StopRequested, now: float) -> None:
        if self._attachment in {Attachment.RELEASED, Attachment.BALANCING}:
            self._give_back(Attachment.STOPPING, "stopping", now)
        else:
            self._enter(Attachment.STOPPING, now)

    def _on_disconnected(self, _event: Disconnected, now: float) -> None:
        if self._attachment is not Attachment.STOPPING:
            self._enter(Attachment.DISCONNECTED, now)
        self._builder.handle_disconnected()
        self._take_over_at = None
        self._contention.begin_anew()

    def _on_connected(self, event: Connected, now: float) -> None:
        """Rebuild everything from what Tor says; memory only serves to recognise circuits."""
        if self._attachment is Attachment.STOPPING:
            return
        self._attacher.reserve(event.reserved)
        self._attacher.clear()
        self._probes.handle_connected()
        there = {line.circuit_id: line for line in event.circuits}
        self._keys.adopt(event.records, there, now=now)
        self._builder.handle_connected()
        self._keys.handle_connected(there, secret=event.secret)
        for line in event.streams:
            self._attacher.adopt(line, is_held=event.leave_unattached)
        self._keys.recounted(now=now)
        self._rotation.handle_connected(event.max_dirtiness_seconds, self._builder.by_id.values())
        self._enter(Attachment.RELEASED, now)
        self._builder.fill(now)
        if self._keys.is_ready:
            return
        # Somebody before us left streams waiting, and no circuit of ours can take them soon.
        if event.leave_unattached:
            self._emit(GiveBack())
            self._attacher.release_waiting("it waited before we came")
