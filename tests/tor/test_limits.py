"""At the limits: ten thousand streams, no file descriptors, clocks that jump, machines that sleep."""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import Connection, SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, Outcome, StreamShape, open_many
from tor.agent import Agent, circuit_ids, policy_text
from tor.descriptors import allow_many_descriptors, few_descriptors
from tor.echo_process import echo_process
from tor.witness import Witness

STREAMS = 10_000
CIRCUITS = 64
OTHER_DESCRIPTORS = 500
"""Of a process that has an end of every stream: what it opens besides."""

OPENING = 64
"""Streams that wait for their SOCKS reply at once."""

SUSPEND_SECONDS = 5.0
STANDSTILL_SECONDS = 10.0
DAY_SECONDS = 86_400
TOR_JUMP_SECONDS = 300
"""Above the 100 s from which Tor acts on a jump, below what makes its consensus too old."""

OUTBUF_BYTES = 64 << 20
"""Far above what Tor keeps for an agent that reads nothing for 10 s, far below what harms a machine."""


def make_agent(
    client: TorClient, directory: Path, *, circuits: str = "[{name: a}, {name: b}]", **environment: str
) -> Agent:
    policy = policy_text(
        client.control_socket, directory, circuits=circuits, balance="{algorithm: round-robin}"
    )
    # A line for each of ten thousand streams would only slow the test down.
    return Agent(directory, policy.replace("debug", "info"), environment=environment)


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text("ascii").splitlines()
    (resident,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(resident.split()[1]) << 10


@asynccontextmanager
async def load_all_succeeds(
    client: TorClient, echo: EchoServer, *, streams_per_second: float = 50, hold_seconds: float = 0.0
) -> AsyncIterator[None]:
    """Steady load around a fault; no stream may be lost."""
    load = Load(
        [SocksProxy(client.socks_port, timeout_seconds=40)],
        echo.address,
        streams_per_second=streams_per_second,
        shape=StreamShape(hold_seconds=hold_seconds),
    )
    running = asyncio.create_task(load.run(90))
    try:
        await asyncio.sleep(1)
        yield
        await asyncio.sleep(1)
    finally:
        load.stop()
        report = await running
    assert [result for result in report.results if result.outcome is not Outcome.SUCCEEDED] == []


async def connect_one(client: TorClient, echo: EchoServer) -> None:
    connection = await SocksProxy(client.socks_port, timeout_seconds=5).connect(*echo.address)
    await connection.echo(b"works")
    await connection.close()


def assert_balanced(agent: Agent, witness: Witness, client: TorClient, echo: EchoServer) -> None:
    """It balances, as Tor says, and nobody waits."""
    agent.wait_balancing(2)
    witness.wait_until(lambda: witness.option() == "1", "the option is set")
    asyncio.run(connect_one(client, echo))
    witness.wait_until(lambda: not witness.waiting(), "no stream waits", 5)


@pytest.fixture
def streams(client: TorClient, capsys: pytest.CaptureFixture[str]) -> Iterator[int]:
    """As many streams as this machine's limits allow, which are said when they are fewer than wanted."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = STREAMS + OTHER_DESCRIPTORS
    ours = allow_many_descriptors(wanted)
    tors = resource.prlimit(client.pid, resource.RLIMIT_NOFILE)[1]
    streams = min(STREAMS, min(ours, tors) - OTHER_DESCRIPTORS)
    if streams < STREAMS:
        with capsys.disabled():
            sys.stderr.write(
                f"\nONLY {streams} STREAMS instead of {STREAMS}: the hard limits of file descriptors are "
                f"{ours} (tests) and {tors} (Tor); {wanted} are needed (ulimit -Hn)\n"
            )
    yield streams
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0], resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


@pytest.mark.timeout(400)
def test_ten_thousand_streams_at_once(
    client: TorClient, tmp_path: Path, streams: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are opened, echo, and are spread as the policy says, as Tor itself counts them."""

    async def echo_some(connections: Iterator[Connection]) -> int:
        echoed = 0
        for connection in connections:
            await connection.echo(b"%d" % id(connection))
            echoed += 1
        return echoed

    async def run(port: int) -> None:
        started = time.monotonic()
        opened = await open_many(
            SocksProxy(client.socks_port, timeout_seconds=60),
            ("127.0.0.1", port),
            count=streams,
            concurrency=OPENING,
        )
        took = time.monotonic() - started
        assert opened.failures == []
        connections = iter(opened.connections)
        echoed = await asyncio.gather(*(echo_some(connections) for _ in range(OPENING)))
        assert sum(echoed) == streams
        per_circuit = {circuit: count for circuit, count in witness.open_streams().items() if circuit in ids}
        assert sum(per_circuit.values()) == streams
        assert len(per_circuit) == CIRCUITS
        assert max(per_circuit.values()) - min(per_circuit.values()) <= 1
        status = agent.status()
        assert status["streams"]["active"] == streams
        assert status["streams"]["waiting"] == 0
        with capsys.disabled():
            sys.stderr.write(
                f"\n{streams} streams over {CIRCUITS} circuits, {streams / took:.0f} opened a second; "
                f"agent: {resident_bytes(agent.process.pid) / (1 << 20):.1f} MiB resident "
                f"(before: {before / (1 << 20):.1f} MiB)\n"
            )
        for connection in opened.connections:
            connection.writer.transport.abort()

    circuits = f"[{{name: swarm, count: {CIRCUITS}}}]"
    with echo_process() as port, make_agent(client, tmp_path, circuits=circuits) as agent:
        with Witness(client) as witness:
            ids = set(circuit_ids(agent.wait_balancing(CIRCUITS, seconds=60)).values())
            before = resident_bytes(agent.process.pid)
            asyncio.run(run(port))
            agent.wait_until(lambda status: status["streams"]["active"] == 0, "all are closed", 60)
        assert agent.stop() == 0


def test_a_tor_without_descriptors_is_told_and_served_again_afterwards(
    network: PrivateNetwork, echo: EchoServer, tmp_path: Path
) -> None:
    """A Tor of its own: each says so only once in six hours."""

    async def run() -> None:
        proxy = SocksProxy(client.socks_port, timeout_seconds=20)
        held = await open_many(proxy, echo.address, count=20)
        with few_descriptors(client.pid, left=3):
            late = asyncio.create_task(open_many(proxy, echo.address, count=20))
            await asyncio.to_thread(
                witness.wait_until,
                lambda: "Tor has no file descriptor left" in agent.log(),
                "the agent says what ails Tor",
            )
            for connection in held.connections:
                await connection.echo(b"still here")
            assert agent.status()["state"] == "balancing"
        opened = await late
        assert [*held.failures, *opened.failures] == []
        await held.close()
        await opened.close()

    client = network.add_client()
    try:
        with make_agent(client, tmp_path) as agent, Witness(client) as witness:
            agent.wait_balancing(2)
            asyncio.run(run())
            assert "raise LimitNOFILE= of Tor's unit" in agent.log()
            assert agent.log().count("no file descriptor") == 1
            assert agent.log().count("connected to Tor") == 1
            assert_balanced(agent, witness, client, echo)
    finally:
        client.stop()


# --- clocks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WallClock:
    """A wall clock for other processes, that a test sets.

    Attributes:
        environment: What a process needs to go by it.
    """

    offset: Path
    environment: Mapping[str, str]

    def jump(self, seconds: int) -> None:
        """Set it so far beside the true time."""
        new = self.offset.with_name("offset.new")
        new.write_text(f"{seconds}\n")
        new.rename(self.offset)


@pytest.fixture(scope="module")
def clock_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("clock") / "wall_clock.so"
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler: NO jump of a clock was tested (apt-get install gcc libc6-dev)")
    source = Path(__file__).with_name("wall_clock.c")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source], check=True)
    return library


