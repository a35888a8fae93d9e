"""The ledger's file: what is written stays, what is unsound is set aside, and only one agent has it."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from circuitloom.errors import LedgerBusy, LedgerError
from circuitloom.ledger import FILE_NAME, Ledger, copy_of, read_rows
from circuitloom.model import CircuitId, Hop
from circuitloom.rounds.types import Intent, Outcome, Past, RecordMissed, Result, Served, Unfinished

OFFSET = 1_000_000.0
CIRCUIT = Served("primary", CircuitId("12"), (Hop("A" * 40, "alpha"), Hop("B" * 40, "beta")), 3, 1.5)


def intent(number: int = 1, key: str = "k1") -> Intent:
    return Intent(key, number, "primary", 50.0 + number, CIRCUIT)


def test_a_new_one_is_empty_private_and_has_an_id_that_stays(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    first = ledger.id
    assert ledger.past(offset=OFFSET) is None
    assert ledger.unfinished(offset=OFFSET) == []
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    ledger.close()

    ledger = Ledger(tmp_path)
    assert ledger.id == first
    assert ledger.set_aside is None
    ledger.close()


def test_an_intent_is_unfinished_until_its_outcome(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record_intent(intent(), attempt=1, is_retried=False, offset=OFFSET)
    assert ledger.unfinished(offset=OFFSET) == [Unfinished(intent(), 1)]
    assert ledger.past(offset=OFFSET) == Past(1, 51.0, {"primary": None})
    ledger.record_intent(intent(), attempt=2, is_retried=True, offset=OFFSET)
    assert ledger.unfinished(offset=OFFSET) == [Unfinished(intent(), 2)]
    ledger.record_outcome(intent(), Result(Outcome.DONE, "", {"paid": 3}))

    assert ledger.unfinished(offset=OFFSET) == []
    assert ledger.past(offset=OFFSET) == Past(1, 51.0, {"primary": Outcome.DONE})
    (row,) = ledger.rows(after=0, limit=10)
    assert (row["attempts"], row["retried"], row["outcome"], row["answer"]) == (2, True, "done", {"paid": 3})
    assert [hop["nickname"] for hop in row["path"]] == ["alpha", "beta"]
    ledger.close()


def test_several_missed_rounds_are_one_row_with_the_last_ones_date(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.record_missed(RecordMissed("k", 4, 3, "", 90.0, "nobody was there"), offset=OFFSET)

    assert ledger.past(offset=OFFSET) == Past(6, 90.0, {})
    ledger.close()


def test_rows_come_page_by_page_or_from_the_end(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for number in range(1, 6):
        ledger.record_intent(intent(number, f"k{number}"), attempt=1, is_retried=False, offset=OFFSET)

    assert [row["round"] for row in ledger.rows(after=0, limit=2)] == [1, 2]
    assert [row["round"] for row in ledger.rows(after=2, limit=9)] == [3, 4, 5]
    assert [row["round"] for row in ledger.rows(after=-1, limit=2)] == [4, 5]
    ledger.close()


def test_only_one_agent_has_it(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    code = f"from pathlib import Path; from circuitloom.ledger import Ledger; Ledger(Path('{tmp_path}'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "LedgerBusy" in other.stderr
    with pytest.raises(LedgerBusy, match="another circuitloom serves it"):
        Ledger(tmp_path)
    ledger.close()

    Ledger(tmp_path).close()


def test_what_was_committed_survives_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from pathlib import Path\n"
        "from circuitloom.ledger import Ledger\n"
        "from unit.test_ledger import intent\n"
        f"ledger = Ledger(Path('{tmp_path}'))\n"
        "ledger.record_intent(intent(), attempt=1, is_retried=False, offset=0.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL

    with copy_of(tmp_path) as connection:
        assert [row["key"] for row in read_rows(connection, after=0, limit=9)] == ["k1"]
    ledger = Ledger(tmp_path)
    assert [entry.attempts for entry in ledger.unfinished(offset=0.0)] == [1]
    ledger.close()


def _garbage(path: Path) -> None:
    path.write_bytes(b"no ledger at all" * 1000)


def _torn(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:8192] = os.urandom(4096)
    path.write_bytes(data)


def _foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()


@pytest.mark.parametrize("spoil", [_garbage, _torn, _foreign])
def test_an_unsound_file_is_set_aside_unchanged(tmp_path: Path, spoil: object) -> None:
    assert callable(spoil)
    ledger = Ledger(tmp_path)
    first = ledger.id
    ledger.record_intent(intent(), attempt=1, is_retried=False, offset=OFFSET)
    ledger.close()
    path = tmp_path / FILE_NAME
    spoil(path)
    spoiled = path.read_bytes()

    ledger = Ledger(tmp_path)
    assert ledger.set_aside is not None
    assert ledger.set_aside.name.startswith(f"{FILE_NAME}.unsound-")
    assert ledger.set_aside.read_bytes() == spoiled
    assert ledger.id != first
    assert ledger.rows(after=0, limit=9) == []
    ledger.close()


def test_two_unsound_files_do_not_take_each_others_name(tmp_path: Path) -> None:
    for _ in range(3):
        _garbage(tmp_path / FILE_NAME)
        Ledger(tmp_path).close()

    assert len(list(tmp_path.glob(f"{FILE_NAME}.unsound-*"))) == 3


def test_an_empty_file_is_a_new_ledger(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).touch()
    ledger = Ledger(tmp_path)

    assert ledger.set_aside is None
    ledger.close()


def test_one_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE_NAME) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()

    with pytest.raises(LedgerError, match="a newer circuitloom made it"):
        Ledger(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if "unsound" in path.name] == []


def test_no_folder_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file or directory; is the state directory writable"):
        Ledger(tmp_path / "none")
    with pytest.raises(LedgerError, match="there is none: no agent has run rounds"), copy_of(tmp_path):
        pass


def test_a_closed_ledger_writes_and_reads_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.close()

    with pytest.raises(LedgerError, match="the intent is not written"):
        ledger.record_intent(intent(), attempt=1, is_retried=False, offset=OFFSET)
    with pytest.raises(LedgerError, match="cannot be read"):
        ledger.rows(after=0, limit=1)
