"""When a circuit has served enough, and how long it may then take to end.

Rules of this file:

* A circuit is *spent* when it is past a bound of the policy, or soon past Tor's own: no later than
  MaxCircuitDirtiness after its first stream Tor closes it in a moment in which it has none (tor-facts 5). It
  serves until its successor is BUILT.
* Jitter only makes a bound come earlier, for each circuit by a part of its own.
* A spent circuit that drains is overdue when the policy's time for that is over.
* What another controller built is never spent: that one knows how long it should live. Nor is anything built
  for a key that gets no new streams (after NEWNYM): its circuits end with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from heapq import heapify, heappop, heappush
from itertools import count

from circuitloom.model import MAX_CIRCUIT_DIRTINESS, dirtiness_seconds
from circuitloom.policy.rotation import Rotation as Rule
from circuitloom.pool.slots import Circuit, CircuitState

DIRTINESS_LATEST, DIRTINESS_SPREAD = 0.95, 0.1
"""Parts of Tor's MaxCircuitDirtiness: of its default of 600 s half a minute is left to build in."""

POSTPONE_SECONDS = 1.0
"""After how long an overdue circuit is looked at again; Tor answers, or gives up, each stream in 15 s."""


MIN_LOOKS = 64
"""So few entries are not worth a search for those that nobody needs any more."""


