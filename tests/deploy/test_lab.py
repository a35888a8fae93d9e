"""The lab itself: it never outlives the process that made it, however that process ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.lab.lab import leftovers
from deploy.lab.shell import run

GONE_SECONDS = 30.0

# A lab with something running in it, as a test session has when it is interrupted.
SESSION = """
import signal, subprocess, time
# Whoever started us in the background may have left Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from deploy.lab.lab import Lab
lab = Lab.create()
lab.add_namespace("x", "10.98.0.50")
(lab.directory / "root").mkdir()
subprocess.run(["mount", "-t", "tmpfs", "tmpfs", lab.directory / "root"], check=True)
subprocess.Popen(lab.inside("x", ["sleep", "600"]), start_new_session=True)
time.sleep(0.5)
print(lab.name, lab.directory, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
@pytest.mark.usefixtures("possible")
def test_nothing_is_left_when_the_session_ends_by_a_signal(number: signal.Signals) -> None:
    session = subprocess.Popen(
        [sys.executable, "-c", SESSION],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert session.stdout is not None
    name, directory = session.stdout.readline().split()
    assert len(leftovers(name, Path(directory))) > 4  # the witness does see a lab that is there

    session.send_signal(number)
    session.communicate(timeout=10)

    deadline = time.monotonic() + GONE_SECONDS
    while (found := leftovers(name, Path(directory))) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert found == []


@pytest.mark.parametrize(("ci", "verdict"), [("", "2 skipped"), ("true", "2 errors")])
def test_without_a_lab_the_tests_skip_loudly_and_on_ci_they_fail(ci: str, verdict: str) -> None:
    """Root without the right to mount, as in many containers."""
    poor = ["setpriv", "--bounding-set=-sys_admin"] if os.geteuid() == 0 else []
    session = run(
        [
            *(*poor, sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "never or virgin"),
            *("tests/deploy/test_converge.py", "tests/deploy/test_uninstall.py"),
        ],
        timeout=60,
        check=False,
        env={**os.environ, "CI": ci},
        cwd=Path(__file__).parents[2],
    )

    assert verdict in session.stdout
    assert re.search(r"no fleet .*(root without CAP_SYS_ADMIN|not root)", session.stdout)
