"""What a policy says of the replacement of circuits that still work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rotation:
    """When a circuit is replaced although it works; None: not for this.

    Attributes:
        max_age_seconds: At the latest so long after it was BUILT.
        max_streams_total: When so many streams were attached to it.
        max_bytes: When it has carried so much, read and written together.
        drain_seconds: How long its streams may then take to end; None: as long as they last.
        jitter: Up to which part (0 to 1) of each bound a circuit is replaced before it.
    """

    max_age_seconds: float | None = None
    max_streams_total: int | None = None
    max_bytes: int | None = None
    drain_seconds: float | None = None
    jitter: float = 0.2
