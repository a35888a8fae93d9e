"""An operator drains, readies and weighs circuits of a running agent, as Tor itself reports it."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, OpenedStreams, open_many
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
PAYLOAD = b"both ways " * 20


def two_circuits(client: TorClient, directory: Path, more: str = "") -> str:
    return policy_text(
        client.control_socket,
        directory,
        circuits="[{name: primary}, {name: backup}]",
        balance="{algorithm: weighted-round-robin, max_streams: 1000}",
        more=more,
    )


def test_a_drain_stops_new_streams_and_loses_none_and_ready_and_weights_show_in_the_shares(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    policy = two_circuits(client, tmp_path)

    async def open_more(agent: Agent, opened: OpenedStreams, *command: str) -> Counter[str]:
        """Give a command, open 40 streams, and tell how many each circuit got of these."""
        if command:
            asked = await asyncio.to_thread(agent.command, *command, "--socket", str(agent.socket_path))
            assert (asked.returncode, asked.stderr) == (0, "")
        before = witness.first_circuits()
        more = await open_many(SocksProxy(client.socks_port), (LOOPBACK, echo.port), count=40, concurrency=20)
        assert more.failures == []
        opened.connections += more.connections
        return witness.first_circuits() - before

    async def run(agent: Agent) -> None:
        opened = OpenedStreams()
        primary, backup = ids["primary"], ids["backup"]
        assert await open_more(agent, opened) == {primary: 20, backup: 20}
        assert await open_more(agent, opened, "drain", "primary") == {backup: 40}
        assert await open_more(agent, opened, "ready", "primary") == {primary: 20, backup: 20}
        assert await open_more(agent, opened, "weight", "primary", "3") == {primary: 30, backup: 10}
        echoes = (connection.echo(PAYLOAD) for connection in opened.connections)
        assert await asyncio.gather(*echoes, return_exceptions=True) == [None] * 160
        await opened.close()

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        asyncio.run(run(agent))
        assert agent.stop() == 0


def test_a_fresh_circuit_starts_slowly_and_has_its_whole_share_in_the_end(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    policy = two_circuits(client, tmp_path, more="health: {slow_start: 15s}")

    async def open_and_close() -> None:
        opened = await open_many(
            SocksProxy(client.socks_port), (LOOPBACK, echo.port), count=40, concurrency=20
        )
        assert opened.failures == []
        await opened.close()

    def shares(witness: Witness) -> Counter[str]:
        before = witness.first_circuits()
        asyncio.run(open_and_close())
        return witness.first_circuits() - before

    def wait_until_whole(agent: Agent) -> None:
        agent.wait_until(
            lambda status: all(circuit["weight_factor"] == 1 for circuit in status["circuits"]),
            "whole weights",
            seconds=40.0,
        )

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        # Those that begin together share as ever.
        assert shares(witness) == {ids["primary"]: 20, ids["backup"]: 20}
        wait_until_whole(agent)
        assert agent.command("rotate", "primary", "--socket", str(agent.socket_path)).returncode == 0
        status = agent.wait_until(
            lambda status: circuit_ids(status).get("primary") not in {None, ids["primary"]}, "replaced"
        )
        fresh = circuit_ids(status)["primary"]
        taken = shares(witness)
        assert 0 < taken[fresh] < 13
        assert taken[fresh] + taken[ids["backup"]] == 40
        wait_until_whole(agent)
        assert shares(witness) == {fresh: 20, ids["backup"]: 20}
        assert agent.stop() == 0
