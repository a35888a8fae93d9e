"""The faults, one function each, in the order of the table.

Rules of this file:

* A scenario injects its fault under load and calls ``stage.fault()`` at each instant from which new streams
  are to recover; it repairs whatever it broke, and judges nothing but that its fault was one.
* Nothing leaves loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from circuitloom.lab.node import TorRelay
from circuitloom.lab.socks import SocksProxy
from circuitloom.lab.torrc import LOOPBACK
from circuitloom.lab.traffic import open_many
from tor.agent import Agent
from tor.chaos.stage import Stage, make_agent
from tor.chaos.watch import OPTION
from tor.descriptors import few_descriptors

AGENT_SECONDS = 2.0
"""Within which new streams work after a fault of the agent or of its control connection."""

NETWORK_SECONDS = 5.0
"""Within which they work after Tor takes connections again, or after relays or circuits died."""

TOR_AWAY_SECONDS = 1.0
STANDSTILL_SECONDS = 10.0
SUSPEND_SECONDS = 5.0
AWAY_SECONDS = 4.0

CLIENTS = 40
"""Of the admin socket: more than the agent serves at once."""

FLOOD_STREAMS = 1000
FLOOD_PATIENCE_SECONDS = 15.0
"""Beyond the 10 s after which Tor takes a silent stream off its circuit and gives it back to the agent."""

# Addresses of their own: Tor counts failures by address, and the load's must not be theirs.
REFUSING_HOST, SILENT_HOST, UNRESOLVABLE_HOST = "127.0.0.2", "127.0.0.3", "nowhere.example"


@dataclass(frozen=True, slots=True)
class Scenario:
    """One row of the table.

    Attributes:
        name: What the row is called.
        inject: Does it.
        works_seconds: Within which new streams have to work again.
        gives_back: Whether the supervisor runs ``circuitloom release`` when the agent ends.
    """

    name: str
    inject: Callable[[Stage], None]
    works_seconds: float
    gives_back: bool


SCENARIOS: list[Scenario] = []


def _scenario(
    name: str, *, works_seconds: float, gives_back: bool = False
) -> Callable[[Callable[[Stage], None]], Callable[[Stage], None]]:
    def register(inject: Callable[[Stage], None]) -> Callable[[Stage], None]:
        SCENARIOS.append(Scenario(name, inject, works_seconds, gives_back))
        return inject

    return register


# --- the agent ----------------------------------------------------------------------------------------------


@_scenario("kill -9 agent", works_seconds=AGENT_SECONDS)
def _kill_agent(stage: Stage) -> None:
    stage.fault()
    stage.agent.kill()


@_scenario("kill -9 agent and guard", works_seconds=AGENT_SECONDS, gives_back=True)
def _kill_agent_and_guard(stage: Stage) -> None:
    stage.fault()
    stage.agent.kill(with_guard=True)


@_scenario("SIGSTOP agent for 10 s", works_seconds=AGENT_SECONDS)
def _stop_agent(stage: Stage) -> None:
    stage.fault()
    stage.agent.signal(signal.SIGSTOP)
    try:
        time.sleep(STANDSTILL_SECONDS)
    finally:
        stage.fault()
        stage.agent.signal(signal.SIGCONT)


@_scenario("faulty reload", works_seconds=AGENT_SECONDS)
def _faulty_reload(stage: Stage) -> None:
    circuits = set(stage.circuits())
    text = stage.agent.policy_path.read_text()
    stage.agent.policy_path.write_text(text.replace("round-robin", "round-robbin"))
    stage.fault()
    stage.agent.signal(signal.SIGHUP)
    stage.wait_log("reload refused")
    stage.agent.policy_path.write_text(text)
    assert circuits == set(stage.circuits())


@_scenario("second agent on the same Tor", works_seconds=AGENT_SECONDS)
def _second_agent(stage: Stage) -> None:
    with make_agent(stage.client, stage.directory / "second") as second:
        stage.fault()
        _wait_settled(second)
        stage.fault()
        if second.process.poll() is None:
            second.stop()


def _wait_settled(agent: Agent) -> None:
    """Until it has refused to run, or has been serving for a while: either is an answer."""
    deadline = time.monotonic() + 5
    while agent.process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


@_scenario("file descriptors exhausted: agent", works_seconds=AGENT_SECONDS)
def _starve_agent(stage: Stage) -> None:
    """While it needs some: its guard is dead, and clients come."""
    with contextlib.ExitStack() as clients:
        guard_pid = stage.agent.status()["guard_pid"]
        with few_descriptors(stage.agent.process.pid):
            stage.fault()
            os.kill(guard_pid, signal.SIGKILL)
            for _ in range(CLIENTS):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.connect(str(stage.agent.socket_path))
            stage.wait_log("takes no client")
            stage.wait_log("no guard process")
            time.sleep(AWAY_SECONDS)
    stage.fault()
    stage.wait_log("the guard is ready again")


# --- Tor ----------------------------------------------------------------------------------------------------


@_scenario("kill -9 Tor", works_seconds=NETWORK_SECONDS)
def _kill_tor(stage: Stage) -> None:
    with stage.tor_absent():
        stage.client.kill()
        time.sleep(TOR_AWAY_SECONDS)
        stage.client.launch()


@_scenario("restart Tor", works_seconds=NETWORK_SECONDS)
def _restart_tor(stage: Stage) -> None:
    with stage.tor_absent():
        stage.client.stop()
        stage.client.launch()


@_scenario("SIGHUP Tor", works_seconds=AGENT_SECONDS)
def _reload_tor(stage: Stage) -> None:
    stage.fault()
    stage.client.reload()


@_scenario("file descriptors exhausted: Tor", works_seconds=AGENT_SECONDS)
def _starve_tor(stage: Stage) -> None:
    with stage.tor_unable(), few_descriptors(stage.client.pid):
        time.sleep(AWAY_SECONDS)


@_scenario("suspend: Tor and agent for 5 s", works_seconds=AGENT_SECONDS)
def _suspend(stage: Stage) -> None:
    pids = [stage.client.pid, stage.agent.process.pid, stage.agent.status()["guard_pid"]]
    with stage.tor_unable():
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(SUSPEND_SECONDS)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)


@_scenario("NEWNYM", works_seconds=AGENT_SECONDS)
def _newnym(stage: Stage) -> None:
    stage.fault()
    stage.watch.ask("SIGNAL NEWNYM")
    # Time for the agent to renew its circuits, should it want to.
    time.sleep(3)


@_scenario("foreign SETCONF of the option", works_seconds=AGENT_SECONDS)
def _foreign_setconf(stage: Stage) -> None:
    stage.fault()
    stage.watch.ask(f"SETCONF {OPTION}=0")
    stage.watch.wait_until(lambda: stage.watch.option() == "1", "the agent takes over again")


@_scenario("control socket away for 4 s", works_seconds=AGENT_SECONDS)
def _control_socket_away(stage: Stage) -> None:
    stage.fault()
    with stage.control_socket_away():
        time.sleep(AWAY_SECONDS)


@_scenario("the same, and kill -9 agent", works_seconds=AGENT_SECONDS)
def _control_socket_away_and_killed(stage: Stage) -> None:
    with stage.control_socket_away():
        stage.fault()
        stage.agent.kill()
        time.sleep(AWAY_SECONDS)
    stage.fault()


# --- circuits and relays ------------------------------------------------------------------------------------


@_scenario("each circuit closed in turn", works_seconds=NETWORK_SECONDS)
def _close_each(stage: Stage) -> None:
    for circuit_id in stage.circuits():
        stage.fault()
        stage.close_circuit(circuit_id)
        time.sleep(1)


@_scenario("all circuits closed at once", works_seconds=NETWORK_SECONDS)
def _close_all(stage: Stage) -> None:
    circuits = stage.circuits()
    stage.fault()
    for circuit_id in circuits:
        stage.close_circuit(circuit_id)


@_scenario("a relay of every circuit killed", works_seconds=NETWORK_SECONDS)
def _kill_relays(stage: Stage) -> None:
    killed = _hitting_relays(stage)
    stage.fault()
    for relay in killed:
        relay.kill()
    try:
        time.sleep(6)
    finally:
        for relay in killed:
            relay.start()


def _hitting_relays(stage: Stage) -> list[TorRelay]:
    """Few relays such that each circuit has one; exits before guards, which every circuit shares."""
    by_fingerprint = {relay.fingerprint: relay for relay in stage.network.relays}
    open_paths = list(stage.circuits().values())
    chosen = []
    while open_paths:
        # The first hop is the guard, which Tor keeps: its death is the row above.
        votes = Counter(hop for path in open_paths for hop in path[1:] if hop in by_fingerprint)
        worst = votes.most_common(1)[0][0]
        chosen.append(by_fingerprint[worst])
        open_paths = [path for path in open_paths if worst not in path]
    return chosen


# --- floods of failing streams ------------------------------------------------------------------------------


@_scenario("1,000 streams to a refusing port", works_seconds=AGENT_SECONDS)
def _flood_refusing(stage: Stage) -> None:
    with socket.socket() as placeholder:
        # Bound and never listening: nobody else can take the port meanwhile.
        placeholder.bind((REFUSING_HOST, 0))
        _flood(stage, REFUSING_HOST, placeholder.getsockname()[1])


@_scenario("1,000 streams to a black hole", works_seconds=AGENT_SECONDS)
def _flood_black_hole(stage: Stage) -> None:
    with _black_hole() as port:
        _flood(stage, SILENT_HOST, port)


@_scenario("1,000 streams to an unknown name", works_seconds=AGENT_SECONDS)
def _flood_unresolvable(stage: Stage) -> None:
    _flood(stage, UNRESOLVABLE_HOST, 80)


def _flood(stage: Stage, host: str, port: int) -> None:
    """All at once; each must fail, and only because of its destination."""
    proxy = SocksProxy(stage.client.socks_port, timeout_seconds=FLOOD_PATIENCE_SECONDS)
    stage.fault()
    opened = asyncio.run(open_many(proxy, (host, port), count=FLOOD_STREAMS, concurrency=FLOOD_STREAMS))
    assert len(opened.failures) == FLOOD_STREAMS
    stage.fault()


@contextlib.contextmanager
def _black_hole() -> Iterator[int]:
    """A port on which connecting hangs: a full backlog makes Linux drop every further SYN."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((SILENT_HOST, 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.bind((LOOPBACK, 0))
            filler.setblocking(False)  # noqa: FBT003 - the method's only argument
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
