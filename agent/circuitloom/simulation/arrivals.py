"""What comes to a simulated Tor: streams, and circuits that are lost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEFAULT_OUTAGE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One stream.

    Attributes:
        at: When it comes (seconds from the first moment that streams are served).
        target: ``host:port``.
        keywords: What Tor tells with NEW.
        open_seconds: How long it stays open once it is connected.
        connect_seconds: How long a circuit takes to connect it; None: as long as that circuit takes.
        is_resolve: Whether it asks for a name, not for a connection.
        failure: Why no circuit connects it (REMOTE_REASON); None: each does.
    """

    at: float
    target: str = field(repr=False)
    keywords: Mapping[str, str] = field(repr=False)
    open_seconds: float
    connect_seconds: float | None = None
    is_resolve: bool = False
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """A circuit ends, with the streams on it, for every key that has one.

    Attributes:
        at: When (seconds from the first moment that streams are served).
        name: The policy's name of it.
        outage_seconds: For how long no other can be built in its place.
    """

    at: float
    name: str
    outage_seconds: float = DEFAULT_OUTAGE_SECONDS


@dataclass(frozen=True, slots=True)
class Traffic:
    """All that comes, in the order of its coming.

    Attributes:
        arrivals: Streams.
        losses: Circuits that are lost.
    """

    arrivals: tuple[Arrival, ...]
    losses: tuple[Loss, ...] = ()
