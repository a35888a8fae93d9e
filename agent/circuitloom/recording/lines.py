"""Events and actions of the core as lines of a recording: one JSON object each.

Rules of this file:

* Everything a user or a destination could be known by goes through ``_hidden``; what is left as it is are
  times, ports, the names of circuits, the core's reasons, and Tor's own numbers and words.
* A stream has a line when it comes, when it is decided on, when it is answered and when it ends; Tor's own
  directory streams have none. What was there before the recording has none either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from circuitloom.model import (
    Action,
    AttachStream,
    BuildAccepted,
    BuildCircuit,
    CircuitAdopted,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    CloseStream,
    Connected,
    Event,
    ReleaseStream,
    Reserved,
    StreamEvent,
    StreamId,
    StreamStatus,
)
from circuitloom.pool.streams import TorsOwn, is_directory

FORMAT = 1
KEY_BYTES = 32
HIDDEN_BYTES = 8
"""Two of a million destinations look alike once in 30 million recordings."""

_PLAIN = re.compile(r"[A-Za-z0-9_,-]{1,256}")
"""What Tor says in its own words, and no user in theirs."""

_ENDS = {
    StreamStatus.SUCCEEDED: "succeeded",
    StreamStatus.DETACHED: "detached",
    StreamStatus.FAILED: "failed",
    StreamStatus.CLOSED: "closed",
}


class Recording:
    """Turns what the core is told, and what it asks for, into lines.

    Args:
        key: Hides what is told of users; whoever made it forgets it.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._tors_own = TorsOwn(None)
        self._streams: set[StreamId] = set()
        self._builds: dict[int, str] = {}
        self._circuits: dict[CircuitId, str] = {}

    def head(self) -> str:
        """The first line."""
        return _line({"recording": FORMAT})

    def lines(self, event: Event, actions: Iterable[Action], *, time: float) -> list[str]:
        """What is to be written of one event and of what the core made of it.

        Args:
            event: What happened.
            actions: What the core asked for.
            time: When (seconds from the beginning of the recording).
        """
        objects: list[dict[str, Any]] = []
        match event:
            case StreamEvent():
                objects += self._stream(event)
            case CircuitEvent():
                objects += self._circuit(event)
            case BuildAccepted():
                name = self._builds.pop(event.build, None)
                if name is not None:
                    self._circuits[event.circuit_id] = name
            case CircuitAdopted():
                self._circuits[event.line.circuit_id] = event.name
            case Connected():
                objects.append({"event": "connected"})
                self._streams.clear()
                # Ids may be others' now; those that are the pool's are learned as it attaches to them.
                self._circuits.clear()
                self._builds.clear()
                self._tors_own = TorsOwn(event.reserved)
            case Reserved():
                self._tors_own = TorsOwn(event)
            case _:
                pass
        objects += [told for action in actions if (told := self._action(action)) is not None]
        return [_line({"time": round(time, 4)} | told) for told in objects]

    def _stream(self, event: StreamEvent) -> list[dict[str, Any]]:
        told: dict[str, Any] = {"stream": event.stream_id}
        if event.status in {StreamStatus.NEW, StreamStatus.NEWRESOLVE}:
            if is_directory(event):
                return []
            self._streams.add(event.stream_id)
            return [told | {"event": "new"} | self._newcomer(event)]
        if event.stream_id not in self._streams or event.status not in _ENDS:
            return []
        told["event"] = _ENDS[event.status]
        for keyword in ("REASON", "REMOTE_REASON"):
            if event.keywords.get(keyword):
                told[keyword.lower()] = self._plain(event.keywords[keyword])
        if event.status is StreamStatus.CLOSED:
            self._streams.discard(event.stream_id)
        return [told]

    def _newcomer(self, event: StreamEvent) -> dict[str, Any]:
        host, _, port = event.target.rpartition(":")
        keywords = event.keywords
        told: dict[str, Any] = {
            "destination": self._hidden("destination", host.lower()),
            "port": int(port) if port.isdecimal() else 0,
            "is_resolve": event.status is StreamStatus.NEWRESOLVE,
            "is_tors": self._tors_own.has(event.target),
        }
        hidden = {"user": "SOCKS_USERNAME", "password": "SOCKS_PASSWORD"}
        told |= {
            name: self._hidden(name, keywords[word]) for name, word in hidden.items() if word in keywords
        }
        if "SOURCE_ADDR" in keywords:
            # Without its port, which is another one each time.
            told["source"] = self._hidden("source", keywords["SOURCE_ADDR"].rpartition(":")[0])
        plain = {
            "protocol": "CLIENT_PROTOCOL",
            "epoch": "NYM_EPOCH",
            "group": "SESSION_GROUP",
            "isolated_by": "ISO_FIELDS",
        }
        return told | {name: self._plain(keywords[word]) for name, word in plain.items() if word in keywords}

    def _circuit(self, event: CircuitEvent) -> list[dict[str, Any]]:
        name = self._circuits.get(event.circuit_id)
        if name is None:
            return []
        told: dict[str, Any] = {"circuit": name}
        if event.status is CircuitStatus.BUILT:
            return [told | {"event": "built"}]
        if event.status not in {CircuitStatus.FAILED, CircuitStatus.CLOSED}:
            return []
        del self._circuits[event.circuit_id]
        reason = self._plain(event.keywords.get("REASON", "NONE"))
        is_built = event.status is CircuitStatus.CLOSED
        return [told | {"event": "lost" if is_built else "not built", "reason": reason}]

    def _action(self, action: Action) -> dict[str, Any] | None:
        match action:
            case BuildCircuit():
                self._builds[action.build] = action.name
                return None
            case AttachStream():
                self._circuits[action.circuit_id] = action.name
                told = {"event": "attached", "circuit": action.name}
            case ReleaseStream():
                told = {"event": "left to Tor", "why": action.why}
            case CloseStream():
                told = {"event": "rejected", "why": action.why}
            case _:
                return None
        return {"stream": action.stream_id} | told if action.stream_id in self._streams else None

    def _plain(self, text: str) -> str:
        return text if _PLAIN.fullmatch(text) else self._hidden("word", text)

    def _hidden(self, what: str, text: str) -> str:
        """The same for the same, and of no use to anybody else."""
        data = text.encode("utf-8", "surrogateescape")
        # A user who is named like a host must not be seen to be.
        return blake2b(data, digest_size=HIDDEN_BYTES, key=self._key, person=what.encode()).hexdigest()


def _line(told: dict[str, Any]) -> str:
    return json.dumps(told, separators=(",", ":")) + "\n"
