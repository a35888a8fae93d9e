"""A private Tor network on loopback: three directory authorities, exit relays and a client.

    with PrivateNetwork() as network:
        network.client.socks_port, network.client.control_socket, network.relays[0].kill()

Rules of this file:

* Nothing leaves loopback: ``torrc.write_torrc`` judges every torrc, and exits ask our own name server.
* Whoever starts a process names it to the guardian at once; however the owner ends, nothing is left.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from circuitloom.errors import LabError
from circuitloom.lab import guardian, torrc
from circuitloom.lab.nameserver import NameServer
from circuitloom.lab.node import NodePlan, TorClient, TorNode, TorRelay

SOCKET_PATH_BYTES = 107
"""The most that a Unix socket's address holds (108 with the closing zero)."""

LONGEST_NODE_PATH = "/relay99/control_auth_cookie"
"""What has to fit behind the directory's name."""

KEY_SECONDS = 60.0
"""Making one identity key took 0.9 s; three at once on a busy machine 4 s."""

RELOAD_SECONDS = 0.5
"""From SIGHUP until tor goes by its new torrc: 10 ms when idle, more when all nodes have just started."""

FIRST_PORT = 10_000
"""Ports below this are where services like to be."""


class PrivateNetwork:
    """The network, as a context manager; entering takes about 12 s, leaving ends and removes everything.

    Args:
        relays: How many exit relays.
        authorities: How many directory authorities; with fewer than three none may fail.
        client_options: Extra torrc lines of the first client.
        relay_options: Gives extra torrc lines of an exit relay, by its nickname and ORPort.
        on_progress: Told, in a few words, what was reached.

    Attributes:
        directory: A temporary directory with all files of all nodes.
        authorities: The directory authorities; relays too, but not exits.
        relays: The exit relays.
        clients: All clients; ``client`` is the first.
    """

    def __init__(
        self,
        *,
        relays: int = 6,
        authorities: int = 3,
        client_options: Sequence[str] = (),
        relay_options: Callable[[str, int], Sequence[str]] = lambda _nickname, _or_port: (),
        on_progress: Callable[[str], None] = lambda _: None,
    ) -> None:
        if relays < 1 or authorities < 1:
            raise LabError("a private network needs at least one exit relay and one authority")
        if relays + authorities < 3:
            raise LabError("a circuit has three hops: ask for at least three relays and authorities together")
        self.authorities: list[TorRelay] = []
        self.relays: list[TorRelay] = []
        self.clients: list[TorClient] = []
        self._relay_count = relays
        self._authority_count = authorities
        self._client_options = client_options
        self._relay_options = relay_options
        self._on_progress = on_progress
        self._authority_facts: list[torrc.Authority] = []
        self._ports = free_ports()
        self._cleanup = contextlib.ExitStack()

    def __repr__(self) -> str:
        nodes: list[TorNode] = [*self.authorities, *self.relays, *self.clients]
        running = sum(node.is_running() for node in nodes)
        return f"<PrivateNetwork [Nodes: {running} running, {len(nodes) - running} not]>"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._cleanup.close()

    @property
    def client(self) -> TorClient:
        """The first client."""
        return self.clients[0]

    def guard(self, pid: int) -> None:
        """Have a process killed when this one ends without cleaning up, for instance by SIGKILL."""
        if self._guardian.stdin is None:
            raise LabError("the guardian has no standard input")
        # The guardian was killed: tor's own watch of its owner is what remains.
        with contextlib.suppress(BrokenPipeError):
            self._guardian.stdin.write(b"watch %d\n" % pid)
            self._guardian.stdin.flush()

    def add_client(self, *, options: Sequence[str] = (), wait: bool = True) -> TorClient:
        """Start one more client.

        Args:
            options: Extra torrc lines; they replace ours of the same name, and ports add to ours.
            wait: Return only when it has built a circuit.
        """
        client = self._new_client(options)
        client.start()
        if wait:
            client.wait_until_ready(relays=self.relays)
        return client

    def _start(self) -> None:
        self._tor, self._gencert = _find_program("tor"), _find_program("tor-gencert")
        self.directory = self._make_directory()
        self._guardian = self._start_guardian()
        names = self._cleanup.enter_context(NameServer())
        (self.directory / "resolv.conf").write_text(f"nameserver {torrc.LOOPBACK}:{names.port}\n", "ascii")
        (self.directory / "empty").touch()
        # Registered before the first node exists, so that every one of them is covered.
        self._cleanup.callback(self._end_nodes)
        self._make_authorities()
        for number in range(self._relay_count):
            nickname, or_port = f"relay{number + 1}", next(self._ports)
            lines = torrc.relay_lines(or_port=or_port, resolv_conf=self.directory / "resolv.conf")
            options = self._relay_options(nickname, or_port)
            self.relays.append(self._new_relay(nickname, lines, or_port, options))
        for node in (*self.authorities, *self.relays):
            node.launch()
        for node in (*self.authorities, *self.relays):
            node.wait_until_answering()
        self._on_progress(f"{self._authority_count} authorities and {self._relay_count} relays run")
        self._agree_on_consensus()
        self._on_progress("the authorities agree on a consensus")
        self.add_client(options=self._client_options)
        self._on_progress("the client builds circuits")

    def _agree_on_consensus(self) -> None:
        """Have the authorities vote once they know all relays, and all relays fetch the consensus.

        Left alone, both happen by the clock and with backoff: in 10 s or in 50 s.
        """
        for authority in self.authorities:
            authority.wait_until_informed([*self.authorities, *self.relays], kind="desc")
        voting = torrc.first_vote(time.time() + RELOAD_SECONDS)
        for authority in self.authorities:
            # Kept as options, so that an authority that is restarted later votes when the others do.
            authority.options += voting
            authority.reload()
        for authority in self.authorities:
            authority.wait_until_informed(self.relays, kind="ns")
        for relay in self.relays:
            # It has been told "not found" some times and would ask again later and later. A client that asks
            # a relay without descriptors waits 10 s before it asks another.
            relay.reload()
        for relay in self.relays:
            relay.wait_until_informed(self.relays, kind="md")

    def _make_directory(self) -> Path:
        """A directory whose sockets' names are not too long: the usual temporary one, else below /tmp."""
        for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes a private directory in it
            path = Path(tempfile.mkdtemp(prefix="loom-", dir=parent))
            self._cleanup.callback(shutil.rmtree, path, ignore_errors=True)
            if len(os.fsencode(path)) + len(LONGEST_NODE_PATH) <= SOCKET_PATH_BYTES:
                return path
        raise LabError(f"no temporary directory has a short enough name for Unix sockets: {path}")

    def _start_guardian(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(  # noqa: S603 - our own program with our own arguments
            [sys.executable, "-I", "-S", guardian.__file__, str(os.getpid()), str(self.directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

        def dismiss() -> None:
            if process.stdin is not None:
                process.stdin.close()
            process.wait()

        self._cleanup.callback(dismiss)
        return process

    def _make_authorities(self) -> None:
        """Make the keys of all authorities at once, and so the lines by which every node knows them."""
        started = []
        for number in range(self._authority_count):
            nickname = f"auth{number + 1}"
            keys = self.directory / nickname / "keys"
            keys.mkdir(mode=0o700, parents=True)
            keys.parent.chmod(0o700)
            or_port, dir_port = next(self._ports), next(self._ports)
            commands = (
                self._certificate_command(keys, dir_port),
                self._fingerprint_command(nickname, keys.parent, or_port),
            )
            processes = [self._run_tool(command, keys) for command in commands]
            started.append((nickname, keys, or_port, dir_port, processes))
        for nickname, keys, or_port, dir_port, processes in started:
            _, fingerprint = (_output_of(process) for process in processes)
            self._authority_facts.append(
                torrc.Authority(
                    nickname,
                    or_port,
                    dir_port,
                    v3_identity=_v3_identity(keys / "authority_certificate"),
                    fingerprint=fingerprint.split(maxsplit=1)[1].replace(" ", ""),
                ),
            )
        self._on_progress("keys are made")
        quiet = torrc.quiet_voting(time.time())
        for facts in self._authority_facts:
            lines = [*torrc.authority_lines(or_port=facts.or_port, dir_port=facts.dir_port), *quiet]
            self.authorities.append(self._new_relay(facts.nickname, lines, facts.or_port))

    def _run_tool(self, command: Sequence[str], keys: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(  # noqa: S603 - the program found on PATH, with our own arguments
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=keys,
            start_new_session=True,
        )
        self._cleanup.callback(_end_tool, process)
        self.guard(process.pid)
        return process

    def _certificate_command(self, keys: Path, dir_port: int) -> list[str]:
        return [
            self._gencert,
            "--create-identity-key",
            *("--passphrase-fd", "0"),
            *("-i", str(keys / "authority_identity_key")),
            *("-s", str(keys / "authority_signing_key")),
            *("-c", str(keys / "authority_certificate")),
            *("-m", "12"),
            *("-a", f"{torrc.LOOPBACK}:{dir_port}"),
        ]

    def _fingerprint_command(self, nickname: str, directory: Path, or_port: int) -> list[str]:
        """Make tor's identity key and print its fingerprint; that opens no socket, yet needs a torrc."""
        lines = [
            *self._common_lines(),
            torrc.KEY_MAKING_AUTHORITY.dir_authority_line(),
            f"DataDirectory {directory}",
            f"Nickname {nickname}",
            f"ORPort {torrc.LOOPBACK}:{or_port} IPv4Only",
        ]
        path = directory / "torrc"
        torrc.write_torrc(path, lines)
        no_defaults = str(self.directory / "empty")
        return [self._tor, "-f", str(path), "--defaults-torrc", no_defaults, "--hush", "--list-fingerprint"]

    def _new_relay(
        self, nickname: str, lines: Sequence[str], or_port: int, options: Sequence[str] = ()
    ) -> TorRelay:
        return TorRelay(self._plan(nickname, [f"Nickname {nickname}", *lines], options), or_port=or_port)

    def _new_client(self, options: Sequence[str]) -> TorClient:
        socks_port, dns_port = next(self._ports), next(self._ports)
        lines = torrc.client_lines(socks_port=socks_port, dns_port=dns_port)
        plan = self._plan(f"client{len(self.clients) + 1}", lines, options)
        client = TorClient(plan, socks_port=socks_port, dns_port=dns_port)
        self.clients.append(client)
        return client

    def _plan(self, nickname: str, lines: Sequence[str], options: Sequence[str] = ()) -> NodePlan:
        known = (facts.dir_authority_line() for facts in self._authority_facts)
        return NodePlan(
            nickname,
            self.directory / nickname,
            tor=self._tor,
            lines=[*self._common_lines(), *known, *lines],
            options=options,
            guard=self.guard,
        )

    def _common_lines(self) -> list[str]:
        return torrc.common_lines(owner_pid=os.getpid(), empty_file=self.directory / "empty")

    def _end_nodes(self) -> None:
        """Kill every node: its files go away anyway, so there is nothing to end in good order."""
        for node in (*self.clients, *self.relays, *self.authorities):
            node.kill()


def free_ports() -> Iterator[int]:
    """Ports of 127.0.0.1 on which nothing listens, each given once, none of them ephemeral.

    A port that the kernel hands out for outgoing connections could be taken between our look and tor's start,
    by another node of this very network.
    """
    ephemeral_from = 32_768
    with contextlib.suppress(OSError, ValueError):
        ephemeral_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    candidates = list(range(FIRST_PORT, max(ephemeral_from, FIRST_PORT + 2_000)))
    random.shuffle(candidates)
    for port in candidates:
        if _is_free(port):
            yield port
    raise LabError("no free port is left on 127.0.0.1: end the programs that hold them")


def _is_free(port: int) -> bool:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((torrc.LOOPBACK, port))
            except OSError:
                return False
    return True


def _find_program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise LabError(f"{name} is not installed: install Tor (on Debian: apt-get install tor) and try again")
    return path


def _output_of(process: subprocess.Popen[str]) -> str:
    """What a key-making program printed last; tor-gencert reads a passphrase, for a throw-away key."""
    program = Path(process.args[0] if isinstance(process.args, list) else "").name
    try:
        output, _ = process.communicate("x\n", KEY_SECONDS)
    except subprocess.TimeoutExpired:
        raise LabError(
            f"{program} made no key within {KEY_SECONDS:.0f} s: is this machine overloaded?"
        ) from None
    last = output.strip().rpartition("\n")[2]
    if process.returncode != 0:
        raise LabError(f"{program} ended with {process.returncode}: {last}")
    return last


def _end_tool(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _v3_identity(certificate: Path) -> str:
    for line in certificate.read_text("ascii").splitlines():
        if line.startswith("fingerprint "):
            return line.split()[1]
    raise LabError(f"tor-gencert wrote no fingerprint into {certificate}")
