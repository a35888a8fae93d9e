"""Where streams go is shown only where the policy allows it, to who asks for it, and no longer than that."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from circuitloom.admin import ask
from circuitloom.cli import main
from circuitloom.errors import AdminError
from circuitloom.model import StreamId
from circuitloom.policy import check_policy
from circuitloom.policy.operating import Destinations, Log
from circuitloom.policy.types import Policy
from unit.fake_control_port import FakeControlPort
from unit.pool_driver import TWO, Driver, balancing, closed, opened
from unit.service_driver import TAKE_OVER, open_stream, serve

TARGET = "marked.example:443"


def showing(policy: Policy) -> Policy:
    return dataclasses.replace(policy, log=Log(destinations=Destinations.FULL))


def targets(driver: Driver) -> list[str | None]:
    return [decision.target for decision in driver.pool.explain(None, now=driver.now).decisions]


def test_by_default_none_is_kept() -> None:
    driver = balancing()
    driver.tell(*opened(1, TARGET))

    assert targets(driver) == [None]
    assert driver.pool.shown_target(StreamId("1")) == ""


def test_where_the_policy_allows_it_a_decision_keeps_it() -> None:
    driver = balancing(showing(TWO))
    driver.tell(*opened(1, TARGET))
    assert driver.pool.shown_target(StreamId("1")) == f" to {TARGET}"
    driver.tell(closed(1))

    assert targets(driver) == [TARGET]
    assert driver.pool.shown_target(StreamId("1")) == ""


def test_a_reload_that_forbids_it_forgets_those_that_were_kept() -> None:
    driver = balancing(showing(TWO))
    driver.tell(*opened(1, TARGET))
    driver.reload(TWO)
    driver.tell(*opened(2, TARGET))

    assert targets(driver) == [None, None]


def test_check_warns_of_it() -> None:
    policy = b"version: 1\ncircuits: [{name: a}, {name: b}]\nlog: {destinations: full}\n"

    (warning,) = check_policy(policy, name="p")[1]
    assert str(warning).startswith(
        "p:3:21: log.destinations: whoever reads the log or asks `explain` sees where"
    )


def test_explain_shows_it_to_who_asks_for_it(
    policy_path: Path, fake: FakeControlPort, capsys: pytest.CaptureFixture[str]
) -> None:
    policy_path.write_text(policy_path.read_text() + "log: {destinations: full}\n")
    socket = str(policy_path.parent / "admin.sock")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 1, TARGET)
        fake.wait_for("ATTACHSTREAM 1 ")
        assert TARGET not in json.dumps(ask(socket, {"command": "explain"}))
        assert main(["explain", "--socket", socket]) == 0
        assert TARGET not in capsys.readouterr().out
        assert main(["explain", "1", "--destinations", "--socket", socket]) == 0
        assert TARGET in capsys.readouterr().out

    assert serve(policy_path, script) == 0


def test_explain_refuses_it_where_the_policy_does_not_allow_it(
    policy_path: Path, fake: FakeControlPort
) -> None:
    socket = str(policy_path.parent / "admin.sock")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        with pytest.raises(AdminError, match="the policy keeps destinations to itself"):
            ask(socket, {"command": "explain", "destinations": True})
        with pytest.raises(AdminError, match="destinations is true or false"):
            ask(socket, {"command": "explain", "destinations": "yes"})

    assert serve(policy_path, script) == 0


@pytest.mark.parametrize("allows", [True, False])
def test_a_debug_line_shows_it_only_where_the_policy_allows_it(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture, *, allows: bool
) -> None:
    word = "full" if allows else "scrub"
    policy_path.write_text(policy_path.read_text() + f"log: {{level: debug, destinations: {word}}}\n")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 1, TARGET)
        fake.wait_for("ATTACHSTREAM 1 ")

    assert serve(policy_path, script) == 0
    to = f" to {TARGET}" if allows else ""
    assert f"stream 1{to} -> circuit primary (30), round-robin" in log.messages


def test_a_reload_that_still_allows_them_keeps_what_was_seen() -> None:
    driver = balancing(showing(TWO))
    driver.tell(*opened(1, TARGET))
    driver.reload(showing(TWO))

    assert targets(driver) == [TARGET]
