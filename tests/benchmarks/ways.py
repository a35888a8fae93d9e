"""Ways to spread streams on the private Tor network, each started for its turn.

Those with one Tor client share it, one after the other, and each finds it as it was: how fast a client is
depends on its guard, and on how the kernel treats the connection to it, more than on who attaches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.measure import ended_at_the_end, family, python_module
from circuitloom.errors import LabError
from circuitloom.lab.controlport import ControlPort
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
        circuits: Over how many circuits it spreads; None: Tor decides.
        arguments: What runs beside one client, after ``python -m``, with ``{control}``, ``{cookie}`` and
            ``{policy}``; beside many, a program with its arguments. None: nothing runs.
    """

    name: str
    socks_port: int
    clients: Sequence[TorClient]
    circuits: int | None = None
    arguments: Sequence[str] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is the agent."""
        return self.name.startswith("the agent")

    def on(self, client: TorClient) -> Way:
        """The same way with another client."""
        return dataclasses.replace(self, clients=[client], socks_port=client.socks_port)

    def tor_processes(self) -> list[int]:
        """Process ids of its Tor clients."""
        return [client.pid for client in self.clients]

    @contextlib.contextmanager
    def running(self) -> Iterator[list[int]]:
        """Start what runs beside the clients and wait until it serves; the ids of its processes."""
        if not self.arguments:
            yield []
        elif len(self.clients) > 1:
            with _program(self.arguments) as helper:
                _wait_until(lambda: _answers(self.socks_port), f"{self.name} answers", helper)
                yield family(helper.pid)
        else:
            with _as_it_was(self.clients[0]), self._attaching(self.clients[0]) as helper:
                yield family(helper.pid)

    @contextlib.contextmanager
    def _attaching(self, client: TorClient) -> Iterator[subprocess.Popen[bytes]]:
        policy = client.directory / "policy.yaml"
        policy.write_text(
            f"version: 1\ntor: {{control: 'unix:{client.control_socket}'}}\n"
            f"circuits: [{{name: swarm, count: {self.circuits}}}]\n"
            f"failover: {{min_active: {self.circuits}}}\n"
            f"admin: {{socket: '{client.directory}/admin.sock'}}\n"
        )
        names = {"control": client.control_socket, "cookie": client.cookie, "policy": policy}
        with (
            python_module(*(argument.format_map(names) for argument in self.arguments)) as helper,
            client.control() as port,
        ):
            _wait_until(
                lambda: TAKEN_OVER in port.ask("GETCONF __LeaveStreamsUnattached"),
                f"{self.name} takes over",
                helper,
            )
            yield helper


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


def all_ways(network: PrivateNetwork, size: Size, tell: Callable[[str], None]) -> list[Way]:
    """Every way, with its Tor clients started; those of HAProxy only where that is installed."""
    haproxy = find_haproxy()
    if haproxy is None:
        tell("haproxy is not installed: N tor clients behind it are NOT measured (apt-get install haproxy)")
    groups = [
        [network.add_client(wait=False) for _ in range(count)] for count in (size.tors if haproxy else ())
    ]
    for client in network.clients:
        client.wait_until_ready(relays=network.relays)
    tell(f"{len(network.clients)} Tor clients are ready")
    tor = Way("Tor's own assignment", network.client.socks_port, [network.client])
    rivals = {
        "stem listener": ("benchmarks.stem_listener", "{control}", str(size.rivals)),
        "a connection per command": (
            *("benchmarks.connection_per_command", "{control}", "{cookie}"),
            str(size.rivals),
        ),
    }
    agent = ("circuitloom", "run", "{policy}")
    return [
        tor,
        *(
            dataclasses.replace(tor, name=f"the agent, {count} circuits", circuits=count, arguments=agent)
            for count in size.agents
        ),
        *(
            dataclasses.replace(tor, name=name, circuits=size.rivals, arguments=arguments)
            for name, arguments in rivals.items()
        ),
        *(_behind_haproxy(haproxy, clients) for clients in groups if haproxy),
    ]


def find_haproxy() -> str | None:
    """The program; Debian has it where only root's PATH leads."""
    return shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin")


def _behind_haproxy(program: str, clients: Sequence[TorClient]) -> Way:
    port = next(free_ports())
    configuration = clients[0].directory / "haproxy.cfg"
    servers = "".join(f"  server tor{client.pid} {LOOPBACK}:{client.socks_port}\n" for client in clients)
    configuration.write_text(
        "global\n  maxconn 4096\n"
        "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n"
        f"listen socks\n  bind {LOOPBACK}:{port}\n  balance roundrobin\n{servers}"
    )
    name = f"{len(clients)} tor clients behind HAProxy"
    return Way(name, port, clients, len(clients), (program, "-db", "-f", str(configuration)))


@contextlib.contextmanager
def _program(arguments: Sequence[str]) -> Iterator[subprocess.Popen[bytes]]:
    nowhere = subprocess.DEVNULL
    with (
        subprocess.Popen(arguments, stdin=nowhere, stdout=nowhere, stderr=nowhere) as process,
        ended_at_the_end(process),
    ):
        yield process


@contextlib.contextmanager
def _as_it_was(client: TorClient) -> Iterator[None]:
    """Afterwards Tor assigns streams again, over circuits of its own."""
    with client.control() as port:
        before = _circuit_ids(port)
        yield
        port.ask("RESETCONF __LeaveStreamsUnattached")
        for circuit_id in _circuit_ids(port) - before:
            # One that has closed meanwhile.
            with contextlib.suppress(LabError):
                port.ask(f"CLOSECIRCUIT {circuit_id}")


def _circuit_ids(port: ControlPort) -> set[str]:
    return {line.split()[0] for line in port.ask_value("circuit-status").splitlines()}


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
