"""Reading a recording: what each line must be, and the one sentence for what is not.

Rule of this file: a recording is a file that anybody may have changed. Whatever is in it, reading ends with
its lines or with ``RecordingError``, which names file and line.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from circuitloom.errors import RecordingError
from circuitloom.recording.lines import FORMAT

MAX_LINE_BYTES = 4096
"""Of what ``lines`` writes; the longest is a tenth of it."""

_STREAM_EVENTS = frozenset(
    {"new", "attached", "left to Tor", "rejected", "succeeded", "detached", "failed", "closed"}
)
_CIRCUIT_EVENTS = frozenset({"built", "not built", "lost"})
_TEXTS = frozenset(
    {"destination", "user", "password", "source", "protocol", "epoch", "group", "isolated_by", "circuit"}
    | {"reason", "remote_reason", "why", "stream"}
)
_FLAGS = frozenset({"is_resolve", "is_tors"})
_NEEDED_OF_NEW = ("destination", "port", "is_resolve", "is_tors")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a recording but for the first.

    Attributes:
        time: Seconds from the beginning of the recording.
        event: What happened.
        stream: Tor's id of the stream that it happened to; else empty.
        circuit: The policy's name of a circuit; of a stream, of the one that it was attached to.
        values: Everything else.
    """

    time: float
    event: str
    stream: str
    circuit: str
    values: Mapping[str, Any]


def read_recording(lines: Iterable[bytes], name: str) -> list[Line]:
    """Read a recording.

    Args:
        lines: Of the file, each with its end.
        name: Of the file, as the user gave it.

    Raises:
        RecordingError: It is no recording, or a line of it makes no sense.
    """
    read: list[Line] = []
    number = 0
    for number, data in enumerate(lines, 1):
        try:
            if number == 1:
                _check_head(data)
            elif data.endswith(b"\n"):
                read.append(_read(data, read[-1].time if read else 0.0))
            # A last line that was cut short is how a full disk, or the end of a machine, ends a recording.
        except _BadLine as error:
            raise RecordingError(f"{name}:{number}: {error}") from None
    if number == 0:
        raise RecordingError(f"{name}:1: the file is empty: it is no recording of `run --record`")
    return read


class _BadLine(ValueError):
    """What is wrong with a line."""


def _check_head(data: bytes) -> None:
    try:
        head = _parse(data)
    except _BadLine:
        head = {}
    if "recording" not in head:
        raise _BadLine("this is no recording of `run --record`")
    if head["recording"] != FORMAT:
        raise _BadLine("a recording of another version of circuitloom: record anew")


def _read(data: bytes, last_time: float) -> Line:
    told = _parse(data)
    time, event = told.pop("time", None), told.pop("event", None)
    if isinstance(time, bool) or not isinstance(time, int | float) or not isfinite(time):
        raise _BadLine("`time` must be a number of seconds")
    if time < last_time:
        raise _BadLine(f"`time` {time:g} is before that of the line above, {last_time:g}")
    for key, value in told.items():
        _check(key, value)
    known = _STREAM_EVENTS if "stream" in told else _CIRCUIT_EVENTS if "circuit" in told else {"connected"}
    if not isinstance(event, str) or event not in known:
        raise _BadLine(f"`event` must be one of: {', '.join(sorted(known))}")
    missing = [key for key in _NEEDED_OF_NEW if event == "new" and key not in told]
    missing += ["circuit"] if event == "attached" and "circuit" not in told else []
    if missing:
        raise _BadLine(f"`{missing[0]}` is missing")
    return Line(float(time), event, told.pop("stream", ""), told.pop("circuit", ""), told)


def _parse(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_LINE_BYTES:
        raise _BadLine(f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        raise _BadLine("this is not JSON") from None
    if not isinstance(told, dict):
        raise _BadLine("a line must be one JSON object")
    return told


def _check(key: str, value: object) -> None:
    if key in _TEXTS:
        if not isinstance(value, str) or not value.isprintable():
            raise _BadLine(f"`{key}` must be a text")
    elif key in _FLAGS:
        if not isinstance(value, bool):
            raise _BadLine(f"`{key}` must be true or false")
    elif key == "port":
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
            raise _BadLine("`port` must be a number from 0 to 65535")
    elif not key.isidentifier() or len(key) > 40:
        raise _BadLine("a key of this line is no word")
