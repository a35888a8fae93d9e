"""The vocabulary: what a line of stream-status says about waiting, and what is never shown."""

from __future__ import annotations

import pytest

from circuitloom.model import waits_for_controller
from circuitloom.wire import parse_circuits, parse_streams


@pytest.mark.parametrize(
    ("line", "waits"),
    [
        ("3 NEW 0 a.example:80", True),
        ("3 NEWRESOLVE 0 a.example:0", True),
        ("3 CONTROLLER_WAIT 0 a.example:80", True),
        ("3 SENTCONNECT 7 a.example:80", False),
        ("3 SUCCEEDED 7 a.example:80", False),
        (f"3 NEW 0 203.0.113.9.${'D' * 40}.exit:9001", False),
    ],
)
def test_a_line_of_stream_status_tells_who_may_wait(line: str, waits: bool) -> None:
    (stream,) = parse_streams(line)

    assert waits_for_controller(stream) is waits


def test_what_an_event_shows_of_itself_names_no_user() -> None:
    (stream,) = parse_streams("3 NEW 0 secret.example:80")
    (circuit,) = parse_circuits('7 BUILT PURPOSE=GENERAL SOCKS_USERNAME="secret"')

    assert repr(stream) == "<stream 3 NEW circuit 0>"
    assert repr(circuit) == "<circuit 7 BUILT>"
