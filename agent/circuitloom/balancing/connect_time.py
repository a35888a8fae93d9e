"""How long a circuit takes to connect a stream: peak EWMA, as Finagle and Envoy know it."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp

DECAY_SECONDS = 10.0
"""After this long a measurement counts a third (1/e): Tor's own bound for an unanswered stream is 10 s."""

FAILED_SECONDS = 10.0
"""What a failure counts as: the time after which Tor gives an unanswered stream up (CircuitStreamTimeout)."""


RECENT_SECONDS = 30.0
"""What was measured longer ago says nothing of how a circuit does now."""


@dataclass(slots=True)
class ConnectTime:
    """SENTCONNECT to SUCCEEDED of one circuit, believed at once when it rises and slowly when it falls.

    Attributes:
        peak_seconds: The estimate at ``measured_at``; None: never measured.
        measured_at: When it was measured last (seconds of the caller's clock).
    """

    peak_seconds: float | None = None
    measured_at: float = 0.0

    def observe(self, seconds: float, now: float) -> None:
        """A stream was connected after ``seconds``."""
        peak = self.peak_seconds
        if peak is None or seconds >= peak:
            self.peak_seconds = seconds
        else:
            kept = exp((self.measured_at - now) / DECAY_SECONDS)
            self.peak_seconds = peak * kept + seconds * (1 - kept)
        self.measured_at = now

    def penalise(self, now: float) -> None:
        """A stream was not connected, by the circuit's fault."""
        self.observe(FAILED_SECONDS, now)

    def estimate(self, now: float) -> float | None:
        """The estimate (seconds), which fades while nothing is measured; None: never measured."""
        if self.peak_seconds is None:
            return None
        return self.peak_seconds * exp((self.measured_at - now) / DECAY_SECONDS)

    def recent(self, now: float) -> float | None:
        """The estimate (seconds) as it was when it was measured last; None: not lately.

        To compare circuits by: what fades would make slow ones of those that were measured last.
        """
        return self.peak_seconds if now - self.measured_at <= RECENT_SECONDS else None
