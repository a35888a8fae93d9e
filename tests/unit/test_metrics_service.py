"""The metrics of a running agent: in a file, on a port, over reloads, and gone at its end."""

from __future__ import annotations

import re
import socket
import stat
import sys
import urllib.request
from pathlib import Path

import pytest

from circuitloom.admin import ask
from unit.fake_control_port import FakeControlPort
from unit.service_driver import TAKE_OVER, change_policy, open_stream, serve, wait_until


def add(policy_path: Path, section: str) -> None:
    policy_path.write_text(f"{policy_path.read_text()}metrics: {section}\n")


def value(text: str, sample: str) -> float:
    found = re.search(rf"(?m)^circuitloom_{re.escape(sample)} (.*)$", text)
    assert found is not None, sample
    return float(found[1])


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def get(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def test_the_file_is_readable_by_all_and_goes_with_the_agent(
    policy_path: Path, fake: FakeControlPort
) -> None:
    file = policy_path.parent / "metrics.prom"
    add(policy_path, f"{{textfile: {file}, interval: 1s}}")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 1)
        fake.wait_for("ATTACHSTREAM 1 ")
        wait_until(lambda: file.exists() and value(file.read_text(), "streams") == 1)
        text = file.read_text()
        assert value(text, 'state{state="balancing"}') == 1
        assert value(text, 'attachments_total{circuit="primary"}') == 1
        assert value(text, "decision_seconds_count") == 1
        assert (value(text, "tor_connections_total"), value(text, "takeovers_total")) == (1, 1)
        assert stat.S_IMODE(file.stat().st_mode) == 0o644
        assert [path.name for path in file.parent.glob("metrics*")] == ["metrics.prom"]

    assert serve(policy_path, script) == 0
    assert not file.exists()


@pytest.mark.usefixtures("log")
def test_the_port_answers_and_a_reload_moves_it(policy_path: Path, fake: FakeControlPort, port: int) -> None:
    add(policy_path, f"{{listen: '127.0.0.1:{port}', agent: second}}")
    socket_path = str(policy_path.parent / "admin.sock")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        assert value(get(port), 'takeovers_total{agent="second"}') == 1
        change_policy(policy_path, "metrics:", "metrix:")
        assert ask(socket_path, {"command": "reload"})["faults"]
        wait_until(lambda: value(get(port), 'reloads_total{agent="second",outcome="refused"}') == 1)
        assert value(get(port), 'policy_last_reload_successful{agent="second"}') == 0
        change_policy(policy_path, f"metrix: {{listen: '127.0.0.1:{port}', agent: second}}\n", "")
        assert ask(socket_path, {"command": "reload"})["is_applied"]
        wait_until(lambda: get(port) == "")

    assert serve(policy_path, script) == 0


@pytest.mark.usefixtures("log")
def test_who_asks_again_and_again_is_told_the_same_for_a_second(
    policy_path: Path, fake: FakeControlPort, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitloom.metrics.exporter.FRESH_SECONDS", 3600.0)
    add(policy_path, f"{{listen: '127.0.0.1:{port}'}}")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        wait_until(lambda: get(port) != "")
        assert len({get(port) for _ in range(5)}) == 1

    assert serve(policy_path, script) == 0


def test_what_cannot_be_written_or_listened_on_is_said_once_and_the_agent_serves(
    policy_path: Path,
    fake: FakeControlPort,
    port: int,
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("circuitloom.metrics.exporter.LISTEN_RETRY_SECONDS", 0.05)
    add(policy_path, f"{{textfile: /nowhere/metrics.prom, interval: 1s, listen: '127.0.0.1:{port}'}}")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        wait_until(lambda: sum("metrics cannot be" in line for line in log.messages) == 2)
        other.close()
        wait_until(lambda: get(port) != "")

    with socket.create_server(("127.0.0.1", port)) as other:
        assert serve(policy_path, script) == 0
    said = sorted(line for line in log.messages if "metrics cannot be" in line)
    hint = (
        "under systemd the agent may write to its runtime directory only, /run/circuitloom; "
        "trying again until it works"
    )
    assert said == [
        f"metrics cannot be told on 127.0.0.1:{port} (Address already in use); trying again until it works",
        f"metrics cannot be written to /nowhere/metrics.prom (No such file or directory); {hint}",
    ]


def test_without_the_library_it_says_what_to_install_and_serves(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "circuitloom.metrics.exposition", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    add(policy_path, f"{{textfile: {policy_path.parent}/metrics.prom}}")

    assert serve(policy_path, lambda: fake.wait_for(TAKE_OVER)) == 0
    assert (
        "no metrics: prometheus_client is missing; install Debian's python3-prometheus-client" in log.messages
    )


def test_an_agent_without_metrics_does_not_load_the_library(
    policy_path: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "circuitloom.metrics.exposition", raising=False)

    assert serve(policy_path, lambda: fake.wait_for(TAKE_OVER)) == 0
    assert "circuitloom.metrics.exposition" not in sys.modules
