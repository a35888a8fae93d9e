"""Attachments that no answer has come for: how many may be second tries, and which are overdue.

Rules of this file:

* The budget is Envoy's retry budget: a part of what is under way at this moment, so that it needs no time.
* An overdue stream is told of once for each circuit it was attached to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from circuitloom.policy.types import Retry
from circuitloom.pool.slots import Circuit
from circuitloom.pool.streams import Stream

MIN_RETRIES = 3
"""Retries that the budget never forbids: a quiet client has to retry too (Envoy: min_retry_concurrency)."""


class Unanswered:
    """The streams that we attached and that Tor has not yet called connected, failed or detached."""

    def __init__(self) -> None:
        self._count = 0
        self._retries = 0
        self._sent: deque[tuple[float, Stream, Circuit]] = deque()

    def clear(self) -> None:
        """Forget all."""
        self._count = self._retries = 0
        self._sent.clear()

    def begin(self, stream: Stream, circuit: Circuit, *, now: float, is_timed: bool) -> None:
        """The stream was attached to this circuit.

        Args:
            stream: It.
            circuit: Where it is on its way.
            now: The time (seconds of the pool's clock).
            is_timed: Whether ``overdue`` should tell of it.
        """
        stream.is_unanswered = True
        self._count += 1
        if stream.failures and not stream.is_resigned:
            stream.is_retry = True
            self._retries += 1
        if is_timed:
            self._sent.append((now, stream, circuit))

    def end(self, stream: Stream) -> None:
        """It was answered, or is no longer ours; harmless when it was not counted."""
        if stream.is_unanswered:
            stream.is_unanswered = False
            self._count -= 1
        if stream.is_retry:
            stream.is_retry = False
            self._retries -= 1

    def may_retry(self, failures: int, retry: Retry) -> bool:
        """Whether a stream that failed so often may be tried on one more circuit."""
        return failures <= retry.attempts and self._retries < max(MIN_RETRIES, retry.budget * self._count)

    def next_sent_at(self) -> float | None:
        """When the oldest attachment was made that has no answer (seconds of the pool's clock)."""
        while self._sent and self._is_settled(self._sent[0]):
            self._sent.popleft()
        return self._sent[0][0] if self._sent else None

    def overdue(self, *, sent_before: float) -> Iterator[Stream]:
        """The streams attached at this time or earlier that have no answer; each is told of once."""
        while self._sent and self._sent[0][0] <= sent_before:
            entry = self._sent.popleft()
            if not self._is_settled(entry):
                yield entry[1]

    def check_invariants(self, streams: Iterator[Stream]) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        counted = [(stream.is_unanswered, stream.is_retry) for stream in streams]
        assert self._count == sum(is_unanswered for is_unanswered, _ in counted)
        assert self._retries == sum(is_retry for _, is_retry in counted)

    @staticmethod
    def _is_settled(entry: tuple[float, Stream, Circuit]) -> bool:
        _, stream, circuit = entry
        return not stream.is_unanswered or stream.circuit is not circuit
