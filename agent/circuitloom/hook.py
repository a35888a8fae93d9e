"""Runs the hook of a round: one process group, one JSON document in, a bounded answer out.

Rules of this file:

* It judges nothing about rounds; whatever goes wrong with a hook becomes one ``Result``.
* No wait and no thread: pipes are read when they have something, a little at a time; a pidfd tells the end.
* A hook inherits a locked file. Whoever restarts the agent sees by it that an earlier run has not ended, even
  one that the agent could not end because it was killed.
* Whatever the hook started ends with it: the whole process group, by SIGTERM first when time is up.
* What fails before the program's exec is "not started"; a program that runs and cannot be watched is killed,
  and nobody knows what it did.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitloom.errors import reason_of
from circuitloom.rounds.types import Outcome, Result

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MAX_OUTPUT_BYTES = 64 << 10
MAX_NESTING = 64
"""Of objects and lists in an answer: what one part of the agent can just read, another could not write."""
MAX_LOG_LINES = 200
MAX_LINE_BYTES = 1000

TERM_SECONDS = 2.0
"""Between SIGTERM and SIGKILL."""

READ_BYTES = 16 << 10
POLL_SECONDS = 0.02
"""Between looks for the end of a killed hook that has no pidfd."""

REST_SECONDS = 0.02
"""After a full read: a hook that floods us gets 800 kB/s of our time, and a full pipe stops it."""

_log = logging.getLogger(__name__)


class StillRuns(Exception):
    """A run with this lock, started before a restart, has not ended."""


def complaint(program: str) -> str:
    """Why this program must not be run as a hook; empty if nothing speaks against it."""
    try:
        real = os.path.realpath(program, strict=True)
        status = os.stat(real)  # noqa: PTH116 - paths are strings here, as exec takes them
    except OSError as error:
        return f"{program}: {reason_of(error)}"
    if not stat.S_ISREG(status.st_mode):
        return f"{program} is not a file"
    if not os.access(real, os.X_OK):
        return f"{program} is not executable; chmod +x it"
    place = real
    while True:
        status = os.stat(place)  # noqa: PTH116 - the same
        is_shared = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
        if status.st_mode & 0o022 and not is_shared:
            return f"{place} is writable by others than its owner; chmod go-w it"
        if status.st_uid not in {0, os.geteuid()}:
            return f"{place} belongs to somebody else than root or the agent; chown it"
        if place == "/":
            return ""
        place = os.path.dirname(place)  # noqa: PTH120 - the same


def environment(entries: Sequence[str]) -> dict[str, str]:
    """What the hook's environment holds, for the policy's ``env``."""
    values = {"PATH": PATH}
    for entry in entries:
        name, sign, value = entry.partition("=")
        if sign:
            values[name] = value
        elif name in os.environ:
            values[name] = os.environ[name]
    return values


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run.

    Attributes:
        command: The program and its arguments.
        env: As the policy has it.
        timeout_seconds: How long it may take.
        document: What it reads.
        lock: The file that tells a later agent that it runs.
    """

    command: Sequence[str]
    env: Sequence[str]
    timeout_seconds: float
    document: Mapping[str, Any]
    lock: Path


