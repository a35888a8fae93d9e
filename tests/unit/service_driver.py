"""Runs the real service in this process while a script plays Tor, systemd and the user."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from circuitloom.admin import ask
from circuitloom.errors import AdminError
from circuitloom.policy import read_policy
from circuitloom.service import Service
from unit.fake_control_port import FakeControlPort

WAIT_SECONDS = 20.0
TAKE_OVER = "SETCONF __LeaveStreamsUnattached=1"
GIVE_BACK = "RESETCONF __LeaveStreamsUnattached"


def change_policy(policy_path: Path, old: str, new: str) -> None:
    text = policy_path.read_text()
    assert old in text
    policy_path.write_text(text.replace(old, new))


def serve(policy_path: Path, script: Callable[[], object]) -> int:
    """Run the service while a script, in a thread of its own, does its part; it is stopped afterwards."""

    async def bounded() -> int:
        service = Service(str(policy_path), read_policy(policy_path))
        async with asyncio.timeout(WAIT_SECONDS):
            running = asyncio.create_task(service.run())
            await asyncio.sleep(0)  # it handles signals from here on; before, one would end the tests
            try:
                await asyncio.to_thread(script)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)
            return await running

    return asyncio.run(bounded())


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def status(policy_path: Path) -> dict[str, Any]:
    """What the agent answers, which may be starting yet."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return ask(str(policy_path.parent / "admin.sock"), {"command": "status"})
        except AdminError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def open_stream(fake: FakeControlPort, stream_id: int, target: str = "example.com:80") -> None:
    fake.tell(
        f"STREAM {stream_id} NEW 0 {target} PURPOSE=USER", f"STREAM {stream_id} CONTROLLER_WAIT 0 {target}"
    )
