"""The ledger of rounds: one SQLite file, intents before their hook, outcomes after it.

Rules of this file:

* It judges nothing. Every write is one transaction, on the disk (WAL, synchronous=FULL) when the call ends: a
  few milliseconds, on the event loop.
* The file is locked while it is open, so two agents never serve one ledger; the kernel unlocks it at our end.
* A file that is no sound ledger is set aside under another name and never changed.
* Times in the file are seconds since 1970; whoever asks gives them.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from circuitloom.errors import LedgerBusy, LedgerError
from circuitloom.ledger.rows import COLUMNS, FILE_NAME, read_rows
from circuitloom.model import CircuitId, Hop
from circuitloom.rounds.types import Intent, Outcome, Past, RecordMissed, Result, Served, Unfinished

FORMAT = 1
"""PRAGMA user_version of the tables below."""

CHECK_SECONDS = 0.5
"""For looking over the whole file at the start; a ledger of years is looked over as far as that goes."""

_TABLES = f"""
CREATE TABLE ledger (id TEXT NOT NULL, created_at REAL NOT NULL);
CREATE TABLE runs (
    key TEXT PRIMARY KEY,
    round INTEGER NOT NULL,
    rounds INTEGER NOT NULL DEFAULT 1,
    planned TEXT NOT NULL,
    circuit TEXT NOT NULL,
    circuit_id TEXT,
    path TEXT,
    streams INTEGER,
    age_seconds REAL,
    due_at REAL NOT NULL,
    intended_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    retried INTEGER NOT NULL DEFAULT 0,
    outcome TEXT,
    detail TEXT NOT NULL DEFAULT '',
    answer TEXT,
    ended_at REAL
);
CREATE INDEX runs_by_round ON runs (round);
CREATE INDEX runs_unfinished ON runs (key) WHERE outcome IS NULL;
PRAGMA user_version = {FORMAT};
"""


class Ledger:
    """An open ledger.

    Args:
        directory: The state directory; the file is made if it is not there.

    Attributes:
        id: Names the ledger; part of every key.
        set_aside: The name under which a file was set aside that was no sound ledger.

    Raises:
        LedgerBusy: Another process has it open.
        LedgerError: It cannot be used, and not for its content.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self.set_aside: Path | None = None
        try:
            self._connection = self._open()
        except _Unsound:
            self.set_aside = self._put_aside()
            try:
                self._connection = self._open()
            except _Unsound as error:
                raise LedgerError(f"ledger {self.path}: {error}") from None
        self.id = uuid.UUID(self._connection.execute("SELECT id FROM ledger").fetchone()[0])

    def close(self) -> None:
        """Close and unlock it."""
        with suppress(sqlite3.Error):
            self._connection.close()

    # --- what is written -----------------------------------------------------------------------------------

    def record_intent(self, intent: Intent, *, attempt: int, is_retried: bool, offset: float) -> None:
        """Write that the hook is to be started.

        Args:
            intent: For what.
            attempt: From 1.
            is_retried: Whether an earlier one ended with the agent.
            offset: What turns the timetable's clock into seconds since 1970.

        Raises:
            LedgerError: It is not written.
        """
        circuit = intent.circuit
        with self._transaction("the intent"):
            self._connection.execute(
                "INSERT INTO runs (key, round, planned, circuit, circuit_id, path, streams, age_seconds, "
                "due_at, intended_at, attempts, retried) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET attempts = excluded.attempts, "
                "retried = retried OR excluded.retried",
                (
                    intent.key,
                    intent.round,
                    intent.planned,
                    circuit.name,
                    circuit.circuit_id,
                    json.dumps([list(hop) for hop in circuit.path]),
                    circuit.streams,
                    circuit.age_seconds,
                    intent.due + offset,
                    time.time(),
                    attempt,
                    is_retried,
                ),
            )

    def record_outcome(self, intent: Intent, result: Result) -> None:
        """Write what came of an intent.

        Raises:
            LedgerError: It is not written; the intent stays unfinished.
        """
        answer = None if result.answer is None else json.dumps(result.answer)
        with self._transaction("the outcome"):
            self._connection.execute(
                "UPDATE runs SET outcome = ?, detail = ?, answer = ?, ended_at = ? WHERE key = ?",
                (result.outcome.value, result.detail, answer, time.time(), intent.key),
            )

    def record_missed(self, missed: RecordMissed, *, offset: float) -> None:
        """Write that rounds were missed.

        Raises:
            LedgerError: It is not written.
        """
        with self._transaction("a missed round"):
            self._connection.execute(
                "INSERT OR IGNORE INTO runs "
                "(key, round, rounds, planned, circuit, due_at, outcome, detail, ended_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    missed.key,
                    missed.round,
                    missed.count,
                    missed.planned,
                    missed.planned,
                    missed.due + offset,
                    Outcome.MISSED.value,
                    missed.reason,
                    time.time(),
                ),
            )

    # --- what is read --------------------------------------------------------------------------------------

    def past(self, *, offset: float) -> Past | None:
        """The last round.

        Raises:
            LedgerError: It cannot be read.
        """
        with self._reading():
            last = self._connection.execute(
                "SELECT round, rounds, due_at FROM runs ORDER BY round DESC LIMIT 1"
            ).fetchone()
            if last is None:
                return None
            number, count, due_at = last
            rows = self._connection.execute("SELECT circuit, outcome FROM runs WHERE round = ?", (number,))
            outcomes = {circuit: Outcome(outcome) if outcome else None for circuit, outcome in rows}
        return Past(number + count - 1, due_at - offset, outcomes if count == 1 else {})

    def unfinished(self, *, offset: float) -> list[Unfinished]:
        """Intents without outcome, oldest first.

        Raises:
            LedgerError: It cannot be read.
        """
        with self._reading():
            rows = self._connection.execute(
                "SELECT key, round, planned, due_at, circuit, circuit_id, path, streams, age_seconds, "
                "attempts FROM runs WHERE outcome IS NULL ORDER BY round, rowid"
            ).fetchall()
        return [
            Unfinished(
                Intent(
                    key,
                    number,
                    planned,
                    due_at - offset,
                    Served(
                        circuit,
                        CircuitId(circuit_id),
                        tuple(Hop(*hop) for hop in json.loads(path)),
                        streams,
                        age,
                    ),
                ),
                attempts,
            )
            for key, number, planned, due_at, circuit, circuit_id, path, streams, age, attempts in rows
        ]

    def rows(self, *, after: int, limit: int) -> list[dict[str, Any]]:
        """Rows in the order of their writing.

        Args:
            after: Only rows with a higher number; below zero: the last rows.
            limit: How many at most.

        Returns:
            ``COLUMNS`` of each, and its number as ``row``.

        Raises:
            LedgerError: It cannot be read.
        """
        with self._reading():
            return read_rows(self._connection, after=after, limit=limit)

    # --- the file ------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        try:
            # Before SQLite makes it as the umask says: payments are nobody else's business.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            connection = sqlite3.connect(self.path, timeout=0, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise LedgerError(f"ledger {self.path}: {reason}; is the state directory writable?") from None
        try:
            self._prepare(connection)
        except sqlite3.OperationalError as error:
            connection.close()
            if error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
                raise LedgerBusy(f"ledger {self.path}: another circuitloom serves it") from None
            if error.sqlite_errorname.startswith(
                ("SQLITE_IOERR", "SQLITE_FULL", "SQLITE_CANTOPEN", "SQLITE_READONLY")
            ):
                raise LedgerError(f"ledger {self.path}: {error}") from None
            raise _Unsound(str(error)) from None
        except (sqlite3.DatabaseError, ValueError, TypeError) as error:
            connection.close()
            raise _Unsound(str(error)) from None
        except LedgerError:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if version > FORMAT:
            raise LedgerError(f"ledger {self.path}: a newer circuitloom made it; install that one again")
        if version == 0 and tables:
            # Before anything is written into it.
            raise _Unsound("somebody else's database")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # The first write lock is kept, as long as the connection lives.
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("COMMIT")
        if tables == 0:
            connection.executescript(f"BEGIN; {_TABLES}")
            connection.execute("INSERT INTO ledger VALUES (?, ?)", (str(uuid.uuid4()), time.time()))
            connection.execute("COMMIT")
        self._check(connection)

    @staticmethod
    def _check(connection: sqlite3.Connection) -> None:
        deadline = time.monotonic() + CHECK_SECONDS
        connection.set_progress_handler(lambda: time.monotonic() > deadline, 10_000)
        try:
            (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorname != "SQLITE_INTERRUPT":
                raise
            verdict = "ok"
        finally:
            connection.set_progress_handler(None, 0)
        if verdict != "ok":
            raise _Unsound(verdict)
        uuid.UUID(connection.execute("SELECT id FROM ledger").fetchone()[0])
        connection.execute(f"SELECT {', '.join(COLUMNS)} FROM runs LIMIT 1")  # noqa: S608 - our own names

    def _put_aside(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{FILE_NAME}.unsound-{stamp}")
        number = 1
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"{FILE_NAME}.unsound-{stamp}-{number}")
        try:
            self.path.rename(aside)
            for suffix in ("-wal", "-shm"):
                with suppress(FileNotFoundError):
                    self.path.with_name(FILE_NAME + suffix).rename(aside.with_name(aside.name + suffix))
        except OSError as error:
            raise LedgerError(
                f"ledger {self.path}: unsound, and not to be renamed ({error.strerror})"
            ) from None
        return aside

    @contextmanager
    def _transaction(self, what: str) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise LedgerError(f"ledger {self.path}: {what} is not written ({error})") from None

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise LedgerError(f"ledger {self.path}: cannot be read ({error})") from None


class _Unsound(Exception):
    """The file's content is no ledger."""