class HookRun:
    """One run of the hook, from its start to its end.

    Args:
        job: What to run.
        on_end: Called once, in a later turn of the loop, unless it was abandoned.

    Raises:
        StillRuns: An earlier run has the lock.
    """

    def __init__(self, job: Job, *, on_end: Callable[[Result], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout_seconds = job.timeout_seconds
        self._on_end = on_end
        self._lock = job.lock
        self._output = bytearray()
        self._is_cut = False
        self._line = bytearray()
        self._lines = 0
        self._timed_out = False
        self._unwatched = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._pipes: dict[int, Callable[[bytes], None]] = {}
        self._timers: list[asyncio.TimerHandle] = []
        self._rests: dict[int, asyncio.TimerHandle] = {}
        self.ended = asyncio.Event()
        held = self._take_lock()
        try:
            problem = complaint(job.command[0]) or self._start(job, held)
        finally:
            os.close(held)
        if problem:
            self._lock.unlink(missing_ok=True)
            self._loop.call_soon(self._finish, Result(Outcome.FAILED, problem, has_run=False))

    def terminate(self) -> None:
        """Ask the hook to end at once, and kill it soon; ``ended`` tells when it has."""
        self._signal(signal.SIGTERM)
        self._timers.append(self._loop.call_later(TERM_SECONDS, self._signal, signal.SIGKILL))

    # --- start ---------------------------------------------------------------------------------------------

    def _take_lock(self) -> int:
        self._lock.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(self._lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with os.fdopen(descriptor, "rb") as file:
                self._end_orphan(file.read(100).decode("ascii", "replace"), os.fstat(descriptor).st_mtime)
            raise StillRuns from None
        os.ftruncate(descriptor, 0)
        return descriptor

    def _end_orphan(self, holder: str, since: float) -> None:
        """End an earlier agent's run when its time is up: nobody else does."""
        pid, _, started_at = holder.partition(" ")
        if time.time() - since > self._timeout_seconds + TERM_SECONDS and started_at == _started_at(pid):
            _log.warning("a hook of an earlier agent (process %s) has not ended in time: ending it", pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(int(pid), signal.SIGKILL)

    def _start(self, job: Job, held: int) -> str:
        """Start it; why not, or nothing."""
        # A pipe takes at least 4 KiB at once, Linux's 64; a document of eight hops is below 1 KiB.
        stdin, feed = os.pipe()
        try:
            with os.fdopen(feed, "wb", buffering=0) as file:
                os.set_blocking(feed, False)
                file.write(json.dumps(job.document).encode() + b"\n")
            self._process = subprocess.Popen(  # noqa: S603 - the policy's program, checked above
                job.command,
                executable=os.path.realpath(job.command[0]),
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=environment(job.env),
                pass_fds=[held],
                start_new_session=True,
            )
        except OSError as error:
            return f"{job.command[0]} cannot be started: {reason_of(error)}; does its #! line name a program?"
        finally:
            os.close(stdin)
        assert self._process.stdout is not None  # noqa: S101 - we asked for both
        assert self._process.stderr is not None  # noqa: S101 - the same
        try:
            self._pidfd = os.pidfd_open(self._process.pid)
            os.write(held, f"{self._process.pid} {_started_at(self._process.pid)}".encode())
            self._loop.add_reader(self._pidfd, self._on_exit)
            self._watch(self._process.stdout.fileno(), self._take_output)
            self._watch(self._process.stderr.fileno(), self._take_log)
        except OSError as error:
            self._unwatched = f"killed at its start, it could not be watched: {reason_of(error)}"
            self._loop.call_soon(self._end_unwatched, self._process)
        else:
            self._timers.append(self._loop.call_later(self._timeout_seconds, self._on_timeout))
        return ""

    def _end_unwatched(self, process: subprocess.Popen[bytes]) -> None:
        """Kill it and look for its end until that has come."""
        self._signal(signal.SIGKILL)
        if process.poll() is None:
            self._loop.call_later(POLL_SECONDS, self._end_unwatched, process)
        else:
            self._on_exit()

    # --- while it runs -------------------------------------------------------------------------------------

    def _watch(self, pipe: int, take: Callable[[bytes], None]) -> None:
        os.set_blocking(pipe, False)
        self._pipes[pipe] = take
        self._loop.add_reader(pipe, self._on_readable, pipe)

    def _on_readable(self, pipe: int) -> None:
        data = self._read(pipe)
        if data is None:
            return
        if not data:
            self._loop.remove_reader(pipe)
        elif len(data) == READ_BYTES:
            self._loop.remove_reader(pipe)
            self._rests[pipe] = self._loop.call_later(
                REST_SECONDS, self._loop.add_reader, pipe, self._on_readable, pipe
            )

    def _read(self, pipe: int) -> bytes | None:
        try:
            data = os.read(pipe, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""
        self._pipes[pipe](data)
        return data

    def _take_output(self, data: bytes) -> None:
        self._output += data[: MAX_OUTPUT_BYTES - len(self._output)]
        self._is_cut = self._is_cut or len(self._output) == MAX_OUTPUT_BYTES

    def _take_log(self, data: bytes) -> None:
        for part in data.splitlines(keepends=True):
            self._line += part[: MAX_LINE_BYTES - len(self._line)]
            if part.endswith((b"\n", b"\r")):
                self._tell_line()

    def _tell_line(self) -> None:
        text = self._line.decode("utf-8", "replace").rstrip()
        self._line.clear()
        self._lines += bool(text)
        if text and self._lines <= MAX_LOG_LINES:
            shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
            _log.info("hook: %s", shown)
        elif text and self._lines == MAX_LOG_LINES + 1:
            _log.warning("hook: more than %d lines; the rest is not logged", MAX_LOG_LINES)

    def _on_timeout(self) -> None:
        self._timed_out = True
        self.terminate()

    def _signal(self, number: signal.Signals) -> None:
        """To the whole group, while its leader is not reaped: until then no other group has its number."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)

    # --- end -----------------------------------------------------------------------------------------------

    def _on_exit(self) -> None:
        process = self._process
        if process is None:
            return
        if self._pidfd >= 0:
            self._loop.remove_reader(self._pidfd)
        # What it has left running would be a second run beside the next attempt.
        self._signal(signal.SIGKILL)
        process.wait()
        if self._pidfd >= 0:
            os.close(self._pidfd)
        for timer in (*self._timers, *self._rests.values()):
            timer.cancel()
        for pipe in list(self._pipes):
            self._loop.remove_reader(pipe)
            for _ in range(2 * MAX_OUTPUT_BYTES // READ_BYTES):
                if not self._read(pipe):
                    break
        self._pipes.clear()
        self._tell_line()
        for file in (process.stdout, process.stderr):
            if file is not None:
                file.close()
        self._lock.unlink(missing_ok=True)
        self._finish(self._result(process.returncode))

    def _finish(self, result: Result) -> None:
        self.ended.set()
        self._on_end(result)

    def _result(self, code: int) -> Result:
        if self._unwatched:
            return Result(Outcome.UNKNOWN, self._unwatched)
        if self._timed_out and code != 0:
            return Result(Outcome.UNKNOWN, f"not done within {self._timeout_seconds:g} s, ended")
        if code < 0:
            return Result(Outcome.UNKNOWN, f"killed by {_signal_name(-code)}")
        answer, problem = self._answer()
        if code == 0:
            return Result(Outcome.DONE, problem, answer)
        return Result(Outcome.FAILED, f"exit status {code}" + (f", {problem}" if problem else ""), answer)

    def _answer(self) -> tuple[Mapping[str, Any] | None, str]:
        """Its JSON object, and what is wrong with it."""
        if self._is_cut:
            return None, f"its answer is dropped: over {MAX_OUTPUT_BYTES >> 10} KiB"
        if not self._output.strip():
            return None, ""
        try:
            answer = json.loads(self._output, parse_constant=_refuse_constant, parse_float=_read_float)
        except (ValueError, RecursionError):
            return None, "its answer is dropped: not JSON"
        if not isinstance(answer, dict):
            return None, "its answer is dropped: not a JSON object"
        if _is_nested_beyond(MAX_NESTING, answer):
            return None, f"its answer is dropped: nested more than {MAX_NESTING} deep"
        return answer, ""


def _started_at(pid: int | str) -> str:
    """When the process started, in the kernel's ticks (proc(5), field 22): with its id it names a process."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="latin-1")
    except OSError:
        return "?"
    return status.rpartition(")")[2].split()[19]


def _refuse_constant(name: str) -> float:
    raise ValueError(name)


def _read_float(text: str) -> float:
    """A number that can be written again: Python reads 1e999 as infinity, which JSON does not have."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(text)
    return number


def _is_nested_beyond(most: int, answer: object) -> bool:
    level = [answer]
    for _ in range(most):
        inner = (
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list)
        )
        level = [value for values in inner for value in values]
    return any(isinstance(value, dict | list) for value in level)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def forget_locks(directory: Path, keys: set[str]) -> None:
    """Remove the lock files of runs that have ended.

    Args:
        directory: Where they are.
        keys: Those that may be needed yet.
    """
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            if path.name not in keys:
                path.unlink(missing_ok=True)


def wall_offset(now: float) -> float:
    """What added to a time of the loop's clock gives seconds since 1970, as the system's clock is now."""
    return time.time() - now
