"""One tor process of the private network: its files, its life, and what it says when it fails.

A node is ended by its own process id only, and always waited for.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from circuitloom.errors import LabError
from circuitloom.lab.controlport import ControlPort, build_circuit
from circuitloom.lab.torrc import merge, write_torrc

START_SECONDS = 30.0
"""A tor opens its control socket within 1.5 s when ten start at once; thirty on two cores took 4 s."""

STOP_SECONDS = 5.0
"""With ``ShutdownWaitLength 0`` tor ends within 0.1 s of SIGTERM; after this it is killed."""

BOOTSTRAP_SECONDS = 60.0
"""Two voting periods after a missed first vote; usually a client is ready 2 s after its start."""

POLL_SECONDS = 0.05

FRUGAL_ALLOCATION = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
"""Compressing a consensus once takes 60 MB, which glibc would keep in every relay for good."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What a node is made of.

    Attributes:
        nickname: Its name in the network.
        directory: Its own; made when it is missing.
        tor: The program.
        lines: Its torrc, but for what has to do with its directory.
        options: Extra lines; see ``torrc.merge``.
        guard: Is told each process id; kills the process when the network's owner is gone.
    """

    nickname: str
    directory: Path
    tor: str
    lines: Sequence[str]
    options: Sequence[str]
    guard: Callable[[int], None]


class TorNode:
    """A tor process with its own directory.

    Attributes:
        nickname: Its name in the network.
        directory: All its files.
        options: Extra torrc lines; changed ones are used from the next ``start`` or ``reload`` on.
        log_path: What tor said at notice level and above, over all its starts.
        control_socket: Its control port; ``cookie`` is the file that proves who asks.
    """

    def __init__(self, plan: NodePlan) -> None:
        self.nickname = plan.nickname
        self.directory = plan.directory
        self.options = list(plan.options)
        self.log_path = plan.directory / "log"
        self.control_socket = plan.directory / "control"
        self.cookie = plan.directory / "control_auth_cookie"
        self._plan = plan
        self._process: subprocess.Popen[bytes] | None = None
        plan.directory.mkdir(mode=0o700, exist_ok=True)

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process and self.is_running() else "not running"
        return f"<{type(self).__name__} {self.nickname} [{state}]>"

    @property
    def pid(self) -> int:
        """The process id; raises LabError when the node does not run."""
        return self._running_process().pid

    def is_running(self) -> bool:
        """Whether the process is there, even if paused."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start the process without waiting until it answers; ``wait_until_answering`` does that."""
        if self.is_running():
            raise LabError(f"{self.nickname} is already running: stop it first")
        torrc = self._write_torrc()
        no_defaults = self.directory / "torrc-defaults"
        no_defaults.touch()
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the program found on PATH, with our own files
                [self._plan.tor, "-f", torrc, "--defaults-torrc", no_defaults],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.directory,
                env=os.environ | FRUGAL_ALLOCATION,
                # Ctrl-C goes to the owner's process group; the owner decides when its nodes end.
                start_new_session=True,
            )
        self._plan.guard(self._process.pid)

    def start(self) -> None:
        """Start the process and wait until its control socket answers.

        Raises:
            LabError: It ends at once or does not answer; the text holds the reason that tor gave.
        """
        self.launch()
        self.wait_until_answering()

    def wait_until_answering(self, *, timeout_seconds: float = START_SECONDS) -> None:
        """Wait until the control socket answers, or raise LabError."""

        def answers() -> bool:
            try:
                self.control().close()
            except LabError:
                # Not open yet, or the cookie is still that of the process before.
                return False
            return True

        self._wait_until(answers, timeout_seconds, "its control socket does not answer")

    def control(self) -> ControlPort:
        """A new authenticated control connection; the caller closes it (it is a context manager)."""
        return ControlPort(self.control_socket, self.cookie)

    def stop(self) -> None:
        """End the process in good order (SIGTERM) and wait for it; does nothing when it is gone already."""
        if self._process is None or not self.is_running():
            return
        self._process.terminate()
        # A paused process takes SIGTERM only once it goes on.
        self._process.send_signal(signal.SIGCONT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the process at once (SIGKILL) and wait for it; does nothing when it is gone already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def restart(self) -> None:
        """Stop and start, with changed ``options`` if there are any."""
        self.stop()
        self.start()

    def reload(self) -> None:
        """Let tor read its torrc again (SIGHUP), with changed ``options``; that takes it a moment."""
        self._write_torrc()
        self._running_process().send_signal(signal.SIGHUP)

    def pause(self) -> None:
        """Freeze the process (SIGSTOP): its connections stay open and say nothing."""
        self._running_process().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused process go on (SIGCONT)."""
        self._running_process().send_signal(signal.SIGCONT)

    def log_text(self) -> str:
        """All that tor has logged."""
        return self.log_path.read_text("utf-8", "replace") if self.log_path.exists() else ""

    def last_complaint(self) -> str:
        """The last line that tor logged as [err], else as [warn], without its date; empty without any."""
        text = self.log_text()
        for level in ("err", "warn"):
            lines: list[str] = re.findall(rf"\[{level}\] (.*)", text)
            # "Reading config failed--see warnings above." is the last [err], and says nothing.
            told = [line for line in lines if "see warnings above" not in line]
            if told:
                return told[-1]
        return ""

    def _running_process(self) -> subprocess.Popen[bytes]:
        if self._process is None or not self.is_running():
            raise LabError(f"{self.nickname} is not running: start it first")
        return self._process

    def _write_torrc(self) -> Path:
        path = self.directory / "torrc"
        own_lines = [f"DataDirectory {self.directory}", f"ControlSocket {self.control_socket}"]
        write_torrc(path, merge([*own_lines, *self._plan.lines], self.options))
        return path

    def _wait_until(self, condition: Callable[[], bool], timeout_seconds: float, complaint: str) -> None:
        deadline = time.monotonic() + timeout_seconds
        while not condition():
            if not self.is_running():
                raise LabError(self._why_ended())
            if time.monotonic() > deadline:
                said = self.last_complaint()
                reason = f"; the last that it logged: {said}" if said else ""
                raise LabError(f"{self.nickname}: {complaint} within {timeout_seconds:.0f} s{reason}")
            time.sleep(POLL_SECONDS)

    def _why_ended(self) -> str:
        code = self._process.returncode if self._process else None
        said = self.last_complaint() or "it logged no reason"
        taken = "Address already in use" in self.log_text()
        advice = "; another program has taken the port meanwhile: try again" if taken else ""
        return f"{self.nickname}: tor ended with status {code}: {said}{advice}"


class TorRelay(TorNode):
    """A relay or a directory authority.

    Attributes:
        or_port: Where it takes connections of other nodes.
    """

    def __init__(self, plan: NodePlan, *, or_port: int) -> None:
        super().__init__(plan)
        self.or_port = or_port

    @property
    def fingerprint(self) -> str:
        """40 upper-case hex digits, without ``$``; known once it has been started."""
        return (self.directory / "fingerprint").read_text("ascii").split()[1]

    def wait_until_informed(
        self,
        relays: Sequence[TorRelay],
        *,
        kind: Literal["desc", "ns", "md"],
        timeout_seconds: float = BOOTSTRAP_SECONDS,
    ) -> None:
        """Wait until this node knows all the relays.

        Args:
            relays: Those that it has to know.
            kind: From their own uploads (``desc``, authorities only), from the consensus (``ns``), or with
                what it takes to build circuits (``md``, no authorities).
            timeout_seconds: For all of them.

        Raises:
            LabError: Not in time, or the process ended.
        """
        with self.control() as port:
            self._wait_until(
                lambda: all(port.has(f"{kind}/id/{relay.fingerprint}") for relay in relays),
                timeout_seconds,
                "it has not learned of every relay",
            )


class TorClient(TorNode):
    """A client.

    Attributes:
        socks_port: On 127.0.0.1.
        dns_port: On 127.0.0.1, UDP.
    """

    def __init__(self, plan: NodePlan, *, socks_port: int, dns_port: int) -> None:
        super().__init__(plan)
        self.socks_port = socks_port
        self.dns_port = dns_port

    def wait_until_ready(
        self,
        *,
        relays: Sequence[TorRelay] = (),
        timeout_seconds: float = BOOTSTRAP_SECONDS,
    ) -> None:
        """Wait until it has bootstrapped, knows the given relays, and has built a circuit.

        Raises:
            LabError: Not in time, or the process ended.
        """
        deadline = time.monotonic() + timeout_seconds

        def left_seconds() -> float:
            return max(1.0, deadline - time.monotonic())

        self.wait_until_answering(timeout_seconds=left_seconds())
        with self.control() as port:
            self._wait_until(
                lambda: "PROGRESS=100" in port.ask_value("status/bootstrap-phase"),
                left_seconds(),
                "it is not bootstrapped",
            )
            self._wait_until(
                lambda: all(port.has(f"md/id/{relay.fingerprint}") for relay in relays),
                left_seconds(),
                "it has not learned of every relay",
            )
            circuit_id = build_circuit(port, timeout_seconds=left_seconds())
            port.ask(f"CLOSECIRCUIT {circuit_id}")
