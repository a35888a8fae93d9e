"""Nothing about a user is told: marked names go through a real Tor, and then are looked for everywhere."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

from circuitloom.admin import follow
from circuitloom.lab.node import TorClient
from circuitloom.lab.socks import SocksError, SocksProxy, SocksTimeout
from circuitloom.lab.traffic import EchoServer
from tor.agent import Agent, policy_text

LOOPBACK = "127.0.0.1"
CLOSED_PORT = 1
COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("explain",),
    ("explain", "--json"),
    ("drain", "primary"),
    ("ready", "primary"),
    ("weight", "primary", "3"),
    ("rotate", "second"),
    ("reload", "--plan"),
    ("reload",),
    ("status", "--json"),
)


async def visit(client: TorClient, echo: EchoServer) -> None:
    """Streams of every fate, all of a marked user: connected, refused, unresolvable, resolved."""
    proxy = SocksProxy(
        client.socks_port,
        username="marked-user",
        password="marked-password",  # noqa: S106 - a mark, not a secret
        timeout_seconds=20,
    )
    for _ in range(4):
        connection = await proxy.connect(LOOPBACK, echo.port)
        await connection.echo(b"x")
        await connection.close()
    for host, port in ((LOOPBACK, CLOSED_PORT), ("marked-destination.example", 80)):
        try:
            await proxy.connect(host, port)
        except (SocksError, SocksTimeout):
            continue
        raise AssertionError("there is nothing to connect to")
    with contextlib.suppress(SocksError, SocksTimeout):
        await proxy.resolve("marked-lookup.example")


def test_no_destination_user_or_password_is_told_anywhere(
    client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    metrics, state = tmp_path / "metrics.prom", tmp_path / "state"
    state.mkdir()
    policy = policy_text(
        client.control_socket,
        tmp_path,
        circuits="[{name: primary}, {name: second}]",
        more=(
            f"metrics: {{textfile: {metrics}, interval: 1s}}\n"
            "health: {eject: {consecutive_failures: 2}}\n"
            "failover: {retry: {attempts: 1}}"
        ),
    )
    heard: list[dict[str, Any]] = []

    with Agent(tmp_path, policy, environment={"STATE_DIRECTORY": str(state)}) as agent:
        agent.wait_balancing(2)
        listening = threading.Thread(target=lambda: heard.extend(follow(str(agent.socket_path))), daemon=True)
        listening.start()
        asyncio.run(visit(client, echo))
        said = []
        for command in COMMANDS:
            done = agent.command(*command, "--socket", str(agent.socket_path))
            assert done.returncode == 0, done.stderr
            said.append(done.stdout + done.stderr)
        agent.policy_path.write_text(policy.replace("circuits:", "circuit:"))
        agent.signal(signal.SIGHUP)
        agent.wait_until(lambda _status: "reload refused" in agent.log(), "a faulty policy is refused")
        deadline = time.monotonic() + 10
        while 'circuitloom_reloads_total{outcome="refused"} 1.0' not in (told := metrics.read_text()):
            assert time.monotonic() < deadline, told
            time.sleep(0.1)
        written = [file.read_text(errors="replace") for file in state.rglob("*") if file.is_file()]
        assert agent.stop() == 0
        listening.join(10)
        log = agent.log()

    # Each of them has something to say, so that its silence means something.
    assert "-> circuit primary" in log
    assert "its turn by" in "".join(said)
    assert "made ready by the operator" in json.dumps(heard)
    assert 'circuitloom_attachments_total{circuit="primary"}' in told
    assert "second" in "".join(written)
    everything = "\n".join([log, *said, json.dumps(heard), told, *written])
    for mark in ("marked", LOOPBACK, f":{echo.port}", f":{CLOSED_PORT} "):
        assert mark not in everything
