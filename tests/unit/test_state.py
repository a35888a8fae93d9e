"""What an agent writes down for the next one, and all the ways in which that can be unusable."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from circuitloom.model import CircuitId, RecordedCircuit
from circuitloom.state import FILE_NAME, StateFile, state_directory

RECORD = RecordedCircuit(
    "one", CircuitId("30"), "2026-11-22T11:00:00.000030", ("A" * 40,), is_used=True, number=0, key="ab"
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    StateFile(tmp_path).save((RECORD,))

    assert StateFile(tmp_path).load() == (RECORD,)
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_without_a_directory_nothing_is_kept() -> None:
    state = StateFile(None)
    state.save((RECORD,))

    assert state.load() == ()


def test_without_a_file_there_is_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert StateFile(tmp_path).load() == ()
    assert not caplog.records


def test_the_same_is_not_written_again(tmp_path: Path) -> None:
    state = StateFile(tmp_path)
    state.save((RECORD,))
    (tmp_path / FILE_NAME).unlink()
    state.save((RECORD,))

    assert not (tmp_path / FILE_NAME).exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "\xff",
        "[" * 100_000,
        '{"version": 2, "circuits": []}',
        '{"version": 1}',
        '{"version": 1, "circuits": 3}',
        '{"version": 1, "circuits": [{}]}',
        '{"version": 1, "circuits": [3]}',
        *(
            json.dumps(
                {
                    "version": 1,
                    "circuits": [
                        {
                            "name": "a",
                            "circuit_id": "1",
                            "created": "",
                            "path": [],
                            "is_used": True,
                            "number": 0,
                            "key": None,
                        }
                        | change
                    ],
                }
            )
            for change in (
                {"name": 1},
                {"path": "abc"},
                {"path": [1]},
                {"is_used": 1},
                {"number": "0"},
                {"number": -1},
                {"number": 1 << 60},
                {"key": 7},
            )
        ),
    ],
)
def test_a_file_that_no_agent_wrote_is_one_line_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="latin-1")

    assert StateFile(tmp_path).load() == ()
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / FILE_NAME} is not what an agent wrote: after a restart all circuits are built anew"
    ]


def test_a_directory_that_is_not_there_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = StateFile(tmp_path / "no")
    with caplog.at_level(logging.WARNING):
        state.save((RECORD,))
        state.save(())

    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"{tmp_path / 'no' / FILE_NAME} cannot be written (No such file or directory): ")


def test_a_file_that_is_a_directory_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / FILE_NAME).mkdir()

    assert StateFile(tmp_path).load() == ()
    StateFile(tmp_path).save((RECORD,))
    assert [record.getMessage().split("(")[1].split(")")[0] for record in caplog.records] == [
        "Is a directory",
        "Is a directory",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


def test_the_directory_is_the_argument_or_systemd_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert state_directory(None) is None
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/circuitloom:/var/lib/more")
    assert state_directory(None) == Path("/var/lib/circuitloom")
    assert state_directory("/srv/here") == Path("/srv/here")
