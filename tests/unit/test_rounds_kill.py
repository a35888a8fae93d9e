"""kill -9 of the real agent at every step of a round: each key has one effect, and one outcome."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from circuitloom.admin import ask
from circuitloom.errors import AdminError
from unit.fake_control_port import FakeControlPort
from unit.rounds_victim import STEPS, check_effects, counting_hook, words

ROUNDS = 4
WAIT_SECONDS = 30.0


@pytest.fixture
def folder(short_path: Path, fake: FakeControlPort) -> Iterator[Path]:
    """Policy and hook, beside a control port that builds two circuits."""
    hook = counting_hook(short_path)
    (short_path / "policy.yaml").write_text(
        f"version: 1\ntor: {{control: '{fake.address}'}}\ncircuits: [{{name: primary}}, {{name: backup}}]\n"
        f"balance: {{isolation: none}}\nadmin: {{socket: '{short_path}/admin.sock'}}\n"
        f"rounds: {{command: [{hook}], interval: 2s, timeout: 2s, first_after: 100ms, rounds: {ROUNDS}, "
        "require_probe: false}\n"
    )
    yield short_path
    for name in ("effects", "runs"):
        (short_path / name).unlink(missing_ok=True)


def start(folder: Path, step: str) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "STATE_DIRECTORY": str(folder),
    }
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "unit.rounds_victim", step, "run", f"{folder}/policy.yaml"],
            env=environment,
            stderr=log,
        )


def rows(folder: Path) -> list[dict[str, Any]]:
    try:
        return list(ask(f"{folder}/admin.sock", {"command": "rounds", "after": 0})["rows"])
    except AdminError:
        return []


def finish(folder: Path) -> list[dict[str, Any]]:
    """Run an agent that nobody kills until every round has its outcome."""
    agent = start(folder, "never")
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            found = rows(folder)
            ended = sum(row["rounds"] for row in found if row["outcome"])
            if ended >= ROUNDS and all(row["outcome"] for row in found):
                return found
            assert time.monotonic() < deadline, (found, (folder / "log").read_text())
            time.sleep(0.05)
    finally:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(10) == 0


@pytest.mark.parametrize("step", STEPS)
def test_each_key_has_one_effect_wherever_the_agent_is_killed(folder: Path, step: str) -> None:
    # Twice, so that a retry is killed as well.
    for _ in range(2):
        assert start(folder, step).wait(WAIT_SECONDS) == -signal.SIGKILL, (folder / "log").read_text()
    found = finish(folder)

    retried = check_effects(folder, found, rounds=ROUNDS)
    if step not in {"before-intent", "after-outcome"}:
        assert retried
    # Each of the two kills leaves one key without an end, at most.
    assert len(retried) <= 2


def test_a_stop_ends_the_hook_and_the_next_start_asks_it_again(folder: Path) -> None:
    hook = folder / "hook"
    hook.write_text(
        hook.read_text().replace(
            "time.sleep(0.1)", f"import os\nos.path.exists('{folder}/quick') or time.sleep(60)"
        )
    )
    policy = folder / "policy.yaml"
    policy.write_text(policy.read_text().replace("interval: 2s, timeout: 2s", "interval: 1h, timeout: 1h"))
    agent = start(folder, "never")
    deadline = time.monotonic() + WAIT_SECONDS
    while not words(folder / "runs"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    agent.terminate()
    assert agent.wait(5.0) == 0
    (folder / "quick").touch()
    agent = start(folder, "never")
    while not (found := rows(folder)) or found[0]["outcome"] is None:
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.02)
    agent.terminate()
    assert agent.wait(5.0) == 0

    assert [(row["outcome"], row["attempts"], row["retried"]) for row in found] == [("done", 2, True)]
    assert len(words(folder / "effects")) == 1
