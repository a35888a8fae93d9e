"""From a recording to the traffic of a simulation.

What was hidden stays hidden: a made-up name stands for each destination, user and address. So rules by port
and listener see what they saw; those by host, user or network match nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from circuitloom.policy.types import Policy
from circuitloom.recording.read import Line
from circuitloom.simulation.arrivals import Arrival, Loss, Traffic


@dataclass(slots=True)
class _Stream:
    """What is known of a stream so far; times are the recording's."""

    place: int
    came_at: float
    values: Mapping[str, Any]
    sent_at: float | None = None
    answered_at: float | None = None
    ended_at: float | None = None
    failure: str | None = None


def replayed(lines: Sequence[Line], policy: Policy, *, outage_seconds: float) -> Traffic:
    """The streams of a recording, and the losses of circuits that the policy names as well.

    Args:
        lines: Of the recording.
        policy: What it is replayed with.
        outage_seconds: For how long a lost circuit cannot be built again.
    """
    names = {slot.name for slot in policy.slots}
    streams: list[_Stream] = []
    living: dict[str, _Stream] = {}
    losses: list[Loss] = []
    first = next((line.time for line in lines if line.event == "new"), 0.0)
    for line in lines:
        if line.event == "connected":
            living.clear()
        elif not line.stream:
            if line.event == "lost" and line.circuit in names and line.time >= first:
                losses.append(Loss(line.time - first, line.circuit, outage_seconds))
        elif line.event == "new":
            living[line.stream] = _Stream(len(streams), line.time, line.values)
            streams.append(living[line.stream])
        elif line.stream in living:
            _follow(living[line.stream], line)
    end = lines[-1].time if lines else 0.0
    return Traffic(tuple(_arrival(stream, first, end) for stream in streams), tuple(losses))


def hidden_rules(policy: Policy) -> int:
    """How many rules of the policy match by something that no recording tells."""
    return sum(
        bool(rule.match.hosts or rule.match.sources or rule.match.socks_user is not None)
        for rule in policy.rules
    )


def _follow(stream: _Stream, line: Line) -> None:
    match line.event:
        case "attached" | "left to Tor":
            stream.sent_at = line.time
        case "succeeded":
            stream.answered_at = line.time
        case "failed" if stream.answered_at is None and line.values.get("reason") == "END":
            stream.failure = line.values.get("remote_reason", "MISC")
            stream.answered_at = line.time
        case "closed":
            stream.ended_at = line.time
        case _:
            pass


def _arrival(stream: _Stream, first: float, end: float) -> Arrival:
    """What never ended stays to the recording's end; what was never answered is, in a circuit's own time."""
    values = stream.values
    answered_at, ended_at = stream.answered_at, stream.ended_at or end
    connect_seconds = None
    if answered_at is not None and stream.sent_at is not None:
        connect_seconds = max(0.0, answered_at - stream.sent_at)
    return Arrival(
        stream.came_at - first,
        f"{values['destination']}{'.onion' if values['is_tors'] else '.recorded'}:{values['port']}",
        _keywords(values),
        max(0.0, ended_at - (answered_at or stream.came_at)),
        connect_seconds,
        values["is_resolve"],
        stream.failure,
    )


def _keywords(values: Mapping[str, Any]) -> dict[str, str]:
    told = {
        "SOCKS_USERNAME": values.get("user"),
        "SOCKS_PASSWORD": values.get("password"),
        "SOURCE_ADDR": f"{values['source']}:0" if "source" in values else None,
        "CLIENT_PROTOCOL": values.get("protocol"),
        "NYM_EPOCH": values.get("epoch"),
        "SESSION_GROUP": values.get("group"),
        "ISO_FIELDS": values.get("isolated_by"),
    }
    return {"PURPOSE": "USER"} | {word: value for word, value in told.items() if value is not None}
