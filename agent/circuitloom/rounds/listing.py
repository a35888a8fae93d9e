"""The ledger in words: a table for people, CSV for spreadsheets."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol, TextIO

PAGE_ROWS = 200
"""Rows in one answer of the admin socket: about three milliseconds of the agent's loop."""


class Reader(Protocol):
    """Reads rows of a ledger: those after a row's number, or the last ones for a number below zero."""

    def __call__(self, *, after: int, limit: int) -> list[dict[str, Any]]:
        """Read at most ``limit`` rows."""


def all_rows(read: Reader) -> Iterator[dict[str, Any]]:
    """Every row, page by page."""
    after = 0
    while rows := read(after=after, limit=PAGE_ROWS):
        yield from rows
        after = rows[-1]["row"]


def rounds_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """What ``circuitloom rounds`` prints."""
    lines = [("ROUND", "CIRCUIT", "DUE", "OUTCOME", "TRIES", "DETAIL")]
    lines += [
        (
            _numbers(row),
            row["circuit"] or "-",
            _date(row["due_at"]) or "-",
            row["outcome"] or "unfinished",
            f"{row['attempts']}{' (retried)' if row['retried'] else ''}",
            row["detail"] or _moved(row),
        )
        for row in rows
    ]
    if len(lines) == 1:
        return "no rounds yet"
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(line[:5], widths, strict=True)), line[5]]
        ).rstrip()
        for line in lines
    )


def export_csv(rows: Iterable[Mapping[str, Any]], file: TextIO) -> None:
    """Write rows as CSV: dates as UTC, path as fingerprints from the first hop on, the answer as JSON."""
    names = (
        "round",
        "rounds",
        "planned",
        "circuit",
        "circuit_id",
        "path",
        "key",
        "due",
        "intended",
        "attempts",
    )
    writer = csv.writer(file)
    writer.writerow([*names, "retried", "outcome", "detail", "answer", "ended"])
    for row in rows:
        path = " ".join(hop["fingerprint"] for hop in row["path"])
        answer = "" if row["answer"] is None else json.dumps(row["answer"])
        told = {**row, "path": path, "due": _date(row["due_at"]), "intended": _date(row["intended_at"])}
        ends = (int(row["retried"]), row["outcome"] or "", row["detail"], answer, _date(row["ended_at"]))
        writer.writerow([told[name] for name in names] + list(ends))


def _numbers(row: Mapping[str, Any]) -> str:
    first, count = row["round"], row["rounds"]
    return str(first) if count == 1 else f"{first}-{first + count - 1}"


def _moved(row: Mapping[str, Any]) -> str:
    return f"instead of {row['planned']}" if row["planned"] != row["circuit"] else ""


def _date(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
