"""Rounds on the real Tor network: the timeline of the origin beside a balanced load, and lost circuits."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
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


def rounds_policy(client: TorClient, folder: Path, rounds: str, *, more: str = "") -> str:
    folder.joinpath("hook").write_text(HOOK.format(folder=folder))
    folder.joinpath("hook").chmod(0o755)
    return policy_text(
        client.control_socket,
        folder,
        circuits="[{name: primary}, {name: backup}]",
        balance="{algorithm: round-robin, isolation: none, max_streams: 1000}",
        more=f"{more}\nrounds: {{command: [{folder}/hook], {rounds}}}",
    )


def runs(folder: Path) -> list[tuple[float, dict[str, Any]]]:
    path = folder / "runs"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(float(at), json.loads(document)) for at, document in (line.split(" ", 1) for line in lines)]


def ledger(agent: Agent) -> list[dict[str, Any]]:
    return list(ask(str(agent.socket_path), {"command": "rounds", "after": 0})["rows"])


def wait_for_row(agent: Agent, is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first row of the ledger of which this is so, once there is one."""
    deadline = time.monotonic() + 60
    while True:
        for row in ledger(agent):
            if is_so(row):
                return row
        assert time.monotonic() < deadline, (ledger(agent), agent.log()[-3000:])
        time.sleep(0.1)


def start(folder: Path, policy: str) -> Agent:
    state = folder / "state"
    state.mkdir(exist_ok=True)
    return Agent(folder, policy, environment={"STATE_DIRECTORY": str(state)})


def load_of(client: TorClient, echo: EchoServer, seconds: float) -> Counter[str]:
    """Run 200 streams a second for so long, none of which fails; how many each circuit got, as Tor says."""
    load = Load([SocksProxy(client.socks_port)], ("127.0.0.1", echo.port), streams_per_second=200)
    with Witness(client) as witness:
        report = asyncio.run(load.run(seconds))
        assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []
        assert len(report.results) == 200 * seconds
        witness.wait_until(
            lambda: witness.first_circuits().total() >= 200 * seconds, "Tor told of every stream"
        )
        return witness.first_circuits()


def test_the_timeline_of_the_origin_beside_200_streams_a_second_as_without_rounds(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with_rounds = rounds_policy(client, tmp_path, "interval: 2s, timeout: 1s, first_after: 2s, rounds: 10")
    with start(tmp_path, with_rounds[: with_rounds.index("rounds:")]) as agent:
        ids = circuit_ids(agent.wait_balancing(2))
        without = load_of(client, echo, 5)
        # Rounds come with a reload, and their grid begins with it.
        agent.policy_path.write_text(with_rounds)
        reloaded_at = time.time()
        agent.signal(signal.SIGHUP)
        shares = load_of(client, echo, 23)
        agent.wait_until(lambda status: status["rounds"]["next_round"] is None, "all rounds over")

        # Both circuits, and each its half, with rounds as without.
        assert set(without) == set(shares) == set(ids.values())
        assert abs(without[ids["primary"]] - without[ids["backup"]]) <= 1
        assert abs(shares[ids["primary"]] - shares[ids["backup"]]) <= 1
        found = runs(tmp_path)
        assert [document["round"] for _, document in found] == list(range(1, 11))
        assert [document["circuit"]["name"] for _, document in found] == ["primary", "backup"] * 5
        assert all(document["circuit"]["id"] == ids[document["circuit"]["name"]] for _, document in found)
        assert all(len(document["circuit"]["path"]) == 3 for _, document in found)
        # The promise is a grid within a second, from 2 s on; over ten rounds a drift would show as well.
        assert abs(found[0][0] - reloaded_at - 2) < 1.0
        assert all(abs(at - found[0][0] - 2 * number) < 1.0 for number, (at, _) in enumerate(found))
        rows = ledger(agent)
        assert {row["outcome"] for row in rows} == {"done"}
        # By the ledger the dates are exact.
        steps = [later["due_at"] - row["due_at"] for row, later in pairwise(rows)]
        assert all(abs(step - 2) < 0.01 for step in steps), steps
        assert "Traceback" not in agent.log()
        assert agent.stop() == 0


def test_a_closed_circuit_gives_its_round_to_the_other_both_gone_is_missed_and_rounds_go_on(
    client: TorClient, tmp_path: Path
) -> None:
    # A circuit that is closed this young is built again 20 s later only.
    slowly = "failover: {rebuild: {initial: 20s, max: 20s}}"
    timeline = "interval: 2s, timeout: 1s, first_after: 1s"
    policy = rounds_policy(client, tmp_path, timeline, more=slowly)
    with start(tmp_path, policy) as agent, client.control() as port:
        ids = circuit_ids(agent.wait_balancing(2))
        port.ask(f"CLOSECIRCUIT {ids['primary']}")
        wait_for_row(agent, lambda row: row["planned"] == "primary" and row["circuit"] == "backup")
        port.ask(f"CLOSECIRCUIT {ids['backup']}")
        missed = wait_for_row(agent, lambda row: row["outcome"] == "missed")
        back = wait_for_row(agent, lambda row: row["outcome"] == "done" and row["round"] > missed["round"])

        assert missed["detail"] == "no circuit was usable"
        assert back["circuit_id"] not in ids.values()
        assert re.search(r"round \d+ moves from primary to backup", agent.log())
        found = runs(tmp_path)
        assert set(Counter(document["key"] for _, document in found).values()) == {1}
        rows = ledger(agent)
        assert [row["round"] for row in rows] == list(range(1, len(rows) + 1))
        done = {row["key"] for row in rows if row["outcome"] == "done"}
        # The last one may be under way.
        assert done <= {document["key"] for _, document in found} <= {row["key"] for row in rows}
        assert {row["outcome"] for row in rows} <= {"done", "missed", None}
        assert agent.stop() == 0


def test_circuits_closed_again_and_again_lose_no_round_and_pay_none_twice(
    client: TorClient, tmp_path: Path
) -> None:
    quickly = "failover: {rebuild: {initial: 500ms, max: 1s}}"
    policy = rounds_policy(client, tmp_path, "interval: 1s, timeout: 1s, first_after: 1s", more=quickly)
    with start(tmp_path, policy) as agent:
        agent.wait_balancing(2)
        deadline = time.monotonic() + 60
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
