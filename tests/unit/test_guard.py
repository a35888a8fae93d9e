"""What the guard's child does to Tor; that it does so in time is shown on a real one."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from circuitloom import guard
from circuitloom.guard import watch
from unit.fake_control_port import FakeControlPort

STATUS = "250+stream-status=\r\n5 NEW 0 a:80\r\n6 NEWRESOLVE 0 b:0\r\n7 SUCCEEDED 30 c:80\r\n.\r\n250 OK\r\n"


def give_back(fake: FakeControlPort, path: Path) -> list[str]:
    """An agent in charge ends; the commands that Tor gets then."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        socket.send_fds(ours, [b"C"], [connection.fileno()])
        ours.send(b"1")
        ours.close()
        watch(theirs)
    return fake.commands


def test_it_gives_back_what_waits(tmp_path: Path) -> None:
    with FakeControlPort(tmp_path / "control") as fake:
        fake.answers["GETCONF"] = "250 __LeaveStreamsUnattached=1\r\n"
        fake.answers["GETINFO"] = STATUS

        assert give_back(fake, tmp_path / "control") == [
            "GETCONF __LeaveStreamsUnattached",
            "GETINFO stream-status",
            "RESETCONF __LeaveStreamsUnattached",
            "ATTACHSTREAM 5 0",
            "ATTACHSTREAM 6 0",
        ]


def test_it_does_not_touch_what_tor_chooses_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody gave back already: one stream is on its way a moment later, one was forgotten."""
    monkeypatch.setattr(guard, "DOUBT_SECONDS", 0.01)
    statuses = [STATUS, STATUS.replace("5 NEW 0", "5 SENTCONNECT 30")]
    with FakeControlPort(tmp_path / "control") as fake:
        fake.answers["GETCONF"] = "250 __LeaveStreamsUnattached=0\r\n"
        fake.answers["GETINFO"] = lambda _command: statuses.pop(0)

        assert give_back(fake, tmp_path / "control")[-2:] == ["GETINFO stream-status", "ATTACHSTREAM 6 0"]


@pytest.mark.parametrize("answer", ["garbage\r\n", "650 STREAM 5 NEW\r\n" * 3, None])
def test_a_tor_that_makes_no_sense_ends_it_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answer: str | None
) -> None:
    monkeypatch.setattr(guard, "ANSWER_SECONDS", 0.2)
    with FakeControlPort(tmp_path / "control") as fake:
        fake.answers["GETINFO"] = answer

        assert "ATTACHSTREAM" not in "".join(give_back(fake, tmp_path / "control"))
    assert capfd.readouterr() == ("", "")
