"""The status in words: one line for systemd, a document for programs, a table for people."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from circuitloom.model import Announce
from circuitloom.policy.types import Policy, WhenNone
from circuitloom.pool import Attachment, CircuitSnapshot, Histogram, PoolSnapshot

STATUS_VERSION = 1

WIDTH = 80
"""Of a terminal, in columns: what is written for people stays within it."""

_WHEN_NONE = {
    WhenNone.TOR: "Tor assigns streams",
    WhenNone.HOLD: "streams wait",
    WhenNone.REJECT: "streams are refused",
}


_WORDS = frozenset({"CIRCUIT", "STATE", "ROLE", "PROBE", "WHY", "DESTINATION", "PATH (COUNTRY OF ITS EXIT)"})
"""Columns that are read from the left; the others hold numbers."""


def status_line(snapshot: PoolSnapshot, policy: Policy, disconnected_reason: str) -> str:
    """One line that a person understands.

    Args:
        snapshot: The pool's state.
        policy: What is asked for.
        disconnected_reason: Why there is no connection, if there is none.
    """
    line = _state_line(snapshot, policy, disconnected_reason)
    return f"{line}; {snapshot.notice}" if snapshot.notice else line


def _state_line(snapshot: PoolSnapshot, policy: Policy, disconnected_reason: str) -> str:
    built = sum(1 for circuit in snapshot.circuits if circuit.state == "built")
    # One that nobody has adopted yet is not missed.
    wanted = sum(
        1 for c in snapshot.circuits if c.state != "draining" and not (c.is_adopted and c.state == "idle")
    )
    keys = len({circuit.key for circuit in snapshot.circuits if circuit.state != "draining"})
    for_keys = f" for {keys} keys" if keys > 1 else ""
    match snapshot.state:
        case Attachment.DISCONNECTED:
            return f"not connected to Tor: {disconnected_reason}"
        case Attachment.STOPPING:
            return "giving stream attachment back to Tor"
        case Attachment.BALANCING if built == 0:
            return (
                f"no circuit is usable, {_WHEN_NONE[policy.failover.when_none]}: 0 of {wanted} circuits built"
            )
        case Attachment.BALANCING:
            streams = _plural(snapshot.streams_active, "stream")
            return f"balancing {streams} over {built} of {wanted} circuits{for_keys}, {snapshot.algorithm}"
    return f"Tor assigns streams: {built} of {wanted} circuits built"


def status_document(  # noqa: PLR0913 - each by name, and none can be made from another
    snapshot: PoolSnapshot,
    policy: Policy,
    *,
    reason: str,
    tor_version: str,
    guard_pid: int | None,
    country_of: Callable[[str], str],
) -> dict[str, Any]:
    """What ``circuitloom status --json`` prints.

    Args:
        snapshot: The pool's state.
        policy: What is asked for.
        reason: The status line.
        tor_version: As Tor told it.
        guard_pid: The process that gives back when the agent cannot.
        country_of: The country of the relay with this fingerprint.
    """
    return {
        "version": STATUS_VERSION,
        "state": snapshot.state,
        "since_seconds": round(snapshot.since_seconds, 3),
        "reason": reason,
        "algorithm": snapshot.algorithm,
        "tor": {
            "connected": snapshot.state in {Attachment.RELEASED, Attachment.BALANCING},
            "version": tor_version or None,
            "control": str(policy.tor.control),
        },
        "guard_pid": guard_pid,
        "circuits": [_circuit_document(circuit, country_of) for circuit in snapshot.circuits],
        "probes": {"problem": snapshot.probe_problem or None} if policy.health.probe else None,
        "streams": {
            "active": snapshot.streams_active,
            "waiting": snapshot.streams_waiting,
            "attached_total": snapshot.attached_total,
            "released_total": snapshot.released_total,
            "failed_total": snapshot.failed_total,
        },
    }


def event_document(action: Announce, *, at: float) -> dict[str, Any]:
    """What ``circuitloom events`` prints of a change of state.

    Args:
        action: The change.
        at: When (Unix time, seconds).
    """
    subject = {"circuit": action.circuit, "circuit_id": action.circuit_id, "stream": action.stream_id}
    return {
        "time": round(at, 3),
        "severity": action.severity,
        "event": action.kind,
        "message": action.message,
        **{name: value for name, value in subject.items() if value},
    }


def status_table(document: Mapping[str, Any]) -> str:
    """What ``circuitloom status`` prints, from the document; reads well in 80 columns without colour."""
    streams = document["streams"]
    tor = document["tor"]
    # The state stands there already.
    reason = document["reason"].removeprefix(f"{document['state']} ")
    head = [
        *_wrapped(f"{document['state'].upper()} for {_duration(document['since_seconds'])}: {reason}"),
        f"Tor {tor['version'] or '?'} at {tor['control']}",
        "",
    ]
    circuits = document["circuits"]
    rows = [_ROW, *map(_row, circuits)]
    paths = [_PATH, *map(_path_row, circuits)]
    if document.get("probes"):
        cells = _probe_cells(circuits)
        paths = [(*row[:-1], cell, row[-1]) for row, cell in zip(paths, cells, strict=True)]
    if len({circuit["key"] for circuit in circuits}) > 1:
        # Only then it says something: the circuits of one name, each for a key of its own.
        keys = ["KEY", *(str(circuit["key"]) for circuit in circuits)]
        rows = [(row[0], key, *row[1:]) for row, key in zip(rows, keys, strict=True)]
        paths = [(row[0], key, *row[1:]) for row, key in zip(paths, keys, strict=True)]
    tail = (
        f"{streams['active']} streams, {streams['waiting']} waiting; since the start "
        f"{streams['attached_total']} attached, {streams['released_total']} left to Tor, "
        f"{streams['failed_total']} failed"
    )
    rounds = document.get("rounds")
    return "\n".join(
        [
            *head,
            *_columns(rows),
            "",
            *_columns(paths),
            "",
            *_wrapped(tail),
            *_probe_lines(document),
            *(_wrapped(_rounds_line(rounds)) if rounds else []),
        ]
    )


_ROW = ("CIRCUIT", "STATE", "AGE", "OPEN", "TOTAL", "FAILED", "SHARE", "WEIGHT", "P50", "P99")
_PATH = ("CIRCUIT", "ID", "ROLE", "PATH (COUNTRY OF ITS EXIT)")


def _probe_cells(circuits: Sequence[Mapping[str, Any]]) -> list[str]:
    """The column of the probes: the health, and how many checks in a row found the opposite."""
    cells = ["PROBE"]
    for circuit in circuits:
        probe = circuit["probe"]
        turned = {("up", "failed"): "failed", ("down", "passed"): "passed"}
        word = probe and turned.get((probe["health"], probe["last"]))
        cells.append(
            f"{probe['health']}, {probe['in_a_row']} {word}" if word else probe["health"] if probe else "-"
        )
    return cells


def _probe_lines(document: Mapping[str, Any]) -> list[str]:
    """What keeps probes from working, and why which circuits are not probed."""
    probes = document.get("probes")
    if not probes:
        return []
    reasons: dict[str, list[str]] = {}
    for circuit in document["circuits"]:
        if circuit["probe"] and circuit["probe"]["why_not"]:
            names = reasons.setdefault(circuit["probe"]["why_not"], [])
            if circuit["name"] not in names:
                names.append(circuit["name"])
    lines = [f"probes: {probes['problem']}"] if probes["problem"] else []
    lines += [f"not probed: {', '.join(names)}: {why}" for why, names in reasons.items()]
    return [part for line in lines for part in _wrapped(line)]


def _rounds_line(rounds: Mapping[str, Any]) -> str:
    if rounds["problem"]:
        return f"rounds: {rounds['problem']}"
    parts = [f"a hook runs for {', '.join(rounds['running'])}"] if rounds["running"] else []
    if rounds["waiting"]:
        parts.append(f"{rounds['waiting']} waiting for a circuit")
    if rounds["next_round"] is None:
        parts.append("all rounds are over")
    elif rounds["next_in_seconds"] is None:
        parts.append("waiting for circuits to begin")
    else:
        parts.append(f"round {rounds['next_round']} in {_duration(rounds['next_in_seconds'])}")
    return f"rounds: {', '.join(parts)}"


def explanation_text(document: Mapping[str, Any]) -> str:
    """What ``circuitloom explain`` prints, from the agent's answer; reads well in 80 columns."""
    decisions: list[tuple[str, ...]] = [("STREAM", "AGO", "CIRCUIT", "ID", "WHY")]
    for decision in document["decisions"]:
        words = {
            "attach": f"its turn by {document['algorithm']}",
            "release": "Tor chooses: ",
            "close": "closed: ",
        }
        why = words[decision["did"]] + (decision["why"] or "")
        circuit, circuit_id = decision["circuit"] or "-", decision["circuit_id"] or "-"
        decisions.append((decision["stream"], _duration(decision["seconds_ago"]), circuit, circuit_id, why))
    candidates = [("CIRCUIT", "KEY", "ID", "STREAMS", "MAX", "TAKES", "WHY")]
    candidates += [
        (
            candidate["name"],
            str(candidate["key"]),
            candidate["circuit_id"] or "-",
            str(candidate["streams"]),
            str(candidate["max_streams"]),
            "yes" if candidate["takes_streams"] else "no",
            candidate["why"],
        )
        for candidate in document["candidates"]
    ]
    if any("destination" in decision for decision in document["decisions"]):
        shown = ["DESTINATION", *(decision.get("destination") or "-" for decision in document["decisions"])]
        decisions = [(*row[:4], to, row[4]) for row, to in zip(decisions, shown, strict=True)]
    asked = "the last streams" if document["stream"] is None else f"stream {document['stream']}"
    head = f"What was decided on {asked}, newest last:"
    if len(decisions) == 1:
        return "\n".join([f"Nothing is remembered of {asked}.", "", *_columns(candidates)])
    return "\n".join(
        [head, "", *_columns(decisions), "", "The circuits as they are now:", "", *_columns(candidates)]
    )


