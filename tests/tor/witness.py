"""A second controller on the same Tor that only watches: what Tor says, not what the agent believes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import stem.control
import stem.socket

from circuitloom.lab.node import TorClient

POLL_SECONDS = 0.02


class _Controller(stem.control.Controller):  # type: ignore[misc]  # stem has no types
    def _post_authentication(self) -> None:
        """Not stem's own: it would take the Tor that this process owns, and end it with the connection."""
        self._is_authenticated = True


class Witness:
    """Follows every STREAM event with stem, which shares no code with the agent's codec.

    Attributes:
        attached: For each stream that was sent a connect or resolve, the circuits in order.
        ended: For each closed stream, its reason.
        waiting_since: Streams that Tor says wait for a controller, and since when (monotonic seconds).
        purposes: The purpose of each stream that was announced.
        users: Its SOCKS user name, where it has one.
    """

    def __init__(self, client: TorClient) -> None:
        self._controller: Any = _Controller(stem.socket.ControlSocketFile(str(client.control_socket)))
        self._controller.authenticate()
        self._lock = threading.Lock()
        self.attached: dict[str, list[str]] = {}
        self.ended: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.detached: Counter[str] = Counter()
        self.waiting_since: dict[str, float] = {}
        self.longest_wait_seconds = 0.0
        self.purposes: dict[str, str] = {}
        self.users: dict[str, str] = {}
        self._controller.add_event_listener(self._on_stream, "STREAM")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._controller.close()

    def _on_stream(self, event: Any) -> None:  # noqa: ANN401 - stem has no types
        now = time.monotonic()
        with self._lock:
            stream_id, status = event.id, str(event.status)
            if event.purpose is not None:
                self.purposes[stream_id] = str(event.purpose)
                self.users[stream_id] = event.keyword_args.get("SOCKS_USERNAME", "")
            waited_since = self.waiting_since.pop(stream_id, None)
            if waited_since is not None:
                self.longest_wait_seconds = max(self.longest_wait_seconds, now - waited_since)
            if status == "CONTROLLER_WAIT":
                self.waiting_since[stream_id] = now
            elif status in {"SENTCONNECT", "SENTRESOLVE"}:
                self.attached.setdefault(stream_id, []).append(event.circ_id)
            elif status == "DETACHED":
                self.detached[stream_id] += 1
            elif status == "FAILED":
                self.failed[stream_id] = str(event.reason)
            elif status == "CLOSED":
                self.ended[stream_id] = str(event.reason)

    def first_circuits(self) -> Counter[str]:
        """How many streams of users each circuit got first; Tor's own directory streams are not theirs."""
        with self._lock:
            return Counter(
                circuits[0]
                for stream, circuits in self.attached.items()
                if not self.purposes.get(stream, "").startswith("DIR")
            )

    def open_streams(self) -> Counter[str]:
        """How many streams are connected on each circuit, by GETINFO stream-status."""
        lines = [line.split(" ") for line in self.stream_status()]
        return Counter(circuit for _, status, circuit, *_ in lines if status == "SUCCEEDED")

    def waiting(self) -> list[str]:
        """Streams that no circuit has, by GETINFO stream-status."""
        fresh = (["NEW", "0"], ["NEWRESOLVE", "0"])
        # Tor's own directory streams are on their way to a relay by its fingerprint, and wait for nobody.
        return [line for line in self.stream_status() if line.split(" ")[1:3] in fresh and ".$" not in line]

    def stream_status(self) -> list[str]:
        return [line for line in self.get_info("stream-status").splitlines() if line]

    def get_info(self, key: str) -> str:
        return str(self._controller.get_info(key))

    def option(self) -> str:
        return str(self._controller.get_conf("__LeaveStreamsUnattached"))

    def tell(self, command: str) -> str:
        """Send one raw command, as another controller would, and return the reply."""
        return str(self._controller.msg(command))

    def wait_until(self, is_so: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not is_so():
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(POLL_SECONDS)
