"""The private network itself: it carries streams, stays on loopback, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from circuitloom.errors import LabError
from circuitloom.lab import torrc
from circuitloom.lab.network import PrivateNetwork, free_ports
from circuitloom.lab.node import TorNode
from circuitloom.lab.traffic import (
    EchoServer,
    Load,
    Outcome,
    SocksError,
    SocksProxy,
    SocksTimeout,
    StreamResult,
    StreamShape,
    open_many,
)

needs_tor = pytest.mark.skipif(shutil.which("tor") is None, reason="tor is not installed")

AUTHORITY = "DirAuthority a orport=1 no-v2 v3ident=0 127.0.0.1:1 0"

NOT_CONNECTED = str(ipaddress.ip_address(0))
"""What the kernel shows as the remote address of a listening socket."""

OWNER = """
import sys
from circuitloom.lab.network import PrivateNetwork

def tell(reached):
    if "relays run" in reached:
        print(network.directory, flush=True)
        sys.stdin.read()

network = PrivateNetwork(authorities=1, relays=2, on_progress=tell)
with network:
    pass
"""
"""Starts a network, names its directory once its nodes run, and waits to be ended."""


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def listens(port: int) -> bool:
    """Whether a connection to this port of 127.0.0.1 is taken."""
    with socket.socket() as probe:
        return probe.connect_ex((torrc.LOOPBACK, port)) == 0


def processes_naming(directory: Path) -> list[str]:
    """The command lines of all processes that name this directory: nodes, key makers, the guardian."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(directory) in words:
            found.append(words)
    return found


def socket_addresses(node: TorNode) -> Iterator[str]:
    """Every local and remote IP address of a process's sockets."""
    inodes = set()
    for descriptor in Path(f"/proc/{node.pid}/fd").iterdir():
        try:
            found = re.match(r"socket:\[(\d+)\]", str(descriptor.readlink()))
        except OSError:
            continue
        if found:
            inodes.add(found[1])
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/{node.pid}/net/{table}").read_text("ascii").splitlines()[1:]:
            words = line.split()
            if words[9] in inodes:
                for address in words[1:3]:
                    packed = bytes.fromhex(address.partition(":")[0])
                    groups = (packed[at : at + 4][::-1] for at in range(0, len(packed), 4))
                    yield str(ipaddress.ip_address(b"".join(groups)))


def test_a_stream_echoes(network: PrivateNetwork, echo: EchoServer, proxy: SocksProxy) -> None:
    async def send() -> None:
        connection = await proxy.connect(*echo.address)
        await connection.echo(b"through three relays")
        await connection.close()
        assert connection.connect_seconds > 0

    asyncio.run(send())

    assert echo.accepted == 1
    assert echo.received_bytes == len(b"through three relays")
    assert len(network.relays) == 6


def test_early_data_arrives(echo: EchoServer, proxy: SocksProxy) -> None:
    async def send() -> None:
        connection = await proxy.connect("early.test", echo.port, early_data=b"before the reply")
        await connection.expect(b"before the reply")
        await connection.close()

    asyncio.run(send())

    assert echo.accepted == 1


def test_names_are_resolved_by_the_networks_own_name_server(proxy: SocksProxy) -> None:
    async def ask() -> None:
        assert await proxy.resolve("anything.test") == "127.0.0.1"
        assert await proxy.resolve_ptr("192.0.2.1") == "echo.test"
        with pytest.raises(SocksError, match="host unreachable") as caught:
            await proxy.resolve("nothing.invalid")
        assert caught.value.code == 4

    asyncio.run(ask())


def test_many_streams_are_open_at_once(network: PrivateNetwork, echo: EchoServer) -> None:
    proxy = SocksProxy(network.client.socks_port, username="many", timeout_seconds=20)

    async def fill() -> None:
        opened = await open_many(proxy, echo.address, count=100, concurrency=32)
        assert opened.failures == []
        assert echo.active == 100
        await opened.close()

    asyncio.run(fill())

    assert wait_until(lambda: echo.active == 0)


