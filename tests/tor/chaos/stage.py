"""What a scenario acts on: a real Tor, a real agent under a supervisor, load and a witness."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from circuitloom.errors import LabError
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.torrc import LOOPBACK
from tor.agent import Agent, policy_text
from tor.chaos.load import SteadyLoad
from tor.chaos.span import Span
from tor.chaos.watch import Watch

CIRCUITS = 4
"""Enough that one circuit's end leaves others, few enough that six exit relays do not repeat much."""

POLICY_CIRCUITS = "[{name: a}, {name: b}, {name: c}, {name: d}]"

SOCKS_SECONDS = 30.0
"""How long a Tor that was started may take to open its SOCKS port."""


class Stage:
    """One row's world.

    Args:
        network: Left as it was found.
        watch: The witness.
        load: Running.
        agent: Balancing over ``CIRCUITS`` circuits, under a supervisor.
        directory: For whatever the scenario writes.

    Attributes:
        faults: When new streams should have begun to recover.
        absent: When Tor's SOCKS port was not there.
        closed: Circuits that the scenario itself had closed.
    """

    def __init__(
        self, network: PrivateNetwork, *, watch: Watch, load: SteadyLoad, agent: Agent, directory: Path
    ) -> None:
        self.network = network
        self.watch = watch
        self.load = load
        self.agent = agent
        self.directory = directory
        self.faults: list[float] = []
        self.absent: list[Span] = []
        self.closed: set[str] = set()

    @property
    def client(self) -> TorClient:
        return self.network.client

    def fault(self) -> None:
        """Say that it happens now: new streams are to work soon after."""
        self.faults.append(time.monotonic())

    def circuits(self) -> dict[str, list[str]]:
        """The fingerprints along each circuit that the agent balances over, by Tor's id, as Tor tells."""
        ours = {
            circuit["circuit_id"]
            for circuit in self.agent.status()["circuits"]
            if circuit["state"] == "built"
        }
        lines = [line.split(" ") for line in self.watch.info("circuit-status")]
        return {
            words[0]: [hop[1:41] for hop in words[2].split(",")]
            for words in lines
            if words[0] in ours and words[1] == "BUILT"
        }

    def close_circuit(self, circuit_id: str) -> None:
        """Close one, with all its streams."""
        self.closed.add(circuit_id)
        # It may have gone by itself a moment ago.
        with contextlib.suppress(LabError):
            self.watch.ask(f"CLOSECIRCUIT {circuit_id}")

    @contextlib.contextmanager
    def tor_absent(self) -> Iterator[None]:
        """Around what ends Tor and starts it again; the fault counts from when it takes connections again."""
        span = Span(time.monotonic())
        self.absent.append(span)
        yield
        deadline = span.start + SOCKS_SECONDS
        while not self._accepts():
            assert time.monotonic() < deadline, (
                f"Tor's SOCKS port is not back: {self.client.last_complaint()}"
            )
            time.sleep(0.01)
        span.end = time.monotonic()
        self.fault()

    @contextlib.contextmanager
    def tor_unable(self) -> Iterator[None]:
        """Around a time in which Tor is there and serves nobody: streams wait, and none may be lost."""
        span = Span(time.monotonic())
        try:
            yield
        finally:
            span.end = time.monotonic()
            self.watch.unable.append(span)
            self.fault()

    def _accepts(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self.client.socks_port), timeout=1.0).close()
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def control_socket_away(self) -> Iterator[None]:
        """Its name is gone, so that nobody can connect; connections that exist stay."""
        path = self.client.control_socket
        away = path.with_name("control.away")
        path.rename(away)
        try:
            yield
        finally:
            away.rename(path)

    def wait_log(self, text: str, seconds: float = 10.0) -> None:
        """Wait until the agent has logged this."""
        self.watch.wait_until(lambda: text in self.agent.log(), f"the agent logs {text!r}", seconds)


def make_agent(client: TorClient, directory: Path) -> Agent:
    """An agent with a policy of ``CIRCUITS`` circuits of equal weight, every path chosen by Tor."""
    text = policy_text(
        client.control_socket,
        directory,
        circuits=POLICY_CIRCUITS,
        balance="{algorithm: round-robin}",
        # Until all circuits are back must take as long as the fault takes, not as long as a policy may wait.
        more="failover: {rebuild: {max: 4s}}",
    )
    return Agent(directory, text)


def wait_whole(agent: Agent, seconds: float) -> None:
    """Wait until the agent balances and no circuit is missing.

    There may be more than the policy names: after NEWNYM the old ones keep the streams that they have, and a
    circuit that drains is there until its last stream ends, which in a black hole takes Tor two minutes.
    """

    def is_whole(status: dict[str, Any]) -> bool:
        states = [c["state"] for c in status["circuits"] if c["state"] != "draining"]
        return status["state"] == "balancing" and len(states) >= CIRCUITS and set(states) == {"built"}

    agent.wait_until(is_whole, "balancing, with every circuit built", seconds)


def clear_circuits(watch: Watch) -> None:
    """Close every circuit that carries streams of users, so that the next row meets none of this one's."""
    for line in watch.info("circuit-status"):
        if "PURPOSE=GENERAL" in line:
            with contextlib.suppress(LabError):
                watch.ask(f"CLOSECIRCUIT {line.split(' ')[0]}")
