"""The command line: what each command prints, and its exit code; never a traceback."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from circuitloom import __version__, cli, release
from circuitloom.admin import AdminServer
from circuitloom.cli import main
from circuitloom.policy.types import TorControl
from unit.fake_control_port import HANG, HANG_UP, FakeControlPort

pytestmark = pytest.mark.usefixtures("agent_log")

Run = Callable[..., "Ran"]

SCHEMAS = Path(__file__).parents[2] / "schemas"
STATUS = {
    "version": 1,
    "state": "balancing",
    "since_seconds": 12.0,
    "reason": "balancing 0 streams over 1 of 1 circuits, round-robin",
    "algorithm": "round-robin",
    "tor": {"connected": True, "version": "0.4.9.11", "control": "unix:/run/tor/control"},
    "guard_pid": None,
    "circuits": [
        {
            "name": "only",
            "role": "active",
            "circuit_id": "7",
            "path": ["alpha", "beta"],
            "state": "built",
            "age_seconds": 11.0,
            "streams": 0,
            "attached_total": 0,
            "failed_total": 0,
            "share": 0.0,
            "weight_share": 1.0,
            "key": 0,
        }
    ],
    "streams": {"active": 0, "waiting": 0, "attached_total": 0, "released_total": 0, "failed_total": 0},
}


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err
        assert "Traceback" not in out + err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process."""

    def command(*arguments: str) -> Ran:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return command


