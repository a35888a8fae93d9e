"""The status, anew every second: on a terminal in place, elsewhere one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from circuitloom.errors import AdminError

WATCH_SECONDS = 1.0


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
    with Live(Text(next(texts)), screen=True, auto_refresh=False) as live:
        while True:
            live.refresh()
            time.sleep(WATCH_SECONDS)
            live.update(Text(next(texts)))


def _texts(read: Callable[[], str]) -> Iterator[str]:
    yield read()
    while True:
        try:
            text = read()
        except AdminError as error:
            text = str(error)
        yield text