def test_a_load_counts_every_stream(network: PrivateNetwork, echo: EchoServer) -> None:
    proxies = [SocksProxy(network.client.socks_port, username=name, timeout_seconds=20) for name in "ab"]
    told: list[StreamResult] = []
    load = Load(
        proxies,
        echo.address,
        streams_per_second=40,
        shape=StreamShape(hold_seconds=0.1, early_data=True),
        on_result=told.append,
    )

    report = asyncio.run(load.run(1.0))

    assert (len(report.results), report.count(Outcome.SUCCEEDED), report.lost) == (40, 40, 0)
    assert list(report.results) == told
    assert 0 < report.connect_percentile_seconds(50) <= report.connect_percentile_seconds(99)


def test_a_load_tells_refused_cut_and_silent_streams_apart(network: PrivateNetwork, echo: EchoServer) -> None:
    client = network.client.socks_port

    async def outcomes() -> list[Outcome]:
        held = Load(
            [SocksProxy(client, timeout_seconds=20)],
            echo.address,
            streams_per_second=100,
            shape=StreamShape(hold_seconds=1.0),
        )
        cut = asyncio.create_task(held.run(0.01))
        assert await asyncio.to_thread(wait_until, lambda: echo.received_bytes > 0)
        echo.drop_connections()
        with socket.create_server(("127.0.0.1", 0)) as silent:
            proxies = [SocksProxy(client), SocksProxy(silent.getsockname()[1], timeout_seconds=0.2)]
            rest = await Load(proxies, ("nothing.invalid", 1), streams_per_second=100).run(0.02)
        return [result.outcome for report in (await cut, rest) for result in report.results]

    assert sorted(asyncio.run(outcomes())) == [Outcome.CUT, Outcome.REFUSED, Outcome.TIMED_OUT]


def test_a_silent_proxy_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = SocksProxy(silent.getsockname()[1], timeout_seconds=0.2)

        with pytest.raises(SocksTimeout, match="no reply within"):
            asyncio.run(proxy.connect("echo.test", 1))


def test_no_socket_leaves_loopback(network: PrivateNetwork, echo: EchoServer, proxy: SocksProxy) -> None:
    async def use() -> None:
        # An exit that could would connect to the documentation network here; it has no address to do it from.
        with pytest.raises(SocksError):
            await proxy.connect("192.0.2.1", 80)
        opened = await open_many(proxy, echo.address, count=10)
        assert opened.failures == []
        for node in (*network.authorities, *network.relays, *network.clients):
            if node.is_running():
                assert set(socket_addresses(node)) <= {torrc.LOOPBACK, NOT_CONNECTED}, node
        await opened.close()

    asyncio.run(use())


def test_a_client_lives_through_restart_reload_and_pause(network: PrivateNetwork, echo: EchoServer) -> None:
    client = network.add_client()
    first_pid = client.pid
    port = next(free_ports())
    proxy = SocksProxy(client.socks_port, timeout_seconds=20)

    async def send(proxy: SocksProxy) -> None:
        await (await proxy.connect(*echo.address)).close()

    client.restart()
    client.wait_until_ready()
    assert client.pid != first_pid
    asyncio.run(send(proxy))

    client.options.append(f"SocksPort 127.0.0.1:{port}")
    client.reload()
    assert wait_until(lambda: listens(port))
    asyncio.run(send(SocksProxy(port, timeout_seconds=20)))

    client.pause()
    with pytest.raises(SocksTimeout):
        asyncio.run(send(SocksProxy(client.socks_port, timeout_seconds=0.3)))
    client.resume()
    asyncio.run(send(proxy))

    client.pause()
    client.stop()
    assert not client.is_running()
    with pytest.raises(LabError, match=f"{client.nickname} is not running: start it first"):
        client.reload()


