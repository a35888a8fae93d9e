"""What rotation asks of Tor: byte counts only while the policy needs them, and MaxCircuitDirtiness."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from unit.fake_control_port import FakeControlPort
from unit.service_driver import TAKE_OVER, change_policy, open_stream, serve, status, wait_until

pytestmark = pytest.mark.usefixtures("log")


def subscriptions(fake: FakeControlPort) -> list[bool]:
    """Of each SETEVENTS, whether it asks for byte counts."""
    return [" CIRC_BW" in command for command in fake.commands if command.startswith("SETEVENTS")]


def test_bytes_are_counted_while_the_policy_needs_them(policy_path: Path, fake: FakeControlPort) -> None:
    def reload(old: str, new: str) -> None:
        change_policy(policy_path, old, new)
        os.kill(os.getpid(), signal.SIGHUP)

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        reload("version: 1", "version: 1\nrotation: {max_bytes: 1kB, jitter: 0%}")
        fake.wait_for("SETEVENTS", 2)
        fake.tell("CIRC_BW ID=30 READ=600 WRITTEN=400 TIME=2026-11-25T14:20:01.123456")
        wait_until(lambda: status(policy_path)["circuits"][0]["circuit_id"] == "32")
        reload("max_bytes: 1kB", "max_streams_total: 9")
        fake.wait_for("SETEVENTS", 3)

    assert serve(policy_path, script) == 0
    assert subscriptions(fake) == [False, True, False]


def test_bytes_are_asked_for_from_the_start_and_after_a_reconnect(
    policy_path: Path, fake: FakeControlPort
) -> None:
    change_policy(policy_path, "version: 1", "version: 1\nrotation: {max_bytes: 1MB}")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.hang_up()
        fake.wait_for("SETEVENTS", 2)

    assert serve(policy_path, script) == 0
    assert subscriptions(fake) == [True, True]


def test_max_circuit_dirtiness_is_read_at_the_start(policy_path: Path, fake: FakeControlPort) -> None:
    # A tenth of a second after its first stream Tor would be free to take a circuit away.
    fake.answers["GETCONF"] = "250-MaxCircuitDirtiness=1\r\n250 MapAddress\r\n"

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 5)
        wait_until(lambda: any(c["circuit_id"] == "32" for c in status(policy_path)["circuits"]))

    assert serve(policy_path, script) == 0
