"""Hooks of every kind: real processes, each with one result and one clear line."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from circuitloom import hook
from circuitloom.hook import HookRun, Job, StillRuns, complaint, environment
from circuitloom.rounds.types import Outcome, Result

Make = Callable[..., str]


@pytest.fixture
def make(short_path: Path) -> Make:
    """Writes an executable script and returns its path."""

    def write(body: str, *, mode: int = 0o755, name: str = "hook") -> str:
        path = short_path / name
        path.write_text(body)
        path.chmod(mode)
        return str(path)

    return write


def run(
    program: str, *arguments: str, timeout: float = 10.0, env: tuple[str, ...] = (), lock: Path
) -> Result:
    """Run a hook to its end."""

    async def to_end() -> Result:
        results: list[Result] = []
        job = Job([program, *arguments], env, timeout, {"round": 1, "key": "k"}, lock)
        running = HookRun(job, on_end=results.append)
        async with asyncio.timeout(20):
            await running.ended.wait()
            await asyncio.sleep(0)
        (result,) = results
        return result

    return asyncio.run(to_end())


@pytest.fixture
def lock(short_path: Path) -> Path:
    return short_path / "locks" / "key"


# --- good hooks --------------------------------------------------------------------------------------------


def test_it_reads_one_document_and_answers(make: Make, lock: Path) -> None:
    result = run(make("#!/bin/sh\ncat\n"), lock=lock)

    assert result == Result(Outcome.DONE, "", {"round": 1, "key": "k"})
    assert not lock.exists()


def test_one_that_reads_nothing_and_says_nothing_is_done(make: Make, lock: Path) -> None:
    assert run(make("#!/bin/sh\nexit 0\n"), lock=lock) == Result(Outcome.DONE)


def test_its_environment_is_clean(make: Make, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSED_ON", "yes")
    monkeypatch.setenv("SECRET", "never")
    body = f"#!{sys.executable} -I\nimport json, os\nprint(json.dumps(dict(os.environ)))\n"
    result = run(make(body), env=("PASSED_ON", "SET=a=b", "ABSENT"), lock=lock)

    assert result.answer is not None
    answer = dict(result.answer)
    answer.pop("LC_CTYPE", None)  # Python itself sets it
    assert answer == {"PATH": hook.PATH, "PASSED_ON": "yes", "SET": "a=b"}
    assert environment(()) == {"PATH": hook.PATH}


def test_it_is_the_leader_of_its_own_group_and_session(make: Make, lock: Path) -> None:
    ids = "dict(pid=os.getpid(), group=os.getpgrp(), session=os.getsid(0))"
    program = f"import json, os; print(json.dumps({ids}))"
    result = run(make(f"#!{sys.executable} -I\n{program}\n"), lock=lock)

    assert result.answer is not None
    assert len(set(result.answer.values())) == 1
    assert result.answer["pid"] != os.getpid()


def test_its_stderr_goes_to_the_log_line_by_line(
    make: Make, lock: Path, log: pytest.LogCaptureFixture
) -> None:
    run(make("#!/bin/sh\nprintf 'one\\n\\033[31mtwo\\nthree' >&2\n"), lock=lock)

    assert [record.getMessage() for record in log.records] == [
        "hook: one",
        "hook: \\x1b[31mtwo",
        "hook: three",
    ]


def test_an_exit_status_is_the_hooks_word_that_nothing_was_done(make: Make, lock: Path) -> None:
    result = run(make("#!/bin/sh\necho '{\"retry\": false}'\nexit 3\n"), lock=lock)

    assert result == Result(Outcome.FAILED, "exit status 3", {"retry": False})
    assert result.is_final


# --- bad hooks ---------------------------------------------------------------------------------------------


def test_missing(short_path: Path, lock: Path) -> None:
    result = run(f"{short_path}/none", lock=lock)

    assert result == Result(Outcome.FAILED, f"{short_path}/none: No such file or directory", has_run=False)
    assert not lock.exists()


def test_not_executable(make: Make, lock: Path) -> None:
    path = make("#!/bin/sh\n", mode=0o644)

    assert run(path, lock=lock).detail == f"{path} is not executable; chmod +x it"


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o722])
def test_writable_by_others(make: Make, lock: Path, mode: int) -> None:
    path = make("#!/bin/sh\n", mode=mode)
    result = run(path, lock=lock)

    assert result.detail == f"{path} is writable by others than its owner; chmod go-w it"
    assert not result.has_run


def test_in_a_folder_that_is_writable_by_others(make: Make, short_path: Path) -> None:
    path = make("#!/bin/sh\n")
    short_path.chmod(0o777)

    assert complaint(path) == f"{short_path} is writable by others than its owner; chmod go-w it"


def test_a_link_to_one_that_is_writable_by_others(make: Make, short_path: Path) -> None:
    path = make("#!/bin/sh\n", mode=0o777)
    short_path.joinpath("link").symlink_to(path)

    assert complaint(f"{short_path}/link") == f"{path} is writable by others than its owner; chmod go-w it"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_one_of_somebody_else(make: Make) -> None:
    path = make("#!/bin/sh\n")
    os.chown(path, 12345, -1)

    assert complaint(path).startswith(f"{path} belongs to somebody else")


def test_a_folder(short_path: Path) -> None:
    assert complaint(str(short_path)) == f"{short_path} is not a file"


@pytest.mark.parametrize("body", ["", "no program at all\n", "#!/no/such/interpreter\n"])
def test_no_program(make: Make, lock: Path, body: str) -> None:
    result = run(make(body), lock=lock)

    assert (result.outcome, result.has_run) == (Outcome.FAILED, False)
    assert "cannot be started" in result.detail
    assert "\n" not in result.detail


def test_hanging_is_ended_with_all_it_started(make: Make, lock: Path, short_path: Path) -> None:
    path = make(
        f"#!/bin/sh\ntrap '' TERM\n(trap '' TERM; while :; do date >{short_path}/alive; sleep 0.1; done)\n"
    )
    began = time.monotonic()
    result = run(path, timeout=0.5, lock=lock)

    assert result == Result(Outcome.UNKNOWN, "not done within 0.5 s, ended")
    assert time.monotonic() - began >= 0.5 + hook.TERM_SECONDS
    (short_path / "alive").unlink(missing_ok=True)
    time.sleep(0.4)
    assert not (short_path / "alive").exists()


def test_one_that_ends_well_when_asked_to_end_is_done(make: Make, lock: Path) -> None:
    path = make("#!/bin/sh\ntrap 'exit 0' TERM\nwhile :; do sleep 0.05; done\n")

    assert run(path, timeout=0.3, lock=lock).outcome is Outcome.DONE


def test_killed(make: Make, lock: Path) -> None:
    assert run(make("#!/bin/sh\nkill -9 $$\n"), lock=lock) == Result(Outcome.UNKNOWN, "killed by SIGKILL")


def test_children_left_behind_do_not_hold_it_up_and_end(make: Make, lock: Path, short_path: Path) -> None:
    path = make(f"#!/bin/sh\n(while :; do date >{short_path}/alive; sleep 0.1; done) &\nsleep 0.3\n")
    result = run(path, lock=lock)

    assert result.outcome is Outcome.DONE
    (short_path / "alive").unlink(missing_ok=True)
    time.sleep(0.4)
    assert not (short_path / "alive").exists()


def test_huge_output_is_dropped_and_the_exit_status_counts(make: Make, lock: Path) -> None:
    result = run(make("#!/bin/sh\nhead -c 300000 /dev/zero\n"), lock=lock)

    assert result == Result(Outcome.DONE, "its answer is dropped: over 64 KiB")


def test_endless_output_is_ended_in_time(make: Make, lock: Path) -> None:
    path = make("#!/bin/sh\nexec cat /dev/zero\n")

    assert run(path, timeout=0.5, lock=lock).outcome is Outcome.UNKNOWN


def test_an_endless_log_is_cut(make: Make, lock: Path, log: pytest.LogCaptureFixture) -> None:
    run(make("#!/bin/sh\nexec yes no >&2\n"), timeout=0.5, lock=lock)

    messages = [record.getMessage() for record in log.records]
    assert len(messages) == hook.MAX_LOG_LINES + 1
    assert messages[-1].endswith("the rest is not logged")


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("paid", "not JSON"),
        ("{", "not JSON"),
        ("NaN", "not JSON"),
        ("[" * 5000, "not JSON"),
        ("\\377", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{} {}", "not JSON"),
        ('{"paid": 1e999}', "not JSON"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
    ],
)
def test_bad_answers(make: Make, lock: Path, output: str, problem: str) -> None:
    result = run(make(f"#!/bin/sh\nprintf '{output}'\n"), lock=lock)

    assert result == Result(Outcome.DONE, f"its answer is dropped: {problem}")


# --- what is missing to watch it ---------------------------------------------------------------------------


@pytest.mark.parametrize(("call", "code"), [("pidfd_open", errno.ENFILE), ("write", errno.ENOSPC)])
def test_one_that_runs_and_cannot_be_watched_is_killed_and_of_unknown_end(  # noqa: PLR0917 - fixtures
    make: Make, lock: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fault(*_arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    path = make(f"#!/bin/sh\n(while :; do date >{short_path}/alive; sleep 0.1; done)\n")
    with monkeypatch.context() as during:
        during.setattr(f"circuitloom.hook.os.{call}", fault)
        result = run(path, lock=lock)

    assert (result.outcome, result.has_run) == (Outcome.UNKNOWN, True)
    assert result.detail.startswith("killed at its start, it could not be watched: ")
    assert not lock.exists()
    (short_path / "alive").unlink(missing_ok=True)
    time.sleep(0.4)
    assert not (short_path / "alive").exists()


def take_descriptors() -> list[int]:
    """Open as many that no lower number than the highest is free."""
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    return [os.open("/dev/null", os.O_RDONLY) for _ in range(highest)]


def test_without_descriptors_it_is_certainly_not_started(make: Make, lock: Path, short_path: Path) -> None:
    """For each number of free descriptors: it starts and is watched, or nothing of it has run."""
    path = make(f"#!/bin/sh\n: >{short_path}/ran\n")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = set()

    async def with_room_for(count: int) -> Result | OSError:
        results: list[Result] = []
        fillers = take_descriptors()
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(fillers) + 1 + count, limits[1]))
        try:
            running = HookRun(Job([path], (), 10.0, {}, lock), on_end=results.append)
        except OSError as error:
            return error
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for filler in fillers:
                os.close(filler)
        async with asyncio.timeout(20):
            await running.ended.wait()
        return results[0]

    for count in range(16):
        (short_path / "ran").unlink(missing_ok=True)
        result = asyncio.run(with_room_for(count))
        has_run = isinstance(result, Result) and result.has_run
        seen.add(has_run)
        assert (short_path / "ran").exists() == has_run, (count, result)
        assert not has_run or result == Result(Outcome.DONE), (count, result)
    assert seen == {False, True}


# --- two at once -------------------------------------------------------------------------------------------


def test_one_key_runs_once_at_a_time(make: Make, lock: Path) -> None:
    path = make("#!/bin/sh\nexec sleep 30\n")

    async def twice() -> None:
        results: list[Result] = []
        job = Job([path], (), 20.0, {}, lock)
        first = HookRun(job, on_end=results.append)
        with pytest.raises(StillRuns):
            HookRun(job, on_end=results.append)
        first.terminate()
        async with asyncio.timeout(10):
            await first.ended.wait()
        assert [result.detail for result in results] == ["killed by SIGTERM"]

    asyncio.run(twice())


def test_a_run_whose_agent_was_killed_keeps_its_key_and_is_ended_when_its_time_is_up(
    make: Make, lock: Path, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(f"#!/bin/sh\necho $$ >{short_path}/pid\nexec sleep 60\n")
    agent = (
        "import asyncio, os, signal, sys\n"
        "from pathlib import Path\n"
        "from circuitloom.hook import HookRun, Job\n"
        "async def main():\n"
        f"    HookRun(Job(['{path}'], (), 20.0, {{}}, Path('{lock}')), on_end=print)\n"
        f"    while not (pid := Path('{short_path}/pid')).exists() or not pid.read_text():\n"
        "        await asyncio.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", agent], check=False).returncode == -9
    pid = int((short_path / "pid").read_text())
    monkeypatch.setattr(hook, "TERM_SECONDS", 0.0)

    async def again(seconds: float) -> None:
        with pytest.raises(StillRuns):
            HookRun(Job([path], (), seconds, {}, lock), on_end=print)

    asyncio.run(again(20.0))
    os.kill(pid, 0)
    time.sleep(0.1)
    asyncio.run(again(0.05))
    deadline = time.monotonic() + 10
    result: Any = None
    while result is None:
        assert time.monotonic() < deadline
        try:
            result = run(make("#!/bin/sh\necho '{}'\n", name="other"), lock=lock)
        except StillRuns:
            time.sleep(0.02)
    assert result == Result(Outcome.DONE, "", json.loads("{}"))
