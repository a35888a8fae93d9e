"""No file descriptor is left in the agent: it serves on, says once what to do, and recovers by itself.

The agent is a process of its own, as the limit is; a script plays Tor.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from circuitloom.admin import ask
from tor.agent import Agent
from tor.descriptors import descriptor_limit, few_descriptors, open_descriptors
from unit.fake_control_port import PROTOCOL_INFO, FakeControlPort
from unit.service_driver import GIVE_BACK, TAKE_OVER, change_policy, open_stream

ADVICE = "no file descriptor is left: raise LimitNOFILE= of circuitloom's unit, or ulimit -n"
STANDARD_STREAMS = 3
QUIET_SECONDS = 2.5
"""More than two of the agent's attempts, so that a line for each of them would show."""


@pytest.fixture
def agent(policy_path: Path, fake: FakeControlPort) -> Iterator[Agent]:
    """Balancing, with a guard that has its connection; authenticated by a file, which takes a descriptor."""
    cookie = policy_path.with_name("cookie")
    cookie.write_bytes(b"c" * 32)
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format(f'COOKIE COOKIEFILE="{cookie}"')
    with Agent(policy_path.parent, policy_path.read_text()) as agent:
        fake.wait_for(TAKE_OVER)
        yield agent
        assert "Traceback" not in agent.log()
        assert "internal fault" not in agent.log()


def wait_for(agent: Agent, is_so: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline, f"not in time: {what}\n{agent.log()}"
        assert agent.process.poll() is None, agent.log()
        time.sleep(0.02)


def wait_log(agent: Agent, text: str, times: int = 1) -> None:
    wait_for(agent, lambda: agent.log().count(text) >= times, f"the agent logs {text!r} {times} times")


def assert_serves(fake: FakeControlPort, stream_id: int) -> None:
    open_stream(fake, stream_id)
    fake.wait_for(f"ATTACHSTREAM {stream_id} ")
    assert not fake.count(f"ATTACHSTREAM {stream_id} 0")


def assert_guarded(agent: Agent, fake: FakeControlPort) -> None:
    """When the agent is killed, somebody gives back."""
    before = fake.count(GIVE_BACK)
    agent.kill()
    fake.wait_for(GIVE_BACK, before + 1)


def test_clients_that_cannot_be_accepted_wait_and_streams_are_served(
    agent: Agent, fake: FakeControlPort
) -> None:
    with contextlib.ExitStack() as clients, few_descriptors(agent.process.pid, left=2):
        for _ in range(8):
            client = clients.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            client.connect(str(agent.socket_path))
        wait_log(agent, "takes no client")
        assert_serves(fake, 5)
        time.sleep(QUIET_SECONDS)
        assert_serves(fake, 6)
        assert agent.log().count(ADVICE) == 1
    assert ask(str(agent.socket_path), {"command": "status"})["state"] == "balancing"
    assert agent.stop() == 0
    assert agent.log().count(ADVICE) == 1


def test_a_stop_while_clients_cannot_be_accepted_is_like_any_other(
    agent: Agent, fake: FakeControlPort
) -> None:
    with few_descriptors(agent.process.pid), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(str(agent.socket_path))
        wait_log(agent, "takes no client")
        assert agent.stop() == 0
    assert fake.count(GIVE_BACK)


def test_a_lost_connection_comes_back_however_many_descriptors_were_left(
    agent: Agent, fake: FakeControlPort
) -> None:
    """One more at each turn: the socket, its copy, the cookie, the lock, and the guard's of all these."""
    for turn, limit in enumerate(range(STANDARD_STREAMS, max(open_descriptors(agent.process.pid)) + 4), 1):
        told = agent.log().count(ADVICE)
        with descriptor_limit(agent.process.pid, limit):
            fake.hang_up()
            wait_log(agent, "Tor closed the control connection", turn)
            time.sleep(1)
            assert agent.log().count(ADVICE) <= told + 2  # of the agent's connection and of its guard's
        fake.wait_for(TAKE_OVER, turn + 1)
        assert_serves(fake, 100 + turn)
    assert ADVICE in agent.log()
    wait_for(agent, lambda: agent.log().count("no control connection for the guard") > 0, "a bare guard")
    wait_log(agent, "the guard is ready again")
    assert_guarded(agent, fake)


def test_the_guard_gives_back_while_the_agent_cannot_connect_again(
    agent: Agent, fake: FakeControlPort
) -> None:
    with descriptor_limit(agent.process.pid, STANDARD_STREAMS):
        fake.hang_up(only_first=True)
        fake.wait_for(GIVE_BACK)
        wait_log(agent, ADVICE)
    fake.wait_for(TAKE_OVER, 2)
    assert_serves(fake, 5)
    assert_guarded(agent, fake)


def test_a_stop_that_cannot_connect_leaves_the_giving_back_to_the_guard(
    agent: Agent, fake: FakeControlPort
) -> None:
    with descriptor_limit(agent.process.pid, STANDARD_STREAMS):
        fake.hang_up(only_first=True)
        assert agent.stop() == 0
    fake.wait_for(GIVE_BACK)
    assert f"{ADVICE}); run: circuitloom release" in agent.log()


def test_a_guard_that_cannot_be_started_is_told_once_and_started_when_it_can(
    agent: Agent, fake: FakeControlPort
) -> None:
    guard_pid = agent.status()["guard_pid"]
    with few_descriptors(agent.process.pid):
        os.kill(guard_pid, signal.SIGKILL)
        wait_log(agent, f"no guard process ({ADVICE})")
        assert_serves(fake, 5)
    wait_log(agent, "the guard is ready again")
    assert agent.log().count(ADVICE) == 1
    assert agent.status()["guard_pid"] not in {None, guard_pid}
    assert_guarded(agent, fake)


@pytest.mark.parametrize("left", [0, 1, 2])
def test_a_reload_without_descriptors_changes_nothing(agent: Agent, fake: FakeControlPort, left: int) -> None:
    good = agent.policy_path.read_text()
    change_policy(agent.policy_path, "round-robin", "round-robbin")
    with few_descriptors(agent.process.pid, left=left):
        agent.signal(signal.SIGHUP)
        wait_log(agent, "reload refused")
        assert (ADVICE in agent.log()) == (left == 0)
        assert_serves(fake, 5)
    agent.policy_path.write_text(good)
    agent.signal(signal.SIGHUP)
    wait_log(agent, "reloaded")
    assert agent.stop() == 0


@pytest.mark.parametrize("limit", range(STANDARD_STREAMS + 2, 16))  # Python itself needs two
def test_a_start_with_few_descriptors_serves_or_says_why_not(
    policy_path: Path, fake: FakeControlPort, limit: int
) -> None:
    log = policy_path.parent / "log"
    with log.open("wb") as stderr:
        agent = subprocess.Popen(
            [
                "prlimit",
                f"--nofile={limit}:{limit}",
                sys.executable,
                "-m",
                "circuitloom",
                "run",
                str(policy_path),
            ],
            stdin=subprocess.DEVNULL,
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + 20
        while not (agent.poll() is not None or fake.count(TAKE_OVER) or ADVICE in log.read_text()):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # One that has said why may be about to end by itself.
            agent.wait(1)
    finally:
        agent.terminate()
        agent.wait(10)
    said = log.read_text()
    assert "Traceback" not in said
    assert "internal fault" not in said
    assert ADVICE in said or fake.count(TAKE_OVER)
    assert agent.returncode in {0, 71, 73}
