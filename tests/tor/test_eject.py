"""A silent exit under ``health.eject``: streams stop going there, and come back."""

from __future__ import annotations

import asyncio
from pathlib import Path

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.traffic import EchoServer
from tor.agent import circuit_ids
from tor.test_redispatch import echo_early, make_agent, paused
from tor.witness import Witness

FAILURES = 3


def test_a_silent_circuit_is_ejected_and_comes_back(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    failover = (
        "{redispatch: {after: 1s}, retry: {attempts: 2, budget: 100%}}\n"
        f"health: {{eject: {{consecutive_failures: {FAILURES}, base: 8s, max_percent: 50}}}}"
    )
    with (
        make_agent(network, tmp_path, balance="purpose: controller", failover=failover) as agent,
        Witness(client) as witness,
    ):
        ids = circuit_ids(agent.wait_balancing(2))
        with paused(network.relays[2]):
            # Half of them are on the silent circuit, and are moved after a second.
            asyncio.run(echo_early(client, echo.port, 2 * FAILURES))
            ejected = agent.wait_until(
                lambda status: any(circuit["state"] == "ejected" for circuit in status["circuits"]), "ejected"
            )
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
