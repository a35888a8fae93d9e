"""What several test modules of this folder start from."""

from __future__ import annotations

import logging
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sdnotify
from hypothesis import settings

from unit.fake_control_port import FakeControlPort

# No test is about how fast a machine is, nor fails because it is busy.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for Unix sockets, whose paths must fit 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="loom-") as folder:
        yield Path(folder)


@pytest.fixture
def fake(short_path: Path) -> Iterator[FakeControlPort]:
    """A control port that answers everything well until it is told otherwise."""
    with FakeControlPort(short_path / "control") as port:
        yield port


@pytest.fixture(autouse=True)
def notifiers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Closes what sdnotify keeps open for the life of a process, and offers no way to close."""
    made = []

    class Closed(sdnotify.SystemdNotifier):  # type: ignore[misc]  # sdnotify has no types
        def __init__(self, *, debug: bool) -> None:
            super().__init__(debug=debug)
            made.append(self)

    monkeypatch.setattr(sdnotify, "SystemdNotifier", Closed)
    yield
    for notifier in made:
        notifier.socket.close()


@pytest.fixture(autouse=True)
def agent_log() -> Iterator[logging.Logger]:
    """The agent's logger; its settings are as before afterwards."""
    logger = logging.getLogger("circuitloom")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield logger
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)


@pytest.fixture
def log(
    agent_log: logging.Logger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What the agent logs, at every level."""
    agent_log.propagate = True
    caplog.set_level(logging.DEBUG, "circuitloom")
    # A reload would send the log elsewhere.
    monkeypatch.setattr("circuitloom.logs.configure", lambda _log: None)
    return caplog


@pytest.fixture
def policy_path(short_path: Path) -> Path:
    path = short_path / "policy.yaml"
    path.write_text(
        f"version: 1\ntor: {{control: 'unix:{short_path}/control'}}\n"
        "circuits: [{name: primary}, {name: backup}]\nbalance: {algorithm: round-robin, isolation: none}\n"
        f"failover: {{min_active: 2}}\nadmin: {{socket: '{short_path}/admin.sock'}}\n"
    )
    return path


@pytest.fixture
def manager(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Systemd's end of NOTIFY_SOCKET."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(short_path / "notify"))
        end.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(short_path / "notify"))
        yield end