def program(*arguments: str) -> Ran:
    """Run a command as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "circuitloom", *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def policy(short_path: Path) -> Path:
    """A good policy whose sockets are in a folder of its own."""
    path = short_path / "policy.yaml"
    path.write_text(
        f"version: 1\ntor: {{control: 'unix:{short_path}/control'}}\ncircuits: [{{name: a}}, {{name: b}}]\n"
        f"admin: {{socket: '{short_path}/admin.sock'}}\n"
    )
    return path


@pytest.fixture
def agent(short_path: Path) -> Iterator[str]:
    """The admin socket of an agent that answers STATUS."""
    path = str(short_path / "admin.sock")
    started = threading.Event()

    async def serve() -> None:
        server = AdminServer(path, {"status": lambda _request: STATUS})
        await server.start()
        ends.append((asyncio.get_running_loop(), stop := asyncio.Event()))
        started.set()
        await stop.wait()
        await server.close()

    ends: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    yield path
    loop, stop = ends[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)


# --- arguments ---------------------------------------------------------------------------------------------


def test_help_names_every_command_and_exit_code() -> None:
    ran = program("--help")

    assert (ran.code, ran.err) == (0, "")
    for command in ("check", "run", "simulate", "status", "release", "schema", "demo"):
        assert f"\n    {command} " in ran.out
    for code in (64, 69, 70, 73, 77, 78):
        assert str(code) in ran.out


def test_help_fits_80_columns(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for command in (
        "",
        "check",
        "run",
        "simulate",
        "status",
        "explain",
        "reload",
        "release",
        "schema",
        "demo",
    ):
        ran = run(*command.split(), "--help")
        assert ran.code == 0
        assert all(len(line) <= 80 for line in ran.out.splitlines())


def test_the_version_is_the_package_s(run: Run) -> None:
    assert run("--version").out == f"circuitloom {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [(), ("nonsense",), ("check",), ("check", "a", "b"), ("run",), ("status", "--nonsense"), ("status", "x")],
)
def test_wrong_arguments_are_one_line_and_64(run: Run, arguments: tuple[str, ...]) -> None:
    ran = run(*arguments)

    assert (ran.code, ran.out) == (64, "")
    assert ran.err.count("\n") == 1
    assert ran.err.endswith("--help\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("status --nonsense", "circuitloom status: unrecognized arguments: --nonsense"),
        ("check a b", "circuitloom check: unrecognized arguments: b"),
        ("weight a x", "circuitloom weight: argument N: must be a number from 1 to 1000"),
        ("weight a 0", "circuitloom weight: argument N: must be a number from 1 to 1000"),
        ("demo --seconds -1", "circuitloom demo: argument --seconds: must be a number from 1 to 3600"),
        ("demo --seconds nan", "circuitloom demo: argument --seconds: must be a number from 1 to 3600"),
        ("demo --relays 0", "circuitloom demo: argument --relays: must be a number from 1 to 50"),
        ("demo --relays 1000", "circuitloom demo: argument --relays: must be a number from 1 to 50"),
    ],
)
def test_a_wrong_argument_is_the_command_s_before_anything_is_begun(
    run: Run, arguments: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(_options: object) -> int:
        raise AssertionError("it has begun")

    for name in ("demo", "order"):
        monkeypatch.setitem(cli._COMMANDS, name, begin)
    ran = run(*arguments.split())

    assert (ran.code, ran.out) == (64, "")
    assert ran.err == f"{said}; see {said.partition(':')[0]} --help\n"


def test_an_unknown_command_as_a_program() -> None:
    ran = program("nonsense")

    assert (ran.code, ran.out, ran.err.count("\n")) == (64, "", 1)


# --- check and schema --------------------------------------------------------------------------------------


def test_a_good_policy_says_nothing(run: Run, policy: Path) -> None:
    ran = run("check", str(policy))

    assert (ran.code, ran.out, ran.err) == (0, "", "")


def test_warnings_are_told_and_no_failure(run: Run) -> None:
    ran = run("check", str(SCHEMAS / "examples" / "pinned-paths.yaml"))

    assert (ran.code, ran.err) == (0, "")
    assert all(": warning: " in line for line in ran.out.splitlines())
    assert ran.out


def test_every_fault_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    shutil.copy(SCHEMAS / "invalid" / "many-faults.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    ran = run("check", "many-faults.yaml")

    assert (ran.code, ran.out) == (78, "")
    assert ran.err == (SCHEMAS / "invalid" / "many-faults.faults").read_text()


def test_faults_as_a_program(short_path: Path) -> None:
    path = short_path / "p.yaml"
    path.write_text("version: 1\ncircuits: [{name: a, wieght: 2}]\n")
    ran = program("check", str(path))

    assert (ran.code, ran.out) == (78, "")
    assert ran.err == f"{path}:2:22: circuits[0]: unknown key `wieght`: did you mean `weight`?\n"


def test_a_policy_that_is_not_there(run: Run) -> None:
    ran = run("check", "/nowhere/policy.yaml")

    assert (ran.code, ran.out) == (78, "")
    assert ran.err.startswith("/nowhere/policy.yaml:1:1: ")
    assert ran.err.count("\n") == 1


def test_the_schema_is_printed_as_it_is(run: Run) -> None:
    ran = run("schema")

    assert (ran.code, ran.err) == (0, "")
    assert ran.out == (SCHEMAS / "policy.schema.json").read_text()


def test_a_reader_that_has_seen_enough_is_no_failure() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "circuitloom", "schema"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(30) == 0
    assert err == b""


def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "circuitloom", "schema"],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )

    assert done.returncode == 74
    assert done.stderr == "circuitloom: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("descriptor", [0, 1, 2])
def test_a_closed_standard_stream_is_nowhere(descriptor: int) -> None:
    ends = "<" if descriptor == 0 else ">"
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "$0" -m circuitloom schema {descriptor}{ends}&-', sys.executable],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (descriptor != 1)


def test_what_a_terminal_cannot_show_is_escaped(short_path: Path) -> None:
    path = short_path / "p.yaml"
    path.write_text("version: 1\ncircuits: [{name: \u56de\u8def}]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "circuitloom", "check", str(path)],
        check=False,
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin"},
        timeout=30,
    )

    assert done.returncode == 78
    assert rb"\u56de" in done.stderr


# --- status ------------------------------------------------------------------------------------------------


def test_status_shows_a_table(run: Run, agent: str) -> None:
    ran = run("status", "--socket", agent)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("BALANCING for 12s: 0 streams over 1 of 1 circuits, round-robin\n")


def test_status_finds_the_socket_in_a_policy_and_shows_json(run: Run, agent: str, policy: Path) -> None:
    assert str(policy.parent / "admin.sock") == agent
    ran = run("status", "--policy", str(policy), "--json")

    assert json.loads(ran.out) == STATUS


def test_status_without_an_agent(run: Run, short_path: Path) -> None:
    ran = run("status", "--socket", str(short_path / "admin.sock"))

    assert (ran.code, ran.out) == (69, "")
    assert ran.err.startswith("circuitloom: no circuitloom answers on ")
    assert ran.err.count("\n") == 1


def test_status_with_a_bad_policy(run: Run) -> None:
    assert run("status", "--policy", "/nowhere/policy.yaml").code == 78


# --- release -----------------------------------------------------------------------------------------------


STREAM_STATUS = (
    "250+stream-status=\r\n5 NEW 0 a:80\r\n6 NEWRESOLVE 0 b:0\r\n7 SUCCEEDED 30 c:80\r\n"
    f"8 NEW 0 203.0.113.9.${'D' * 40}.exit:9001\r\n.\r\n250 OK\r\n"
)


def test_release_hands_every_waiting_stream_to_tor(run: Run, policy: Path, fake: FakeControlPort) -> None:
    fake.answers["GETCONF"] = "250 __LeaveStreamsUnattached=1\r\n"
    fake.answers["GETINFO stream-status"] = STREAM_STATUS
    fake.answers["ATTACHSTREAM 6"] = "555 Connection is not managed by controller.\r\n"
    ran = run("release", str(policy))

    assert (ran.code, ran.err) == (0, "")
    assert ran.out == "Tor assigns all streams again; 1 waited and is on their way\n"
    assert [command for command in fake.commands if command.startswith(("RESETCONF", "ATTACH"))] == [
        "RESETCONF __LeaveStreamsUnattached",
        "ATTACHSTREAM 5 0",
        "ATTACHSTREAM 6 0",
    ]


def test_release_leaves_alone_what_tor_is_choosing_for(
    run: Run, policy: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The option is not set: only what still waits after a while was left by somebody."""
    monkeypatch.setattr(release, "DOUBT_SECONDS", 0.01)
    lines = [
        "250+stream-status=",
        "5 SENTCONNECT 30 a:80",
        "6 NEWRESOLVE 0 b:0",
        "9 NEW 0 d:80",
        ".",
        "250 OK",
    ]
    later = "".join(f"{line}\r\n" for line in lines)
    statuses = [STREAM_STATUS, later]
    fake.answers["GETINFO stream-status"] = lambda _command: statuses.pop(0)
    ran = run("release", str(policy))

    assert (ran.code, ran.err) == (0, "")
    assert [command for command in fake.commands if command.startswith("ATTACH")] == ["ATTACHSTREAM 6 0"]


