"""What has happened so far, in plain numbers: for the metrics, and for the status.

Rules of this file:

* Counting costs an addition; whoever wants a sum or a quantile pays for it when asking.
* A number belongs to a name of the policy and goes on over circuits, keys and reloads, as long as the policy
  has the name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field

BOUNDS_SECONDS = tuple(
    milliseconds / 1000
    for milliseconds in (
        5,
        10,
        20,
        30,
        50,
        75,
        100,
        150,
        200,
        300,
        500,
        750,
        1000,
        1500,
        2000,
        3000,
        5000,
        10000,
    )
)
"""Where the classes of a histogram end: close around what a circuit takes to connect (tenths of a second), up
to the 10 s after which Tor gives an unanswered stream up (CircuitStreamTimeout)."""

LONG_BOUNDS_SECONDS = (*BOUNDS_SECONDS, 15.0, 20.0, 30.0, 45.0, 60.0, 100.0)
"""The same for what may take longer: a build Tor's CircuitBuildTimeout (60 s unless it has learned another),
a wait for a circuit or for room the 100 s that the policy allows at most."""


@dataclass(slots=True)
class Histogram:
    """How often something took how long.

    Attributes:
        bounds: Where its classes end (seconds), each end included.
        counts: For each class, and one beyond the last bound.
        sum_seconds: Of all that was observed.
    """

    bounds: tuple[float, ...] = BOUNDS_SECONDS
    counts: list[int] = field(init=False)
    sum_seconds: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, seconds: float, times: int = 1) -> None:
        """It took ``seconds``, so many times."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum_seconds += seconds * times

    @property
    def count(self) -> int:
        """How often it was observed."""
        return sum(self.counts)

    def quantile(self, part: float) -> float | None:
        """The time (seconds) that this part (0 to 1) of all did not exceed; None: there are none.

        Within a class they count as evenly spread; what is beyond the last bound, as the bound.
        """
        rank = part * self.count
        if rank == 0:
            return None
        below, start = 0, 0.0
        for end, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return start + (end - start) * (rank - below) / count
            below, start = below + count, end
        return start


def observe_connect(circuit: Histogram, name: Histogram, seconds: float) -> None:
    """A stream took so long; for the circuit and its name at the price of one, for each stream pays it."""
    index = bisect_left(BOUNDS_SECONDS, seconds)
    circuit.counts[index] += 1
    circuit.sum_seconds += seconds
    name.counts[index] += 1
    name.sum_seconds += seconds


@dataclass(slots=True)
class CircuitTally:
    """The circuits of one name of the policy, over all keys.

    Attributes:
        attached: Streams that we attached.
        detached: Of these, those taken off again by Tor or by us, to be tried elsewhere.
        failed: Those that ended without a connection.
        connects: From the attachment to SUCCEEDED, of the others.
        built: Circuits that were BUILT.
        build_failures: Circuits that were not.
        ejections: How often one took no streams for a while.
        rotations: How often one was replaced for its age or its use.
        checks_passed: Probes of one, each of as many streams as it took.
        checks_failed: The same, of those that found it wanting.
    """

    attached: int = 0
    detached: int = 0
    failed: int = 0
    connects: Histogram = field(default_factory=Histogram)
    built: int = 0
    build_failures: int = 0
    ejections: int = 0
    rotations: int = 0
    checks_passed: int = 0
    checks_failed: int = 0


@dataclass(slots=True)
class Tally:
    """The whole pool.

    Attributes:
        circuits: By name of the policy.
        closed: Streams that the policy had closed.
        retries: Attachments of streams that another circuit could not connect.
        redispatches: Streams moved because their circuit did not answer.
        waits: Of streams that had to wait and got a circuit, from their coming to the attachment.
        builds: From asking for a circuit to BUILT.
    """

    circuits: dict[str, CircuitTally] = field(default_factory=dict)
    closed: int = 0
    retries: int = 0
    redispatches: int = 0
    waits: Histogram = field(default_factory=lambda: Histogram(LONG_BOUNDS_SECONDS))
    builds: Histogram = field(default_factory=lambda: Histogram(LONG_BOUNDS_SECONDS))

    def of(self, name: str) -> CircuitTally:
        """The numbers of one name."""
        return self.circuits.setdefault(name, CircuitTally())

    def keep(self, names: Collection[str]) -> None:
        """Forget all other names."""
        self.circuits = {name: circuit for name, circuit in self.circuits.items() if name in names}
