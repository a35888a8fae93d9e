"""``status --watch``: in place on a terminal of 80 columns without colour, one after the other elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitloom.errors import AdminError
from circuitloom.watching import fitted, watch
from unit.fake_control_port import FakeControlPort
from unit.service_driver import TAKE_OVER, open_stream, serve

WAIT_SECONDS = 15.0


def start(policy_path: Path, stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "circuitloom", "status", "--watch", "--policy", str(policy_path)],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.STDOUT,
        env=dict(os.environ) | {"NO_COLOR": "1", "TERM": "xterm"},
    )


def test_into_a_pipe_come_whole_tables_one_after_the_other(policy_path: Path, fake: FakeControlPort) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        with start(policy_path, subprocess.PIPE) as watching:
            assert watching.stdout is not None
            lines: list[str] = []
            while sum(line.startswith("BALANCING for ") for line in lines) < 2:
                lines.append(watching.stdout.readline().decode())
            watching.send_signal(signal.SIGINT)
            assert watching.wait(WAIT_SECONDS) == 130
        assert "\x1b" not in "".join(lines)
        assert any(re.fullmatch(r"primary +30  active  alpha > beta \(\?\?\)\n", line) for line in lines)

    assert serve(policy_path, script) == 0


def test_on_a_terminal_it_is_shown_in_place_and_follows(policy_path: Path, fake: FakeControlPort) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
        watching = start(policy_path, theirs)
        os.close(theirs)
        try:
            shown = read_until(ours, "BALANCING for ")
            open_stream(fake, 1)
            shown += read_until(ours, "1 streams, 0 waiting")
        finally:
            watching.send_signal(signal.SIGINT)
            # Whoever leaves what was written unread would keep it from ending.
            read_until(ours, "\x1b[?1049l")
            assert watching.wait(WAIT_SECONDS) == 130
            os.close(ours)
        assert "\x1b[?1049h" in shown  # its own screen, which it leaves as it found it
        assert re.search(r"\x1b\[[0-9;]*m", shown) is None
        for line in re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "\n", shown).splitlines():
            assert len(line.rstrip()) <= 80

    assert serve(policy_path, script) == 0


def read_until(terminal: int, text: str) -> str:
    read, deadline = "", time.monotonic() + WAIT_SECONDS
    while text not in read:
        assert time.monotonic() < deadline, read
        read += os.read(terminal, 1 << 16).decode()
    return read


def test_an_agent_that_goes_is_told_and_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("circuitloom.watching.WATCH_SECONDS", 0.0)

    def answers() -> Iterator[str]:
        yield "first"
        yield "second"

    texts = answers()

    def read() -> str:
        for text in texts:
            return text
        if "no agent\n\nno agent" in "".join(said := [capsys.readouterr().out]):
            raise KeyboardInterrupt(said)
        sys.stdout.write(said[0])
        raise AdminError("no agent")

    with pytest.raises(KeyboardInterrupt) as stopped:
        watch(read)
    assert stopped.value.args[0][0].startswith("first\n\nsecond\n\nno agent\n\nno agent")


def test_without_an_agent_at_the_start_it_ends() -> None:
    def read() -> str:
        raise AdminError("no agent")

    with pytest.raises(AdminError, match="no agent"):
        watch(read)


@pytest.mark.parametrize("height", [24, 25, 26])
def test_a_text_as_high_as_the_terminal_is_shown_whole(height: int) -> None:
    text = "\n".join(f"line {number}" for number in range(24))

    assert fitted(text, height) == text


def test_a_higher_text_says_how_much_of_it_is_not_shown_and_keeps_its_last_line() -> None:
    text = "\n".join(f"line {number}" for number in range(40))
    shown = fitted(text, 24).splitlines()

    assert len(shown) == 24
    assert shown[20:] == ["line 20", "line 21", "... 17 lines more: make the terminal higher", "line 39"]


def test_a_terminal_of_one_line_is_no_fault() -> None:
    assert fitted("a\nb\nc\nd\ne", 1) == "a\n... 3 lines more: make the terminal higher\ne"
