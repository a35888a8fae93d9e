"""Probes on a real Tor: a circuit through a silent relay is taken out, and users never notice a probe."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from circuitloom.admin import ask
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer
from tor.agent import Agent, circuit_ids, policy_text
from tor.test_redispatch import paused
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
BUG = "incompatible isolation flags"
INTERVAL_SECONDS, FALL = 1, 3


def make_agent(
    network: PrivateNetwork,
    client: TorClient,
    directory: Path,
    *,
    socks: str,
    port: int,
    balance: str = "algorithm: round-robin",
    more: str = "",
) -> Agent:
    """Two circuits that share everything but their exits, probed every second."""
    first, second, *exits = network.relays
    circuits = ", ".join(
        f"{{name: {name}, path: [{first.fingerprint}, {second.fingerprint}, {relay.fingerprint}]}}"
        for name, relay in zip(("silent", "other"), exits, strict=False)
    )
    probe = (
        f"{{socks: '{socks}', targets: ['{LOOPBACK}:{port}'], interval: {INTERVAL_SECONDS}s, timeout: 900ms, "
        f"rise: 2, fall: {FALL}, jitter: 0%{more}}}"
    )
    policy = policy_text(
        client.control_socket,
        directory,
        circuits=f"[{circuits}]",
        balance=f"{{{balance}}}",
        more=f"health: {{probe: {probe}}}",
    )
    return Agent(directory, policy)


def probes(status: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the probes of each circuit found; circuits that drain are left out."""
    return {c["name"]: c["probe"] or {} for c in status["circuits"] if c["state"] != "draining"}


def are_up(status: dict[str, Any]) -> bool:
    return all(probe.get("health") == "up" and probe["last"] == "passed" for probe in probes(status).values())


async def echo_some(proxy: SocksProxy, port: int, count: int) -> None:
    """Streams of a user, one after the other, so that each circuit has its turn."""
    for number in range(count):
        connection = await proxy.connect(LOOPBACK, port)
        await connection.echo(b"user" + str(number).encode())
        await connection.close()


