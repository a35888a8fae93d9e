"""A circuit that another controller builds on a real Tor: adopted, used, closed by its owner, not rebuilt."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from subprocess import CompletedProcess

from circuitloom.lab.controlport import ControlPort, build_circuit
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, open_many
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

BUILD_SECONDS = 20.0


def circuit_state(port: ControlPort, circuit_id: str) -> str | None:
    """The state that Tor tells for one circuit; None: Tor has no such circuit (any more)."""
    lines = (line.split(" ") for line in port.ask_value("circuit-status").splitlines())
    return next((words[1] for words in lines if words[0] == circuit_id), None)


def adopt(agent: Agent, circuit_id: str) -> CompletedProcess[str]:
    return agent.command("adopt", "paid", circuit_id, "--socket", str(agent.socket_path))


def test_a_circuit_of_another_controller_serves_until_that_one_closes_it(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: own}, {name: paid, adopt: {}}]",
        balance="{algorithm: round-robin, isolation: none}",
    )

    async def streams() -> Counter[str]:
        """Open 20 streams, and tell how many each circuit got."""
        before = witness.first_circuits()
        opened = await open_many(
            SocksProxy(client.socks_port), ("127.0.0.1", echo.port), count=20, concurrency=5
        )
        assert opened.failures == []
        await opened.close()
        return witness.first_circuits() - before

    environment = {"STATE_DIRECTORY": str(state)}
    with (
        client.control() as port,
        Agent(tmp_path, policy, environment=environment) as agent,
        Witness(client) as witness,
    ):
        own = circuit_ids(agent.wait_balancing(1))["own"]
        refused = adopt(agent, "4294967295")
        assert refused.returncode != 0
        assert "Tor has no such circuit" in refused.stderr
        paid = build_circuit(port, timeout_seconds=BUILD_SECONDS)
        assert adopt(agent, own).stderr.count("it is in the pool already, as own") == 1

        asked = adopt(agent, paid)
        assert (asked.returncode, asked.stderr) == (0, "")
        assert asyncio.run(streams()) == {own: 10, paid: 10}

        # The next agent finds it, and neither of them closes it.
        assert agent.stop() == 0
        assert circuit_state(port, paid) == "BUILT"
        agent.start()
        status = agent.wait_balancing(2)
        assert circuit_ids(status) == {"own": own, "paid": paid}
        assert [circuit["is_adopted"] for circuit in status["circuits"]] == [False, True]
        assert asyncio.run(streams()) == {own: 10, paid: 10}

        # Another takes its place, and the first one is its owner's again.
        second = build_circuit(port, timeout_seconds=BUILD_SECONDS)
        assert adopt(agent, second).returncode == 0
        agent.wait_until(lambda status: circuit_ids(status).get("paid") == second, "the second is there")
        assert circuit_state(port, paid) == "BUILT"

        port.ask(f"CLOSECIRCUIT {second}")
        agent.wait_until(
            lambda status: (
                {c["name"]: c["state"] for c in status["circuits"]} == {"own": "built", "paid": "idle"}
            ),
            "the adopted circuit is gone",
        )
        assert f"circuit paid ({second}) closed (REQUESTED), and the agent did not build it" in agent.log()
        assert asyncio.run(streams()) == {own: 20}
        assert agent.status()["circuits"][1]["state"] == "idle"
        assert agent.stop() == 0
        assert "Traceback" not in agent.log()
