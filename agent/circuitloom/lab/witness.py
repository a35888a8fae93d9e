"""A second controller that only watches: what Tor says of its streams, not what an agent believes."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Self

from circuitloom.lab.node import TorClient


class EventWitness(ABC):
    """Takes events of one kind in a thread, over a control connection of its own; a context manager.

    Args:
        client: Whose events.
        kind: In the control specification's word, such as ``STREAM``.
    """

    def __init__(self, client: TorClient, kind: str) -> None:
        self._port = client.control()
        # Ask before the first event of whoever watches, not when the thread gets its turn.
        self._events = self._port.events(kind)
        self._thread = threading.Thread(target=self._watch, name="lab-witness", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._port.close()
        self._thread.join()

    @abstractmethod
    def _take(self, words: Sequence[str]) -> None:
        """Note one event; its words begin with the kind, and spaces within them are not kept."""

    def _watch(self) -> None:
        for line in self._events:
            self._take(line.split())


class StreamWitness(EventWitness):
    """Counts, from Tor's STREAM events, over which circuit each stream was sent first; a context manager.

    Attributes:
        streams: How many streams each circuit got, by circuit id.
        first_used_at: When each circuit got its first, on the clock of ``time.monotonic``.
    """

    def __init__(self, client: TorClient) -> None:
        self.streams: Counter[str] = Counter()
        self.first_used_at: dict[str, float] = {}
        self._seen: set[str] = set()
        super().__init__(client, "STREAM")

    def _take(self, words: Sequence[str]) -> None:
        # "STREAM 17 SENTCONNECT 5 192.0.2.1:80 ..."; a stream that is attached again counts only once.
        if words[2] == "SENTCONNECT" and words[1] not in self._seen:
            self._seen.add(words[1])
            self._first_sent_over(words[3])

    def _first_sent_over(self, circuit_id: str) -> None:
        self.streams[circuit_id] += 1
        self.first_used_at.setdefault(circuit_id, time.monotonic())
