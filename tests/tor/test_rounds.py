"""Rounds on the real Tor network: the timeline of the origin beside a balanced load, and lost circuits."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from circuitloom.admin import ask
from circuitloom.lab.node import TorClient
from circuitloom.lab.traffic import EchoServer, Load, Outcome, SocksProxy
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

HOOK = """#!/bin/sh
# One line for each run: when it started, and what it was told.
printf '%s %s\\n' "$(date +%s.%N)" "$(cat)" >>{folder}/runs
"""


def rounds_policy(client: TorClient, folder: Path, rounds: str) -> str:
    folder.joinpath("hook").write_text(HOOK.format(folder=folder))
    folder.joinpath("hook").chmod(0o755)
    return policy_text(
        client.control_socket,
        folder,
        circuits="[{name: primary}, {name: backup}]",
        balance="{algorithm: round-robin, isolation: none, max_streams: 1000}",
        more=f"rounds: {{command: [{folder}/hook], {rounds}}}",
    )


def runs(folder: Path) -> list[tuple[float, dict[str, Any]]]:
    path = folder / "runs"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(at), json.loads(document)) for at, document in (line.split(" ", 1) for line in lines)]


def ledger(agent: Agent) -> list[dict[str, Any]]:
    return list(ask(str(agent.socket_path), {"command": "rounds", "after": 0})["rows"])


def start(client: TorClient, folder: Path, rounds: str) -> Agent:
    state = folder / "state"
    state.mkdir(exist_ok=True)
    return Agent(folder, rounds_policy(client, folder, rounds), environment={"STATE_DIRECTORY": str(state)})


def test_the_timeline_of_the_origin_beside_200_streams_a_second(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def drive() -> None:
        load = Load([SocksProxy(client.socks_port)], ("127.0.0.1", echo.port), streams_per_second=200)
        report = await load.run(23)
        assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []

    with start(client, tmp_path, "interval: 2s, timeout: 1s, first_after: 2s, rounds: 10") as agent:
        ids = circuit_ids(agent.wait_balancing(2))
        with Witness(client) as witness:
            asyncio.run(drive())
            shares = witness.first_circuits()
        agent.wait_until(lambda status: status["rounds"]["next_round"] is None, "all rounds over")
        started = agent.log()
        found = runs(tmp_path)
        assert [document["round"] for _, document in found] == list(range(1, 11))
        assert [document["circuit"]["name"] for _, document in found] == ["primary", "backup"] * 5
        assert all(document["circuit"]["id"] == ids[document["circuit"]["name"]] for _, document in found)
        assert all(len(document["circuit"]["path"]) == 3 for _, document in found)
        # The promise is a grid within a second; over ten rounds a drift would show as well.
        first = found[0][0]
        assert all(abs(at - first - 2 * number) < 1.0 for number, (at, _) in enumerate(found))
        assert {row["outcome"] for row in ledger(agent)} == {"done"}
        assert abs(shares[ids["primary"]] - shares[ids["backup"]]) <= 1
        assert "Traceback" not in started
        assert agent.stop() == 0


def test_a_closed_circuit_gives_its_round_to_the_other_and_rounds_outlive_all_circuits(
    client: TorClient, tmp_path: Path
) -> None:
    with start(client, tmp_path, "interval: 1s, timeout: 1s, first_after: 1s") as agent:
        agent.wait_balancing(2)
        deadline = time.monotonic() + 30
        # Each circuit again and again, so that rounds find one, the other, or none of them.
        while len(runs(tmp_path)) < 8:
            assert time.monotonic() < deadline, agent.log()
            with client.control() as port:
                for circuit_id in circuit_ids(agent.status()).values():
                    port.ask(f"CLOSECIRCUIT {circuit_id}")
            time.sleep(0.35)
        effects = Counter(document["key"] for _, document in runs(tmp_path))
        assert set(effects.values()) == {1}
        rows = ledger(agent)
        assert sorted(row["round"] for row in rows) == list(range(1, len(rows) + 1))
        assert {row["outcome"] for row in rows} <= {"done", "missed", None}
        assert agent.stop() == 0
