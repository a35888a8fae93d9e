"""``circuitloom run`` that is killed at one step of a round: the first argument names it.

Also the hook that counts its effects, and what must hold of it and the ledger wherever agents were killed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from circuitloom import cli
from circuitloom.hook import HookRun
from circuitloom.ledger import Ledger

HOOK = """#!{python} -I
# Its effect is a line in a file, once for each key; then it takes a moment.
import fcntl, json, sys, time
document = json.load(sys.stdin)
with open("{folder}/effects", "a+") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    file.seek(0)
    with open("{folder}/runs", "a") as runs:
        print(document["key"], document["attempt"], document["retried"], file=runs)
    if document["key"] not in file.read().split():
        print(document["key"], file=file, flush=True)
time.sleep(0.1)
print(json.dumps({{"proof": document["key"]}}))
"""


def counting_hook(folder: Path) -> Path:
    """Write the hook, which keeps its ``effects`` and its ``runs`` in the same folder."""
    path = folder / "hook"
    path.write_text(HOOK.format(python=sys.executable, folder=folder))
    path.chmod(0o755)
    return path


def words(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


def check_effects(folder: Path, rows: Sequence[dict[str, Any]], *, rounds: int) -> set[str]:
    """Assert that each key has one effect and one outcome, and each round its place; the keys asked again.

    Args:
        folder: Of the hook.
        rows: The whole ledger, when all rounds are over.
        rounds: How many there are.
    """
    effects = Counter(key for (key,) in words(folder / "effects"))
    assert set(effects.values()) == {1}
    done = [row for row in rows if row["outcome"] == "done"]
    assert {row["key"] for row in done} == set(effects)
    assert all(row["answer"] == {"proof": row["key"]} for row in done)
    assert {row["outcome"] for row in rows} <= {"done", "missed"}
    assert sum(row["rounds"] for row in rows) == rounds
    retried = {row["key"] for row in rows if row["retried"]}
    assert retried == {key for key, _, is_retried in words(folder / "runs") if is_retried == "True"}
    return retried


def die(*_arguments: object, **_more: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def before(function: Callable[..., Any]) -> Callable[..., Any]:
    del function
    return die


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    def killed(*arguments: object, **more: object) -> None:
        function(*arguments, **more)
        die()

    return killed


STEPS: dict[str, tuple[Any, str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "before-intent": (Ledger, "record_intent", before),
    "after-intent": (Ledger, "record_intent", after),
    "hook-started": (HookRun, "__init__", after),
    "before-outcome": (Ledger, "record_outcome", before),
    "after-outcome": (Ledger, "record_outcome", after),
}


def main() -> int:
    step, *arguments = sys.argv[1:]
    if step != "never":
        owner, name, when = STEPS[step]
        setattr(owner, name, when(getattr(owner, name)))
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
