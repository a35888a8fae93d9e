"""The guard: streams do not wait for an agent that is dead or stands still."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, Outcome
from tor.agent import Agent, policy_text
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
PROMISED_SECONDS = 5.0


def make_agent(client: TorClient, directory: Path) -> Agent:
    policy = policy_text(client.control_socket, directory, circuits="[{name: a}, {name: b}]")
    return Agent(directory, policy)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def load_around(client: TorClient, echo: EchoServer, seconds: float, fault: Callable[[], None]) -> None:
    """Steady load, a fault after a second; every stream must succeed, and soon."""
    load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=50)
    running = asyncio.create_task(load.run(seconds))
    await asyncio.sleep(1)
    await asyncio.to_thread(fault)
    report = await running
    assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []
    assert max(result.connect_seconds or 0 for result in report.results) < PROMISED_SECONDS


def test_a_killed_agent_leaves_nobody_waiting(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        guard_pid = agent.wait_balancing(2)["guard_pid"]
        asyncio.run(load_around(client, echo, 4, agent.kill))
        assert witness.option() == "0"
        assert witness.waiting() == []
        witness.wait_until(lambda: not is_alive(guard_pid), "the guard ends with its agent")


def test_an_agent_that_stands_still_leaves_nobody_waiting(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(load_around(client, echo, 8, lambda: agent.signal(signal.SIGSTOP)))
        assert witness.option() == "0"
        agent.signal(signal.SIGCONT)
        witness.wait_until(lambda: witness.option() == "1", "it takes over again")
        asyncio.run(load_around(client, echo, 2, lambda: None))
        assert "stood still for" in agent.log()
        agent.wait_balancing(2)


def test_a_killed_guard_is_replaced(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        first = agent.wait_balancing(2)["guard_pid"]
        asyncio.run(load_around(client, echo, 2, agent.kill_guard))
        agent.wait_until(lambda status: status["guard_pid"] not in {None, first}, "a new guard", seconds=15)
        asyncio.run(load_around(client, echo, 4, agent.kill))
        assert witness.option() == "0"
        assert witness.waiting() == []


def test_a_stop_ends_the_guard(client: TorClient, tmp_path: Path) -> None:
    with make_agent(client, tmp_path) as agent:
        guard_pid = agent.wait_balancing(2)["guard_pid"]
        assert agent.stop() == 0
        assert not is_alive(guard_pid)


def test_a_kill_at_the_moment_of_takeover_leaves_nobody_waiting(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    """No instant between SETCONF and the guard's being armed: it is armed first."""
    with Witness(client) as witness:
        for number in range(5):
            with make_agent(client, tmp_path / str(number)) as agent:
                witness.wait_until(lambda: witness.option() == "1", "the takeover")
                agent.process.kill()
                asyncio.run(load_around(client, echo, 1.5, lambda: None))
            witness.wait_until(lambda: witness.option() == "0", "the guard gives back")
            assert witness.waiting() == []