def plan_text(plan: Mapping[str, Sequence[str]]) -> str:
    """What ``circuitloom reload`` prints: one line for each fate that befalls a circuit."""
    words = {
        "kept": "kept with its streams",
        "changed": "kept, with another weight, limit or role",
        "built": "built anew, make before break",
        "awaited": "waits until a circuit is adopted",
        "drained": "drained: no new streams, closed when empty",
    }
    rows = [(name, words[fate]) for fate in words for name in plan[fate]]
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name.ljust(width)}  {what}" for name, what in rows)


def _row(circuit: Mapping[str, Any]) -> tuple[str, ...]:
    age = circuit["age_seconds"]
    state = circuit["state"]
    if state == "built" and circuit.get("weight_factor", 1) < 1:
        state += ", slow" if circuit["is_degraded"] else ", fresh"
    return (
        circuit["name"],
        state,
        "-" if age is None else _duration(age),
        str(circuit["streams"]),
        _count(circuit["attached_total"]),
        _count(circuit["failed_total"]),
        f"{circuit['share']:.1%}",
        # The weight of a backup says nothing beside those of the active ones.
        "backup" if circuit["role"] == "backup" else f"{circuit['weight_share']:.1%}",
        _short_time(circuit.get("connect_p50_seconds")),
        _short_time(circuit.get("connect_p99_seconds")),
    )