def test_a_silent_circuit_is_down_within_fall_intervals_and_comes_back(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    proxy = SocksProxy(client.socks_port, username="alice", password="secret", timeout_seconds=20)  # noqa: S106
    bugs = client.log_text().count(BUG)
    agent = make_agent(network, client, tmp_path, socks=f"tcp:{LOOPBACK}:{client.socks_port}", port=echo.port)
    with agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(echo_some(proxy, echo.port, 4))
        before = agent.wait_until(are_up, "both circuits are up")
        ids = circuit_ids(before)

        with paused(network.relays[2]):
            down = agent.wait_until(
                lambda status: probes(status)["silent"].get("health") == "down",
                "the silent circuit is down",
                seconds=INTERVAL_SECONDS * FALL + 10,
            )
            assert {c["name"]: c["state"] for c in down["circuits"]} == {"silent": "down", "other": "built"}
            asyncio.run(echo_some(proxy, echo.port, 6))

        # The very same circuit, or its successor through the same relay, whichever is first; that one is not
        # probed before it has carried a stream.
        agent.wait_balancing(2, seconds=60)
        asyncio.run(echo_some(proxy, echo.port, 2))
        agent.wait_until(are_up, "both circuits are up again", seconds=60)
        status = agent.status()
        explained = ask(str(agent.socket_path), {"command": "explain", "stream": None})["decisions"]

        attached = {c["name"]: c["attached_total"] for c in status["circuits"] if c["state"] == "built"}
        assert attached == {"silent": 3, "other": 9}
        assert status["streams"]["attached_total"] == 12
        assert witness.first_circuits()[ids["other"]] > 12, "nothing was probed"
        probes_seen = len(witness.attached) - 12
        assert probes_seen > 2 * FALL
        assert all(len(set(circuits)) == 1 for circuits in witness.attached.values()), (
            "a probe went elsewhere"
        )
        assert [decision["did"] for decision in explained] == ["attach"] * 12
    assert client.log_text().count(BUG) == bugs
    log = agent.log()
    assert f"circuit silent ({ids['silent']}) is down: {FALL} probes in a row failed" in log
    for secret in (str(echo.port), "alice", "secret"):
        assert secret not in log.replace(str(agent.policy_path), "")


def test_over_a_unix_socket_probes_are_told_from_users_streams_to_the_same_target(
    network: PrivateNetwork, echo: EchoServer, tmp_path: Path
) -> None:
    socks = tmp_path / "tor" / "socks"
    socks.parent.mkdir(mode=0o700)
    client = network.add_client(options=[f"SocksPort unix:{socks}"])
    proxy = SocksProxy(socks, timeout_seconds=20)
    agent = make_agent(network, client, tmp_path, socks=f"unix:{socks}", port=echo.port)
    try:
        with agent, Witness(client) as witness:
            agent.wait_balancing(2)
            asyncio.run(echo_some(proxy, echo.port, 4))
            agent.wait_until(are_up, "both circuits are up")

            with paused(network.relays[2]):
                agent.wait_until(
                    lambda status: probes(status)["silent"].get("health") == "down",
                    "the silent circuit is down",
                    seconds=INTERVAL_SECONDS * FALL + 20,
                )
            agent.wait_balancing(2, seconds=60)
            asyncio.run(echo_some(proxy, echo.port, 100))
            agent.wait_until(are_up, "both circuits are up again", seconds=60)

            status = agent.status()
            assert status["probes"] == {"problem": None}
            assert status["streams"]["attached_total"] == 104
            assert status["streams"]["failed_total"] == 0
            assert not witness.waiting()
        assert BUG not in client.log_text()
    finally:
        client.stop()


def test_circuits_whose_users_come_another_way_are_left_alone(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, proxy: SocksProxy, tmp_path: Path
) -> None:
    """Another listener has another session group: Tor would log a bug for each probe."""
    bugs = client.log_text().count(BUG)
    other = f"{LOOPBACK}:{free_port()}"
    with Witness(client) as witness:
        ours = witness.get_info("config-text")
        assert "SocksPort" in ours
        reply = witness.tell(f"SETCONF SocksPort={LOOPBACK}:{client.socks_port} SocksPort={other}")
        assert "OK" in reply
        try:
            with make_agent(network, client, tmp_path, socks=f"tcp:{other}", port=echo.port) as agent:
                agent.wait_balancing(2)
                asyncio.run(echo_some(proxy, echo.port, 2))
                status = agent.wait_until(
                    lambda status: (
                        all(p.get("health") == "skipped" for p in probes(status).values())
                        and all("SESSION_GROUP" in p["why_not"] for p in probes(status).values())
                    ),
                    "nothing is probed",
                )
                table = agent.command("status", "--socket", str(agent.socket_path)).stdout
        finally:
            witness.tell(f"SETCONF SocksPort={LOOPBACK}:{client.socks_port}")
    assert "not probed: silent, other: a probe differs from its streams in SESSION_GROUP" in table
    assert {c["state"] for c in status["circuits"]} == {"built"}
    assert client.log_text().count(BUG) == bugs


def test_without_isolation_probes_look_like_the_first_stream_of_their_circuit(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    bugs = client.log_text().count(BUG)
    proxy = SocksProxy(client.socks_port, username="only", password="one", timeout_seconds=20)  # noqa: S106
    with make_agent(
        network,
        client,
        tmp_path,
        socks=f"tcp:{LOOPBACK}:{client.socks_port}",
        port=echo.port,
        balance="algorithm: round-robin, isolation: none",
    ) as agent:
        agent.wait_balancing(2)
        asyncio.run(echo_some(proxy, echo.port, 4))
        agent.wait_until(are_up, "both circuits are up")
        asyncio.run(echo_some(proxy, echo.port, 4))
        assert agent.status()["streams"]["attached_total"] == 8
    assert client.log_text().count(BUG) == bugs


def test_a_socks_port_that_is_not_there_takes_no_circuit_out(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, proxy: SocksProxy, tmp_path: Path
) -> None:
    socks = f"tcp:{LOOPBACK}:{free_port()}"
    with make_agent(network, client, tmp_path, socks=socks, port=echo.port) as agent:
        agent.wait_balancing(2)
        asyncio.run(echo_some(proxy, echo.port, 4))
        status = agent.wait_until(lambda status: status["probes"]["problem"] is not None, "a problem is told")
        assert status["probes"]["problem"] == f"{socks}: Connection refused"
        # Several intervals more, so that it could be blamed and told again.
        agent.wait_until(lambda status: status["since_seconds"] > 2 * FALL * INTERVAL_SECONDS, "time passes")
        assert {c["state"] for c in agent.status()["circuits"]} == {"built"}
    assert agent.log().count("probes do not work, and no circuit is blamed for it") == 1


def free_port() -> int:
    with socket.socket() as free:
        free.bind((LOOPBACK, 0))
        return int(free.getsockname()[1])
