"""The service against a control port that does what a real Tor cannot be made to do."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from unit.fake_control_port import HANG, FakeControlPort
from unit.service_driver import GIVE_BACK, TAKE_OVER, change_policy, open_stream, serve, status, wait_until

pytestmark = pytest.mark.usefixtures("log")


# --- the normal course -------------------------------------------------------------------------------------


def test_it_subscribes_first_takes_over_last_and_gives_back_at_the_end(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 5)
        open_stream(fake, 6, "secret.onion:80")
        fake.wait_for("ATTACHSTREAM 6 0")

    assert serve(policy_path, script) == 0
    commands = [command.split(" ")[0] for command in fake.commands]
    order = ["SETEVENTS", "GETCONF", "GETINFO", "EXTENDCIRCUIT", "SETCONF", "ATTACHSTREAM", "RESETCONF"]
    assert sorted(order, key=commands.index) == order
    assert fake.count("ATTACHSTREAM 5 30") == 1
    assert not policy_path.with_name("admin.sock").exists()
    assert "secret" not in log.text
    assert "example.com" not in log.text


def test_the_status_is_answered_while_it_runs(policy_path: Path, fake: FakeControlPort) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        shown = status(policy_path)
        assert shown["state"] == "balancing"
        assert shown["reason"] == "balancing 0 streams over 2 of 2 circuits, round-robin"
        assert shown["tor"] == {"connected": True, "version": "0.4.9.11", "control": str(fake.address)}

    assert serve(policy_path, script) == 0


def test_mappings_that_change_are_asked_for_again(policy_path: Path, fake: FakeControlPort) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.answers["GETCONF"] = "250 MapAddress=mapped.example x.onion\r\n"
        fake.send("650-CONF_CHANGED\r\n650-MapAddress=mapped.example x.onion\r\n650 OK\r\n")
        fake.wait_for("GETCONF VirtualAddrNetworkIPv4")
        fake.wait_for("GETCONF", 2)
        open_stream(fake, 5, "mapped.example:80")
        fake.wait_for("ATTACHSTREAM 5 0")

    assert serve(policy_path, script) == 0


def test_what_ails_tor_is_told_where_it_concerns_streams(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.tell(
            "STATUS_GENERAL WARN TOO_MANY_CONNECTIONS CURRENT=1024",
            "STATUS_GENERAL WARN CLOCK_JUMPED TIME=-300",
            "STATUS_GENERAL WARN DANGEROUS_VERSION CURRENT=0.1",
        )
        open_stream(fake, 5)
        fake.wait_for("ATTACHSTREAM 5 30")

    assert serve(policy_path, script) == 0
    told = [record.getMessage() for record in log.records if record.levelname == "WARNING"]
    assert told == [
        "Tor has no file descriptor left and takes no new stream: raise LimitNOFILE= of Tor's unit",
        "Tor's clock jumped: it gives up circuits, which are built again",
    ]


# --- refusals ----------------------------------------------------------------------------------------------


def test_a_refused_take_over_is_given_back_and_told(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    fake.answers["SETCONF"] = "553 Unable to set option\r\n"

    def script() -> None:
        fake.wait_for(GIVE_BACK)
        open_stream(fake, 5)
        fake.wait_for("ATTACHSTREAM 5 0")
        assert status(policy_path)["state"] == "released"

    assert serve(policy_path, script) == 0
    assert "giving stream attachment back to Tor: Tor refused (Unable to set option)" in log.text


def test_a_refused_reset_is_an_error_that_names_the_command_to_run(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    fake.answers["RESETCONF"] = "553 Unable to set option\r\n"

    assert serve(policy_path, lambda: fake.wait_for(TAKE_OVER)) == 0
    assert "Tor refused to reset __LeaveStreamsUnattached: Unable to set option" in log.text
    assert "run: circuitloom release" in log.text


def test_a_refused_build_is_tried_again(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    builds = fake.answers["EXTENDCIRCUIT"]
    fake.answers["EXTENDCIRCUIT"] = "551 Couldn't start circuit\r\n"

    def script() -> None:
        fake.wait_for("EXTENDCIRCUIT", 2)
        wait_until(lambda: status(policy_path)["circuits"][1]["state"] == "backoff")
        fake.answers["EXTENDCIRCUIT"] = builds
        fake.tell("STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED")
        fake.wait_for(TAKE_OVER)

    assert serve(policy_path, script) == 0
    assert "circuit primary could not be built (Couldn't start circuit)" in log.text


def test_a_build_is_tried_again_when_its_time_has_come(policy_path: Path, fake: FakeControlPort) -> None:
    change_policy(policy_path, "min_active: 2", "min_active: 2, rebuild: {initial: 100ms, jitter: 0%}")
    fake.answers["EXTENDCIRCUIT"] = "551 Couldn't start circuit\r\n"

    assert serve(policy_path, lambda: fake.wait_for("EXTENDCIRCUIT", 6)) == 0


def test_a_refused_attach_sends_the_stream_to_another_circuit(
    policy_path: Path, fake: FakeControlPort
) -> None:
    fake.answers["ATTACHSTREAM 5 30"] = '552 Unknown circuit "30"\r\n'

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 5)
        fake.wait_for("ATTACHSTREAM 5 31")

    assert serve(policy_path, script) == 0


def test_a_stream_is_refused_when_the_policy_says_so(policy_path: Path, fake: FakeControlPort) -> None:
    change_policy(policy_path, "min_active: 2", "min_active: 2, when_none: reject")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.answers["EXTENDCIRCUIT"] = "551 Couldn't start circuit\r\n"
        fake.tell("CIRC 30 CLOSED REASON=FINISHED", "CIRC 31 CLOSED REASON=FINISHED")
        open_stream(fake, 5)
        fake.wait_for("CLOSESTREAM 5 1")

    assert serve(policy_path, script) == 0


@pytest.mark.parametrize("command", ["SETEVENTS", "GETINFO version circuit-status"])
def test_a_tor_that_refuses_the_first_questions_is_tried_again(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture, command: str
) -> None:
    fake.answers[command] = "552 Unrecognized\r\n"

    def script() -> None:
        fake.wait_for(command, 2)
        assert "Unrecognized" in status(policy_path)["reason"]
        del fake.answers[command]
        fake.answers["SETEVENTS"] = "250 OK\r\n"
        fake.wait_for(TAKE_OVER)

    assert serve(policy_path, script) == 0
    assert len(re.findall(r"Tor refused \(Unrecognized\).*trying again", log.text)) == 1


# --- the connection ----------------------------------------------------------------------------------------


def test_a_lost_connection_is_made_anew_and_everything_asked_again(
    policy_path: Path, fake: FakeControlPort
) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.hang_up()
        fake.wait_for(TAKE_OVER, 2)

    assert serve(policy_path, script) == 0
    assert fake.count("SETEVENTS") == 2
    assert fake.count("EXTENDCIRCUIT") == 4


@pytest.mark.parametrize("garbage", ["garbage\r\n", "250 to no command\r\n", "650 STREAM 1 NEW\r\n"])
def test_garbage_from_tor_is_answered_by_a_new_connection(
    policy_path: Path, fake: FakeControlPort, garbage: str
) -> None:
    def script() -> None:
        fake.wait_for(TAKE_OVER)
        fake.send(garbage)
        fake.wait_for(TAKE_OVER, 2)

    assert serve(policy_path, script) == 0


def test_an_odd_answer_to_a_build_is_answered_by_a_new_connection(
    policy_path: Path, fake: FakeControlPort
) -> None:
    builds = fake.answers["EXTENDCIRCUIT"]
    fake.answers["EXTENDCIRCUIT"] = "250 OK\r\n"

    def script() -> None:
        fake.wait_for("SETEVENTS", 2)
        fake.answers["EXTENDCIRCUIT"] = builds
        fake.wait_for(TAKE_OVER)

    assert serve(policy_path, script) == 0


def test_a_tor_that_refuses_us_is_told_once_and_tried_until_it_does_not(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    fake.answers["AUTHENTICATE"] = "515 Authentication failed\r\n"

    def script() -> None:
        fake.wait_for("AUTHENTICATE", 3)
        assert status(policy_path)["state"] == "disconnected"
        fake.answers["AUTHENTICATE"] = "250 OK\r\n"
        fake.wait_for(TAKE_OVER)

    assert serve(policy_path, script) == 0
    assert log.text.count("refuses what it asked for itself") == 1


# --- the watchdog ------------------------------------------------------------------------------------------


def test_a_tor_that_stops_answering_is_left_and_the_watchdog_is_not_fed_meanwhile(
    policy_path: Path, fake: FakeControlPort, manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    pings = "GETINFO version"

    def received() -> list[str]:
        manager.settimeout(0)
        messages = []
        try:
            while True:
                messages.append(manager.recv(4096).decode())
        except BlockingIOError:
            return messages

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        wait_until(lambda: received().count("WATCHDOG=1") > 0)
        hung = fake.count(pings)
        fake.answers[pings] = HANG
        fake.wait_for(pings, hung + 1)
        received()
        fake.wait_for("SETEVENTS", 2)
        assert received().count("WATCHDOG=1") <= 1  # at most one, of the pause between the connections

    fake.answers["GETINFO version circuit-status"] = fake.answers["GETINFO"]
    assert serve(policy_path, script) == 0


def test_a_tor_that_hangs_after_authentication_is_left_as_well(
    policy_path: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    answers = dict(fake.answers)
    fake.answers |= {"SETEVENTS": HANG, "GETCONF": HANG, "GETINFO": HANG}

    def script() -> None:
        fake.wait_for("SETEVENTS", 2)
        fake.answers.update(answers)
        fake.wait_for(TAKE_OVER)

    assert serve(policy_path, script) == 0


@pytest.mark.usefixtures("fake")
def test_systemd_is_told_of_each_stage(policy_path: Path, manager: socket.socket) -> None:
    messages: list[str] = []

    def receive_until(beginning: str) -> None:
        while not messages or not messages[-1].startswith(beginning):
            messages.append(manager.recv(4096).decode())

    def script() -> None:
        receive_until("READY=1\nSTATUS=not connected to Tor: connecting")
        receive_until("STATUS=balancing 0 streams over 2 of 2 circuits, round-robin")

    assert serve(policy_path, script) == 0
    receive_until("STOPPING=1")
