#!/usr/bin/env python3
"""Checks policies on the controller with the code of the wheel that is to be installed.

Reads one JSON object: {"wheel": PATH, "policies": [{"name": ..., "file": ..., "text": ...}, ...]}. A policy
with a `file` is checked where it lies, so that its faults name it; one without is written to NAME.yml first.
Prints what `circuitloom check` prints, and exits with the worst of its codes.
"""

import importlib
import json
import os
import sys
import tempfile
import zipfile
from pathlib import Path


def main() -> int:
    """Check all policies of one host."""
    asked = json.load(sys.stdin)
    start = Path.cwd()
    worst = 0
    with tempfile.TemporaryDirectory(suffix=".circuitloom") as folder:
        agent = Path(folder) / "agent"
        with zipfile.ZipFile(asked["wheel"]) as wheel:
            wheel.extractall(agent)
        sys.path.insert(0, str(agent))
        check = importlib.import_module("circuitloom.cli").main
        for policy in asked["policies"]:
            # A file's own path may be relative to where ansible-playbook was started.
            file = policy["file"] or f"{policy['name']}.yml"
            os.chdir(start if policy["file"] else folder)
            if not policy["file"]:
                Path(file).write_text(policy["text"], encoding="utf-8")
            worst = max(worst, check(["check", file]))
        os.chdir(start)
    return worst


if __name__ == "__main__":
    sys.exit(main())
