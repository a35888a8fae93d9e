"""A silent exit under ``health.eject``: streams stop going there, and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.traffic import EchoServer
from tor.agent import Agent, circuit_ids
from tor.test_redispatch import echo_early, make_agent, paused
from tor.witness import Witness

FAILURES = 3


def ejecting(base_seconds: int, more: str = "") -> str:
    """The policy's `failover` and `health`: moved after a second, ejected after a few of these in a row."""
    eject = f"{{consecutive_failures: {FAILURES}, base: {base_seconds}s, max_percent: 50}}"
    return (
        "{redispatch: {after: 1s}, retry: {attempts: 2, budget: 100%}}\n"
        f"health: {{eject: {eject}{more}}}"
    )


def eject_silent(agent: Agent, client: TorClient, echo: EchoServer) -> dict[str, Any]:
    """While an exit is silent, have its circuit ejected; returns the status then."""
    # Half of them are on the silent circuit, and are moved after a second.
    asyncio.run(echo_early(client, echo.port, 2 * FAILURES))
    return agent.wait_until(
        lambda status: any(circuit["state"] == "ejected" for circuit in status["circuits"]), "ejected"
    )


def test_a_silent_circuit_is_ejected_and_comes_back(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with (
        make_agent(network, tmp_path, balance="purpose: controller", failover=ejecting(8)) as agent,
        Witness(client) as witness,
    ):
        ids = circuit_ids(agent.wait_balancing(2))
        with paused(network.relays[2]):
            ejected = eject_silent(agent, client, echo)
            before = set(witness.attached)
            asyncio.run(echo_early(client, echo.port, 10))
            meanwhile = [witness.attached[stream] for stream in set(witness.attached) - before]
        assert [c["name"] for c in ejected["circuits"] if c["state"] == "ejected"] == ["silent"]
        assert len(meanwhile) == 10
        assert all(circuits == [ids["other"]] for circuits in meanwhile)

        # The very same circuit: nothing that went over it made Tor or us replace it.
        assert circuit_ids(agent.wait_balancing(2)) == ids
        before = set(witness.attached)
        asyncio.run(echo_early(client, echo.port, 10))
        after = [witness.attached[stream][0] for stream in set(witness.attached) - before]
        assert sorted(after) == sorted([ids["silent"], ids["other"]] * 5)
        log = agent.log()
        assert f"circuit silent ({ids['silent']}) ejected for 8 s" in log
        assert f"circuit silent ({ids['silent']}) takes streams again" in log
