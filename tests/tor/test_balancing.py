"""Streams are spread as the policy says, as Tor itself reports it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, OpenedStreams, Outcome, open_many
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
PAYLOAD = b"both ways " * 20


async def echo_on_all(opened: OpenedStreams) -> int:
    """Send bytes on every stream at once and count those that came back intact."""
    results = await asyncio.gather(
        *(connection.echo(PAYLOAD) for connection in opened.connections), return_exceptions=True
    )
    return sum(1 for result in results if result is None)


def test_512_concurrent_streams_go_256_to_256(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: primary}, {name: backup}]",
        balance="{algorithm: round-robin, max_streams: 256}",
    )

    async def run() -> None:
        proxy = SocksProxy(client.socks_port)
        opened = await open_many(proxy, (LOOPBACK, echo.port), count=512, concurrency=128)
        assert opened.failures == []
        assert witness.open_streams() == {ids["primary"]: 256, ids["backup"]: 256}
        assert await echo_on_all(opened) == 512
        await opened.close()

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        asyncio.run(run())
        assert witness.first_circuits() == {ids["primary"]: 256, ids["backup"]: 256}
        agent.wait_until(lambda status: status["streams"]["active"] == 0, "all streams ended")
        assert agent.stop() == 0


def test_1000_streams_follow_weights(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    weights = {"heavy": 4, "middle": 3, "light": 2, "feather": 1}
    circuits = ", ".join(f"{{name: {name}, weight: {weight}}}" for name, weight in weights.items())
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits=f"[{circuits}]",
        balance="{algorithm: weighted-round-robin, max_streams: 1000}",
    )

    async def run() -> None:
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=150)
        report = await load.run(1000 / 150)
        assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []
        assert len(report.results) == 1000

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(4))
        asyncio.run(run())
        shares = witness.first_circuits()
        assert sum(shares.values()) == 1000
        for name, weight in weights.items():
            assert abs(shares[ids[name]] - 100 * weight) <= 1
        status = agent.status()
        assert [circuit["attached_total"] for circuit in status["circuits"]] == [400, 300, 200, 100]
        assert agent.stop() == 0


def test_least_streams_fills_the_emptier_circuit(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: a}, {name: b, weight: 3}]",
        balance="{algorithm: least-streams}",
    )

    async def run() -> None:
        proxy = SocksProxy(client.socks_port)
        opened = await open_many(proxy, (LOOPBACK, echo.port), count=40, concurrency=1)
        assert opened.failures == []
        assert witness.open_streams() == {ids["a"]: 10, ids["b"]: 30}
        await opened.close()

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        asyncio.run(run())


def test_streams_above_the_limit_are_left_to_tor(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: a}, {name: b}]",
        balance="{algorithm: round-robin, max_streams: 5, when_full: tor}",
    )

    async def run() -> None:
        opened = await open_many(SocksProxy(client.socks_port), (LOOPBACK, echo.port), count=20)
        assert opened.failures == []
        assert await echo_on_all(opened) == 20
        await opened.close()

    with Agent(tmp_path, policy) as agent:
        agent.wait_balancing(2)
        asyncio.run(run())
        streams = agent.status()["streams"]
        assert streams["attached_total"] >= 10
        assert streams["attached_total"] + streams["released_total"] == 20


def test_a_full_pool_queues_and_drains_without_losing_a_stream(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: a}, {name: b}]",
        balance="{algorithm: round-robin, max_streams: 5, queue: {timeout: 60s}}",
    )

    async def run() -> None:
        proxy = SocksProxy(client.socks_port)
        first = await open_many(proxy, (LOOPBACK, echo.port), count=10)
        assert first.failures == []
        late = asyncio.create_task(open_many(proxy, (LOOPBACK, echo.port), count=10))
        waits = asyncio.to_thread(
            agent.wait_until, lambda status: status["streams"]["waiting"] == 10, "ten streams wait"
        )
        await waits
        assert max(witness.open_streams().values()) == 5
        assert await echo_on_all(first) == 10
        await first.close()
        second = await late
        assert second.failures == []
        assert await echo_on_all(second) == 10
        assert max(witness.open_streams().values()) <= 5
        await second.close()

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(run())
        streams = agent.status()["streams"]
        assert (streams["attached_total"], streams["released_total"], streams["failed_total"]) == (20, 0, 0)


def test_rules_send_ports_and_users_to_their_circuits(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: bulk}, {name: tenants, count: 2}, {name: rest}]",
        balance="{algorithm: round-robin, isolation: none}",
        more=(
            "rules:\n"
            "  - {match: {socks_user: 'tenant-*'}, circuits: [tenants]}\n"
            "  - {match: {socks_user: banned}, action: reject}\n"
            "  - {match: {socks_user: own}, action: tor}\n"
            f"  - {{match: {{port: [{echo.port}]}}, circuits: [bulk]}}\n"
        ),
    )

    async def opened_by(user: str, count: int) -> OpenedStreams:
        proxy = SocksProxy(client.socks_port, username=user, password="x")  # noqa: S106
        return await open_many(proxy, (LOOPBACK, echo.port), count=count, concurrency=1)

    async def run() -> None:
        tenants = await opened_by("tenant-7", 4)
        anybody = await opened_by("anybody", 3)
        assert witness.open_streams() == {ids["tenants-1"]: 2, ids["tenants-2"]: 2, ids["bulk"]: 3}
        banned = await opened_by("banned", 2)
        assert len(banned.failures) == 2
        own = await opened_by("own", 2)
        assert own.failures == []
        for streams in (tenants, anybody, own):
            await streams.close()

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(4))
        asyncio.run(run())
        assert agent.status()["streams"]["released_total"] == 2


def test_explicit_paths_are_built_as_written(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    prints = [relay.fingerprint for relay in network.relays]
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits=(
            f"[{{name: one, path: [{prints[0]}, ${prints[1]}, {prints[2]}]}}, "
            f"{{name: two, path: [{prints[3]}, {prints[4]}, {prints[5]}]}}]"
        ),
    )

    async def run() -> None:
        opened = await open_many(SocksProxy(client.socks_port), (LOOPBACK, echo.port), count=4)
        assert await echo_on_all(opened) == 4
        await opened.close()

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        status = agent.wait_balancing(2)
        assert [circuit["path"] for circuit in status["circuits"]] == [
            [relay.nickname for relay in network.relays[:3]],
            [relay.nickname for relay in network.relays[3:]],
        ]
        asyncio.run(run())
        ids = circuit_ids(status)
        assert witness.first_circuits() == {ids["one"]: 2, ids["two"]: 2}


def test_a_closed_circuit_costs_only_the_streams_on_it(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: a}, {name: b}, {name: c}]",
        balance="{algorithm: round-robin}",
    )

    async def run() -> None:
        held = await open_many(SocksProxy(client.socks_port), (LOOPBACK, echo.port), count=30, concurrency=10)
        assert held.failures == []
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=100)
        running = asyncio.create_task(load.run(6))
        await asyncio.sleep(2)
        assert witness.tell(f"CLOSECIRCUIT {ids['a']}").startswith("OK")
        report = await running
        # What ended with the closed circuit was on it, as Tor says; nothing else failed.
        on_closed = {stream for stream, circuits in witness.attached.items() if circuits[-1] == ids["a"]}
        destroyed = {stream for stream, reason in witness.failed.items() if reason == "DESTROY"}
        assert destroyed <= on_closed
        lost = [result for result in report.results if result.outcome is not Outcome.SUCCEEDED]
        assert len(lost) <= len(destroyed) + sum(
            1 for stream in on_closed if witness.ended.get(stream) == "DESTROY"
        )
        assert await echo_on_all(held) == 20
        await held.close()

    with Agent(tmp_path, policy) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(3))
        asyncio.run(run())
        replaced = circuit_ids(agent.wait_balancing(3))
        assert replaced["a"] != ids["a"]
        assert (replaced["b"], replaced["c"]) == (ids["b"], ids["c"])
        assert witness.first_circuits()[replaced["a"]] > 50


@pytest.mark.parametrize("algorithm", ["round-robin", "weighted-round-robin", "least-streams"])
def test_one_line_a_stream_at_debug_and_no_destination(
    client: TorClient, echo: EchoServer, tmp_path: Path, algorithm: str
) -> None:
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: primary}, {name: second}]",
        balance=f"{{algorithm: {algorithm}}}",
    )

    async def run() -> None:
        proxy = SocksProxy(client.socks_port, username="marked-user", password="marked-password")  # noqa: S106
        opened = await open_many(proxy, (LOOPBACK, echo.port), count=4, concurrency=1)
        assert await echo_on_all(opened) == 4
        await opened.close()

    with Agent(tmp_path, policy) as agent:
        ids = circuit_ids(agent.wait_balancing(2))
        asyncio.run(run())
        log = agent.log()
    lines = [line for line in log.splitlines() if "-> circuit" in line]
    assert len(lines) == 4
    assert any(line.endswith(f"-> circuit primary ({ids['primary']}), {algorithm}") for line in lines)
    assert "marked" not in log
    assert LOOPBACK not in log
