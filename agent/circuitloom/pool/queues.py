"""Streams that wait because every circuit that may take them is full.

Rules of this file:

* One queue for each isolation key and set of circuits: first come, first served within it. Keys have circuits
  of their own, so no key waits behind another one.
* A queue is bounded, and so is the time in it (``Waiting`` keeps that).
* A place that becomes free goes to the stream that has waited longest of all those that may have it.
"""

from __future__ import annotations

from circuitloom.model import StreamId
from circuitloom.pool.circuits import Circuits
from circuitloom.pool.streams import Stream

_Lane = dict[StreamId, tuple[int, Stream]]


class Queues:
    """All queues; a stream is in at most one."""

    def __init__(self) -> None:
        self._lanes: dict[Circuits, dict[frozenset[str] | None, _Lane]] = {}
        self._arrivals = 0

    def __bool__(self) -> bool:
        return bool(self._lanes)

    def __len__(self) -> int:
        return sum(len(lane) for lanes in self._lanes.values() for lane in lanes.values())

    def clear(self) -> None:
        """Forget all."""
        self._lanes.clear()

    def add(self, stream: Stream, circuits: Circuits, *, length: int) -> bool:
        """Let a stream wait; one that waits already keeps its place.

        Args:
            stream: It.
            circuits: Those of its key.
            length: How many may wait in one queue.

        Returns:
            Whether there was room.
        """
        if stream.is_queued:
            return True
        lane = self._lanes.get(circuits, {}).get(stream.among, {})
        if len(lane) >= length:
            return False
        self._arrivals += 1
        lane = self._lanes.setdefault(circuits, {}).setdefault(stream.among, {})
        lane[stream.stream_id] = (self._arrivals, stream)
        stream.is_queued = True
        return True

    def remove(self, stream: Stream) -> None:
        """The stream waits no longer; harmless when it did not."""
        if not stream.is_queued:
            return
        stream.is_queued = False
        owner = stream.owner
        assert owner is not None, "only streams with circuits of their key wait for room"
        lanes = self._lanes[owner]
        del lanes[stream.among][stream.stream_id]
        if not lanes[stream.among]:
            del lanes[stream.among]
            if not lanes:
                del self._lanes[owner]

    def first(self, circuits: Circuits, name: str) -> Stream | None:
        """Who has waited longest for the circuit of this name among the key's."""
        lanes = self._lanes.get(circuits, {})
        heads = [next(iter(lane.values())) for among, lane in lanes.items() if among is None or name in among]
        return min(heads, key=lambda head: head[0])[1] if heads else None
