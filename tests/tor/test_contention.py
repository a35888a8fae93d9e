"""Another controller at the same Tor: reported, bounded, and no stream pays for it."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from circuitloom.lab.controlport import build_circuit
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, Outcome
from tor.agent import Agent, policy_text
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
RESET = "SETCONF __LeaveStreamsUnattached=0"


def make_agent(client: TorClient, directory: Path, when_contended: str) -> Agent:
    policy = policy_text(
        client.control_socket,
        directory,
        circuits="[{name: one}, {name: two}]",
        more=f"failover: {{when_contended: {when_contended}}}",
    )
    return Agent(directory, policy)


async def under_load(client: TorClient, echo: EchoServer, resets: int) -> list[str]:
    """Streams at a steady rate while somebody resets the option; returns what failed."""
    load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=50)
    running = asyncio.create_task(load.run(3))
    with Witness(client) as rival:
        for _ in range(resets):
            await asyncio.sleep(0.4)
            await asyncio.to_thread(rival.tell, RESET)
        report = await running
    return [str(result.detail) for result in report.results if result.outcome is not Outcome.SUCCEEDED]


@pytest.mark.parametrize("resets", [1, 6])
def test_a_controller_that_resets_the_option_is_named_and_not_fought(
    client: TorClient, echo: EchoServer, tmp_path: Path, resets: int
) -> None:
    with make_agent(client, tmp_path, "take-back") as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        assert asyncio.run(under_load(client, echo, resets)) == []
        state = "balancing" if resets == 1 else "released"
        status = agent.wait_until(
            lambda status: status["state"] == state and "another controller" in status["reason"], state
        )
        assert witness.waiting() == []
        assert agent.log().count("another controller") == 1, status


def test_by_policy_the_agent_stands_aside_until_it_is_reloaded(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with make_agent(client, tmp_path, "stand-aside") as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        assert asyncio.run(under_load(client, echo, 1)) == []
        status = agent.status()
        assert status["state"] == "released"
        assert "standing aside until a reload" in status["reason"]
        assert witness.option() == "0"
        client.reload()
        assert agent.status()["state"] == "released"
        agent.signal(signal.SIGHUP)
        agent.wait_balancing(2)


def test_a_controller_that_attaches_our_streams_is_named_and_its_choice_stands(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    """A rival moves each stream as soon as it waits; half of the time it wins."""
    with make_agent(client, tmp_path, "take-back") as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        with client.control() as port:
            theirs = build_circuit(port, timeout_seconds=20.0)

        async def run() -> None:
            for _ in range(40):
                opening = asyncio.create_task(
                    SocksProxy(client.socks_port, timeout_seconds=20).connect(LOOPBACK, echo.port)
                )
                while not opening.done():
                    for stream_id in list(witness.attached):
                        if stream_id not in moved:
                            moved.add(stream_id)
                            await asyncio.to_thread(witness.tell, f"ATTACHSTREAM {stream_id} {theirs}")
                    await asyncio.sleep(0)
                connection = await opening
                await connection.echo(b"whoever attached it")
                await connection.close()

        moved: set[str] = set()
        asyncio.run(run())
        won = [circuits for circuits in witness.attached.values() if theirs in circuits]
        assert won, "the rival was never fast enough: nothing was tested"
        assert all(circuits[-1] == theirs for circuits in won), "the agent fought"
        assert "another controller attaches streams" in agent.status()["reason"]
        assert agent.log().count("another controller attaches streams") == 1


def test_a_tor_that_ends_with_its_owner_is_waited_for(network: PrivateNetwork, tmp_path: Path) -> None:
    client = network.add_client()
    try:
        with make_agent(client, tmp_path, "take-back") as agent:
            agent.wait_balancing(2)
            with Witness(client) as owner:
                assert owner.tell("TAKEOWNERSHIP").startswith("OK")
            agent.wait_until(lambda status: not status["tor"]["connected"], "Tor's end is noticed")
            client.kill()
            client.start()
            client.wait_until_ready()
            agent.wait_balancing(2)
    finally:
        client.stop()
