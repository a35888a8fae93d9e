"""One stream of Tor as the pool knows it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from circuitloom.model import Reserved, StreamEvent, StreamId
from circuitloom.policy.types import Rule
from circuitloom.pool.isolation import IsolationKey
from circuitloom.pool.slots import Circuit

if TYPE_CHECKING:
    from circuitloom.pool.circuits import Circuits

_DIRECTORY_PURPOSES = frozenset({"DIR_FETCH", "DIR_UPLOAD", "DIRPORT_TEST"})


class StreamState(StrEnum):
    """Where a stream is.

    NEW: announced, and not yet known to wait. WAITING: Tor waits for us, and no circuit can take it now.
    ATTACHED: on its way over a circuit. OPEN: connected. RELEASED: Tor's own.
    """

    NEW = "new"
    WAITING = "waiting"
    ATTACHED = "attached"
    OPEN = "open"
    RELEASED = "released"


@dataclass(slots=True, eq=False)
class Stream:
    """A stream that a user of Tor opened.

    Attributes:
        stream_id: Tor's id.
        state: Where it is.
        target: ``host:port`` as its client asked for it; empty when we did not hear of it.
        is_held: Whether Tor told that it waits for a controller.
        is_resolve: Whether it asks for a name or address (or may, for all we know), not for a connection.
        is_tors: Whether only Tor itself can serve it (an onion service, or an address that Tor rewrites).
        key: What isolates it; None: Tor did not say.
        owner: The circuits of its key, once it needed them.
        rule: The policy's rule for it, if any.
        is_queued: Whether it waits for room on a circuit.
        queue_port: While it does, the port that circuits may refuse; 0: none does.
        sticky: What it sticks by, if the policy asks for that.
        held_at: When it came to wait for us last (seconds of the pool's clock).
        attached_at: When we attached it last (seconds of the pool's clock).
        circuit: The circuit of ours that it is on, whoever attached it.
        tried: Ids of the circuits that could not connect it.
        failures: How often Tor detached it.
        is_counted: Whether Tor holds the last time against its destination, which it gives up after a few.
        is_resigned: Whether it stays on circuits that its destination has cost already, until Tor does.
        wait_until: When it stops waiting for circuits (seconds of the pool's clock); None: no bound.
        is_unanswered: Whether we attached it and no answer has come.
        is_retry: Whether that was not the first time.
        identity: Under ``isolation: none``, while circuits are probed: what isolates it all the same.
    """

    stream_id: StreamId
    state: StreamState = StreamState.NEW
    target: str = field(default="", repr=False)
    is_held: bool = False
    is_resolve: bool = False
    is_tors: bool = False
    key: IsolationKey | None = None
    owner: Circuits | None = None
    rule: Rule | None = field(default=None, repr=False)
    is_queued: bool = False
    queue_port: int = 0
    sticky: str | None = field(default=None, repr=False)
    held_at: float = 0.0
    attached_at: float = 0.0
    circuit: Circuit | None = None
    tried: tuple[str, ...] = ()
    failures: int = 0
    is_counted: bool = False
    is_resigned: bool = False
    wait_until: float | None = None
    is_unanswered: bool = False
    is_retry: bool = False
    identity: IsolationKey | None = None

    @property
    def among(self) -> frozenset[str] | None:
        """Names of the only circuits that may take it; None: all."""
        return self.rule.circuits if self.rule else None


def is_directory(event: StreamEvent) -> bool:
    """Whether the stream is Tor's own directory traffic, which must never be attached (tor-facts 1).

    GETINFO stream-status shows no purpose; there the target tells: ``1.2.3.4.$FINGERPRINT.exit:port``.
    """
    return event.keywords.get("PURPOSE", "") in _DIRECTORY_PURPOSES or (
        not event.keywords and ".$" in event.target
    )


class TorsOwn:
    """Tells the streams that only Tor can serve from those that we may attach.

    Attaching an ``.onion`` or ``.exit`` stream to a circuit destroys it (tor-facts 1). The same holds for an
    address behind which Tor keeps such a name: a virtual address (AutomapHostsOnResolve) or a MapAddress.
    """

    def __init__(self, reserved: Reserved | None) -> None:
        self._hosts = reserved.hosts if reserved else frozenset()
        self._networks = (
            tuple(ip_network(prefix, strict=False) for prefix in reserved.prefixes) if reserved else ()
        )

    def has(self, target: str) -> bool:
        """Whether a stream to ``target`` (``host:port``) must be left to Tor."""
        host = target.rpartition(":")[0].lower()
        if host.endswith((".onion", ".exit")):
            return True
        if self._hosts and self._is_mapped(host):
            return True
        # Names never start with a digit run and a dot alone; a cheap look spares most names the parse.
        if self._networks and (host[:1].isdigit() or host[:1] == "["):
            try:
                address = ip_address(host.strip("[]"))
            except ValueError:
                return False
            return any(address in network for network in self._networks)
        return False

    def _is_mapped(self, host: str) -> bool:
        if host in self._hosts or "." in self._hosts:
            return True
        dot = host.find(".")
        while dot >= 0:
            if host[dot:] in self._hosts:
                return True
            dot = host.find(".", dot + 1)
        return False
