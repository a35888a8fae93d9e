"""Runs one scenario: a fresh agent, load, the fault, the checks, and the verdict."""

from __future__ import annotations

import contextlib
import math
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from circuitloom.errors import CircuitloomError, LabError
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.traffic import EchoServer
from tor.agent import Agent
from tor.chaos.load import SteadyLoad
from tor.chaos.scenarios import Scenario
from tor.chaos.stage import Stage, clear_circuits, make_agent, wait_whole
from tor.chaos.supervisor import Supervisor
from tor.chaos.verdict import Evidence, Verdict, judge
from tor.chaos.watch import Watch

BEFORE_SECONDS = 1.0
AFTER_SECONDS = 3.0
"""Load before and after the fault; what lasts longer, the scenario waits for."""

BALANCING_SECONDS = 30.0
"""A slot whose builds failed waits 1 s, 2 s, 4 s, 8 s; by then dead relays are back, and it works."""


@dataclass(frozen=True, slots=True)
class Row:
    """The outcome of one scenario.

    Attributes:
        scenario: Which.
        verdict: On its load.
        problems: What must not be, in words; empty when all is well.
        notes: What Tor complained of meanwhile.
    """

    scenario: Scenario
    verdict: Verdict
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def run_row(scenario: Scenario, network: PrivateNetwork, echo: EchoServer, directory: Path) -> Row:
    """Run one scenario and leave the network as it was.

    Args:
        scenario: What to inject.
        network: All its nodes run.
        echo: The load's server.
        directory: For the agent; made when it is missing.
    """
    problems: list[str] = []
    log_size = len(network.client.log_text())
    agent = make_agent(network.client, directory)
    with agent, Watch(network.client) as watch:
        with _noting(problems):
            wait_whole(agent, BALANCING_SECONDS)
        with SteadyLoad(network.client.socks_port, echo.port) as load:
            stage = Stage(network, watch=watch, load=load, agent=agent, directory=directory)
            with Supervisor(agent, gives_back=scenario.gives_back):
                with _noting(problems):
                    time.sleep(BEFORE_SECONDS)
                    scenario.inject(stage)
                    time.sleep(AFTER_SECONDS)
                    wait_whole(agent, BALANCING_SECONDS)
                load.stop()
            _check_settled(agent, watch, problems)
        problems += _revive(network)
        verdict = judge(
            Evidence(load.streams, watch.lives, watch.unable, stage.absent, stage.faults, stage.closed)
        )
        with contextlib.suppress(LabError):
            clear_circuits(watch)
    problems += _verdict_problems(verdict, scenario)
    return Row(scenario, verdict, tuple(problems), _complaints(network.client.log_text()[log_size:]))


@contextlib.contextmanager
def _noting(problems: list[str]) -> Iterator[None]:
    """A failed check is a problem of the row; the row goes on to its end, so that the next finds order."""
    try:
        yield
    except (AssertionError, CircuitloomError, OSError, subprocess.SubprocessError) as error:
        problems.append(str(error).splitlines()[0] if str(error) else "a check of the scenario failed")


def _check_settled(agent: Agent, watch: Watch, problems: list[str]) -> None:
    """Balancing with nobody waiting; then stopped, with everything given back."""
    with _noting(problems):
        watch.wait_until(lambda: not watch.waiting(), "no stream waits while the agent balances", 3.0)
        assert watch.option() == "1", "the agent says that it balances, and the option is not set"
    if agent.process.poll() is not None:
        problems.append(f"the agent ended with {agent.process.returncode}")
        agent.release()
        return
    with _noting(problems):
        code = agent.stop()
        assert code == 0, f"the agent ended with {code}"
        assert watch.option() == "0", "the agent is stopped, and the option is set"
        watch.wait_until(lambda: not watch.waiting(), "no stream waits after the agent's stop", 1.0)


def _revive(network: PrivateNetwork) -> list[str]:
    """Start whatever died and should not have; that it died is a problem."""
    problems = []
    for node in (network.client, *network.relays, *network.authorities):
        if not node.is_running():
            problems.append(f"{node.nickname} died: {node.last_complaint()}")
            node.start()
    return problems


def _verdict_problems(verdict: Verdict, scenario: Scenario) -> list[str]:
    problems = []
    if verdict.stranded:
        problems.append(f"{verdict.stranded} streams stranded")
    if verdict.lost:
        reasons = ", ".join(f"{count} x {reason}" for reason, count in verdict.failures.most_common())
        problems.append(f"{verdict.lost} streams lost: {reasons}")
    if math.isinf(verdict.works_seconds):
        problems.append("new streams did not work again")
    elif verdict.works_seconds > scenario.works_seconds:
        problems.append(f"new streams worked only after more than {scenario.works_seconds:g} s")
    return problems


def _complaints(log: str) -> tuple[str, ...]:
    """Tor's own bug lines, each once with its number."""
    lines = [line.partition("] ")[2] for line in log.splitlines() if "Bug: " in line or "[err]" in line]
    texts = [line.partition("Bug: ")[2] or line for line in lines]
    return tuple(f"Tor logged {texts.count(text)} x {text[:90]}" for text in sorted(set(texts)))
