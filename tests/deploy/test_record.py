"""`run --record` under the unit's sandbox, with the two lines that the README gives."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator

import pytest

from deploy.lab.fleet import Fleet, balanced
from deploy.lab.host import Host
from deploy.lab.playbook import REPOSITORY

DROP_IN = "/run/systemd/system/circuitloom.service.d/record.conf"
FILE = "/var/lib/circuitloom/streams.jsonl"
STREAMS = 40


def exec_start() -> str:
    """The command of the README."""
    lines = REPOSITORY.joinpath("README.md").read_text().split("`ExecStart=` and `", 1)[1]
    return lines.partition("`")[0].replace("\n", " ").replace("   ", " ")


@pytest.fixture
def recording(fleet: Fleet) -> Iterator[Host]:
    """A host that records; Debian 13 has the stricter systemd."""
    host = fleet.hosts["c"]
    fleet.normal(host)
    conf = f"[Service]\nExecStart=\n{exec_start()}\n"
    folder = DROP_IN.rpartition("/")[0]
    host.run(
        f"mkdir -p {folder}; printf %s {shlex.quote(conf)} >{DROP_IN};"
        " systemctl daemon-reload; systemctl restart circuitloom"
    )
    balanced(host, 60)
    yield host
    host.run(f"rm {DROP_IN}; systemctl daemon-reload; systemctl restart circuitloom; rm {FILE}*")
    balanced(host, 60)


def test_a_recording_in_the_sandbox_tells_every_stream_and_no_destination(
    fleet: Fleet, recording: Host
) -> None:
    recording.put_guest()

    seen = recording.guest("spread", fleet.network.echo, str(STREAMS))

    assert seen["failures"] == []
    recording.wait_until(f"test $(grep -c attached {FILE}) -ge {STREAMS}", seconds=10)
    text = recording.run(f"cat {FILE}")
    told = [json.loads(line) for line in text.splitlines()]
    assert sum(line.get("event") == "new" for line in told) >= STREAMS
    assert fleet.network.echo.rpartition(":")[0] not in text
    assert recording.run(f"stat --format=%a {FILE}").strip() == "600"


def test_what_was_recorded_there_can_be_simulated_there(recording: Host, fleet: Fleet) -> None:
    recording.put_guest()
    recording.guest("spread", fleet.network.echo, "10")
    recording.run("systemctl stop circuitloom; systemctl start circuitloom")
    balanced(recording, 60)
    program = "/usr/local/bin/circuitloom"

    shown = recording.run(f"{program} simulate /etc/circuitloom/policy.yml --log {FILE}.1 --json")

    assert json.loads(shown)["streams"] >= 10
