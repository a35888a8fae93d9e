"""The demo's parts in order: a network, Tor's own assignment, the agent, load, a closed circuit.

It ends everything that it started, whatever happens: the network's guardian knows the agent as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from circuitloom.admin import ask
from circuitloom.demo.findings import CLOSED, WEIGHTS, Failover, Findings, summary
from circuitloom.demo.views import View, open_view
from circuitloom.errors import AdminError, LabError
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.traffic import EchoServer, Load, SocksProxy, StreamShape
from circuitloom.lab.witness import StreamWitness

STREAMS_PER_SECOND = 40.0
"""A small part of what two cores carry, so that connect times are Tor's and not a queue's."""

SHAPE = StreamShape(hold_seconds=0.5)
"""Long enough that streams are open on the circuit when it is closed."""

OWN_SECONDS = 5.0
"""How long Tor assigns streams itself: 200 of them, enough for a p99."""

CLOSE_AFTER = 0.4
"""The part of the load after which a circuit is closed: shares have settled, and can settle again."""

BALANCING_SECONDS = 30.0
STOP_SECONDS = 8.0

POLL_SECONDS = 0.1
"""How often the agent is asked for its status."""


def run_demo(*, seconds: float, relays: int, plain: bool) -> int:
    """Show circuitloom at work on a private Tor network.

    Args:
        seconds: How long to drive load.
        relays: How many exit relays to start.
        plain: Progress lines instead of the live view; used as well when standard output is no terminal.

    Returns:
        The exit code: 0, or 1 when a stream was lost other than with the closed circuit.

    Raises:
        LabError: The network or the agent could not be started; the text says what to do.
    """
    began_at = time.monotonic()
    findings = Findings(seconds)
    with _ending_on_sigterm(), open_view(plain=plain) as view:
        view.stage(f"starting a private Tor network: 3 authorities, {relays} relays, a client")
        with PrivateNetwork(relays=relays, on_progress=view.stage) as network, EchoServer() as echo:
            asyncio.run(_Scenario(network, echo, view, findings).run())
            view.stage("ending the agent and the network")
    took_seconds = time.monotonic() - began_at
    sys.stdout.write(
        f"\n{summary(findings)}\n\n"
        "That was the real agent on a real Tor, all of it on 127.0.0.1.\n"
        f"It took {took_seconds:.0f} s. Nothing of it is left: no process, no file.\n"
    )
    return 1 if findings.lost_otherwise() else 0


class _Scenario:
    """What happens on the network, from the first stream on."""

    def __init__(self, network: PrivateNetwork, echo: EchoServer, view: View, findings: Findings) -> None:
        self._network = network
        self._proxies = [SocksProxy(network.client.socks_port)]
        self._target = echo.address
        self._view = view
        self._findings = findings
        self._log_path = network.directory / "agent.log"
        self._admin_socket = network.directory / "admin"
        # Which slot each circuit that was ever seen belongs to.
        self._slots: dict[str, str] = {}

    async def run(self) -> None:
        """Tor's own assignment first, then the agent's."""
        self._view.stage(f"Tor assigns streams itself for {OWN_SECONDS:.0f} s, for comparison")
        # The first stream waits for a circuit; that is not what is compared.
        await self._load(1.0).run(1.0)
        self._findings.own = await self._load(STREAMS_PER_SECOND).run(OWN_SECONDS)
        self._view.stage(f"the agent starts and builds {len(WEIGHTS)} circuits")
        with self._agent() as process, StreamWitness(self._network.client) as witness:
            await self._wait_until_balancing(process)
            await self._drive(witness)

    async def _drive(self, witness: StreamWitness) -> None:
        """Load, and a circuit that is closed on the way."""
        findings = self._findings
        findings.started_at = time.monotonic()
        findings.note("the agent attaches every new stream")
        load = self._load(STREAMS_PER_SECOND)
        running = asyncio.create_task(load.run(findings.seconds))
        while not running.done():
            await self._look(witness)
            findings.load = load.report()
            if findings.failover is None and findings.elapsed_seconds > findings.seconds * CLOSE_AFTER:
                self._close_circuit()
            self._view.show(findings)
            await asyncio.wait([running], timeout=POLL_SECONDS)
        findings.load = await running
        await self._look(witness)

    def _load(self, streams_per_second: float) -> Load:
        return Load(self._proxies, self._target, streams_per_second=streams_per_second, shape=SHAPE)

    @contextlib.contextmanager
    def _agent(self) -> Iterator[subprocess.Popen[bytes]]:
        """The agent as a process of its own, started as a service manager would."""
        policy = self._network.directory / "policy.yaml"
        policy.write_text(_policy_text(self._network.client.control_socket, self._admin_socket), "utf-8")
        with self._log_path.open("wb") as log:
            process = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-m", "circuitloom", "run", str(policy)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the demo, which then ends the agent.
                start_new_session=True,
            )
        self._network.guard(process.pid)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    async def _wait_until_balancing(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + BALANCING_SECONDS
        reason = "it does not answer"
        while time.monotonic() < deadline:
            if process.poll() is not None:
                said = self._log_path.read_text("utf-8", "replace").strip().rpartition("\n")[2]
                raise LabError(f"the agent ended with {process.returncode}: {said or 'it said nothing'}")
            with contextlib.suppress(AdminError):
                status = await self._status()
                built = sum(circuit["state"] == "built" for circuit in status["circuits"])
                if status["state"] == "balancing" and built == len(WEIGHTS):
                    return
                reason = status["reason"]
            await asyncio.sleep(POLL_SECONDS)
        raise LabError(f"the agent did not take over within {BALANCING_SECONDS:.0f} s: {reason}")

    async def _status(self) -> dict[str, Any]:
        return await asyncio.to_thread(ask, str(self._admin_socket), {"command": "status"})

    async def _look(self, witness: StreamWitness) -> None:
        """Take a new status, and count what Tor has told."""
        findings = self._findings
        with contextlib.suppress(AdminError):
            findings.status = await self._status()
        for circuit in findings.status["circuits"]:
            if circuit["circuit_id"] is not None:
                self._slots[circuit["circuit_id"]] = circuit["name"]
        carried: Counter[str] = Counter()
        for circuit_id, count in witness.streams.copy().items():
            carried[self._slots.get(circuit_id, "")] += count
        findings.carried = carried
        if findings.failover is not None and findings.failover.used_at is None:
            self._look_for_replacement(findings.failover, witness)

    def _look_for_replacement(self, failover: Failover, witness: StreamWitness) -> None:
        for circuit_id, name in self._slots.items():
            used_at = witness.first_used_at.get(circuit_id, 0.0)
            if name == CLOSED and used_at > failover.closed_at:
                failover.replaced_by, failover.used_at = circuit_id, used_at
                seconds = used_at - failover.closed_at
                self._findings.note(f"its replacement, {circuit_id}, carries streams after {seconds:.2f} s")

    def _close_circuit(self) -> None:
        """End a circuit in Tor, as a relay that goes away would; nobody tells the agent."""
        circuit = next(c for c in self._findings.status["circuits"] if c["name"] == CLOSED)
        if circuit["circuit_id"] is None:
            return
        with self._network.client.control() as port:
            closed_at = time.monotonic()
            port.ask(f"CLOSECIRCUIT {circuit['circuit_id']}")
        self._findings.failover = Failover(circuit["circuit_id"], closed_at, circuit["streams"])
        self._findings.note(f"circuit {circuit['circuit_id']} of {CLOSED} is closed behind the agent's back")


def _policy_text(control_socket: Path, admin_socket: Path) -> str:
    circuits = "".join(f"  - {{name: {name}, weight: {weight}}}\n" for name, weight in WEIGHTS.items())
    return (
        "version: 1\n"
        f'tor: {{control: "unix:{control_socket}"}}\n'
        "balance: {algorithm: weighted-round-robin, max_streams: 256}\n"
        f"circuits:\n{circuits}"
        "log: {level: info}\n"
        f'admin: {{socket: "{admin_socket}"}}\n'
    )


@contextlib.contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """SIGTERM unwinds as an exception does, so that all is ended in order."""

    def end(number: int, _: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
