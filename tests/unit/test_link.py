"""What the guard is told: that streams may wait for us, from the first chance of it to Tor's last word."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from circuitloom.guard import Guard
from unit.fake_control_port import FakeControlPort
from unit.service_driver import TAKE_OVER, serve, wait_until

POLICY = """\
version: 1
tor: {{control: 'unix:{directory}/control'}}
circuits: [{{name: only}}]
admin: {{socket: '{directory}/admin.sock'}}
log: {{format: plain}}
"""


@pytest.fixture
def policy_path(short_path: Path) -> Path:
    path = short_path / "policy.yaml"
    path.write_text(POLICY.format(directory=short_path))
    return path


def test_the_guard_is_in_charge_until_tor_has_reset_the_option(
    policy_path: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An agent killed before Tor has read its RESETCONF has given nothing back."""
    beats: list[bool] = []
    is_asked, is_read = threading.Event(), threading.Event()
    monkeypatch.setattr(Guard, "beat", lambda _guard, *, is_in_charge: beats.append(is_in_charge))

    def reset(_command: str) -> str:
        is_asked.set()
        is_read.wait(10)
        return "250 OK\r\n"

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.answers["RESETCONF"] = reset
        fake.answers["EXTENDCIRCUIT"] = "551 Couldn't start circuit\r\n"
        fake.tell("CIRC 30 CLOSED REASON=DESTROYED")
        assert is_asked.wait(10)
        count = len(beats)
        wait_until(lambda: len(beats) >= count + 3)
        assert set(beats[count:]) == {True}
        is_read.set()
        wait_until(lambda: not beats[-1])

    assert serve(policy_path, script) == 0


def test_at_a_stop_the_guard_is_in_charge_until_everything_is_given_back(
    policy_path: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option is reset at once, and then whatever waited before that is handed to Tor."""
    told: list[bool | str] = []
    monkeypatch.setattr(Guard, "beat", lambda _guard, *, is_in_charge: told.append(is_in_charge))

    def reset(_command: str) -> str:
        told.append("reset")
        # As long as some beats.
        time.sleep(0.7)
        return "250 OK\r\n"

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.answers["RESETCONF"] = reset

    assert serve(policy_path, script) == 0
    first = told.index("reset")
    last = len(told) - told[::-1].index("reset")
    assert last > first + 1
    assert False not in told[first:last]
    assert told[-1] is False
