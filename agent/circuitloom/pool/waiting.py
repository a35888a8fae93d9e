"""Streams that are held, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from circuitloom.model import StreamId
from circuitloom.pool.streams import Stream, StreamState


class Waiting:
    """The streams that Tor keeps for us because nothing can take them now, oldest first."""

    def __init__(self) -> None:
        self._streams: dict[StreamId, Stream] = {}
        self._deadlines: list[tuple[float, StreamId]] = []

    def __len__(self) -> int:
        return len(self._streams)

    def __iter__(self) -> Iterator[Stream]:
        """Those that wait now; they may be served meanwhile."""
        return iter(list(self._streams.values()))

    def clear(self) -> None:
        """Forget all."""
        self._streams.clear()
        self._deadlines.clear()

    def hold(self, stream: Stream) -> None:
        """Hold a stream without a bound of its own, or within the one it has."""
        stream.state = StreamState.WAITING
        self._streams[stream.stream_id] = stream

    def hold_until(self, stream: Stream, at: float) -> None:
        """Hold a stream until ``at`` (seconds of the pool's clock), unless it has a bound already."""
        if stream.wait_until is None:
            stream.wait_until = at
            heappush(self._deadlines, (at, stream.stream_id))
        self.hold(stream)

    def remove(self, stream: Stream) -> None:
        """The stream waits no longer; harmless when it did not."""
        self._streams.pop(stream.stream_id, None)
        stream.wait_until = None

    def next_deadline(self) -> float | None:
        """When ``expired`` has something to tell (seconds of the pool's clock)."""
        while self._deadlines and self._deadlines[0][1] not in self._streams:
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> Iterator[Stream]:
        """The streams whose time has come."""
        while self._deadlines and self._deadlines[0][0] <= now:
            at, stream_id = heappop(self._deadlines)
            stream = self._streams.get(stream_id)
            if stream is not None and stream.wait_until == at:
                yield stream
