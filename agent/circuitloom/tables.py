"""The answers of the agent as text for people: they stay within a terminal's width and need no colour.

Rules of this file:

* It reads documents, of agents of other versions too, and knows nothing else of them.
* What is too wide for a line loses the second space between columns first, then the middle of the circuits'
  names; the last column goes on in the next line.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 80
"""Of a terminal, in columns, that anybody has."""

_LEAST_NAME = 8
_LEAST_ROOM = len("PATH (COUNTRY OF ITS EXIT)")

_WORDS = frozenset({"CIRCUIT", "STATE", "ROLE", "PROBE", "WHY", "DESTINATION", "PATH (COUNTRY OF ITS EXIT)"})
"""Columns that are read from the left; the others hold numbers."""


def status_table(document: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """What ``circuitloom status`` prints.

    Args:
        document: What ``status --json`` prints.
        width: Of the terminal (columns).
    """
    streams = document["streams"]
    tor = document["tor"]
    # The state stands there already.
    reason = document["reason"].removeprefix(f"{document['state']} ")
    head = [
        *_wrapped(f"{document['state'].upper()} for {_duration(document['since_seconds'])}: {reason}", width),
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
            *_columns(rows, width),
            "",
            *_columns(paths, width),
            "",
            *_wrapped(tail, width),
            *_probe_lines(document, width),
            *(_wrapped(_rounds_line(rounds), width) if rounds else []),
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


def _probe_lines(document: Mapping[str, Any], width: int) -> list[str]:
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
    return [part for line in lines for part in _wrapped(line, width)]


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


def explanation_text(document: Mapping[str, Any], *, width: int = WIDTH) -> str:
    """What ``circuitloom explain`` prints.

    Args:
        document: The agent's answer.
        width: Of the terminal (columns).
    """
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
        return "\n".join([f"Nothing is remembered of {asked}.", "", *_columns(candidates, width)])
    return "\n".join(
        [
            head,
            "",
            *_columns(decisions, width),
            "",
            "The circuits as they are now:",
            "",
            *_columns(candidates, width),
        ]
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


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent="  ", break_on_hyphens=False)


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


def _columns(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Align: words to the left, numbers to the right; all within so many columns, if that can be."""
    headings = rows[0]
    # The last column, where it is of words, may go on in the next line.
    fixed = len(headings) - 1 if headings[-1] in _WORDS else len(headings)
    wanted = sum(_widths(rows)) + 2 * len(headings) - 2
    gap = 2 if wanted <= width else 1
    least = sum(_widths(rows)[:fixed]) + gap * (len(headings) - 1)
    least += min(_LEAST_ROOM, max(len(row[-1]) for row in rows)) if fixed < len(headings) else 0
    if least > width:
        rows = _with_short_names(rows, least - width)
    widths = _widths(rows)[:fixed]
    room = max(_LEAST_ROOM, width - sum(widths) - gap * fixed)
    lines = []
    for row in rows:
        cells = [
            cell.ljust(size) if heading in _WORDS else cell.rjust(size)
            for heading, cell, size in zip(headings, row, widths, strict=False)
        ]
        last = textwrap.wrap(row[-1], room, break_on_hyphens=False) if fixed < len(headings) else []
        lines.append((" " * gap).join([*cells, *last[:1]]).rstrip())
        lines += [" " * (sum(widths) + gap * fixed) + more for more in last[1:]]
    return lines


def _widths(rows: Sequence[tuple[str, ...]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _with_short_names(rows: Sequence[tuple[str, ...]], excess: int) -> Sequence[tuple[str, ...]]:
    """The middle of names is what is left out: they begin alike, and end in numbers."""
    column = rows[0].index("CIRCUIT")
    size = max(_LEAST_NAME, _widths(rows)[column] - excess)
    return [(*row[:column], _shortened(row[column], size), *row[column + 1 :]) for row in rows]


def _shortened(name: str, size: int) -> str:
    if len(name) <= size:
        return name
    end = size // 2
    return f"{name[: size - 1 - end]}\u2026{name[-end:]}"


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
