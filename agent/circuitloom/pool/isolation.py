"""Which streams may share a circuit: Tor's isolation as a key.

Tor names, for each stream, the fields that isolate it (ISO_FIELDS) and their values. It lets two streams
share a circuit when every field that either of them is isolated by has the same value in both. ATTACHSTREAM
does not enforce that (tor-facts 7), so we do: streams with equal keys may share a circuit, streams with
different keys never do, at the same time or later.

A key holds SOCKS names, passwords and addresses: it is compared, and never shown.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from circuitloom.model import StreamEvent

MAX_FIELDS_CHARACTERS = 512
"""All fields that Tor knows are below 200; what is longer is read and not remembered."""


class IsolationKey(NamedTuple):
    """The isolating fields of a stream and their values, in one order.

    Attributes:
        fields: Sorted names; streams whose fields differ as sets never share a circuit.
        values: One for each field; None where Tor tells none, which differs from an empty one.
    """

    fields: tuple[str, ...]
    values: tuple[str | None, ...]

    def __repr__(self) -> str:
        return f"<key of {', '.join(self.fields)}>"


ONE_FOR_ALL = IsolationKey((), ())
"""The key of every stream when the policy asks for no isolation."""

UNKNOWN_KEY = IsolationKey(("unknown",), (None,))
"""On a circuit that Tor gave to a stream of which we know nothing; no stream has this key."""


def isolation_key(event: StreamEvent) -> IsolationKey | None:
    """Read a stream's key from the event that announced it.

    Args:
        event: NEW or NEWRESOLVE: the only events that tell the client's address (tor-facts 1).

    Returns:
        The key, or None when Tor does not say what isolates the stream.
    """
    names = event.keywords.get("ISO_FIELDS")
    if names is None:
        return None
    fields = _split(names) if len(names) <= MAX_FIELDS_CHARACTERS else _split.__wrapped__(names)
    told = event.keywords.get
    values = [_value(event, field) if field in _DERIVED else told(field) for field in fields]
    return IsolationKey(fields, tuple(values))


@lru_cache(maxsize=64)
def _split(names: str) -> tuple[str, ...]:
    """The fields in one order; a Tor has one set of them for each of its listeners."""
    return tuple(sorted(name for name in names.split(",") if name))


_DERIVED = frozenset({"CLIENTADDR", "DESTADDR", "DESTPORT"})
"""Fields that have no keyword of their own."""


def _value(event: StreamEvent, field: str) -> str | None:
    if field == "CLIENTADDR":
        source = event.keywords.get("SOURCE_ADDR")
        # A stream that comes over a Unix socket has no address; all of those are one client.
        return None if source is None else source.rpartition(":")[0]
    if field == "DESTADDR":
        return event.target.rpartition(":")[0].lower()
    return event.target.rpartition(":")[2]
