"""``circuitloom run --record``: the real agent writes down what its Tor tells, and nothing about a user."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from circuitloom.cli import main
from circuitloom.policy import read_policy
from circuitloom.recording import recorder
from circuitloom.service import Service
from unit.fake_control_port import FakeControlPort
from unit.service_driver import TAKE_OVER, WAIT_SECONDS, wait_until
from unit.test_privacy import MARKS, STREAM


def serve(policy_path: Path, record: Path, script: Callable[[], object]) -> int:
    """Run the service with a recording while a script does its part; it is stopped afterwards."""

    async def bounded() -> int:
        service = Service(str(policy_path), read_policy(policy_path), record=record)
        async with asyncio.timeout(WAIT_SECONDS):
            running = asyncio.create_task(service.run())
            await asyncio.sleep(0)
            try:
                await asyncio.to_thread(script)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
            return await running

    return asyncio.run(bounded())


def open_marked(fake: FakeControlPort, number: int, circuit: str) -> None:
    fake.tell(
        f"STREAM {number} NEW " + STREAM.format("0", "SOURCE_ADDR=203.0.113.99:4711 PURPOSE=USER "),
        f"STREAM {number} CONTROLLER_WAIT " + STREAM.format("0", ""),
    )
    fake.wait_for(f"ATTACHSTREAM {number} ")
    fake.tell(
        *(f"STREAM {number} {word} " + STREAM.format(circuit, "") for word in ("SENTCONNECT", "SUCCEEDED"))
    )


def close_marked(fake: FakeControlPort, number: int, circuit: str) -> None:
    fake.tell(f"STREAM {number} CLOSED " + STREAM.format(circuit, "REASON=DONE "))


@pytest.mark.usefixtures("log")
def test_the_agent_s_own_recording_can_be_simulated_and_tells_no_user(
    policy_path: Path, fake: FakeControlPort, capsys: pytest.CaptureFixture[str], short_path: Path
) -> None:
    path = short_path / "streams.jsonl"

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        for number in range(1, 5):
            open_marked(fake, number, "30" if number % 2 else "31")
        for number in range(1, 5):
            close_marked(fake, number, "30" if number % 2 else "31")
        fake.tell("CIRC 31 CLOSED REASON=DESTROYED")
        wait_until(lambda: path.read_bytes().count(b'"lost"') == 1)

    assert serve(policy_path, path, script) == 0

    text = path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [mark for mark in MARKS if mark in text] == []
    told = [json.loads(line) for line in text.splitlines()]
    attached = [line["circuit"] for line in told if line.get("event") == "attached"]
    assert attached == ["primary", "backup"] * 2
    assert {"circuit": "primary", "event": "built"}.items() <= next(
        line for line in told if line.get("event") == "built"
    ).items()
    assert main(["simulate", str(policy_path), "--log", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["streams"], document["carried"]) == (4, 4)


def test_a_full_disk_ends_the_recording_and_not_the_service(
    policy_path: Path,
    fake: FakeControlPort,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(recorder, "_open", lambda _path: os.open("/dev/full", os.O_WRONLY))

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_marked(fake, 1, "30")
        wait_until(lambda: any("recording ends" in message for message in log.messages))
        open_marked(fake, 2, "31")

    assert serve(policy_path, policy_path.parent / "x", script) == 0

    assert len([message for message in log.messages if "recording ends" in message]) == 1


def test_a_recording_that_cannot_be_made_is_one_line(
    policy_path: Path, capsys: pytest.CaptureFixture[str], agent_log: object
) -> None:
    del agent_log
    path = policy_path.parent / "nowhere" / "streams.jsonl"

    with contextlib.suppress(SystemExit):
        assert main(["run", str(policy_path), "--record", str(path)]) == 73

    said = capsys.readouterr().err
    assert f"circuitloom: cannot record to {path}: No such file or directory\n" in said
    assert "Traceback" not in said
