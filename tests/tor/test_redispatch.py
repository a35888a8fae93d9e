"""A silent exit: streams move to another circuit, and not a byte that was sent early is lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient, TorRelay
from circuitloom.lab.socks import SocksError, SocksProxy
from circuitloom.lab.traffic import EchoServer
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
EARLY = b"sent before the reply"


@contextlib.contextmanager
def paused(relay: TorRelay) -> Iterator[None]:
    relay.pause()
    try:
        yield
    finally:
        relay.resume()


def make_agent(
    network: PrivateNetwork, directory: Path, *, balance: str = "", failover: str = "{}", exits: int = 2
) -> Agent:
    """Circuits that share everything but their exits, so that one exit can fall silent alone."""
    first, second, *others = network.relays
    circuits = ", ".join(
        f"{{name: {name}, path: [{first.fingerprint}, {second.fingerprint}, {relay.fingerprint}]}}"
        for name, relay in zip(("silent", "other", "third")[:exits], others, strict=False)
    )
    policy = policy_text(
        network.client.control_socket,
        directory,
        circuits=f"[{circuits}]",
        balance="{algorithm: round-robin%s}" % (f", {balance}" if balance else ""),
        more=f"failover: {failover}",
    )
    return Agent(directory, policy)


async def echo_early(client: TorClient, port: int, count: int, *, host: str = LOOPBACK) -> list[float]:
    """So many streams at once, each with early data that must come back; their connect times (seconds)."""
    proxy = SocksProxy(client.socks_port, timeout_seconds=30)

    async def one(number: int) -> float:
        early = EARLY + str(number).encode() * 50
        connection = await proxy.connect(host, port, early_data=early)
        await connection.expect(early)
        await connection.echo(b"and more after it")
        await connection.close()
        return connection.connect_seconds

    return list(await asyncio.gather(*(one(number) for number in range(count))))


def test_streams_leave_a_silent_circuit_early_and_lose_no_byte(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    failover = "{redispatch: {after: 1s}, retry: {attempts: 2, budget: 100%}}"
    with (
        make_agent(network, tmp_path, balance="purpose: controller", failover=failover) as agent,
        Witness(client) as witness,
    ):
        ids = circuit_ids(agent.wait_balancing(2))
        with paused(network.relays[2]):
            asyncio.run(echo_early(client, echo.port, 20))
        moved = [circuits for circuits in witness.attached.values() if circuits[0] == ids["silent"]]
        assert len(moved) == 10
        assert all(circuits == [ids["silent"], ids["other"]] for circuits in moved)
        assert not witness.detached, "Tor was faster"


def test_streams_that_tor_detaches_lose_no_byte_either(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with (
        make_agent(network, tmp_path, failover="{retry: {budget: 100%}}") as agent,
        Witness(client) as witness,
    ):
        ids = circuit_ids(agent.wait_balancing(2))
        with paused(network.relays[2]):
            asyncio.run(echo_early(client, echo.port, 6))
        assert sum(witness.detached.values()) == 3
        moved = [circuits for circuits in witness.attached.values() if circuits[0] == ids["silent"]]
        assert all(circuits[-1] == ids["other"] for circuits in moved)


def test_names_are_resolved_by_tor_itself_when_circuits_are_the_controller_s(
    network: PrivateNetwork, client: TorClient, tmp_path: Path
) -> None:
    with make_agent(network, tmp_path, balance="purpose: controller") as agent, Witness(client) as witness:
        ids = set(circuit_ids(agent.wait_balancing(2)).values())
        proxy = SocksProxy(client.socks_port, timeout_seconds=20)
        with contextlib.suppress(SocksError):
            asyncio.run(proxy.resolve("localhost"))
        resolved = [circuits for circuits in witness.attached.values() if circuits]
        assert resolved
        assert not any(ids & set(circuits) for circuits in resolved)
        # The client fixture asserts that Tor still runs.


# What is left to Tor, Tor may put on a general circuit of ours: nothing is, before Tor has given the port up.
@pytest.mark.parametrize(
    ("purpose", "exhausted"), [("general", "tor"), ("general", "close"), ("controller", "tor")]
)
def test_a_dead_destination_costs_few_circuits_and_nobody_else(
    client: TorClient, echo: EchoServer, tmp_path: Path, purpose: str, exhausted: str
) -> None:
    """One stream at a time to a port that refuses: three circuits fail it, the others never see it."""
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: swarm, count: 6}]",
        balance=f"{{algorithm: round-robin, purpose: {purpose}}}",
        more=f"failover: {{retry: {{exhausted: {exhausted}}}}}",
    )
    proxy = SocksProxy(client.socks_port, timeout_seconds=20)

    async def refuse() -> None:
        with contextlib.suppress(SocksError):
            # Nobody listens on port 1 of this address.
            await proxy.connect("127.0.0.7", 1)

    async def run() -> None:
        for _ in range(40):
            await refuse()
            await echo_early(client, echo.port, 3)

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        before = circuit_ids(agent.wait_balancing(6))
        asyncio.run(run())
        hit = {
            circuit
            for stream, circuits in witness.attached.items()
            if witness.failed.get(stream) or witness.detached[stream]
            for circuit in circuits
        } & set(before.values())
        assert 1 <= len(hit) <= 3
        after = agent.status()
        assert sum(circuit["failed_total"] for circuit in after["circuits"]) >= 3
        assert len(circuit_ids(after)) == 6
