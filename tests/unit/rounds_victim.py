"""``circuitloom run`` that is killed at one step of a round: the first argument names it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from circuitloom import cli
from circuitloom.hook import HookRun
from circuitloom.ledger import Ledger


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
