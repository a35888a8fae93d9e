"""Judges what became of the load: streams stranded, streams lost for which plain Tor is not to blame.

Rules of this file:

* It is pure: what the application saw (``LoadStream``) and what Tor said (``SeenStream``) go in.
* Plain Tor loses a stream whose circuit dies, and every stream when it dies itself: those are *cut*. A
  circuit that was closed on somebody's request other than the scenario's is no excuse.
* A stream is *stranded* when it waited too long for its SOCKS reply although Tor was there and could build
  circuits: then either a circuit was usable, or Tor was free to choose one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tor.chaos.load import LoadStream
from tor.chaos.span import Span, seconds_outside
from tor.chaos.watch import SeenStream, TorLife

STRANDED_SECONDS = 5.0

SAME_MOMENT_SECONDS = 0.5
"""Between Tor's telling of a circuit's end and of its streams' ends: a millisecond when Tor is idle."""

SUCCESSES_IN_A_ROW = 3


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a row left behind.

    Attributes:
        streams: Of the load.
        lives: What the witness saw.
        unable: When Tor was not there or had no circuit.
        absent: When Tor's SOCKS port was not there.
        faults: When new streams should have begun to recover.
        closed: Circuits that the scenario itself had closed.
    """

    streams: Sequence[LoadStream]
    lives: Sequence[TorLife]
    unable: Sequence[Span]
    absent: Sequence[Span]
    faults: Sequence[float]
    closed: Collection[str]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One row of the table.

    Attributes:
        streams: How many the load had.
        cut: How many ended as plain Tor would have ended them.
        stranded: How many waited too long.
        lost: How many failed besides.
        works_seconds: From the fault until new streams work; infinite when they never did.
        longest_seconds: The longest that a stream waited for its SOCKS reply while Tor could serve.
        failures: Why the lost ones failed, and how many each.
    """

    streams: int
    cut: int
    stranded: int
    lost: int
    works_seconds: float
    longest_seconds: float
    failures: Counter[str]


def judge(evidence: Evidence) -> Verdict:
    """Judge one row."""
    seen = _match(evidence)
    failed = [stream for stream in evidence.streams if stream.failure]
    lost = [stream for stream in failed if not _was_cut(stream, seen.get(stream), evidence)]
    waits = {stream: _wait_seconds(stream, evidence) for stream in evidence.streams}
    stranded = {stream for stream, seconds in waits.items() if seconds > STRANDED_SECONDS}
    counted = {id(seen[stream][1]) for stream in stranded if stream in seen}
    # Other streams than the load's as well, such as those of a flood: only Tor's word is known of them.
    at_tor = [stream for life in evidence.lives for stream in life.streams.values()]
    others = [
        stream for stream in at_tor if id(stream) not in counted and _was_left_waiting(stream, evidence)
    ]
    return Verdict(
        streams=len(evidence.streams),
        cut=len(failed) - len(lost),
        stranded=len(stranded) + len(others),
        lost=len(lost),
        works_seconds=max(
            (_works_seconds(fault, evidence.streams) for fault in evidence.faults), default=0.0
        ),
        longest_seconds=max(waits.values(), default=0.0),
        failures=Counter(_why(stream, seen.get(stream)) for stream in lost),
    )


def _match(evidence: Evidence) -> dict[LoadStream, tuple[TorLife, SeenStream]]:
    """What Tor said of each stream of the load: the same source port, at the same time.

    The time, because the port of a connection that was cut is free for another one at once.
    """
    by_port: defaultdict[int, list[tuple[TorLife, SeenStream]]] = defaultdict(list)
    for life in evidence.lives:
        for at_tor in life.streams.values():
            by_port[at_tor.source_port].append((life, at_tor))
    return {
        stream: pair
        for stream in evidence.streams
        if stream.source_port
        # The earliest match is taken: the last one that the comprehension meets.
        for pair in reversed(by_port[stream.source_port])
        if stream.started_at <= pair[1].first_seen_at <= (stream.ended_at or math.inf) + SAME_MOMENT_SECONDS
    }


def _was_cut(stream: LoadStream, seen: tuple[TorLife, SeenStream] | None, evidence: Evidence) -> bool:
    """Whether plain Tor would have lost it, too."""
    ended_at = math.inf if stream.ended_at is None else stream.ended_at
    if any(span.overlaps(stream.started_at, ended_at) for span in evidence.absent):
        return True
    if seen is None:
        return False
    life, at_tor = seen
    died_at, reason = life.died.get(at_tor.circuit_id, (math.inf, ""))
    if at_tor.ended_at is None or abs(at_tor.ended_at - died_at) > SAME_MOMENT_SECONDS:
        return False
    return reason != "REQUESTED" or at_tor.circuit_id in evidence.closed


def _why(stream: LoadStream, seen: tuple[TorLife, SeenStream] | None) -> str:
    """What the application saw, and what Tor said of it."""
    if seen is None:
        return stream.failure
    life, at_tor = seen
    purpose = life.purposes.get(at_tor.circuit_id, "no")
    _, reason = life.died.get(at_tor.circuit_id, (0.0, "alive"))
    return f"{stream.failure} (stream: {at_tor.reason or 'open'}, {purpose} circuit: {reason})"


def _wait_seconds(stream: LoadStream, evidence: Evidence) -> float:
    end = stream.replied_at or stream.ended_at or math.inf
    return seconds_outside(stream.started_at, end, evidence.unable)


def _was_left_waiting(stream: SeenStream, evidence: Evidence) -> bool:
    return any(
        seconds_outside(wait.start, math.inf if wait.end is None else wait.end, evidence.unable)
        > STRANDED_SECONDS
        for wait in stream.waits
    )


def _works_seconds(fault: float, streams: Sequence[LoadStream]) -> float:
    """From the fault to the reply of the first of some new streams that all succeed."""
    after = [stream for stream in streams if stream.started_at >= fault and not stream.is_held]
    in_a_row = 0
    for number, stream in enumerate(after):
        in_a_row = 0 if stream.failure else in_a_row + 1
        if in_a_row == SUCCESSES_IN_A_ROW:
            first = after[number - SUCCESSES_IN_A_ROW + 1]
            return (first.replied_at or math.inf) - fault
    return math.inf