class Rotation:
    """Looks after the age and the use of every circuit that we built.

    Args:
        rule: What the policy says; a reload replaces it.
        uniform: Gives a random number in [0, 1), for the jitter.

    Attributes:
        now: The time (seconds of the pool's clock), set before each event.
    """

    def __init__(self, rule: Rule, *, uniform: Callable[[], float]) -> None:
        self._rule = rule
        self._uniform = uniform
        self._max_dirtiness_seconds: float | None = None
        self._looks: list[tuple[float, int, Circuit]] = []
        self._most_looks = MIN_LOOKS
        self._numbers = count()
        self.now = 0.0

    # --- a circuit's life ----------------------------------------------------------------------------------

    def begin(self, circuit: Circuit) -> None:
        """The circuit is BUILT."""
        circuit.wear.lot = self._uniform()
        self._look(circuit)

    def use(self, circuit: Circuit) -> None:
        """A stream is on the circuit, whoever put it there."""
        if circuit.wear.used_since is None:
            circuit.wear.used_since = self.now
            self._look(circuit)

    def count_stream(self, circuit: Circuit) -> None:
        """We attached a stream to the circuit."""
        wear = circuit.wear
        wear.streams_total += 1
        limit = self._rule.max_streams_total
        if limit is not None and wear.streams_total >= self._early(limit, circuit):
            self._spend(circuit, f"{wear.streams_total} streams were attached to it")

    def count_bytes(self, circuit: Circuit, count: int) -> None:
        """The circuit has carried so many more bytes."""
        wear = circuit.wear
        wear.bytes_total += count
        limit = self._rule.max_bytes
        if limit is not None and wear.bytes_total >= self._early(limit, circuit):
            self._spend(circuit, f"it has carried {wear.bytes_total} bytes")

    def end(self, circuit: Circuit) -> None:
        """The operator asked for another circuit, which takes its place as soon as it is BUILT."""
        circuit.wear.is_spent = not circuit.is_adopted

    def drain(self, circuit: Circuit) -> None:
        """The circuit takes no more streams."""
        circuit.wear.drains_since = self.now
        self._look(circuit)

    # --- what changes for all ------------------------------------------------------------------------------

    def handle_connected(self, max_dirtiness_seconds: float | None, circuits: Iterable[Circuit]) -> None:
        """Begin with what Tor says.

        Args:
            max_dirtiness_seconds: MaxCircuitDirtiness; None: not known.
            circuits: All that there are; those that another agent built are new here.
        """
        self._max_dirtiness_seconds = max_dirtiness_seconds
        for circuit in circuits:
            if circuit.wear.lot is None:
                circuit.wear.lot = self._uniform()
                # When its first stream came nobody knows any more.
                circuit.wear.used_since = None if circuit.key is None else self.now
            self._look(circuit)

    def handle_conf_changed(self, values: Mapping[str, str | None], circuits: Iterable[Circuit]) -> None:
        """Options of Tor changed, MaxCircuitDirtiness perhaps among them."""
        if MAX_CIRCUIT_DIRTINESS in values:
            self._max_dirtiness_seconds = dirtiness_seconds(values[MAX_CIRCUIT_DIRTINESS])
            self._look(*circuits)

    def replace_rule(self, rule: Rule, circuits: Iterable[Circuit]) -> None:
        """The policy says something else now; who is spent stays so."""
        if rule != self._rule:
            self._rule = rule
            self._look(*circuits)

    # --- time ----------------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When ``overdue`` wants to be called (seconds of the pool's clock)."""
        return self._looks[0][0] if self._looks else None

    def overdue(self) -> list[Circuit]:
        """Spend the circuits whose time has come.

        Returns:
            Those whose time to drain is over, each once; to be closed, or postponed.
        """
        found: dict[Circuit, None] = {}
        while self._looks and self._looks[0][0] <= self.now:
            _, _, circuit = heappop(self._looks)
            due = self._due(circuit)
            if due is None:
                continue
            at, why = due
            if at > self.now:
                self._push(at, circuit)
            elif circuit.wear.is_spent:
                found[circuit] = None
            else:
                self._spend(circuit, why)
        return list(found)

    def postpone(self, circuit: Circuit) -> None:
        """An overdue circuit has to stay a moment longer."""
        self._push(self.now + POSTPONE_SECONDS, circuit)

    def cut(self, circuit: Circuit) -> None:
        """An overdue circuit is being closed."""
        circuit.wear.drains_since = None

    def check_invariants(self, circuits: Iterable[Circuit]) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        looked_at = {circuit: at for at, _, circuit in sorted(self._looks, reverse=True)}
        for circuit in circuits:
            due = self._due(circuit)
            latest = None if due is None else max(due[0], self.now + POSTPONE_SECONDS)
            assert latest is None or looked_at.get(circuit, latest + 1) <= latest
            assert not (circuit.is_adopted and circuit.wear.is_spent)

    # --- inside --------------------------------------------------------------------------------------------

    def _early(self, bound: float, circuit: Circuit) -> float:
        return bound * (1 - self._rule.jitter * (circuit.wear.lot or 0.0))

    def _due(self, circuit: Circuit) -> tuple[float, str] | None:
        """When something has to be done about the circuit next (seconds), and why; None: never."""
        wear = circuit.wear
        if circuit.is_adopted or circuit.state in {CircuitState.LAUNCHED, CircuitState.CLOSED}:
            return None
        if wear.is_spent:
            drain_seconds = self._rule.drain_seconds
            if drain_seconds is None or wear.drains_since is None:
                return None
            return wear.drains_since + drain_seconds, "drained"
        ends: list[tuple[float, str]] = []
        if self._rule.max_age_seconds is not None:
            at = circuit.built_at + self._early(self._rule.max_age_seconds, circuit)
            ends.append((at, f"it is {self.now - circuit.built_at:.0f} s old"))
        if self._max_dirtiness_seconds is not None and wear.used_since is not None:
            part = DIRTINESS_LATEST - DIRTINESS_SPREAD * (wear.lot or 0.0)
            at = wear.used_since + self._max_dirtiness_seconds * part
            ends.append((at, "Tor would soon take it away"))
        return min(ends, default=None)

    def _spend(self, circuit: Circuit, why: str) -> None:
        wear = circuit.wear
        if wear.is_spent or circuit.is_adopted:
            return
        wear.is_spent = True
        if circuit.state is CircuitState.DRAINING:
            wear.drains_since = self.now
            self._look(circuit)
        elif not circuit.slot.owner.is_expiring:
            circuit.slot.owner.rotate(circuit, why)

    def _look(self, *circuits: Circuit) -> None:
        """Look at these when they are due."""
        for circuit in circuits:
            due = self._due(circuit)
            if due is not None:
                self._push(due[0], circuit)

    def _push(self, at: float, circuit: Circuit) -> None:
        heappush(self._looks, (at, next(self._numbers), circuit))
        # Circuits that end long before their time leave entries behind: with short lives they would pile up.
        if len(self._looks) > self._most_looks:
            known = {entry[2]: None for entry in self._looks}
            self._looks = []
            for one in known:
                due = self._due(one)
                if due is not None:
                    self._looks.append((max(due[0], self.now), next(self._numbers), one))
            heapify(self._looks)
            self._most_looks = MIN_LOOKS + 2 * len(self._looks)