def _path_row(circuit: Mapping[str, Any]) -> tuple[str, ...]:
    # An agent of another version may not tell.
    role = "adopted" if circuit.get("is_adopted") else circuit["role"]
    path = " > ".join(map(_relay, circuit["path"])) or "-"
    country = circuit.get("exit_country")
    return circuit["name"], circuit["circuit_id"] or "-", role, f"{path} ({country})" if country else path


def _relay(name: str) -> str:
    """A nickname, or a fingerprint where there is none, in at most 14 characters."""
    if len(name) == 40:
        return name[:8]
    return name if len(name) <= 14 else f"{name[:13]}\u2026"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _count(number: int) -> str:
    """At most six characters."""
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def _short_time(seconds: float | None) -> str:
    """At most five characters."""
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.0f}ms" if seconds < 0.9995 else f"{seconds:.1f}s"


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align: words to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if heading in _WORDS else cell.rjust(width)
            for heading, cell, width in zip(rows[0], row, widths, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def _circuit_document(circuit: CircuitSnapshot, country_of: Callable[[str], str]) -> dict[str, Any]:
    # Not asdict: it would copy every histogram.
    document = {field.name: getattr(circuit, field.name) for field in dataclasses.fields(circuit)}
    connects: Histogram = document.pop("connects")
    exit_fingerprint = document.pop("exit_fingerprint")
    document["probe"] = dataclasses.asdict(circuit.probe) if circuit.probe else None
    document["connect_p50_seconds"] = connects.quantile(0.5)
    document["connect_p99_seconds"] = connects.quantile(0.99)
    document["exit_country"] = None if exit_fingerprint is None else country_of(exit_fingerprint)
    for key in ("age_seconds", "share", "weight_share", "connect_p50_seconds", "connect_p99_seconds"):
        if document[key] is not None:
            document[key] = round(document[key], 4)
    if circuit.probe is not None and circuit.probe.seconds_ago is not None:
        document["probe"]["seconds_ago"] = round(circuit.probe.seconds_ago, 3)
    return document


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    for size, unit, smaller, smaller_unit in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // smaller:02d}{smaller_unit}"
    return f"{whole}s"
