"""Which circuit is probed when, and what follows: out when its checks fail, in when they pass again.

Rules of this file:

* Every circuit that serves is checked, unless a probe would set it apart from its own streams; the status
  says why one is not.
* A circuit that is down is replaced, as one that fails for several destinations is: Tor's circuits are cheap,
  and one through a silent relay seldom comes to again. If it does before its successor is BUILT, it serves.
* How many may be out at once is the ejector's word; a circuit that is down and finds no room there goes on
  serving, and is tried again with each check that fails.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from circuitloom.checks import Check, Checkup, Targets, Verdict, first_due, next_due
from circuitloom.kinds import Kind
from circuitloom.model import (
    Action,
    Announce,
    AttachRefused,
    ProbeFinished,
    ProbeStarted,
    Severity,
    StreamEvent,
)
from circuitloom.policy.probing import Probe
from circuitloom.policy.types import Isolation, Policy
from circuitloom.pool.keys import Keys
from circuitloom.pool.records import is_left
from circuitloom.pool.rotation import Rotation
from circuitloom.pool.slots import Circuit, CircuitState
from circuitloom.pool.trials import Trial, Trials

MAX_SCAN_SECONDS = 2.0
"""How late a new circuit may be found at most; looking at a thousand circuits takes a millisecond."""

UNUSED = "it has carried no stream yet"
LATE = "late, because the budget of bytes is used up"


class Probes:
    """Checks circuits as the policy says, and takes them out and in.

    Args:
        policy: What to do.
        keys: All circuits.
        rotation: Looks after their age and use.
        uniform: Gives a random number in [0, 1).
        emit: Takes each action, in order.
        on_change: Called when a circuit was taken out or in.

    Attributes:
        is_on: Whether any stream may be a probe's; read with each event, so it is no property.
        has_taken: Whether the last event was of a probe's stream.
    """

    def __init__(  # noqa: PLR0913 - each by name, and none can be made from another
        self,
        policy: Policy,
        *,
        keys: Keys,
        rotation: Rotation,
        uniform: Callable[[], float],
        emit: Callable[[Action], None],
        on_change: Callable[[], None],
    ) -> None:
        self._policy = policy
        self._keys = keys
        self._rotation = rotation
        self._uniform = uniform
        self._emit = emit
        self._on_change = on_change
        self._trials = Trials(emit=emit, on_outcome=self._on_outcome, on_attach=self._on_attach)
        self._now = 0.0
        self.has_taken = False
        self._is_in_charge = False
        self._numbers = 0
        self._known: dict[Circuit, None] = {}
        self._due: list[tuple[float, int, Circuit]] = []
        self._scan_at = 0.0
        self._has_told_unfit = False
        self._begin_anew()

    # --- what the pool calls -------------------------------------------------------------------------------

    def set_time(self, now: float) -> None:
        """The time (seconds of the pool's clock), before each event while ``is_on``."""
        self._now = self._trials.now = now
        self.has_taken = False
        self.is_on = self._rule is not None or self._trials.is_any

    @property
    def problem(self) -> str:
        """Why probes do not work, or come late, in words; empty: they do not."""
        return self._trials.problem or ("" if self._trials.open_at is None else LATE)

    def is_passed(self, circuit: Circuit) -> bool:
        """Whether the circuit's last check passed, or nothing is probed."""
        checkup = circuit.checkup
        return self._rule is None or (checkup is not None and checkup.last is Verdict.PASSED)

    def next_deadline(self) -> float | None:
        """When ``handle_deadline`` wants to be called (seconds of the pool's clock)."""
        if self._rule is None or not self._is_in_charge:
            return None
        while self._due and _is_stale(self._due[0]):
            heappop(self._due)
        deadlines = (self._scan_at, self._trials.open_at, self._due[0][0] if self._due else None)
        return min(deadline for deadline in deadlines if deadline is not None)

    def handle_deadline(self) -> None:
        """Look for new circuits, and begin the checks that are due."""
        rule = self._rule
        if rule is None or not self._is_in_charge:
            return
        if self._scan_at <= self._now:
            self._scan(rule)
        while self._due and self._due[0][0] <= self._now:
            entry = heappop(self._due)
            checkup = entry[2].checkup
            if checkup is not None and not _is_stale(entry):
                self._begin(entry[2], checkup, rule)
        self._trials.open_next()

    def set_in_charge(self, *, is_in_charge: bool) -> None:
        """Streams wait for us from now on, or no longer: then probes would prove nothing."""
        if self._is_in_charge and not is_in_charge:
            self._stop()
        self._is_in_charge = is_in_charge

    def handle_connected(self) -> None:
        """What Tor says next is all there is."""
        self._stop()
        self._trials.forget_streams()
        for circuits in self._keys.all:
            circuits.forget_probes()

    def replace_policy(self, policy: Policy) -> None:
        """Go on with another policy; one that probes otherwise begins anew, with every circuit in."""
        old, self._policy = self._policy, policy
        is_same = policy.health.probe == old.health.probe
        if is_same and policy.balance.isolation is old.balance.isolation:
            return
        self._stop()
        self._known.clear()
        for circuit in self._members():
            circuit.checkup = None
            circuit.slot.owner.bring_up(circuit)
        self._begin_anew()

    def take(self, event: StreamEvent) -> bool:
        """Whether the stream is a probe's; then nobody else has to hear of it."""
        self.has_taken = self._trials.take(event)
        return self.has_taken

    def handle_started(self, event: ProbeStarted) -> None:
        """The request of a probe leaves."""
        self._trials.handle_started(event)

    def handle_finished(self, event: ProbeFinished) -> None:
        """A probe has ended."""
        self._trials.handle_finished(event)

    def handle_refused(self, event: AttachRefused) -> bool:
        """Tor did not attach; returns whether it was a probe's stream."""
        return self._trials.handle_refused(event)

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        members = set(self._members())
        self._trials.check_invariants(members)
        for circuit in members:
            assert circuit.checkup is None or self._rule is not None

    # --- when ----------------------------------------------------------------------------------------------

    def _members(self) -> list[Circuit]:
        """Every circuit of ours that Tor has given an id."""
        return [circuit for circuits in self._keys.all for circuit in circuits.members]

    def _begin_anew(self) -> None:
        self._rule = self._policy.health.probe
        self.is_on = self._rule is not None or self._trials.is_any
        self._isolates = self._policy.balance.isolation is Isolation.TOR
        self._scan_at = self._now
        self._due.clear()
        self._has_told_unfit = False
        self._trials.begin_anew(self._rule)
        if self._rule is not None:
            self._targets = Targets(self._rule)

    def _stop(self) -> None:
        """End everything that is under way, without an outcome."""
        self._trials.stop()
        # Also of those on their way out, whose names may come back.
        for circuit in self._members():
            if circuit.checkup is not None and circuit.checkup.check is not None:
                circuit.checkup.check = None
                self._schedule(circuit, circuit.checkup, self._now)

    def _scan(self, rule: Probe) -> None:
        """Know every circuit that serves, and no others."""
        self._scan_at = self._now + min(MAX_SCAN_SECONDS, rule.interval_seconds / 10)
        serving = {
            state.circuit: None
            for circuits in self._keys
            for state in circuits.slots.values()
            if state.circuit is not None
        }
        self._targets.forget(circuit for circuit in self._known if circuit not in serving)
        self._known = serving
        for circuit in serving:
            if circuit.checkup is None:
                circuit.checkup = Checkup()
                self._schedule(
                    circuit, circuit.checkup, first_due(rule, now=self._now, uniform=self._uniform)
                )

    def _schedule(self, circuit: Circuit, checkup: Checkup, due: float) -> None:
        checkup.due = due
        self._numbers += 1
        heappush(self._due, (due, self._numbers, circuit))

    def _begin(self, circuit: Circuit, checkup: Checkup, rule: Probe) -> None:
        if not checkup.is_unfit:
            checkup.why_not = self._why_not(circuit, rule)
        checkup.due = self._now
        if checkup.why_not:
            self._conclude(circuit, checkup, Verdict.VOID)
        else:
            checkup.check = self._targets.begin(now=self._now)
            self._go_on(circuit, checkup, checkup.check)

    def _why_not(self, circuit: Circuit, rule: Probe) -> str:
        """Why the circuit cannot be probed now; empty: it can."""
        owner = circuit.slot.owner
        if not self._isolates:
            if circuit.carried is None and circuit.key is not None:
                return "what it has carried is not known"
            return UNUSED if circuit.carried is None and not rule.unused else ""
        if owner.key is None:
            return "no isolation key has it yet"
        if owner.is_expiring:
            return "its isolation key comes to an end"
        if is_left(owner.key):
            return "no stream of its isolation key has come since the agent started"
        return UNUSED if circuit.key is None and not rule.unused else ""

    def _go_on(self, circuit: Circuit, checkup: Checkup, check: Check) -> None:
        """Try what the check needs now, or conclude it."""
        identity = circuit.slot.owner.key if self._isolates else circuit.carried
        for target in check.next_targets():
            self._trials.add(Trial(check, circuit, target, identity))
        verdict = check.verdict
        if verdict is not None:
            self._conclude(circuit, checkup, verdict)

    def _on_attach(self, trial: Trial) -> None:
        """For Tor it is a stream like any other: with a key, and the first one begins the circuit's end."""
        circuit = trial.circuit
        self._rotation.use(circuit)
        if circuit.key is None:
            circuit.key = circuit.slot.owner.key
            self._keys.claims += 1
        if not self._isolates:
            circuit.carried = trial.identity

    # --- what comes of it ----------------------------------------------------------------------------------

    def _on_outcome(self, trial: Trial, has_answered: bool | None) -> None:
        circuit = trial.circuit
        checkup = circuit.checkup
        # Whoever takes the checkup away stops the trials first.
        assert checkup is not None
        assert checkup.check is trial.check
        if trial.difference:
            self._tell_unfit(circuit, checkup, trial.difference)
        verdict = Verdict.VOID
        if has_answered is not None and trial.is_sure:
            verdict = self._targets.judge(
                trial.target, circuit, has_answered=has_answered, members=len(self._known), now=self._now
            )
        trial.check.settle(trial.target, verdict)
        self._go_on(circuit, checkup, trial.check)

    def _tell_unfit(self, circuit: Circuit, checkup: Checkup, difference: str) -> None:
        checkup.is_unfit = True
        checkup.why_not = f"a probe differs from its streams in {difference}: see `health.probe.socks`"
        if not self._has_told_unfit:
            self._has_told_unfit = True
            what = f"circuit {circuit.label}, like others of its kind, is not probed: {checkup.why_not}"
            self._tell(what, Kind.PROBES, circuit)

    def _tell(self, what: str, kind: Kind, circuit: Circuit) -> None:
        name, circuit_id = circuit.slot.slot.name, circuit.circuit_id or ""
        self._emit(Announce(Severity.WARNING, what, kind, name, circuit_id))

    def _conclude(self, circuit: Circuit, checkup: Checkup, verdict: Verdict) -> None:
        rule = self._rule
        assert rule is not None, "nothing is under way without a policy"
        was_down = checkup.is_down
        checkup.weigh(verdict, rule, now=self._now)
        due = next_due(rule, begun=checkup.due, now=self._now, uniform=self._uniform)
        self._schedule(circuit, checkup, due)
        if circuit.state is not CircuitState.BUILT or verdict is Verdict.VOID:
            return
        tally = circuit.slot.tally
        if verdict is Verdict.PASSED:
            tally.checks_passed += 1
        else:
            tally.checks_failed += 1
        owner = circuit.slot.owner
        if checkup.is_down and owner.take_down(circuit):
            failed = "its last probe" if rule.fall == 1 else f"{rule.fall} probes in a row"
            what = f"circuit {circuit.label} is down: {failed} failed"
            self._tell(what, Kind.CIRCUIT_DOWN, circuit)
            owner.replace(circuit, "is down")
            self._on_change()
        elif was_down and not checkup.is_down:
            owner.bring_up(circuit)
            self._on_change()


def _is_stale(entry: tuple[float, int, Circuit]) -> bool:
    due, _, circuit = entry
    checkup = circuit.checkup
    is_due = checkup is not None and checkup.due == due and checkup.check is None
    return not is_due or circuit.state is not CircuitState.BUILT
