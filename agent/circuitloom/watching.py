"""The status, anew every second: on a terminal in place, elsewhere one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from circuitloom.errors import AdminError

WATCH_SECONDS = 1.0

MIN_LINES = 3
"""A first line, what is left out, and the last line."""


def watch(read: Callable[[], str]) -> NoReturn:
    """Show what is read until interrupted, also over a restart of the agent.

    Args:
        read: The status as text; an AdminError of the first time is raised, later ones are shown.

    Raises:
        AdminError: The agent does not answer at the start, or rich is missing.
    """
    texts = _texts(read)
    if not sys.stdout.isatty():
        while True:
            sys.stdout.write(f"{next(texts)}\n\n")
            sys.stdout.flush()
            time.sleep(WATCH_SECONDS)
    try:
        # Only a person who watches needs it.
        from rich.live import Live  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        raise AdminError("status --watch needs rich; install Debian's python3-rich") from None
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            live.update(Text(fitted(next(texts), live.console.height)), refresh=True)
            time.sleep(WATCH_SECONDS)


def fitted(text: str, height: int) -> str:
    """A text that is higher than the terminal, without the lines before its last one, and how many these are.

    Args:
        text: The status; its last line sums it up.
        height: Of the terminal, in lines.
    """
    lines = text.splitlines()
    head = max(height, MIN_LINES) - 2
    hidden = len(lines) - head - 1
    if hidden <= 1:
        return text
    return "\n".join([*lines[:head], f"... {hidden} lines more: make the terminal higher", lines[-1]])


def _texts(read: Callable[[], str]) -> Iterator[str]:
    yield read()
    while True:
        try:
            text = read()
        except AdminError as error:
            text = str(error)
        yield text
