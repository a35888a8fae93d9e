"""What Tor keeps apart stays apart: SOCKS users and identities never share a circuit, as Tor reports it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from pathlib import Path

from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, Outcome
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
BUG = "incompatible isolation flags"
EIGHT = "[{name: c, count: 8}]"


def agent_for(client: TorClient, directory: Path, circuits: str, balance: str) -> Agent:
    return Agent(directory, policy_text(client.control_socket, directory, circuits=circuits, balance=balance))


async def load_of(client: TorClient, echo: EchoServer, users: list[str], streams: int) -> None:
    """So many streams of each user, mixed, and all must succeed."""
    proxies = [SocksProxy(client.socks_port, username=user, password="p") for user in users]  # noqa: S106
    load = Load(proxies, (LOOPBACK, echo.port), streams_per_second=100)
    report = await load.run(streams * len(users) / 100)
    assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []
    assert len(report.results) == streams * len(users)


def users_by_circuit(witness: Witness) -> dict[str, set[str]]:
    users: dict[str, set[str]] = defaultdict(set)
    for stream, circuits in witness.attached.items():
        if witness.purposes.get(stream) == "USER":
            for circuit in circuits:
                users[circuit].add(witness.users.get(stream, ""))
    return users


def test_two_users_of_200_streams_never_share_one_of_8_circuits(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    bugs_before = client.log_text().count(BUG)
    with agent_for(client, tmp_path, EIGHT, "{algorithm: round-robin}") as agent, Witness(client) as witness:
        agent.wait_balancing(8)
        asyncio.run(load_of(client, echo, ["alice", "bob"], 200))
        status = agent.wait_balancing(16)
        users = users_by_circuit(witness)
        assert {frozenset(names) for names in users.values()} == {frozenset({"alice"}), frozenset({"bob"})}
        assert status["streams"]["released_total"] == 0
        # Weights hold within a key: 200 streams over eight circuits are 25 on each. The second key's first
        # streams went to the first of its circuits that were built.
        by_key = [[c["attached_total"] for c in status["circuits"] if c["key"] == key] for key in (0, 1)]
        assert by_key[0] == [25] * 8
        assert sum(by_key[1]) == 200
        assert max(by_key[1]) - min(by_key[1]) <= 4
        assert agent.stop() == 0
    assert client.log_text().count(BUG) == bugs_before


def test_users_beyond_the_limit_are_left_to_tor_and_stay_apart(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    bugs_before = client.log_text().count(BUG)
    balance = "{keys: {max_circuits: 4, when_exceeded: tor}}"
    with agent_for(client, tmp_path, "[{name: a}, {name: b}]", balance) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(load_of(client, echo, ["alice", "bob", "carol", "dave"], 30))
        status = agent.wait_balancing(4)
        assert all(len(names) == 1 for names in users_by_circuit(witness).values())
        assert status["streams"]["attached_total"] == 60
        assert status["streams"]["released_total"] == 60
    assert client.log_text().count(BUG) == bugs_before


def test_a_new_identity_moves_to_fresh_circuits(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    bugs_before = client.log_text().count(BUG)
    with agent_for(client, tmp_path, "[{name: a}, {name: b}]", "{}") as agent, Witness(client) as witness:
        before = set(circuit_ids(agent.wait_balancing(2)).values())
        asyncio.run(load_of(client, echo, ["alice"], 20))
        assert witness.tell("SIGNAL NEWNYM").startswith("OK")
        after = agent.wait_until(
            lambda status: before.isdisjoint(circuit_ids(status).values()) and len(circuit_ids(status)) == 2,
            "fresh circuits",
        )
        seen = set(witness.attached)
        asyncio.run(load_of(client, echo, ["alice"], 20))
        used = {circuits[0] for stream, circuits in witness.attached.items() if stream not in seen}
        assert used == set(circuit_ids(after).values())
    assert client.log_text().count(BUG) == bugs_before


def test_without_isolation_users_share_and_the_check_warns(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with (
        agent_for(client, tmp_path, "[{name: a}, {name: b}, {name: c}]", "{isolation: none}") as agent,
        Witness(client) as witness,
    ):
        agent.wait_balancing(3)
        asyncio.run(load_of(client, echo, ["alice", "bob"], 10))
        assert {"alice", "bob"} in users_by_circuit(witness).values()
        warning = "streams of different SOCKS users and clients share circuits"
        assert warning in agent.log()
        assert warning in agent.command("check", str(agent.policy_path)).stdout
