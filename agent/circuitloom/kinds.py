"""What a line of the log is about: a word for programs, and the id that the journal finds such lines by."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID, uuid5

_NAMESPACE = UUID("5d0b7c4e-6c0f-4f6c-9d0e-2b8f6f3f9a51")
"""Drawn once; ids stay the same over versions, so that a saved query or a catalog keeps working."""


class Kind(StrEnum):
    """The kinds of lines; ``other`` is whatever needs no id of its own."""

    STARTED = "started"
    STOPPED = "stopped"
    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    TAKEN_OVER = "taken-over"
    GIVEN_BACK = "given-back"
    CONTENDED = "contended"
    NEW_IDENTITY = "new-identity"
    TOR_RELOADED = "tor-reloaded"
    RELOADED = "reloaded"
    RELOAD_REFUSED = "reload-refused"
    ORDERED = "ordered"
    CIRCUIT_BUILT = "circuit-built"
    CIRCUIT_FAILED = "circuit-failed"
    CIRCUIT_CLOSED = "circuit-closed"
    CIRCUIT_REPLACED = "circuit-replaced"
    CIRCUIT_EJECTED = "circuit-ejected"
    CIRCUIT_READMITTED = "circuit-readmitted"
    CIRCUIT_DOWN = "circuit-down"
    CIRCUIT_ADOPTED = "circuit-adopted"
    PANIC = "panic"
    PANIC_ENDED = "panic-ended"
    PROBES = "probes"
    KEY_ENDED = "key-ended"
    STREAM_ATTACHED = "stream-attached"
    STREAM_RELEASED = "stream-released"
    STREAM_CLOSED = "stream-closed"
    ROUND = "round"
    FAULT = "fault"
    OTHER = "other"

    @property
    def message_id(self) -> str:
        """The journal's MESSAGE_ID (systemd.journal-fields(7)): 32 hex digits."""
        return uuid5(_NAMESPACE, self.value).hex
