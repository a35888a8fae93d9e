"""Circuits replaced under load, make before break, on the real Tor: none costs a stream."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, Outcome, StreamShape, open_many
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

STREAMS_PER_SECOND = 200
SECONDS = 12.0
CIRCUITS = "[{name: pool, count: 3}]"


def agent_with(client: TorClient, directory: Path, rotation: str) -> Agent:
    return Agent(
        directory,
        policy_text(client.control_socket, directory, circuits=CIRCUITS, more=f"rotation: {rotation}"),
    )


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("rotation", "least_circuits"),
    [
        # Three slots, at least three lives each; the network builds as fast as the machine allows.
        ("{max_age: 3s, drain: 2s}", 9),
        ("{max_streams_total: 200}", 9),
        # Each stream echoes 66 bytes in cells of 514, a handful each way.
        ("{max_bytes: 200kB}", 9),
    ],
    ids=["age", "streams", "bytes"],
)
def test_rotation_under_load_loses_no_stream(
    client: TorClient, echo: EchoServer, tmp_path: Path, rotation: str, least_circuits: int
) -> None:
    load = Load(
        [SocksProxy(client.socks_port, timeout_seconds=20)],
        echo.address,
        streams_per_second=STREAMS_PER_SECOND,
        # Held for a while, so that circuits drain with streams on them.
        shape=StreamShape(hold_seconds=0.5),
    )
    with agent_with(client, tmp_path, rotation) as agent, Witness(client) as witness:
        agent.wait_balancing(3)
        report = asyncio.run(load.run(SECONDS))

        assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []
        assert len(report.results) == round(STREAMS_PER_SECOND * SECONDS)
        used = witness.first_circuits()
        assert len(used) >= least_circuits
        assert sum(used.values()) == len(report.results)
        status = agent.wait_until(
            lambda status: all(c["state"] == "built" for c in status["circuits"]), "the drained ones are gone"
        )
        assert status["streams"] == {
            "active": 0,
            "waiting": 0,
            "attached_total": len(report.results),
            "released_total": 0,
            "failed_total": 0,
        }
        assert agent.stop() == 0


@pytest.mark.timeout(120)
def test_streams_that_outlast_the_time_to_drain_end_and_others_do_not(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def run() -> None:
        opened = await open_many(SocksProxy(client.socks_port, timeout_seconds=20), echo.address, count=6)
        assert opened.failures == []
        before = agent.status()
        reply = agent.command("rotate", "--socket", str(agent.socket_path), "pool-1")
        assert reply.returncode == 0, reply.stderr
        agent.wait_until(lambda status: _draining(status) == [2], "the old circuit drains with its streams")
        agent.wait_until(lambda status: _draining(status) == [], "it is closed")
        intact = await asyncio.gather(
            *(connection.echo(b"still there") for connection in opened.connections), return_exceptions=True
        )
        assert sum(result is None for result in intact) == 4
        assert circuit_ids(before)["pool-1"] != circuit_ids(agent.status())["pool-1"]
        await opened.close()

    with agent_with(client, tmp_path, "{max_age: 1h, drain: 2s}") as agent:
        agent.wait_balancing(3)
        asyncio.run(run())
        assert "is closed with 2 streams: its time to drain is over" in agent.log()


@pytest.mark.timeout(120)
def test_tor_never_takes_a_used_circuit_away_first(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    load = Load([SocksProxy(client.socks_port, timeout_seconds=20)], echo.address, streams_per_second=2)
    with Witness(client) as witness:
        # The agent reads the option at its start, and hears of the change.
        assert witness.tell("SETCONF MaxCircuitDirtiness=60") == "OK"
        try:
            with agent_with(client, tmp_path, "{jitter: 20%}") as agent:
                first = circuit_ids(agent.wait_balancing(3))
                assert witness.tell("SETCONF MaxCircuitDirtiness=10") == "OK"
                report = asyncio.run(load.run(15.0))
                last = circuit_ids(agent.wait_balancing(3))
                log = agent.log()
        finally:
            witness.tell("RESETCONF MaxCircuitDirtiness")
    assert report.lost == 0
    assert set(first.values()).isdisjoint(last.values())
    assert log.count("is replaced, make before break: Tor would soon take it away") >= 3
    assert "closed (FINISHED)" not in log


def _draining(status: dict[str, Any]) -> list[int]:
    """How many streams each circuit has that drains."""
    return [circuit["streams"] for circuit in status["circuits"] if circuit["state"] == "draining"]
