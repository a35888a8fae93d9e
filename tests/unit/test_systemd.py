"""What systemd is told, on a real datagram socket."""

from __future__ import annotations

import logging
import os
import re
import socket

import pytest

from circuitloom.systemd import Notifier, watchdog_seconds

# sdnotify drops a socket that it could not connect without closing it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


def receive(manager: socket.socket) -> str:
    return manager.recv(4096).decode()


def test_each_state_is_one_message(manager: socket.socket) -> None:
    notifier = Notifier()

    notifier.ready("balancing")
    assert receive(manager) == "READY=1\nSTATUS=balancing"
    notifier.status("two of two")
    assert receive(manager) == "STATUS=two of two"
    notifier.watchdog()
    assert receive(manager) == "WATCHDOG=1"
    notifier.stopping()
    assert receive(manager) == "STOPPING=1\nSTATUS=giving stream attachment back to Tor"


def test_a_reload_tells_when_it_began(manager: socket.socket) -> None:
    Notifier().reloading()

    match = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", receive(manager))
    assert match is not None
    assert int(match[1]) > 0


def test_a_status_cannot_smuggle_another_line(manager: socket.socket) -> None:
    Notifier().status("one\nWATCHDOG=trigger")

    assert receive(manager) == "STATUS=one WATCHDOG=trigger"


def test_a_status_is_utf_8(manager: socket.socket) -> None:
    Notifier().status("reload refused: unknown key `größe` `回路`")

    assert receive(manager) == "STATUS=reload refused: unknown key `größe` `回路`"


def test_an_abstract_socket_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"circuitloom-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        Notifier().watchdog()

        assert receive(manager) == "WATCHDOG=1"


@pytest.mark.parametrize("value", [None, ""])
def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if value is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", value)

    Notifier().ready("balancing")


def test_a_manager_that_is_not_there_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, agent_log: logging.Logger
) -> None:
    agent_log.propagate = True
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notifier = Notifier()
    notifier.watchdog()

    assert [record.getMessage() for record in caplog.records] == [
        "systemd cannot be told our state ([Errno 2] No such file or directory); going on without"
    ]


def test_a_manager_that_goes_away_is_told_of_once(
    manager: socket.socket, caplog: pytest.LogCaptureFixture, agent_log: logging.Logger
) -> None:
    agent_log.propagate = True
    notifier = Notifier()
    manager.close()
    notifier.watchdog()
    notifier.watchdog()

    assert len(caplog.records) == 1
    assert "going on without" in caplog.text


@pytest.mark.parametrize(
    ("microseconds", "process", "seconds"),
    [
        ("30000000", "", 30.0),
        ("500000", str(os.getpid()), 0.5),
        ("500000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("soon", "", None),
        ("-1", "", None),
    ],
)
def test_the_watchdog_s_time(
    monkeypatch: pytest.MonkeyPatch, microseconds: str, process: str, seconds: float | None
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    monkeypatch.setenv("WATCHDOG_PID", process)

    assert watchdog_seconds() == seconds


def test_no_watchdog_without_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)

    assert watchdog_seconds() is None
