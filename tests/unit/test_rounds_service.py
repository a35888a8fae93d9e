"""Rounds in the running agent: wired to pool, ledger, hook and admin socket."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from circuitloom.admin import ask
from circuitloom.cli import main
from circuitloom.errors import AdminError
from circuitloom.ledger import FILE_NAME, Ledger
from circuitloom.model import CircuitId, Hop
from circuitloom.rounds.types import Intent, RecordMissed, Served
from circuitloom.service import Service
from unit.fake_control_port import PATH, FakeControlPort
from unit.service_driver import TAKE_OVER, change_policy, serve, status, wait_until

pytestmark = pytest.mark.usefixtures("log")

BUILT = (
    "250-version=0.4.9.11\r\n250+circuit-status=\r\n"
    + "".join(f"{number} BUILT {PATH} PURPOSE=GENERAL\r\n" for number in range(30, 40))
    + ".\r\n250-stream-status=\r\n250 OK\r\n"
)


def hook(folder: Path, body: str = "echo '{\"paid\": 1}'") -> Path:
    path = folder / "hook"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def rounds_policy(policy_path: Path, fake: FakeControlPort) -> Path:
    """Rounds every 300 ms, and a Tor that says that every circuit is BUILT."""
    program = hook(policy_path.parent)
    fake.answers["GETINFO circuit-status"] = BUILT
    with policy_path.open("a") as file:
        file.write(
            f"rounds: {{command: [{program}], interval: 300ms, timeout: 300ms, first_after: 50ms, "
            "rounds: 4}\n"
        )
    return policy_path


@pytest.fixture(autouse=True)
def state(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory that every service of these tests gets."""
    folder = short_path / "state"
    folder.mkdir()
    monkeypatch.setattr("unit.service_driver.Service", partial(Service, state=folder))
    return folder


def rows(policy_path: Path) -> list[dict[str, Any]]:
    try:
        return list(ask(f"{policy_path.parent}/admin.sock", {"command": "rounds", "after": 0})["rows"])
    except AdminError:
        return []


def outcomes(policy_path: Path) -> list[tuple[int, str, str | None]]:
    return [(row["round"], row["circuit"], row["outcome"]) for row in rows(policy_path)]