def test_a_relay_can_be_killed_and_started_again(network: PrivateNetwork) -> None:
    relay = network.relays[-1]
    fingerprint = relay.fingerprint

    relay.kill()
    assert not relay.is_running()
    relay.start()

    assert relay.fingerprint == fingerprint
    relay.wait_until_informed(network.relays, kind="md")


def test_a_tor_that_ends_at_its_start_gives_the_reason(network: PrivateNetwork) -> None:
    with pytest.raises(LabError, match="Unknown option 'NoSuchOption'") as caught:
        network.add_client(options=["NoSuchOption 1"])

    assert "\n" not in str(caught.value)


def test_a_port_taken_meanwhile_is_named_with_what_to_do(network: PrivateNetwork, echo: EchoServer) -> None:
    with pytest.raises(LabError, match="another program has taken the port meanwhile: try again") as caught:
        network.add_client(options=[f"SocksPort 127.0.0.1:{echo.port}"])

    assert "\n" not in str(caught.value)


@needs_tor
def test_a_failing_start_leaves_nothing() -> None:
    def fail(reached: str) -> None:
        if "relays run" in reached:
            assert len(processes_naming(network.directory)) == 4
            raise LookupError

    network = PrivateNetwork(authorities=1, relays=2, on_progress=fail)

    with pytest.raises(LookupError), network:
        pass

    assert processes_naming(network.directory) == []
    assert not network.directory.exists()


@needs_tor
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_ended_owner_leaves_nothing(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        directory = Path(owner.stdout.readline().strip())
        # An authority, two relays and the guardian.
        assert len(processes_naming(directory)) == 4

        owner.send_signal(number)

        assert wait_until(lambda: not processes_naming(directory) and not directory.exists())
        owner.wait(10)


@pytest.mark.parametrize("program", ["tor", "tor-gencert"])
def test_a_missing_program_is_one_clear_line(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in {"tor", "tor-gencert"} - {program}:
        (tmp_path / other).touch(mode=0o700)
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(LabError) as caught, PrivateNetwork():
        pass

    assert str(caught.value) == (
        f"{program} is not installed: install Tor (on Debian: apt-get install tor) and try again"
    )


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], "would use the public network"),
        (["DirAuthority moria1 orport=9101 128.31.0.39:9131 0"], "is not on 127.0.0.1"),
        ([AUTHORITY, "TestingTorNetwork 0"], "exactly one line 'TestingTorNetwork 1'"),
        ([AUTHORITY, "outboundbindaddress 10.0.0.1"], "exactly one line 'OutboundBindAddress 127.0.0.1'"),
        ([AUTHORITY, "%include /etc/tor/torrc"], "does not take the option"),
        ([AUTHORITY, "+FallbackDir 192.0.2.1:80 id=0"], "does not take the option"),
        ([AUTHORITY, "Bridge 192.0.2.1:443"], "does not take the option"),
        ([AUTHORITY, "Nickname a\nFallbackDir 192.0.2.1:80 id=0"], "does not take the option"),
        ([AUTHORITY, "Nickname a\\"], "does not take the option"),
    ],
)
def test_no_torrc_may_lead_past_loopback(lines: list[str], reason: str, tmp_path: Path) -> None:
    path = tmp_path / "torrc"

    with pytest.raises(LabError, match=reason):
        torrc.write_torrc(path, [*torrc.REQUIRED_LINES, *lines])

    assert not path.exists()


def test_an_extra_line_replaces_ours_or_adds_a_port() -> None:
    ours = ["SocksPort 1", "CircuitBuildTimeout 30"]

    assert torrc.merge(ours, ["circuitbuildtimeout 9", "SocksPort 2"]) == [
        "SocksPort 1",
        "circuitbuildtimeout 9",
        "SocksPort 2",
    ]


@pytest.mark.parametrize(("relays", "authorities"), [(0, 3), (6, 0), (1, 1)])
def test_a_network_without_three_hops_is_refused(relays: int, authorities: int) -> None:
    with pytest.raises(LabError, match="at least"):
        PrivateNetwork(relays=relays, authorities=authorities)
