"""How lines of the log look, and where they go."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import socket
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitloom import logs
from circuitloom.kinds import Kind
from circuitloom.logs import journal, limit
from circuitloom.model import Announce, Severity
from circuitloom.policy.operating import Log, LogFormat, LogLevel

pytestmark = pytest.mark.usefixtures("agent_log")

log = logging.getLogger("circuitloom.somewhere")

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- made from the kinds of lines -->\n", "<!-- end of the kinds -->\n"


def with_kinds(readme: str) -> str:
    """The README with the table of kinds, two to a line."""
    before, _, rest = readme.partition(BEGIN)
    cells = [f"`{kind}` | `{kind.message_id}`" for kind in Kind]
    cells += [" | "] * (len(cells) % 2)
    rows = [f"| {left} | {right} |" for left, right in zip(cells[::2], cells[1::2], strict=True)]
    table = "\n".join(["| event | MESSAGE_ID | event | MESSAGE_ID |", "|---|---|---|---|", *rows])
    return f"{before}{BEGIN}{table}\n{END}{rest.partition(END)[2]}"


def test_a_plain_line_begins_with_time_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(format=LogFormat.PLAIN))
    log.warning("Tor is %s", "away")

    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING Tor is away\n", capsys.readouterr().err)


def test_a_line_for_the_journal_begins_with_its_priority(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(LogLevel.DEBUG, LogFormat.JOURNAL))
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL, 35):
        log.log(level, "line")

    assert capsys.readouterr().err == "<7>line\n<6>line\n<4>line\n<3>line\n<2>line\n<6>line\n"


def test_less_severe_lines_than_asked_for_are_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(LogLevel.ERROR, LogFormat.JOURNAL))
    log.warning("unheard")
    log.error("heard")

    assert capsys.readouterr().err == "<3>heard\n"


def test_a_second_configuration_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(format=LogFormat.PLAIN))
    logs.configure(Log(format=LogFormat.JOURNAL))
    log.info("once")

    assert capsys.readouterr().err == "<6>once\n"


def test_under_systemd_auto_means_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryFile("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        monkeypatch.setattr(sys, "stderr", stream)
        logs.configure(Log())
        log.info("line")
        stream.seek(0)

        assert stream.read() == "<6>line\n"


@pytest.mark.parametrize("stream", ["1:1", None])
def test_elsewhere_auto_means_plain(monkeypatch: pytest.MonkeyPatch, stream: str | None) -> None:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stderr", output)
    if stream is None:
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    else:
        monkeypatch.setenv("JOURNAL_STREAM", stream)
    logs.configure(Log())
    log.info("line")

    assert output.getvalue().endswith(" INFO    line\n")


def test_a_json_line_is_an_object_with_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(format=LogFormat.JSON))
    log.warning(
        "it is \u00fc\n%s", "so", extra=logs.about(Kind.CIRCUIT_BUILT, circuit="heavy", circuit_id="12")
    )
    log.info("plain")

    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "warning",
        "event": "circuit-built",
        "message": "it is \u00fc\nso",
        "circuit": "heavy",
        "circuit_id": "12",
    }
    assert (second["event"], "circuit" in second) == ("other", False)


def test_every_kind_has_an_id_of_its_own_that_never_changes() -> None:
    ids = {kind.message_id for kind in Kind}

    assert len(ids) == len(Kind)
    assert all(re.fullmatch("[0-9a-f]{32}", text) for text in ids)
    assert Kind.STARTED.message_id == "e80bbcefc84856819dff92e5fa9ca03c"


def test_the_kinds_in_the_readme_are_those_that_there_are() -> None:
    readme = README.read_text()

    assert with_kinds(readme) == readme, "run: PYTHONPATH=tests python tests/unit/test_logs.py"


# --- the journal -------------------------------------------------------------------------------------------


@pytest.fixture
def journald(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The journal's end of its socket."""
    path = str(short_path / "journal")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(path)
        end.settimeout(5)
        monkeypatch.setattr(journal, "SOCKET_PATH", path)
        monkeypatch.setattr(logs, "SOCKET_PATH", path)
        yield end
        for handler in logging.getLogger("circuitloom").handlers:
            handler.close()


