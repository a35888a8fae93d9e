"""The service reloaded, stopped, and hit by a fault of its own: it always gives back."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from circuitloom.model import Action, CircuitEvent, Event
from circuitloom.pool import Pool
from unit.fake_control_port import FakeControlPort
from unit.service_driver import GIVE_BACK, TAKE_OVER, open_stream, serve, status, wait_until

pytestmark = pytest.mark.usefixtures("log")


@pytest.mark.parametrize("fault", ["wieght: 2", "回路: 2"])
def test_a_faulty_reload_changes_nothing_and_says_so(
    policy_path: Path,
    fake: FakeControlPort,
    manager: socket.socket,
    log: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    good = policy_path.read_text()

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        policy_path.write_text(good.replace("{name: primary}", f"{{name: primary, {fault}}}"))
        os.kill(os.getpid(), signal.SIGHUP)
        message = ""
        while "READY=1\nSTATUS=reload refused: " not in message:
            message = manager.recv(4096).decode()
        open_stream(fake, 5)
        fake.wait_for("ATTACHSTREAM 5 30")

    assert serve(policy_path, script) == 0
    assert "reload refused: the policy has 1 fault, the old one stays" in log.text
    assert "internal fault" not in log.text


def test_a_reload_is_carried_out_and_addresses_stay(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    good = policy_path.read_text()

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        policy_path.write_text(good.replace("{name: backup}", "{name: third}").replace("/control", "/other"))
        os.kill(os.getpid(), signal.SIGHUP)
        fake.wait_for("CLOSECIRCUIT 31 IfUnused")
        assert status(policy_path)["tor"]["control"] == str(fake.address)

    assert serve(policy_path, script) == 0
    assert "restart the agent to apply their change" in log.text


def test_a_stop_while_disconnected_still_gives_back(policy_path: Path, fake: FakeControlPort) -> None:
    fake.answers["SETEVENTS"] = "552 Unrecognized\r\n"

    assert serve(policy_path, lambda: fake.wait_for("SETEVENTS", 3)) == 0
    assert fake.count(GIVE_BACK) >= 1


def test_a_stop_without_any_tor_is_quiet(policy_path: Path, log: pytest.LogCaptureFixture) -> None:
    def script() -> None:
        wait_until(lambda: "no Tor at" in status(policy_path)["reason"])

    assert serve(policy_path, script) == 0
    assert "Tor is not there: nothing to give back" in log.text
    assert not any(record.levelno >= logging.ERROR for record in log.records)


def test_a_stop_is_bounded_when_tor_hangs(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitloom.release.STOP_SECONDS", 0.3)

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.is_mute = True

    started = time.monotonic()
    assert serve(policy_path, script) == 0
    assert time.monotonic() - started < 10
    assert "could not give everything back (time is up); run: circuitloom release" in log.text


def test_a_fault_of_our_own_gives_back_tells_no_destination_and_ends_with_70(
    policy_path: Path,
    fake: FakeControlPort,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = Pool.handle

    def fail(pool: Pool, event: Event, *, now: float) -> list[Action]:
        if isinstance(event, CircuitEvent) and event.keywords.get("REASON") == "FINISHED":
            raise RuntimeError("secret.example:80")
        return handle(pool, event, now=now)

    monkeypatch.setattr(Pool, "handle", fail)

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.tell("CIRC 30 CLOSED REASON=FINISHED")
        fake.wait_for(GIVE_BACK)

    assert serve(policy_path, script) == 70
    assert re.search(r"internal fault \(RuntimeError at \S+test_service_end\.py:\d+\)", log.text)
    assert "secret" not in log.text


def test_a_task_that_ends_by_a_fault_is_a_fault_of_our_own(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_arguments: object, **_keywords: object) -> Awaitable[None]:
        raise RuntimeError("a fault")

    monkeypatch.setattr("circuitloom.link.connect", fail)

    assert serve(policy_path, lambda: fake.wait_for(GIVE_BACK)) == 70
    assert "internal fault (RuntimeError at " in log.text
