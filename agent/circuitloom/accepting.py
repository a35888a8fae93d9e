"""Clients of a listening socket, taken for ever.

asyncio's own server would call a lack of descriptors a fault of ours. Here clients wait in the listener's
queue until there is one; that they wait is told at most once a minute.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable

from circuitloom.errors import reason_of

RETRY_SECONDS = 1.0
"""How long a lack of descriptors or memory may last before the next client is tried."""

TELL_SECONDS = 60.0
"""Descriptors come and go; that they lack is told at most so often."""

_log = logging.getLogger(__name__)


def tell_fault(task: asyncio.Task[None]) -> None:
    """Let the loop's exception handler know of a fault of our own, in a task that nobody waits for."""
    if not task.cancelled():
        task.result()


async def accept_clients(
    listener: socket.socket, *, name: str, take: Callable[[socket.socket], Awaitable[bool]]
) -> None:
    """Accept clients until cancelled.

    Args:
        listener: Listens, and does not block.
        name: What the log calls it.
        take: Takes a client's connection; returns whether it did. One that is not taken is closed.
    """
    loop = asyncio.get_running_loop()
    told_at: float | None = None
    while True:
        try:
            connection, _ = await loop.sock_accept(listener)
        except ConnectionAbortedError:
            continue
        except OSError as error:
            if told_at is None or loop.time() - told_at >= TELL_SECONDS:
                told_at = loop.time()
                _log.warning("%s takes no client: %s", name, reason_of(error))
            await asyncio.sleep(RETRY_SECONDS)
            continue
        if not await take(connection):
            connection.close()
            # Whoever keeps the queue full must not keep the loop from turning.
            await asyncio.sleep(0)
