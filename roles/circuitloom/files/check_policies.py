#!/usr/bin/env python3
"""Checks the wheel that is to be installed, and policies with the code in it, on the controller.

Reads one JSON object: {"wheel": PATH, "sha256": what it must have or "", "policies": [{"name": ..., "file":
..., "text": ...}, ...]}. A policy with a `file` is checked where it lies, so that its faults name it; one
without is written to NAME.yml first. Prints the wheel's SHA-256 as the first line, then what `circuitloom
check` prints, and exits with the worst of its codes.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> int:
    """Check the wheel and all policies of one host."""
    asked = json.load(sys.stdin)
    wheel = Path(asked["wheel"])
    if not wheel.is_file():
        return complain(f"{wheel}: not there")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    sys.stdout.write(f"{digest}\n")
    if asked["sha256"] not in {"", digest}:
        return complain(f"{wheel}: its SHA-256 is {digest}, not that of circuitloom_wheel_sha256")
    if not wheel.match("circuitloom-*-py3-none-any.whl") or not zipfile.is_zipfile(wheel):
        return complain(f"{wheel}: no pure wheel of circuitloom")
    sys.stdout.flush()
    return check(wheel, asked["policies"])


def check(wheel: Path, policies: list[dict[str, str]]) -> int:
    """Check policies with a wheel's own code; return the worst exit code."""
    start = Path.cwd()
    worst = 0
    with tempfile.TemporaryDirectory(suffix=".circuitloom") as folder:
        agent = Path(folder) / "agent"
        if policies:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(agent)
            sys.path.insert(0, str(agent))
        for policy in policies:
            # A file's own path may be relative to where ansible-playbook was started.
            file = policy["file"] or f"{policy['name']}.yml"
            os.chdir(start if policy["file"] else folder)
            if not policy["file"]:
                Path(file).write_text(policy["text"], encoding="utf-8")
            worst = max(worst, importlib.import_module("circuitloom.cli").main(["check", file]))
        os.chdir(start)
    return worst


def complain(fault: str) -> int:
    """Say one fault; return the exit code for it (EX_DATAERR)."""
    sys.stderr.write(f"{fault}\n")
    return 65


if __name__ == "__main__":
    sys.exit(main())
