"""Run a program with a bound on its time, and say what it printed when it fails."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

OUTPUT_TAIL = 6000  # characters of a failed program's output worth showing: about one screen and a half


class LabError(Exception):
    """A program of the lab failed or took too long; the message holds the command and what it printed."""


def run(
    command: Sequence[str | Path],
    *,
    timeout: float,
    check: bool = True,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run `command` to its end.

    Args:
        command: Program and arguments.
        timeout: Seconds after which it is killed and counts as failed.
        check: Raise when it exits with another code than 0.
        stdin: Text it reads; None: it reads nothing.
        env: Its whole environment; None: ours.
        cwd: Where it runs.

    Returns:
        Exit code and output (stderr comes in the stream where it belongs, mixed into stdout).

    Raises:
        LabError: It failed, took too long, or is not there.
    """
    words = [str(word) for word in command]
    try:
        done = subprocess.run(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            # Without this a program would read pytest's terminal.
            stdin=subprocess.DEVNULL if stdin is None else None,
            input=stdin,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            env=None if env is None else dict(env),
            cwd=cwd,
        )
    except subprocess.TimeoutExpired as expired:
        # Bytes even in text mode, when there are any: that is how CPython hands them over.
        printed = expired.stdout
        text = printed.decode(errors="replace") if isinstance(printed, bytes) else ""
        raise LabError(f"{' '.join(words)}: not done after {timeout:g} s\n{text[-OUTPUT_TAIL:]}") from expired
    except OSError as error:
        raise LabError(f"{' '.join(words)}: {error}") from error
    if check and done.returncode != 0:
        raise LabError(f"{' '.join(words)}: exit {done.returncode}\n{done.stdout[-OUTPUT_TAIL:]}")
    return done
