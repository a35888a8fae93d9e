"""What is read from a ledger: its rows, page by page, from the agent's own connection or from a copy."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import copyfile
from typing import Any

from circuitloom.errors import LedgerError

FILE_NAME = "rounds.sqlite"

COLUMNS = (
    "round",
    "rounds",
    "planned",
    "circuit",
    "circuit_id",
    "path",
    "key",
    "due_at",
    "intended_at",
    "attempts",
    "retried",
    "outcome",
    "detail",
    "answer",
    "ended_at",
)
"""What a row tells; its circuit's streams and age are for the hook only."""


def read_rows(connection: sqlite3.Connection, *, after: int, limit: int) -> list[dict[str, Any]]:
    """See ``Ledger.rows``."""
    columns = ", ".join(COLUMNS)
    if after < 0:
        query = f"SELECT * FROM (SELECT rowid, {columns} FROM runs ORDER BY rowid DESC LIMIT ?) ORDER BY 1"  # noqa: S608 - our own names
        rows = connection.execute(query, (limit,))
    else:
        query = f"SELECT rowid, {columns} FROM runs WHERE rowid > ? ORDER BY rowid LIMIT ?"  # noqa: S608 - our own names
        rows = connection.execute(query, (after, limit))
    return [_told(dict(zip(("row", *COLUMNS), row, strict=True))) for row in rows]


def _told(row: dict[str, Any]) -> dict[str, Any]:
    row["retried"] = bool(row["retried"])
    row["path"] = [{"fingerprint": hop[0], "nickname": hop[1]} for hop in json.loads(row["path"] or "[]")]
    row["answer"] = json.loads(row["answer"] or "null")
    return row


@contextmanager
def copy_of(directory: Path) -> Iterator[sqlite3.Connection]:
    """A copy of a ledger that no agent has open, to read from.

    Opening the file itself would leave files of the reader's beside it, which the agent could not use.

    Args:
        directory: The state directory.

    Raises:
        LedgerError: There is none, or it cannot be read.
    """
    source = directory / FILE_NAME
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / FILE_NAME
        try:
            copyfile(source, copy)
            with suppress(FileNotFoundError):
                copyfile(source.with_name(FILE_NAME + "-wal"), copy.with_name(FILE_NAME + "-wal"))
        except FileNotFoundError:
            raise LedgerError(
                f"ledger {source}: there is none: no agent has run rounds with this state directory"
            ) from None
        except OSError as error:
            raise LedgerError(f"ledger {source}: {error.strerror}") from None
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            yield connection
        except sqlite3.Error as error:
            raise LedgerError(f"ledger {source}: cannot be read ({error})") from None
        finally:
            connection.close()


def page(rows: list[dict[str, Any]]) -> Mapping[str, Any]:
    """The answer to one question for rows: ``after`` of the next one is the last row's number."""
    return {"rows": rows, "after": rows[-1]["row"] if rows else None}
