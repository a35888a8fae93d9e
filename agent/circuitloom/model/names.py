"""Tor's words, as the control specification has them, and ours beside them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import NewType

CircuitId = NewType("CircuitId", str)
StreamId = NewType("StreamId", str)

TOR_CHOOSES = CircuitId("0")
"""ATTACHSTREAM to this circuit hands a stream to Tor's own selection (control-spec, ATTACHSTREAM)."""

LEAVE_UNATTACHED = "__LeaveStreamsUnattached"
"""The option that makes Tor wait for a controller to attach each new stream."""

DOUBT_SECONDS = 2.0
"""So long a stream that waits while that option is not set may be one that Tor is choosing a circuit for.

Tor does so as soon as it has a circuit. What is still there after this was left by somebody who was
interrupted while giving back."""

MAX_CIRCUIT_DIRTINESS = "MaxCircuitDirtiness"
"""The option that says for how long after its first stream Tor gives new ones to a circuit (tor-facts 5)."""

NO_KEYWORDS: Mapping[str, str] = MappingProxyType({})


class StreamStatus(StrEnum):
    """Statuses of a STREAM event (control-spec 4.1.2; flow-control statuses are not read)."""

    NEW = "NEW"
    NEWRESOLVE = "NEWRESOLVE"
    CONTROLLER_WAIT = "CONTROLLER_WAIT"
    SENTCONNECT = "SENTCONNECT"
    SENTRESOLVE = "SENTRESOLVE"
    SUCCEEDED = "SUCCEEDED"
    DETACHED = "DETACHED"
    FAILED = "FAILED"
    CLOSED = "CLOSED"

    # Enum's own is a function in Python, and every event is looked up by its status.
    __hash__ = str.__hash__


_FRESH = frozenset({StreamStatus.NEW, StreamStatus.NEWRESOLVE, StreamStatus.CONTROLLER_WAIT})


class CircuitStatus(StrEnum):
    """Statuses of a CIRC event (control-spec 4.1.1), and CIRC_MINOR's one that matters here."""

    LAUNCHED = "LAUNCHED"
    EXTENDED = "EXTENDED"
    GUARD_WAIT = "GUARD_WAIT"
    BUILT = "BUILT"
    FAILED = "FAILED"
    CLOSED = "CLOSED"
    PURPOSE_CHANGED = "PURPOSE_CHANGED"


class Purpose(StrEnum):
    """What a circuit is for (control-spec, EXTENDCIRCUIT).

    GENERAL: Tor itself may use it as well, and sends what applications say early. CONTROLLER: Tor does
    neither, so a stream on its way can be moved without losing a byte; a RESOLVE attached to it aborts Tor
    (tor-facts 0).
    """

    GENERAL = "general"
    CONTROLLER = "controller"


class Severity(StrEnum):
    """How much a line of the log matters; names are syslog's."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Order(StrEnum):
    """What an operator can ask of a circuit of the policy."""

    DRAIN = "drain"
    READY = "ready"
    WEIGHT = "weight"
    ROTATE = "rotate"
    CLOSE = "close"


class ProbeOutcome(StrEnum):
    """How a probe's connection to the SOCKS port ended.

    ANSWERED: Tor says that the target is connected (and it sent what was waited for). FAILED: Tor says that
    it is not, or nothing in time. UNREACHED: there was no SOCKS port that took the request.
    """

    ANSWERED = "answered"
    FAILED = "failed"
    UNREACHED = "unreached"