@pytest.fixture
def clock(tmp_path: Path, clock_library: Path) -> WallClock:
    offset = tmp_path / "offset"
    clock = WallClock(offset, {"LD_PRELOAD": str(clock_library), "CLOCK_OFFSET": str(offset)})
    clock.jump(DAY_SECONDS)
    code = "import time; print(time.time())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | clock.environment,
    )
    assert abs(float(done.stdout) - time.time() - DAY_SECONDS) < 60
    clock.jump(0)
    return clock


def test_the_agent_does_not_care_about_the_wall_clock(
    client: TorClient, echo: EchoServer, tmp_path: Path, clock: WallClock
) -> None:
    """A day forward, two back, one forward."""

    async def run() -> None:
        async with load_all_succeeds(client, echo):
            for seconds in (DAY_SECONDS, -DAY_SECONDS, 0):
                clock.jump(seconds)
                await asyncio.sleep(2)

    with make_agent(client, tmp_path, **clock.environment) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        asyncio.run(run())
        assert circuit_ids(agent.status()) == ids
        assert agent.log().count("connected to Tor") == 1
        assert agent.log().count("taking stream attachment over") == 1
        assert_balanced(agent, witness, client, echo)
        assert agent.stop() == 0


def test_a_jump_of_tor_s_clock_is_told_and_leaves_nobody_waiting(
    network: PrivateNetwork,
    echo: EchoServer,
    tmp_path: Path,
    clock: WallClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patched:
        for name, value in clock.environment.items():
            patched.setenv(name, value)
        client = network.add_client()
    try:
        with make_agent(client, tmp_path) as agent, Witness(client) as witness:
            agent.wait_balancing(2)
            for turn, seconds in enumerate((TOR_JUMP_SECONDS, 0), 1):
                asyncio.run(connect_one(client, echo))
                clock.jump(seconds)
                _wait_told(agent, witness, turn)
                assert_balanced(agent, witness, client, echo)
            assert agent.log().count("connected to Tor") == 1
            assert client.is_running()
    finally:
        client.stop()


def _wait_told(agent: Agent, witness: Witness, times: int) -> None:
    witness.wait_until(lambda: agent.log().count("Tor's clock jumped") == times, "the jump is told")


# --- standstills --------------------------------------------------------------------------------------------


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Processes that get no time, as all of a machine that sleeps."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("order", [list, reversed], ids=["tor wakes first", "guard wakes first"])
def test_a_machine_that_slept_is_balanced_again(
    client: TorClient, echo: EchoServer, tmp_path: Path, order: Callable[[list[int]], Iterator[int]]
) -> None:
    async def run(pids: list[int]) -> None:
        async with load_all_succeeds(client, echo):
            with stopped(*order(pids)):
                await asyncio.sleep(SUSPEND_SECONDS)
            await asyncio.to_thread(agent.wait_balancing, 2)

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        guard_pid = agent.wait_balancing(2)["guard_pid"]
        asyncio.run(run([client.pid, agent.process.pid, guard_pid]))
        assert_balanced(agent, witness, client, echo)
        assert agent.stop() == 0


def test_tor_keeps_little_for_an_agent_that_does_not_read(
    client: TorClient, echo: EchoServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The guard gives back; what Tor has kept for the agent goes with the connection that it makes anew."""

    async def run() -> None:
        async with load_all_succeeds(client, echo, streams_per_second=150):
            before = resident_bytes(client.pid)
            with stopped(agent.process.pid):
                await asyncio.sleep(STANDSTILL_SECONDS)
                assert witness.option() == "0"
                grown = resident_bytes(client.pid) - before
            with capsys.disabled():
                sys.stderr.write(f"\nTor grew by {grown / (1 << 20):.1f} MiB in {STANDSTILL_SECONDS:g} s\n")
            assert grown < OUTBUF_BYTES
            await asyncio.to_thread(agent.wait_balancing, 2)

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(run())
        assert "stood still for" in agent.log()
        assert_balanced(agent, witness, client, echo)
