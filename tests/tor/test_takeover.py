"""Taking attachment over and giving it back, whatever dies."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

import pytest

from circuitloom.errors import LabError
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksError, SocksProxy
from circuitloom.lab.traffic import EchoServer, Load, LoadReport, Outcome, open_many
from tor.agent import Agent, circuit_ids, policy_text, run_command
from tor.witness import Witness

LOOPBACK = "127.0.0.1"
TWO = "[{name: primary}, {name: backup}]"


def lost(report: LoadReport) -> list[str]:
    failures = [result for result in report.results if result.outcome is not Outcome.SUCCEEDED]
    return [f"{result.outcome}: {result.detail}" for result in failures]


async def connect_one(client: TorClient, echo: EchoServer, seconds: float = 20.0) -> None:
    connection = await SocksProxy(client.socks_port, timeout_seconds=seconds).connect(LOOPBACK, echo.port)
    await connection.echo(b"works")
    await connection.close()


def make_agent(client: TorClient, directory: Path, *, more: str = "", circuits: str = TWO) -> Agent:
    policy = policy_text(
        client.control_socket, directory, circuits=circuits, balance="{algorithm: round-robin}", more=more
    )
    return Agent(directory, policy)


def test_nothing_is_taken_over_before_both_circuits_are_built(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    nowhere = "A" * 40
    prints = [relay.fingerprint for relay in network.relays]
    circuits = f"[{{name: good}}, {{name: bad, path: [{prints[0]}, {prints[1]}, {nowhere}]}}]"
    with make_agent(client, tmp_path, circuits=circuits) as agent, Witness(client) as witness:
        status = agent.wait_until(
            lambda status: {"built", "backoff"} == {circuit["state"] for circuit in status["circuits"]},
            "one circuit built and one refused",
        )
        assert status["state"] == "released"
        assert status["reason"] == "Tor assigns streams: 1 of 2 circuits built"
        assert witness.option() == "0"
        asyncio.run(connect_one(client, echo))
        assert "could not be built" in agent.log()


def test_sigterm_under_load_gives_back_without_a_lost_stream(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def run() -> None:
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=100)
        running = asyncio.create_task(load.run(5))
        await asyncio.sleep(2)
        assert await asyncio.to_thread(agent.stop) == 0
        assert lost(await running) == []

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(run())
        assert witness.option() == "0"
        assert witness.waiting() == []
        assert not agent.socket_path.exists()


def test_sigint_stops_like_sigterm(client: TorClient, tmp_path: Path) -> None:
    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        agent.signal(signal.SIGINT)
        assert agent.process.wait(5.0) == 0
        assert witness.option() == "0"


def test_kill_under_load_then_release_strands_nobody(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def run() -> None:
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=100)
        running = asyncio.create_task(load.run(6))
        await asyncio.sleep(2)
        await asyncio.to_thread(agent.kill, with_guard=True)
        await asyncio.sleep(1)
        assert len(witness.waiting()) > 20
        released = await asyncio.to_thread(agent.release)
        assert released.returncode == 0
        assert "Tor assigns all streams again" in released.stdout
        witness.wait_until(lambda: not witness.waiting_since, "no stream waits")
        await connect_one(client, echo)
        assert lost(await running) == []

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(run())
        assert witness.option() == "0"
        assert witness.waiting() == []


def test_a_new_agent_takes_what_a_killed_one_left_waiting(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def run() -> None:
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=50)
        running = asyncio.create_task(load.run(5))
        await asyncio.sleep(1)
        await asyncio.to_thread(agent.kill, with_guard=True)
        await asyncio.sleep(1)
        agent.start()
        assert lost(await running) == []

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(run())
        agent.wait_balancing(2)
        assert witness.option() == "1"
        assert witness.waiting() == []
        assert agent.stop() == 0


def test_sighup_to_tor_is_answered_by_taking_over_again(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def run() -> None:
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=100)
        running = asyncio.create_task(load.run(4))
        await asyncio.sleep(1)
        client.reload()
        assert lost(await running) == []

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        asyncio.run(run())
        assert witness.option() == "1"
        before = agent.status()["streams"]["attached_total"]
        asyncio.run(connect_one(client, echo))
        assert agent.status()["streams"]["attached_total"] == before + 1
        assert "taking stream attachment over again" in agent.log()


def test_a_restarted_tor_is_balanced_again_without_help(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    with make_agent(client, tmp_path) as agent:
        agent.wait_balancing(2)
        client.kill()
        agent.wait_until(lambda status: status["state"] == "disconnected", "the loss is noticed")
        client.start()
        agent.wait_balancing(2, seconds=60)
        asyncio.run(connect_one(client, echo))
        assert agent.status()["streams"]["attached_total"] >= 1
        assert agent.stop() == 0


def test_the_agent_waits_for_a_tor_that_is_not_there_yet(client: TorClient, tmp_path: Path) -> None:
    client.stop()
    try:
        with make_agent(client, tmp_path) as agent:
            status = agent.wait_until(lambda status: status["state"] == "disconnected", "it runs")
            assert (
                "no Tor at"
                in agent.wait_until(lambda status: "no Tor at" in status["reason"], "the reason is told")[
                    "reason"
                ]
            )
            assert status["tor"]["connected"] is False
            client.start()
            agent.wait_balancing(2, seconds=60)
    finally:
        client.start() if not client.is_running() else None


def test_all_circuits_gone_gives_back_until_they_return(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    async def run() -> None:
        load = Load([SocksProxy(client.socks_port)], (LOOPBACK, echo.port), streams_per_second=50)
        running = asyncio.create_task(load.run(5))
        await asyncio.sleep(2)
        closed_at = time.monotonic()
        for circuit_id in ids.values():
            witness.tell(f"CLOSECIRCUIT {circuit_id}")
        report = await running
        assert lost(report.between(closed_at + 1, closed_at + 60)) == []

    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        ids = circuit_ids(agent.wait_balancing(2))
        asyncio.run(run())
        assert "giving stream attachment back to Tor: no circuit is usable" in agent.log()
        agent.wait_balancing(2)
        assert witness.waiting() == []


def test_reload_keeps_circuits_and_streams(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    async def run() -> None:
        opened = await open_many(SocksProxy(client.socks_port), (LOOPBACK, echo.port), count=10)
        text = agent.policy_path.read_text()
        agent.policy_path.write_text(text.replace("[{name: primary}", "[{name: third}, {name: primary}"))
        agent.signal(signal.SIGHUP)
        after = circuit_ids(await asyncio.to_thread(agent.wait_balancing, 3))
        assert (after["primary"], after["backup"]) == (ids["primary"], ids["backup"])
        for connection in opened.connections:
            await connection.echo(b"still here")
        await opened.close()

    with make_agent(client, tmp_path) as agent:
        ids = circuit_ids(agent.wait_balancing(2))
        asyncio.run(run())


def test_a_faulty_reload_changes_nothing(client: TorClient, echo: EchoServer, tmp_path: Path) -> None:
    with make_agent(client, tmp_path) as agent:
        ids = circuit_ids(agent.wait_balancing(2))
        agent.policy_path.write_text(agent.policy_path.read_text().replace("round-robin", "round-robbin"))
        agent.signal(signal.SIGHUP)
        deadline = time.monotonic() + 10
        while "reload refused" not in agent.log():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "did you mean `round-robin`" in agent.log()
        assert circuit_ids(agent.wait_balancing(2)) == ids
        asyncio.run(connect_one(client, echo))


async def ask_dns_port(port: int, name: bytes) -> bytes:
    """One A query to Tor's DNSPort; returns the answer's flags and everything behind the question."""

    class Query(asyncio.DatagramProtocol):
        def __init__(self) -> None:
            self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def datagram_received(self, data: bytes, _sender: object) -> None:
            self.answer.set_result(data)

    labels = b"".join(bytes([len(label)]) + label for label in name.split(b"."))
    question = labels + b"\0\0\1\0\1"
    header = b"\x12\x34\1\0\0\1\0\0\0\0\0\0"
    transport, query = await asyncio.get_running_loop().create_datagram_endpoint(
        Query, remote_addr=(LOOPBACK, port)
    )
    try:
        transport.sendto(header + question)
        async with asyncio.timeout(20):
            answer = await query.answer
    finally:
        transport.close()
    return answer[2:4] + answer[len(header) + len(question) :]


async def ask_all_dns(client: TorClient) -> list[object]:
    """What a user sees of every kind of DNS stream."""
    proxy = SocksProxy(client.socks_port)
    answers: list[object] = [await proxy.resolve("host.test"), await proxy.resolve_ptr("192.0.2.1")]
    try:
        answers.append(await proxy.resolve("nowhere.example"))
    except SocksError as error:
        answers.append(error.code)
    answer = await ask_dns_port(client.dns_port, b"host.test")
    answers.append(answer[-4:])
    return answers


def test_dns_is_answered_as_by_plain_tor(client: TorClient, tmp_path: Path) -> None:
    before = asyncio.run(ask_all_dns(client))
    assert before[0] == LOOPBACK
    assert before[3] == bytes([127, 0, 0, 1])
    with make_agent(client, tmp_path) as agent, Witness(client) as witness:
        agent.wait_balancing(2)
        assert asyncio.run(ask_all_dns(client)) == before
        # The DNSPort is a listener of its own, so a key of its own, with circuits of its own.
        ids = {circuit["circuit_id"] for circuit in agent.status()["circuits"]}
        dns = [stream for stream, purpose in witness.purposes.items() if purpose == "DNS_REQUEST"]
        assert len(dns) == 4
        assert all(set(witness.attached.get(stream, [])) <= ids for stream in dns)
        assert client.is_running()
        assert agent.status()["streams"]["waiting"] == 0


def test_onion_and_directory_streams_are_left_to_tor(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    keys = tmp_path / "onion"
    keys.mkdir(mode=0o700)
    host = network.add_client(
        options=[f"HiddenServiceDir {keys}", f"HiddenServicePort 80 {LOOPBACK}:{echo.port}"]
    )

    async def run() -> None:
        deadline = time.monotonic() + 90
        while True:
            try:
                connection = await SocksProxy(client.socks_port, timeout_seconds=60).connect(onion, 80)
                break
            except LabError:
                # Its descriptor is published some seconds after the service starts.
                assert time.monotonic() < deadline
                await asyncio.sleep(1)
        await connection.echo(b"by rendezvous")
        await connection.close()

    try:
        onion = (keys / "hostname").read_text().strip()
        with make_agent(client, tmp_path) as agent, Witness(client) as witness:
            ids = set(circuit_ids(agent.wait_balancing(2)).values())
            asyncio.run(run())
            users = [stream for stream, purpose in witness.purposes.items() if purpose == "USER"]
            assert users
            directory = [stream for stream, purpose in witness.purposes.items() if purpose.startswith("DIR")]
            assert directory
            for stream in users + directory:
                assert not ids & set(witness.attached.get(stream, []))
            log = agent.log()
            assert "only Tor can serve this address" in log
            assert onion.removesuffix(".onion") not in log
            assert client.is_running()
    finally:
        host.stop()


def test_release_alone_is_harmless(client: TorClient) -> None:
    with Witness(client) as witness:
        policy = client.control_socket.parent / "release.yaml"
        policy.write_text(
            f"version: 1\ntor: {{control: 'unix:{client.control_socket}'}}\n"
            "circuits: [{name: a}, {name: b}]\n"
        )
        done = run_command("release", str(policy))
        assert done.returncode == 0
        assert witness.option() == "0"


@pytest.mark.parametrize("command", [["release"], ["status"]])
def test_commands_without_tor_or_agent_say_what_to_do(command: list[str], tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(
        f"version: 1\ntor: {{control: 'unix:{tmp_path}/control'}}\ncircuits: [{{name: a}}, {{name: b}}]\n"
        f"admin: {{socket: '{tmp_path}/admin.sock'}}\n"
    )
    arguments = [*command, str(policy)] if command == ["release"] else [*command, "--policy", str(policy)]
    done = run_command(*arguments)
    assert done.returncode == 69
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