def test_release_without_tor(run: Run, policy: Path) -> None:
    ran = run("release", str(policy))

    assert (ran.code, ran.out) == (69, "")
    assert ran.err.startswith("circuitloom: no Tor at unix:")
    assert ran.err.count("\n") == 1


def test_release_with_a_broken_policy_goes_on_with_the_default_address(
    run: Run, policy: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "TorControl", lambda: TorControl(fake.address))
    policy.write_text("version: 2\n")
    ran = run("release", str(policy))

    assert ran.code == 0
    assert f"circuitloom: using {fake.address} all the same" in ran.err
    assert fake.count("RESETCONF") == 1


def test_release_that_tor_refuses(run: Run, policy: Path, fake: FakeControlPort) -> None:
    fake.answers["RESETCONF"] = "553 Unable to set option\r\n"
    ran = run("release", str(policy))

    assert ran.code == 77
    assert ran.err == "circuitloom: Tor refused to reset __LeaveStreamsUnattached: Unable to set option\n"


@pytest.mark.parametrize("answer", [HANG, HANG_UP])
def test_release_from_a_tor_that_does_not_answer_is_bounded(
    run: Run, policy: Path, fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch, answer: str | None
) -> None:
    monkeypatch.setattr(cli, "RELEASE_SECONDS", 0.3)
    fake.answers["GETINFO"] = answer
    ran = run("release", str(policy))

    assert (ran.code, ran.out) == (69, "")
    assert ran.err.count("\n") == 1


# --- run ---------------------------------------------------------------------------------------------------


def test_run_with_a_bad_policy(run: Run, short_path: Path) -> None:
    path = short_path / "policy.yaml"
    path.write_text("version: 1\n")
    ran = run("run", str(path))

    assert (ran.code, ran.out) == (78, "")
    assert ran.err.startswith(f"{path}:1:1: ")


def test_run_without_a_folder_for_its_socket(policy: Path) -> None:
    policy.write_text(policy.read_text().replace("/admin.sock", "/missing/admin.sock"))
    ran = program("run", str(policy))

    assert (ran.code, ran.out) == (73, "")
    assert ran.err.splitlines()[-1].startswith(
        f"circuitloom: admin socket {policy.parent}/missing/admin.sock: "
    )


def test_run_beside_another_agent(run: Run, policy: Path, agent: str) -> None:
    ran = run("run", str(policy))

    assert ran.code == 73
    assert f"admin socket {agent}: another circuitloom answers there" in ran.err


def test_an_interrupted_command_is_130_without_a_word(
    run: Run, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "read_source", interrupt)
    ran = run("check", str(policy))

    assert (ran.code, ran.out, ran.err) == (130, "", "")


INTERRUPTED_WHILE_LOADING = """
import os, runpy, signal, sys

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "circuitloom.service":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv = ["circuitloom", "schema"]
runpy.run_module("circuitloom", run_name="__main__")
"""


def test_a_command_interrupted_while_it_is_loaded_ends_without_a_word() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_LOADING],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
