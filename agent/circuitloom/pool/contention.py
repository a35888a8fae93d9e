"""Another controller at the same Tor: noticed, named, and never fought.

Tor lets any number of controllers attach streams and set its options, and tells nobody who did (tor-facts
12). What can be seen is that something happened which we did not ask for. TAKEOWNERSHIP leaves no trace
before Tor ends with its owner, which is then like any other end of Tor.

Rules of this file:

* A reload of Tor resets the option as well; its SIGNAL comes just after, and clears the suspicion.
* Taking back is bounded: whoever resets the option several times a minute has it, for a while.
* A stream that somebody else attached is left where it is.
"""

from __future__ import annotations

from collections import deque

RELOAD_SECONDS = 1.0
"""Within which the SIGNAL RELOAD that explains a reset has come."""

MAX_RESETS = 3
WINDOW_SECONDS = 60.0
PAUSE_SECONDS = 60.0
"""Three resets a minute are no accident; a minute of rest each time costs no one anything."""

TOLD_SECONDS = 600.0
"""A foreign attachment is said again after so long, at the earliest."""


class Contention:
    """What another controller seems to do.

    Attributes:
        notice: What the status says of it; empty: nothing.
        verdict_at: When the last reset can no longer be a reload's (seconds of the pool's clock).
    """

    def __init__(self) -> None:
        self._resets: deque[float] = deque()
        self._attachments = 0
        self._told_at: float | None = None
        self.notice = ""
        self.verdict_at: float | None = None

    def reset(self, now: float) -> bool:
        """The option was reset, by a reload or by somebody else.

        Args:
            now: The time (seconds of the pool's clock).

        Returns:
            Whether taking it back once more would be a fight.
        """
        while self._resets and self._resets[0] + WINDOW_SECONDS <= now:
            self._resets.popleft()
        self._resets.append(now)
        self.verdict_at = now + RELOAD_SECONDS
        return len(self._resets) > MAX_RESETS

    def reloaded(self) -> None:
        """Tor re-read its torrc: that was the reset of a moment ago."""
        if self.verdict_at is not None:
            self.verdict_at = None
            self._resets.pop()

    def is_foreign(self, now: float) -> bool:
        """Whether it was somebody else who reset the option; asked after ``verdict_at``, answered once."""
        if self.verdict_at is None or self.verdict_at > now:
            return False
        self.verdict_at = None
        self.notice = "another controller resets the option"
        return True

    def attached(self, now: float) -> bool:
        """Somebody else attached a stream that waited for us; returns whether that has to be said (again)."""
        self._attachments += 1
        self.notice = f"another controller attaches streams ({self._attachments} so far)"
        if self._told_at is not None and now < self._told_at + TOLD_SECONDS:
            return False
        self._told_at = now
        return True

    def begin_anew(self) -> None:
        """Another connection, or another policy: whoever was there may be gone."""
        self._resets.clear()
        self._told_at = self.verdict_at = None
        self._attachments = 0
        self.notice = ""
