"""The real agent as a child process, for tests against a real Tor."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from circuitloom.admin import ask
from circuitloom.errors import AdminError

START_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.05


def policy_text(control: Path, directory: Path, *, circuits: str, balance: str = "{}", more: str = "") -> str:
    """A policy for one Tor client; ``circuits`` and ``balance`` are YAML in flow style."""
    return (
        "version: 1\n"
        f"tor: {{control: 'unix:{control}'}}\n"
        f"balance: {balance}\n"
        f"circuits: {circuits}\n"
        "log: {level: debug, format: plain}\n"
        f"admin: {{socket: '{directory}/admin.sock'}}\n"
        f"{more}\n"
    )


class Agent:
    """``circuitloom run`` with a policy; a context manager that always ends it.

    Args:
        directory: For the policy, the admin socket and the log.
        policy: The policy's text.
        environment: More environment variables.
    """

    def __init__(self, directory: Path, policy: str, *, environment: Mapping[str, str] | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.policy_path = directory / "policy.yaml"
        self.policy_path.write_text(policy)
        self.log_path = directory / "agent.log"
        self.socket_path = directory / "admin.sock"
        self._environment = dict(os.environ) | dict(environment or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self, *module: str) -> None:
        """Start it; ``module`` (with its first arguments) runs instead of ``circuitloom``."""
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *(module or ("circuitloom",)), "run", str(self.policy_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
            )

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        """Make sure that it does not run."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(STOP_SECONDS)

    def kill(self, *, with_guard: bool = False) -> None:
        """SIGKILL; ``with_guard`` kills its guard first, as the end of a whole control group does."""
        if with_guard:
            self.kill_guard()
        self.process.kill()
        self.process.wait(STOP_SECONDS)

    def kill_guard(self) -> None:
        os.kill(self.status()["guard_pid"], signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and the exit code; it must end within the 5 s that are promised."""
        self.process.terminate()
        return self.process.wait(5.0)

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another ``circuitloom`` command, as a user types it."""
        return run_command(*arguments)

    def release(self) -> subprocess.CompletedProcess[str]:
        return run_command("release", str(self.policy_path))

    def status(self) -> dict[str, Any]:
        return ask(str(self.socket_path), {"command": "status"})

    def log(self) -> str:
        return self.log_path.read_text()

    def wait_until(
        self, is_so: Callable[[dict[str, Any]], bool], what: str, seconds: float = 20.0
    ) -> dict[str, Any]:
        """Wait for a status; the bound's message shows the log's end."""
        deadline = time.monotonic() + seconds
        last: object = "no status yet"
        while time.monotonic() < deadline:
            try:
                status = self.status()
            except AdminError as error:
                last = error
            else:
                if is_so(status):
                    return status
                last = status
            time.sleep(POLL_SECONDS)
        raise AssertionError(f"not within {seconds} s: {what}\n{last}\n{self.log()[-3000:]}")

    def wait_balancing(self, circuits: int, seconds: float = START_SECONDS) -> dict[str, Any]:
        """Wait until it balances over this many built circuits."""

        def is_so(status: dict[str, Any]) -> bool:
            built = [circuit for circuit in status["circuits"] if circuit["state"] == "built"]
            return status["state"] == "balancing" and len(built) == circuits

        return self.wait_until(is_so, f"balancing over {circuits} circuits", seconds)


def run_command(*arguments: str, timeout: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run ``circuitloom`` with these arguments and return what it printed."""
    return subprocess.run(
        [sys.executable, "-m", "circuitloom", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def circuit_ids(status: Mapping[str, Any]) -> dict[str, str]:
    """Tor's id of each built circuit, by its name in the policy."""
    return {
        circuit["name"]: circuit["circuit_id"]
        for circuit in status["circuits"]
        if circuit["state"] == "built"
    }
