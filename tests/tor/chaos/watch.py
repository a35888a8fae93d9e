"""An independent witness: what Tor says of its streams and circuits, across its restarts.

It shares no code with the agent's codec or session. Times are of ``time.monotonic``, as the line was read.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self

from circuitloom.errors import LabError
from circuitloom.lab.node import TorClient
from tor.chaos.span import Span

RECONNECT_SECONDS = 0.02
OPTION = "__LeaveStreamsUnattached"


@dataclass(slots=True, eq=False)
class SeenStream:
    """One stream, as Tor told of it.

    Attributes:
        first_seen_at: When Tor first told of it.
        source_port: Of the application's connection; 0 when Tor did not say.
        waits: When it was in CONTROLLER_WAIT and on no circuit.
        circuit_id: The circuit it was sent over last; ``0`` while on none.
        ended_at: When it was closed.
        reason: What went wrong with it, in Tor's words, and why it ended.
    """

    first_seen_at: float = 0.0
    source_port: int = 0
    waits: list[Span] = field(default_factory=list)
    circuit_id: str = "0"
    ended_at: float | None = None
    reason: str = ""

    def end_wait(self, now: float) -> None:
        if self.waits and self.waits[-1].end is None:
            self.waits[-1].end = now


@dataclass(slots=True)
class TorLife:
    """All that was seen from one start of Tor to its end; ids begin anew with each.

    Attributes:
        streams: By Tor's id.
        died: Circuits that closed or failed, with the time and Tor's reason.
        purposes: What Tor uses each circuit for.
    """

    streams: dict[str, SeenStream] = field(default_factory=dict)
    died: dict[str, tuple[float, str]] = field(default_factory=dict)
    purposes: dict[str, str] = field(default_factory=dict)


class Watch:
    """Follows STREAM, CIRC and STATUS_CLIENT events in a thread; a context manager.

    Args:
        client: The Tor client; it may die and come back.

    Attributes:
        lives: One entry per connection to a Tor, the last is the present one.
        unable: When Tor was not there, or said that it has not built any circuit yet.
    """

    def __init__(self, client: TorClient) -> None:
        self._client = client
        self._is_closing = False
        self._lock = threading.Lock()
        self._events, self._questions = client.control(), client.control()
        self.lives = [TorLife()]
        self.unable: list[Span] = []
        # Subscribed before whoever watches goes on, not when the thread gets its turn.
        self._lines: Iterable[str] = self._subscribe()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_closing = True
        self._events.close()
        self._thread.join()
        self._questions.close()

    # --- questions -----------------------------------------------------------------------------------------

    def ask(self, command: str) -> list[str]:
        """Send one command, as another controller would; raises LabError when Tor refuses or is not there."""
        with self._lock:
            return self._questions.ask(command)

    def option(self) -> str:
        return self.ask(f"GETCONF {OPTION}")[0].partition("=")[2]

    def waiting(self) -> list[str]:
        """Streams that no circuit has, by Tor's list."""
        fresh = (["NEW", "0"], ["NEWRESOLVE", "0"])
        return [line for line in self.info("stream-status") if line.split(" ")[1:3] in fresh]

    def info(self, key: str) -> list[str]:
        """The lines of one GETINFO value."""
        with self._lock:
            return [line for line in self._questions.ask_value(key).splitlines() if line]

    def streams(self) -> list[SeenStream]:
        """Every stream of every life."""
        return [stream for life in self.lives for stream in list(life.streams.values())]

    def wait_until(self, is_so: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
            time.sleep(0.02)

    # --- events --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            for line in self._lines:
                self._take(line, time.monotonic())
            if self._is_closing:
                return
            self._mourn(time.monotonic())
            if not self._reconnect():
                return

    def _take(self, line: str, now: float) -> None:
        words = line.split(" ")
        match words[0]:
            case "STREAM":
                self._take_stream(words, now)
            case "CIRC":
                life, keywords = self.lives[-1], dict(word.split("=", 1) for word in words if "=" in word)
                life.purposes[words[1]] = keywords.get("PURPOSE", "")
                if words[2] in {"CLOSED", "FAILED"}:
                    life.died.setdefault(words[1], (now, keywords.get("REASON", "")))
            case "STATUS_CLIENT" if words[2] == "CIRCUIT_ESTABLISHED":
                self._is_able(now)
            case "STATUS_CLIENT" if words[2] == "CIRCUIT_NOT_ESTABLISHED":
                self._is_unable(now)

    def _take_stream(self, words: list[str], now: float) -> None:
        stream_id, status, circuit_id = words[1:4]
        stream = self.lives[-1].streams.setdefault(stream_id, SeenStream(now))
        match status:
            case "NEW" | "NEWRESOLVE":
                address = next((word for word in words if word.startswith("SOURCE_ADDR=")), ":0")
                stream.source_port = int(address.rpartition(":")[2])
            case "CONTROLLER_WAIT":
                stream.end_wait(now)
                stream.waits.append(Span(now))
                stream.circuit_id = "0"
            case "SENTCONNECT" | "SENTRESOLVE" | "SUCCEEDED":
                stream.end_wait(now)
                stream.circuit_id = circuit_id
            case "FAILED" | "DETACHED" | "CLOSED":
                stream.end_wait(now)
                if status == "CLOSED":
                    stream.ended_at = now
                reasons = " ".join(word.partition("=")[2] for word in words if "REASON=" in word)
                stream.reason = f"{stream.reason}, {status} {circuit_id} {reasons}".lstrip(", ")

    def _mourn(self, now: float) -> None:
        """Tor is gone, and with it every stream."""
        for stream in self.lives[-1].streams.values():
            stream.end_wait(now)
            stream.ended_at = stream.ended_at or now
        self._is_unable(now)
        self.lives.append(TorLife())

    def _reconnect(self) -> bool:
        while not self._is_closing:
            with contextlib.suppress(LabError):
                events = self._client.control()
                with self._lock:
                    self._events.close()
                    self._questions.close()
                    self._events, self._questions = events, self._client.control()
                self._lines = self._subscribe()
                return True
            time.sleep(RECONNECT_SECONDS)
        return False

    def _subscribe(self) -> Iterable[str]:
        lines = self._events.events("STREAM", "CIRC", "STATUS_CLIENT")
        if self._questions.ask_value("status/circuit-established") == "1":
            self._is_able(time.monotonic())
        return lines

    def _is_unable(self, now: float) -> None:
        if not self.unable or self.unable[-1].end is not None:
            self.unable.append(Span(now))

    def _is_able(self, now: float) -> None:
        if self.unable and self.unable[-1].end is None:
            self.unable[-1].end = now
