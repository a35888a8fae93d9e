"""The running agent's commands, from the command line to Tor's end of the control connection."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from circuitloom import adopting
from circuitloom.admin import ask, follow
from circuitloom.cli import main
from circuitloom.errors import AdminError
from circuitloom.operation import plan
from circuitloom.policy.types import Adopt, Policy, Slot
from unit.fake_control_port import FakeControlPort
from unit.pool_driver import built
from unit.service_driver import TAKE_OVER, change_policy, open_stream, serve, status

MARKED = "marked-destination.example:443"


@pytest.fixture
def operate(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> Callable[[Callable[[], object]], None]:
    """Runs a script beside an agent that balances."""
    log.clear()

    def run(script: Callable[[], object]) -> None:
        def balanced() -> None:
            fake.wait_for(TAKE_OVER)
            script()

        assert serve(policy_path, balanced) == 0

    return run


def command(policy_path: Path, *arguments: str) -> int:
    return main([*arguments, "--policy", str(policy_path)])


Operate = Callable[[Callable[[], object]], None]


def test_drain_and_ready_by_the_command_line(
    operate: Operate, policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    def script() -> None:
        assert command(policy_path, "drain", "primary") == 0
        open_stream(fake, 1)
        fake.wait_for("ATTACHSTREAM 1 31")
        open_stream(fake, 2)
        fake.wait_for("ATTACHSTREAM 2 31")
        assert command(policy_path, "ready", "primary") == 0
        open_stream(fake, 3)
        open_stream(fake, 4)
        fake.wait_for("ATTACHSTREAM", 4)
        assert sum(line.endswith(" 30") for line in fake.commands if line.startswith("ATTACH")) == 1

    operate(script)

    assert any(line.startswith("drain was asked for by uid ") for line in log.messages)


def test_close_is_forced_and_rotate_builds(
    operate: Operate, policy_path: Path, fake: FakeControlPort
) -> None:
    def script() -> None:
        assert command(policy_path, "rotate", "backup") == 0
        fake.wait_for("EXTENDCIRCUIT", 3)
        assert command(policy_path, "close", "primary") == 0
        fake.wait_for("CLOSECIRCUIT 30")
        assert "CLOSECIRCUIT 30" in fake.commands

    operate(script)


def test_a_weight_is_in_the_status_until_a_reload(
    operate: Operate, policy_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def weights() -> list[int]:
        answer = ask(str(policy_path.parent / "admin.sock"), {"command": "status"})
        return [circuit["weight"] for circuit in answer["circuits"]]

    def script() -> None:
        assert command(policy_path, "weight", "primary", "3") == 0
        assert weights() == [3, 1]
        assert command(policy_path, "reload") == 0
        assert weights() == [1, 1]

    operate(script)

    assert capsys.readouterr().out == (
        "backup   kept with its streams\nprimary  kept, with another weight, limit or role\n"
    )


def test_a_plan_changes_nothing_and_a_faulty_policy_is_refused(
    operate: Operate, policy_path: Path, fake: FakeControlPort, capsys: pytest.CaptureFixture[str]
) -> None:
    def script() -> None:
        change_policy(policy_path, "{name: backup}", "{name: third}")
        assert command(policy_path, "reload", "--plan") == 0
        assert fake.count("EXTENDCIRCUIT") == 2
        change_policy(policy_path, "{name: third}", "{nme: third}")
        socket = str(policy_path.parent / "admin.sock")
        assert main(["reload", "--socket", socket]) == 78

    operate(script)

    out, err = capsys.readouterr()
    assert out == (
        "primary  kept with its streams\n"
        "third    built anew, make before break\n"
        "backup   drained: no new streams, closed when empty\n"
    )
    assert 'did you mean "name"' in err or "nme" in err
    assert err.endswith("circuitloom: reload refused, the old policy stays\n")


def test_explain_tells_the_decision_and_no_destination(
    operate: Operate, policy_path: Path, fake: FakeControlPort, capsys: pytest.CaptureFixture[str]
) -> None:
    def script() -> None:
        open_stream(fake, 7, MARKED)
        fake.wait_for("ATTACHSTREAM 7")
        assert command(policy_path, "drain", "backup") == 0
        assert command(policy_path, "explain", "7") == 0
        assert command(policy_path, "explain", "8") == 0
        assert command(policy_path, "explain", "--json") == 0

    operate(script)

    out = capsys.readouterr().out
    assert "     7   0s  primary  30  its turn by round-robin" in out
    assert "drained by the operator" in out
    assert "Nothing is remembered of stream 8." in out
    assert all(len(line) <= 80 for line in out.splitlines())
    assert "marked" not in out


def test_a_circuit_of_another_controller_is_adopted_and_a_wrong_one_refused(
    policy_path: Path,
    fake: FakeControlPort,
    log: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change_policy(policy_path, "{name: backup}]", "{name: backup}, {name: paid, adopt: {}}]")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        answer = f"250+circuit-status=\r\n{built(70)}\r\n.\r\n250-stream-status=\r\n250 OK\r\n"
        fake.answers["GETINFO circuit-status"] = answer
        assert command(policy_path, "adopt", "paid", "71") == 69
        assert command(policy_path, "adopt", "primary", "70") == 69
        assert command(policy_path, "rotate", "paid") == 69
        assert command(policy_path, "adopt", "paid", "7 0") == 69
        assert command(policy_path, "adopt", "paid", "70") == 0
        assert command(policy_path, "adopt", "paid", "70") == 69
        circuits = status(policy_path)["circuits"]
        assert [(c["name"], c["circuit_id"], c["is_adopted"]) for c in circuits][2] == ("paid", "70", True)
        fake.answers["GETINFO circuit-status"] = "551 no\r\n"
        assert command(policy_path, "adopt", "paid", "70") == 69

    assert serve(policy_path, script) == 0

    said = capsys.readouterr().err.splitlines()
    for line, complaint in zip(
        said,
        (
            "circuit 71 is not adopted as paid: Tor has no such circuit",
            "the agent builds primary itself: give it `adopt` in the policy",
            "another controller builds and closes this circuit",
            "circuit is the id that Tor gave it, as a string",
            "circuit 70 is not adopted as paid: it is in the pool already, as paid",
            "circuit 70 is not adopted as paid: Tor refused to tell its circuits (no)",
        ),
        strict=True,
    ):
        assert complaint in line
    assert "circuit paid (70) adopted: alpha, beta, gamma" in log.messages
    assert not fake.count("CLOSECIRCUIT 70")


def test_nothing_is_adopted_when_tor_is_away_or_silent(
    policy_path: Path,
    fake: FakeControlPort,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adopting, "ANSWER_SECONDS", 0.1)
    change_policy(policy_path, "{name: backup}]", "{name: backup}, {name: paid, adopt: {}}]")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.answers["GETINFO circuit-status"] = None
        assert command(policy_path, "adopt", "paid", "70") == 69

    assert serve(policy_path, script) == 0

    assert "Tor did not answer: nothing is adopted" in capsys.readouterr().err


def test_events_are_followed_and_tell_no_destination(
    operate: Operate, policy_path: Path, fake: FakeControlPort
) -> None:
    def script() -> None:
        events = follow(str(policy_path.parent / "admin.sock"))
        fake.tell("CIRC 999 BUILT")
        open_stream(fake, 1, MARKED)
        first: list[dict[str, object]] = []

        # The subscription is known once its answer was read; the generator reads it with its first event.
        thread = threading.Thread(target=lambda: first.append(next(events)), daemon=True)
        thread.start()
        while not first:
            assert command(policy_path, "drain", "primary") == 0
            thread.join(0.2)
        assert first[0]["severity"] == "info"
        assert first[0]["message"] == "circuit primary takes no new streams: drained by the operator"
        assert "marked" not in json.dumps(first)
        events.close()

    operate(script)


@pytest.mark.parametrize(
    ("request_object", "complaint"),
    [
        ({"command": "drain"}, "drain needs the name of a circuit"),
        (
            {"command": "drain", "name": "nobody"},
            "the policy names no such circuit; there are: primary, backup",
        ),
        ({"command": "weight", "name": "primary", "weight": 0}, "weight is a whole number from 1 to 1000"),
        ({"command": "weight", "name": "primary", "weight": True}, "weight is a whole number"),
        ({"command": "reload", "plan": "yes"}, "plan is true or false"),
        ({"command": "explain", "stream": 7}, "stream is the id that Tor gave it"),
        ({"command": "status", "protocol": 2}, "this agent speaks protocol 1 only"),
    ],
)
def test_a_wrong_command_says_what_is_wrong_and_changes_nothing(
    operate: Operate, policy_path: Path, request_object: dict[str, object], complaint: str
) -> None:
    def script() -> None:
        with pytest.raises(AdminError, match=complaint):
            ask(str(policy_path.parent / "admin.sock"), request_object)

    operate(script)


def test_a_plan_names_the_fate_of_each_circuit() -> None:
    old = Policy((Slot("same"), Slot("heavier"), Slot("moved"), Slot("gone")))
    new = Policy(
        (
            Slot("same"),
            Slot("heavier", weight=2),
            Slot("moved", path=("A" * 40,)),
            Slot("new"),
            Slot("paid", adopt=Adopt()),
        )
    )

    assert plan(old, new) == {
        "kept": ["same"],
        "changed": ["heavier"],
        "built": ["moved", "new"],
        "awaited": ["paid"],
        "drained": ["gone"],
    }
    assert plan(Policy((Slot("paid", adopt=Adopt()),)), Policy((Slot("paid"),)))["built"] == ["paid"]
