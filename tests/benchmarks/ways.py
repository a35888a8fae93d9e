"""Ways to spread streams on the private Tor network, each with a Tor client, or several, of its own.

All of them run all the time, so that memory is compared like with like; one at a time gets load.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.measure import ended_at_the_end, family, python_module
from circuitloom.errors import LabError
from circuitloom.lab.network import PrivateNetwork, free_ports
from circuitloom.lab.node import TorClient
from circuitloom.lab.torrc import LOOPBACK

READY_SECONDS = 60.0
POLL_SECONDS = 0.05
TAKEN_OVER = "__LeaveStreamsUnattached=1"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to spread streams.

    Attributes:
        name: In the report.
        socks_port: Where it takes streams, on 127.0.0.1.
        clients: Its Tor clients.
        helper: What runs beside them; None: nothing.
        circuits: Over how many circuits it spreads; None: it does not say.
    """

    name: str
    socks_port: int
    clients: Sequence[TorClient]
    helper: subprocess.Popen[bytes] | None = None
    circuits: int | None = None

    @property
    def is_ours(self) -> bool:
        """Whether it is the agent."""
        return self.name.startswith("the agent")

    def tor_processes(self) -> list[int]:
        """Process ids of its Tor clients."""
        return [client.pid for client in self.clients]

    def helper_processes(self) -> list[int]:
        """Process ids of what runs beside them."""
        return [] if self.helper is None else family(self.helper.pid)


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything there is.

    Attributes:
        agents: Over how many circuits an agent spreads, one agent for each.
        rivals: Over how many circuits the stem listener and the connection-per-command loop spread.
        tors: How many Tor clients stand behind HAProxy, one HAProxy for each.
        relays: Exit relays of the network.
    """

    agents: Sequence[int] = (2, 8, 32)
    rivals: int = 8
    tors: Sequence[int] = (2, 8)
    relays: int = 6


@contextlib.contextmanager
def all_ways(network: PrivateNetwork, size: Size, tell: Callable[[str], None]) -> Iterator[list[Way]]:
    """Start every way on the network, which is entered; those of HAProxy only where that is installed."""
    haproxy = find_haproxy()
    tors = size.tors if haproxy else ()
    if not tors:
        tell("haproxy is not installed: N tor clients behind it are NOT measured (apt-get install haproxy)")
    count = len(size.agents) + 2 + sum(tors)
    clients = iter([network.add_client(wait=False) for _ in range(count)])
    for client in network.clients:
        client.wait_until_ready(relays=network.relays)
    tell(f"{len(network.clients)} Tor clients are ready")
    with contextlib.ExitStack() as stack:
        ways = [Way("Tor's own assignment", network.client.socks_port, [network.client])]
        ways += [_agent(stack, next(clients), circuits) for circuits in size.agents]
        client = next(clients)
        stem = ("benchmarks.stem_listener", str(client.control_socket), str(size.rivals))
        ways.append(_helped(stack, "stem listener", client, size.rivals, stem))
        client = next(clients)
        loop = ("benchmarks.connection_per_command", str(client.control_socket), str(client.cookie))
        ways.append(
            _helped(stack, "a connection per command", client, size.rivals, (*loop, str(size.rivals)))
        )
        ways += [_haproxy(stack, haproxy, [next(clients) for _ in range(tor)]) for tor in tors if haproxy]
        tell("every way is ready")
        yield ways


def find_haproxy() -> str | None:
    """The program; Debian has it where only root's PATH leads."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def _agent(stack: contextlib.ExitStack, client: TorClient, circuits: int) -> Way:
    policy = client.directory / "policy.yaml"
    policy.write_text(
        f"version: 1\ntor: {{control: 'unix:{client.control_socket}'}}\n"
        f"circuits: [{{name: swarm, count: {circuits}}}]\n"
        f"failover: {{min_active: {circuits}}}\n"
        f"admin: {{socket: '{client.directory}/admin.sock'}}\n"
    )
    arguments = ("circuitloom", "run", str(policy))
    return _helped(stack, f"the agent, {circuits} circuits", client, circuits, arguments)


def _helped(
    stack: contextlib.ExitStack, name: str, client: TorClient, circuits: int, arguments: Sequence[str]
) -> Way:
    """A client whose streams a Python program attaches."""
    helper = stack.enter_context(python_module(*arguments))
    with client.control() as port:
        _wait_until(
            lambda: TAKEN_OVER in port.ask("GETCONF __LeaveStreamsUnattached"), f"{name} takes over", helper
        )
    return Way(name, client.socks_port, [client], helper, circuits)


def _haproxy(stack: contextlib.ExitStack, program: str, clients: Sequence[TorClient]) -> Way:
    port = next(free_ports())
    configuration = clients[0].directory / "haproxy.cfg"
    servers = "".join(f"  server tor{client.pid} {LOOPBACK}:{client.socks_port}\n" for client in clients)
    configuration.write_text(
        "global\n  maxconn 4096\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
        f"listen socks\n  bind {LOOPBACK}:{port}\n  balance roundrobin\n{servers}"
    )
    helper = stack.enter_context(
        subprocess.Popen(
            [program, "-db", "-f", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    )
    stack.enter_context(ended_at_the_end(helper))
    name = f"{len(clients)} tor clients behind HAProxy"
    _wait_until(lambda: _answers(port), f"{name} answers", helper)
    return Way(name, port, clients, helper, len(clients))


def _answers(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
        return connection.connect_ex((LOOPBACK, port)) == 0


def _wait_until(condition: Callable[[], bool], what: str, helper: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not condition():
        if helper.poll() is not None:
            raise LabError(f"not so: {what}; the program ended with status {helper.returncode}")
        if time.monotonic() > deadline:
            raise LabError(f"not within {READY_SECONDS:.0f} s: {what}")
        time.sleep(POLL_SECONDS)
