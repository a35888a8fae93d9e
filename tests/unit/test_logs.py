"""How lines of the log look, and where they go."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import tempfile

import pytest

from circuitloom import logs
from circuitloom.policy.operating import Log, LogFormat, LogLevel

pytestmark = pytest.mark.usefixtures("agent_log")

log = logging.getLogger("circuitloom.somewhere")


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
