"""The example hook that measures: what it fetches goes through the circuit of its round, by Tor's word."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from circuitloom.admin import ask
from circuitloom.lab.node import TorClient
from tor.agent import Agent, circuit_ids, policy_text
from tor.witness import Witness

HOOK = Path(__file__).parents[2] / "schemas" / "examples" / "hooks" / "measure-throughput"
BODY = b"x" * 300_000
WAIT_SECONDS = 40.0
RULES = (
    "rules: [{match: {socks_user: circuit-primary}, circuits: [primary]}, "
    "{match: {socks_user: circuit-backup}, circuits: [backup]}]"
)


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def page() -> Iterator[str]:
    """The URL of a page behind the exits."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


def measured(
    client: TorClient, folder: Path, url: str, *, rules: str
) -> tuple[list[dict[str, Any]], Witness]:
    """Two rounds of the hook, and what Tor told meanwhile."""
    state = folder / "state"
    state.mkdir()
    env = f"[URL={url}, SECONDS=4, CONTROL={client.control_socket}, SOCKS={client.socks_port}]"
    timeline = "interval: 6s, timeout: 6s, first_after: 500ms, rounds: 2, on_failure: skip"
    policy = policy_text(
        client.control_socket,
        folder,
        circuits="[{name: primary}, {name: backup}]",
        balance="{isolation: none}",
        more=f"{rules}\nrounds: {{command: [{HOOK}], env: {env}, {timeline}}}",
    )
    with (
        Witness(client) as witness,
        Agent(folder, policy, environment={"STATE_DIRECTORY": str(state)}) as agent,
    ):
        ids = circuit_ids(agent.wait_balancing(2))
        deadline = time.monotonic() + WAIT_SECONDS
        rows: list[dict[str, Any]] = []
        while (
            [row["outcome"] for row in rows if row["outcome"]] == []
            or len(rows) < 2
            or not rows[1]["outcome"]
        ):
            assert time.monotonic() < deadline, (rows, agent.log()[-3000:])
            time.sleep(0.1)
            rows = list(ask(str(agent.socket_path), {"command": "rounds", "after": 0})["rows"])
        assert {row["circuit_id"] for row in rows} == set(ids.values())
        assert agent.stop() == 0
        return rows, witness


def circuits_of(witness: Witness, user: str) -> set[str]:
    """The circuits that streams of this SOCKS user were on, by Tor's word."""
    streams = [stream for stream, name in witness.users.items() if name == user]
    return {circuit for stream in streams for circuit in witness.attached.get(stream, ())}


def test_what_it_fetches_goes_through_the_circuit_of_its_round(
    client: TorClient, tmp_path: Path, page: str
) -> None:
    rows, witness = measured(client, tmp_path, page, rules=RULES)

    assert [(row["circuit"], row["outcome"]) for row in rows] == [("primary", "done"), ("backup", "done")], (
        rows
    )
    for row in rows:
        assert row["answer"]["read_bytes"] > len(BODY)
        assert circuits_of(witness, f"circuit-{row['circuit']}") == {row["circuit_id"]}


def test_on_another_circuit_nothing_is_measured(client: TorClient, tmp_path: Path, page: str) -> None:
    crossed = RULES.replace("[primary]", "[x]").replace("[backup]", "[primary]").replace("[x]", "[backup]")
    rows, _ = measured(client, tmp_path, page, rules=crossed)

    assert [row["outcome"] for row in rows] == ["failed", "failed"]
    assert all(row["answer"] is None for row in rows)
