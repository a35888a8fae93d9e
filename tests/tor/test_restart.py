"""A new agent takes the circuits of the old one over: a restart builds nothing and cuts nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

LOOPBACK = "127.0.0.1"


def make_agent(client: TorClient, directory: Path, *, purpose: str = "general") -> Agent:
    state = directory / "state"
    state.mkdir(parents=True, exist_ok=True)
    policy = policy_text(
        client.control_socket,
        directory,
        circuits="[{name: one}, {name: two}, {name: three}]",
        balance=f"{{algorithm: round-robin, purpose: {purpose}}}",
    )
    return Agent(directory, policy, environment={"STATE_DIRECTORY": str(state)})


@pytest.mark.parametrize("is_killed", [False, True], ids=["stopped", "killed"])
@pytest.mark.parametrize("purpose", ["general", "controller"])
def test_circuits_and_their_streams_outlive_the_agent(
    client: TorClient, echo: EchoServer, tmp_path: Path, purpose: str, is_killed: bool
) -> None:
    alice = SocksProxy(client.socks_port, "alice-the-secret", "her-password", timeout_seconds=20)

    async def run() -> None:
        open_before = [await alice.connect(LOOPBACK, echo.port) for _ in range(3)]
        if is_killed:
            await asyncio.to_thread(agent.kill)
        else:
            assert await asyncio.to_thread(agent.stop) == 0
        await asyncio.to_thread(agent.start)
        status = await asyncio.to_thread(agent.wait_balancing, 3)
        assert circuit_ids(status) == before
        for connection in open_before:
            await connection.echo(b"still here")
        open_after = [await alice.connect(LOOPBACK, echo.port) for _ in range(3)]
        assert witness.open_streams() == dict.fromkeys(before.values(), 2)
        for connection in (*open_before, *open_after):
            await connection.close()

    with make_agent(client, tmp_path, purpose=purpose) as agent, Witness(client) as witness:
        before = circuit_ids(agent.wait_balancing(3))
        asyncio.run(run())
        written = (tmp_path / "state" / "circuits.json").read_text()
        assert all(circuit_id in written for circuit_id in before.values())
        assert "alice" not in written
        assert "her-password" not in written


def test_another_user_never_gets_the_circuits_that_were_left_for_the_first(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def use(name: str) -> None:
        proxy = SocksProxy(client.socks_port, name, "x", timeout_seconds=20)
        for _ in range(6):
            connection = await proxy.connect(LOOPBACK, echo.port)
            await connection.close()

    def circuits_of(name: str) -> set[str]:
        return {
            circuit
            for stream, circuits in witness.attached.items()
            if witness.users.get(stream) == name
            for circuit in circuits
        }

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        before = set(circuit_ids(agent.wait_balancing(3)).values())
        asyncio.run(use("first"))
        agent.kill()
        agent.start()
        agent.wait_balancing(3)
        asyncio.run(use("second"))
        asyncio.run(use("first"))
        assert circuits_of("first") == before
        assert len(circuits_of("second")) == 3
        assert not circuits_of("second") & before


def test_a_tor_that_was_restarted_meanwhile_has_none_of_them(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with make_agent(client, tmp_path) as agent:
        agent.wait_balancing(3)
        asyncio.run(_use_once(client, echo))
        agent.kill()
        client.restart()
        client.wait_until_ready()
        agent.start()
        agent.wait_balancing(3)
        assert "built:" in agent.log()


async def _use_once(client: TorClient, echo: EchoServer) -> None:
    connection = await SocksProxy(client.socks_port, timeout_seconds=20).connect(LOOPBACK, echo.port)
    await connection.echo(b"works")
    await connection.close()