def test_rounds_alternate_until_their_number_and_are_listed(
    rounds_policy: Path, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    socket = f"{rounds_policy.parent}/admin.sock"

    def script() -> None:
        wait_until(lambda: len([o for _, _, o in outcomes(rounds_policy) if o]) == 4)
        assert [(n, name) for n, name, _ in outcomes(rounds_policy)] == [
            (1, "primary"),
            (2, "backup"),
            (3, "primary"),
            (4, "backup"),
        ]
        assert status(rounds_policy)["rounds"] == {
            "problem": None,
            "next_round": None,
            "next_in_seconds": None,
            "running": [],
            "waiting": 0,
        }
        assert main(["rounds", "--socket", socket]) == 0
        assert main(["rounds", "--socket", socket, "--json"]) == 0
        assert main(["rounds", "--socket", socket, "--export", "csv"]) == 0
        assert main(["status", "--socket", socket]) == 0

    assert serve(rounds_policy, script) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].split() == ["ROUND", "CIRCUIT", "DUE", "OUTCOME", "TRIES", "DETAIL"]
    assert out.splitlines()[-1] == "rounds: all rounds are over"
    listed, _ = json.JSONDecoder().raw_decode(out[out.index("[\n") :])
    exported = list(csv.DictReader(io.StringIO(out[out.index("round,rounds") :])))
    assert [row["key"] for row in exported[:4]] == [row["key"] for row in listed]
    assert [json.loads(row["answer"]) for row in exported[:4]] == [{"paid": 1}] * 4

    assert main(["rounds", "--state", str(state), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == listed
    assert not list(state.glob("*-shm"))


def test_a_run_that_is_asked_again_is_not_the_next_round(rounds_policy: Path) -> None:
    hook(rounds_policy.parent, "kill -9 $$")
    change_policy(rounds_policy, "interval: 300ms", "interval: 10m")
    told = []

    def is_over() -> bool:
        told.append(status(rounds_policy)["rounds"])
        return outcomes(rounds_policy) == [(1, "primary", "unknown")]

    assert serve(rounds_policy, lambda: wait_until(is_over)) == 0
    assert all(rounds["next_in_seconds"] > 500 for rounds in told if rounds["next_round"] == 2)


def test_what_became_of_rounds_is_in_the_metrics(rounds_policy: Path) -> None:
    textfile = rounds_policy.parent / "metrics.prom"
    with rounds_policy.open("a") as file:
        file.write(f"metrics: {{textfile: {textfile}, interval: 1s}}\n")

    def told() -> str:
        return textfile.read_text() if textfile.exists() else ""

    def script() -> None:
        wait_until(lambda: 'circuitloom_rounds_total{outcome="done"} 4.0' in told())
        for line in (
            'rounds_total{outcome="failed"} 0.0',
            "rounds_running 0.0",
            "rounds_waiting 0.0",
            "rounds_stopped 0.0",
        ):
            assert f"circuitloom_{line}\n" in told()

    assert serve(rounds_policy, script) == 0


def test_a_circuit_that_tor_does_not_know_any_more_is_not_served(
    rounds_policy: Path, fake: FakeControlPort
) -> None:
    fake.answers["GETINFO circuit-status"] = f"250+circuit-status=\r\n31 BUILT {PATH}\r\n.\r\n250 OK\r\n"

    def script() -> None:
        wait_until(lambda: len(rows(rounds_policy)) >= 3)
        assert {row["circuit_id"] for row in rows(rounds_policy)} == {"31"}
        assert {row["planned"] for row in rows(rounds_policy)} == {"primary", "backup"}

    assert serve(rounds_policy, script) == 0


def test_all_circuits_gone_is_missed_and_rounds_go_on(rounds_policy: Path, fake: FakeControlPort) -> None:
    change_policy(rounds_policy, "rounds: 4", "rounds: 1000")
    builds = fake.answers["EXTENDCIRCUIT"]

    def script() -> None:
        wait_until(lambda: len(rows(rounds_policy)) >= 1)
        fake.answers["EXTENDCIRCUIT"] = "551 Couldn't start circuit\r\n"
        fake.tell("CIRC 30 CLOSED REASON=FINISHED", "CIRC 31 CLOSED REASON=FINISHED")
        wait_until(lambda: "missed" in [outcome for _, _, outcome in outcomes(rounds_policy)])
        fake.answers["EXTENDCIRCUIT"] = builds
        fake.tell("STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED")
        wait_until(lambda: outcomes(rounds_policy)[-1][2] == "done")

    assert serve(rounds_policy, script) == 0


def test_a_failed_round_drains_its_circuit(
    rounds_policy: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the pool spares Tor otherwise.
    monkeypatch.setattr("circuitloom.pool.circuits.CONDEMNED_REST_SECONDS", 0.1)
    hook(rounds_policy.parent, "exit 1")
    change_policy(rounds_policy, "rounds: 4", "rounds: 1, on_failure: drain")
    change_policy(rounds_policy, "first_after: 50ms", "first_after: 100ms")

    assert serve(rounds_policy, lambda: fake.wait_for("CLOSECIRCUIT 30")) == 0


def test_a_reload_adds_rounds_changes_them_and_takes_them_away(
    rounds_policy: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    change_policy(rounds_policy, "rounds: 4", "rounds: 1000")
    with_rounds = rounds_policy.read_text()
    without = with_rounds[: with_rounds.index("rounds:")]
    rounds_policy.write_text(without)

    def reload(text: str) -> None:
        count = log.text.count("reloaded")
        rounds_policy.write_text(text)
        os.kill(os.getpid(), 1)
        wait_until(lambda: log.text.count("reloaded") == count + 1)

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        assert status(rounds_policy)["rounds"] is None
        reload(with_rounds)
        wait_until(lambda: len(rows(rounds_policy)) >= 2)
        reload(with_rounds.replace("interval: 300ms", "interval: 1h"))
        wait_until(lambda: (status(rounds_policy)["rounds"]["next_in_seconds"] or 0) > 1000)
        reload(without)
        wait_until(lambda: status(rounds_policy)["rounds"] is None)
        reload(with_rounds)
        wait_until(lambda: len(rows(rounds_policy)) >= 3)

    assert serve(rounds_policy, script) == 0


@pytest.mark.parametrize("body", ["exec sleep 1000", "exec cat /dev/zero", "exec yes >&2"])
def test_beside_a_hook_that_never_ends_streams_are_attached_in_their_order(
    rounds_policy: Path, fake: FakeControlPort, body: str
) -> None:
    hook(rounds_policy.parent, body)
    change_policy(rounds_policy, "interval: 300ms, timeout: 300ms", "interval: 1h, timeout: 1h")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        wait_until(lambda: status(rounds_policy)["rounds"]["running"] == ["primary"])
        # In one write: the guard's connection, which gets events here as well, is never read.
        fake.tell(
            *(
                f"STREAM {stream_id} {word} 0 example.com:80 PURPOSE=USER"
                for stream_id in range(100, 400)
                for word in ("NEW", "CONTROLLER_WAIT")
            )
        )
        fake.wait_for("ATTACHSTREAM", 300)
        asked = [command.split() for command in fake.commands if command.startswith("ATTACHSTREAM")]
        assert [stream_id for _, stream_id, _ in asked] == [str(number) for number in range(100, 400)]
        assert [circuit_id for _, _, circuit_id in asked] == ["30", "31"] * 150
        assert status(rounds_policy)["rounds"]["running"] == ["primary"]

    assert serve(rounds_policy, script) == 0


@dataclass(frozen=True)
class BadHook:
    """A hook and what comes of it.

    Attributes:
        body: What the script does; None: there is no file.
        line: How the first line about it begins, behind ``round 1 on primary``.
        outcome: What the ledger has of it.
        detail: How the ledger's detail begins.
        mode: Of the file.
        attempts: How often it is asked, with one line each time.
        moves: Whether the round goes to the next circuit.
    """

    body: str | None
    line: str
    outcome: str
    detail: str
    mode: int = 0o755
    attempts: int = 1
    moves: bool = False


AGAIN = ", asking again with the same key"
BAD_HOOKS = {
    "missing": BadHook(None, " failed: {hook}: No such file", "failed", "{hook}: No such file"),
    "not-executable": BadHook(
        "exit 0", " failed: {hook} is not executable; chmod", "failed", "{hook} is not executable", mode=0o644
    ),
    "writable-by-others": BadHook(
        "exit 0", " failed: {hook} is writable by others", "failed", "{hook} is writable", mode=0o757
    ),
    "hanging": BadHook(
        "sleep 9", f": not done within 0.3 s, ended{AGAIN}", "unknown", "not done within", attempts=3
    ),
    "killed": BadHook(
        "kill -9 $$", f": killed by SIGKILL{AGAIN}", "unknown", "killed by SIGKILL", attempts=3
    ),
    "huge-output": BadHook(
        "head -c 99999 /dev/zero",
        " done (its answer is dropped: over 64 KiB)",
        "done",
        "its answer is dropped",
    ),
    "bad-json": BadHook(
        "echo paid", " done (its answer is dropped: not JSON)", "done", "its answer is dropped"
    ),
    "failing": BadHook("exit 3", " failed: exit status 3", "failed", "exit status 3", moves=True),
    "do-not-retry": BadHook(
        "echo '{\"retry\": false}'; exit 4", " failed: exit status 4", "failed", "exit status 4"
    ),
}


@pytest.mark.parametrize("bad", BAD_HOOKS.values(), ids=BAD_HOOKS.keys())
def test_a_bad_hook_is_one_clear_line_and_one_recorded_outcome(
    rounds_policy: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, bad: BadHook
) -> None:
    monkeypatch.setattr("circuitloom.rounds.timetable.RETRY_SECONDS", 0.05)
    program = hook(rounds_policy.parent, bad.body or "")
    program.chmod(bad.mode)
    if bad.body is None:
        program.unlink()
    change_policy(rounds_policy, "rounds: 4", "rounds: 1, on_failure: next-circuit")
    circuits = ["primary", "backup"] if bad.moves else ["primary"]

    def script() -> None:
        expected = [(1, circuit, bad.outcome) for circuit in circuits]
        wait_until(lambda: outcomes(rounds_policy) == expected)
        first = rows(rounds_policy)[0]
        assert first["detail"].startswith(bad.detail.format(hook=program))
        assert first["attempts"] == bad.attempts

    assert serve(rounds_policy, script) == 0
    told = [record.getMessage() for record in log.records if "round 1 on primary" in record.getMessage()]
    assert told[0].startswith(f"round 1 on primary{bad.line.format(hook=program)}")
    assert len(told) == bad.attempts
    assert all("\n" not in message for message in told)


@pytest.mark.parametrize(
    ("mode", "problem"), [(0o644, "is not executable"), (0o757, "is writable by others")]
)
def test_a_hook_that_must_not_run_is_told_at_the_start(
    rounds_policy: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture, mode: int, problem: str
) -> None:
    hook(rounds_policy.parent).chmod(mode)

    assert serve(rounds_policy, lambda: fake.wait_for(TAKE_OVER)) == 0
    assert log.text.count(f"rounds: {rounds_policy.parent}/hook {problem}") == 1


def test_an_unsound_ledger_is_set_aside_and_told(
    rounds_policy: Path, state: Path, log: pytest.LogCaptureFixture
) -> None:
    (state / FILE_NAME).write_bytes(b"nothing like a ledger" * 500)

    assert serve(rounds_policy, lambda: wait_until(lambda: len(rows(rounds_policy)) == 1)) == 0
    assert "was unsound: it is now rounds.sqlite.unsound-" in log.text


def test_a_ledger_of_another_agent_is_waited_for(
    rounds_policy: Path, state: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitloom.conductor.RETRY_SECONDS", 0.1)
    code = (
        "import sys; from pathlib import Path; from circuitloom.ledger import Ledger; "
        f"ledger = Ledger(Path('{state}')); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"

    def script() -> None:
        wait_until(lambda: "another circuitloom serves it" in str(status(rounds_policy)["rounds"]["problem"]))
        other.communicate(timeout=10)
        wait_until(lambda: len(rows(rounds_policy)) == 1)

    assert serve(rounds_policy, script) == 0
    assert log.text.count("another circuitloom serves it") == 1


def test_a_reload_that_can_open_the_ledger_ends_the_wait_for_it(
    rounds_policy: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would be opened a second time, with a timetable that knows nothing of the first one."""
    monkeypatch.setattr("circuitloom.conductor.RETRY_SECONDS", 0.5)
    change_policy(rounds_policy, "interval: 300ms", "interval: 10m")
    opened = []

    class Counted(Ledger):
        def __init__(self, directory: Path) -> None:
            opened.append(directory)
            super().__init__(directory)

    monkeypatch.setattr("circuitloom.conductor.Ledger", Counted)
    (state / FILE_NAME).mkdir()

    def script() -> None:
        wait_until(lambda: status(rounds_policy)["rounds"]["problem"])
        (state / FILE_NAME).rmdir()
        opened.clear()
        ask(f"{rounds_policy.parent}/admin.sock", {"command": "reload"})
        wait_until(lambda: outcomes(rounds_policy) == [(1, "primary", "done")])
        time.sleep(0.7)

    assert serve(rounds_policy, script) == 0
    assert opened == [state]


def test_a_ledger_that_breaks_under_way_is_told_and_opened_anew(
    rounds_policy: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitloom.conductor.RETRY_SECONDS", 0.1)
    change_policy(rounds_policy, "rounds: 4", "rounds: 1000")
    real, broken = Ledger.record_intent, [2]

    def record(ledger: Ledger, *arguments: Any, **more: Any) -> None:  # noqa: ANN401 - as the real one has them
        if len(ledger.rows(after=0, limit=9)) == 1 and broken:
            broken.pop()
            ledger._connection.close()
            with pytest.raises(sqlite3.ProgrammingError):
                ledger._connection.execute("SELECT 1")
        real(ledger, *arguments, **more)

    monkeypatch.setattr(Ledger, "record_intent", record)

    assert serve(rounds_policy, lambda: wait_until(lambda: len(rows(rounds_policy)) >= 3)) == 0
    assert log.text.count("rounds stand still") == 1
    assert "the intent is not written" in log.text


def test_without_state_directory_there_are_no_rounds_and_streams_are_served(
    rounds_policy: Path, fake: FakeControlPort
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "STATE_DIRECTORY"}
    agent = subprocess.Popen(
        [sys.executable, "-m", "circuitloom", "run", str(rounds_policy)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        fake.wait_for(TAKE_OVER)
        assert "state directory" in status(rounds_policy)["rounds"]["problem"]
        with pytest.raises(AdminError, match="rounds need a state directory"):
            ask(f"{rounds_policy.parent}/admin.sock", {"command": "rounds"})
    finally:
        agent.terminate()
        _, told = agent.communicate(timeout=10)
    assert told.count("rounds need a state directory: run --state DIR, or StateDirectory= in the unit") == 1


@pytest.mark.parametrize("request_", [{"after": "x"}, {"limit": 0}, {"limit": True}, {"after": 1 << 70}])
def test_bad_questions_for_rows(rounds_policy: Path, fake: FakeControlPort, request_: dict[str, Any]) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        with pytest.raises(AdminError, match="`after` is a row's number"):
            ask(f"{rounds_policy.parent}/admin.sock", {"command": "rounds", **request_})

    assert serve(rounds_policy, script) == 0


def test_no_ledger_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rounds", "--state", str(tmp_path)]) == 74
    assert (
        capsys.readouterr().err == f"circuitloom: ledger {tmp_path}/rounds.sqlite: there is none: "
        "no agent has run rounds with this state directory\n"
    )


def test_the_table_tells_of_missed_moved_and_unfinished_rounds(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    served = Served("backup", CircuitId("31"), (Hop("A" * 40, "alpha"),), 0, 1.0)
    ledger = Ledger(state)
    ledger.record_missed(RecordMissed("k1", 1, 3, "", 0.0, "nobody was there"), offset=0.0)
    ledger.record_intent(Intent("k2", 4, "primary", 45.0, served), attempt=2, is_retried=True, offset=0.0)
    ledger.close()

    assert main(["rounds", "--state", str(state)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ROUND  CIRCUIT  DUE                       OUTCOME     TRIES        DETAIL",
        "1-3    -        1970-01-01T00:00:00.000Z  missed      0            nobody was there",
        "4      backup   1970-01-01T00:00:45.000Z  unfinished  2 (retried)  instead of primary",
    ]
    assert main(["rounds", "--state", str(state), "--export", "csv"]) == 0
    assert ",A" not in capsys.readouterr().out.splitlines()[1]


def test_an_empty_ledger_says_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(state).close()

    assert main(["rounds", "--state", str(state)]) == 0
    assert capsys.readouterr().out == "no rounds yet\n"