def configure_under_systemd(log_policy: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """As systemd starts the agent: standard error is a stream of the journal."""
    status = os.fstat(sys.stderr.fileno())
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    logs.configure(log_policy)


def received(end: socket.socket) -> dict[str, str]:
    """The fields of the next datagram, by systemd's description of the protocol."""
    data, fields = end.recv(1 << 16), {}
    while data:
        line, _, data = data.partition(b"\n")
        name, is_plain, value = line.partition(b"=")
        if not is_plain:
            (size,) = struct.unpack("<Q", data[:8])
            value, data = data[8 : 8 + size], data[9 + size :]
        fields[name.decode()] = value.decode()
    return fields


def test_the_journal_gets_the_line_with_its_fields(
    journald: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure_under_systemd(Log(), monkeypatch)
    logs.announce(log, Announce(Severity.WARNING, "it is gone", Kind.CIRCUIT_CLOSED, "heavy", "12", "7"))

    assert received(journald) == {
        "MESSAGE": "it is gone",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "circuitloom",
        "MESSAGE_ID": Kind.CIRCUIT_CLOSED.message_id,
        "CIRCUITLOOM_EVENT": "circuit-closed",
        "CIRCUIT": "heavy",
        "CIRCUIT_ID": "12",
        "STREAM": "7",
    }


def test_a_line_cannot_forge_a_field(journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_under_systemd(Log(format=LogFormat.JOURNAL), monkeypatch)
    log.info("two\nPRIORITY=0")

    fields = received(journald)
    assert (fields["MESSAGE"], fields["PRIORITY"]) == ("two\nPRIORITY=0", "6")


def test_a_long_line_is_cut(journald: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    configure_under_systemd(Log(), monkeypatch)
    log.info("x" * (1 << 20))

    assert received(journald)["MESSAGE"] == "x" * journal.MAX_VALUE_BYTES


def test_a_journal_that_takes_nothing_holds_nobody_up_and_is_told_what_it_missed(
    journald: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configure_under_systemd(Log(LogLevel.DEBUG), monkeypatch)
    for number in range(2000):
        log.debug("line %d", number)
    taken = []
    journald.settimeout(0.05)
    while True:
        try:
            taken.append(received(journald))
        except TimeoutError:
            break
    log.debug("the last")

    missed = 2000 - len(taken)
    assert missed > 0
    assert (
        received(journald)["MESSAGE"] == f"the last (the journal did not take {missed} lines before this one)"
    )


def test_without_its_socket_lines_go_to_standard_error(
    journald: socket.socket, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_under_systemd(Log(), monkeypatch)
    Path(journald.getsockname()).unlink()
    log.error("line")

    assert capfd.readouterr().err == "<3>line\n"


# --- too many ----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time of the limit, which a test moves."""
    now = [1000.0]
    monkeypatch.setattr("circuitloom.logs.limit.time.monotonic", lambda: now[0])
    return now


def test_lines_of_one_kind_are_bounded_and_what_was_left_out_is_told(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    logs.configure(Log(format=LogFormat.JOURNAL))
    for number in range(limit.BURST_LINES + 50):
        log.info("circuit %d", number, extra=logs.about(Kind.CIRCUIT_BUILT))
    log.warning("something else")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == limit.BURST_LINES + 1
    assert lines[-1] == "<4>something else"

    logs.tell_suppressed()
    assert capsys.readouterr().err == ""
    clock[0] += limit.SPAN_SECONDS
    logs.tell_suppressed()
    assert capsys.readouterr().err == "<6>50 more lines like this were not written: circuit-built\n"

    log.info("circuit", extra=logs.about(Kind.CIRCUIT_BUILT))
    assert capsys.readouterr().err == "<6>circuit\n"


@pytest.mark.usefixtures("clock")
def test_a_reload_or_the_end_tells_what_was_left_out_until_then(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(format=LogFormat.JOURNAL))
    for number in range(limit.BURST_LINES + 3):
        log.info("line %d", number)
    capsys.readouterr()
    logs.configure(Log(format=LogFormat.JOURNAL))

    assert capsys.readouterr().err == "<6>3 more lines like this were not written: line %d\n"


@pytest.mark.usefixtures("clock")
def test_lines_without_a_kind_are_told_apart_by_their_words(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(format=LogFormat.JOURNAL))
    for number in range(limit.BURST_LINES + 1):
        log.info("one %d", number)
        log.info("other %d", number)

    assert len(capsys.readouterr().err.splitlines()) == 2 * limit.BURST_LINES


@pytest.mark.usefixtures("clock")
def test_debug_is_not_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(Log(LogLevel.DEBUG, LogFormat.JOURNAL))
    for number in range(2 * limit.BURST_LINES):
        log.debug("stream %d", number)

    assert len(capsys.readouterr().err.splitlines()) == 2 * limit.BURST_LINES


if __name__ == "__main__":
    README.write_text(with_kinds(README.read_text()))
