"""kill -9 of the agent at every step of a round, on the real Tor: one effect and one outcome for each key."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from circuitloom.admin import ask
from circuitloom.errors import AdminError
from circuitloom.lab.node import TorClient
from tor.agent import Agent, policy_text
from unit.rounds_victim import STEPS, check_effects, counting_hook

ROUNDS = 5
DEATH_SECONDS = 40.0
ALL_SECONDS = 60.0


def finished(agent: Agent) -> list[dict[str, Any]]:
    """The ledger, once every round has its outcome."""
    deadline = time.monotonic() + ALL_SECONDS
    while True:
        try:
            rows = list(ask(str(agent.socket_path), {"command": "rounds", "after": 0})["rows"])
        except AdminError:
            rows = []
        ended = sum(row["rounds"] for row in rows if row["outcome"])
        if ended >= ROUNDS and all(row["outcome"] for row in rows):
            return rows
        assert time.monotonic() < deadline, (rows, agent.log()[-3000:])
        time.sleep(0.1)


@pytest.mark.parametrize("step", STEPS)
def test_each_key_has_one_effect_wherever_the_agent_is_killed(
    client: TorClient, tmp_path: Path, step: str
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    hook = counting_hook(tmp_path)
    timeline = f"interval: 3s, timeout: 3s, first_after: 500ms, rounds: {ROUNDS}"
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: primary}, {name: backup}]",
        balance="{isolation: none}",
        more=f"rounds: {{command: [{hook}], {timeline}}}",
    )
    environment = {"STATE_DIRECTORY": str(state), "PYTHONPATH": str(Path(__file__).parents[1])}
    agent = Agent(tmp_path, policy, environment=environment)
    try:
        # Twice, so that what is asked again is killed as well.
        for _ in range(2):
            agent.start("unit.rounds_victim", step)
            assert agent.process.wait(DEATH_SECONDS) == -signal.SIGKILL, agent.log()[-3000:]
        agent.start()
        rows = finished(agent)
        assert agent.stop() == 0
    finally:
        agent.end()

    retried = check_effects(tmp_path, rows, rounds=ROUNDS)
    if step not in {"before-intent", "after-outcome"}:
        assert retried
    assert len(retried) <= 2
    assert len({row["circuit"] for row in rows if row["outcome"] == "done"}) == 2
    assert "Traceback" not in agent.log()
