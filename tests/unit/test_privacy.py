"""Nothing about a user leaves the agent at default settings: marked values are looked for in all it says."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from circuitloom.admin import ask, follow
from circuitloom.cli import main
from unit.fake_control_port import FakeControlPort
from unit.service_driver import TAKE_OVER, serve, wait_until

MARKS = ("marked-destination", "marked-user", "marked-password", "203.0.113.99")
STREAM = (
    '{0} marked-destination.example:443 {1}SOCKS_USERNAME="marked-user" SOCKS_PASSWORD="marked-password" '
    "CLIENT_PROTOCOL=SOCKS5 NYM_EPOCH=0 SESSION_GROUP=-4 "
    "ISO_FIELDS=SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH"
)


def test_no_destination_and_no_socks_name_or_password_is_told_anywhere(
    policy_path: Path,
    fake: FakeControlPort,
    capsys: pytest.CaptureFixture[str],
    log: pytest.LogCaptureFixture,
) -> None:
    socket = str(policy_path.parent / "admin.sock")
    policy_path.write_text(policy_path.read_text().replace(", isolation: none", ""))
    metrics = policy_path.parent / "metrics.prom"
    with policy_path.open("a") as policy:
        policy.write(f"metrics: {{textfile: {metrics}, interval: 1s}}\n")
    heard: list[dict[str, Any]] = []
    told: list[str] = []

    def follow_all() -> None:
        heard.extend(follow(socket))

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        listening = threading.Thread(target=follow_all, daemon=True)
        listening.start()
        # In turn over the two circuits.
        for number, circuit, end in ((1, "30", "CLOSED"), (2, "31", "FAILED"), (3, "30", "DETACHED")):
            birth = STREAM.format("0", "SOURCE_ADDR=203.0.113.99:4711 PURPOSE=USER ")
            fake.tell(
                f"STREAM {number} NEW {birth}", f"STREAM {number} CONTROLLER_WAIT {STREAM.format('0', '')}"
            )
            fake.wait_for(f"ATTACHSTREAM {number} ")
            fake.tell(
                f"STREAM {number} SENTCONNECT {STREAM.format(circuit, '')}",
                f"STREAM {number} {end} {STREAM.format(circuit, 'REASON=END REMOTE_REASON=MISC ')}",
            )
        fake.tell('CIRC 30 CLOSED REASON=DESTROYED SOCKS_USERNAME="marked-user"', "STREAM broken")
        for arguments in (["status"], ["status", "--json"], ["explain"], ["explain", "--json"]):
            assert main([*arguments, "--socket", socket]) == 0
        wait_until(lambda: 'outcome="failed"} 1.0' in metrics.read_text())
        told.append(metrics.read_text())
        while not heard:
            ask(socket, {"command": "weight", "name": "primary", "weight": 2})
            listening.join(0.05)

    assert serve(policy_path, script) == 0

    said = capsys.readouterr()
    everything = "\n".join([said.out, said.err, json.dumps(heard), *told, *log.messages])
    assert "attach" in said.out
    assert "circuit" in json.dumps(heard)
    for mark in MARKS:
        assert mark not in everything
