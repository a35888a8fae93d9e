"""One agent for one Tor: two would move each other's streams, and lose what they sent early (tor-facts 12).

Tor has no lock and no list of controllers, so the lock lives outside of it: an flock on Tor's own cookie
file, which every agent that may control this Tor can open. It ends with its holder, however that ends.
Without a cookie (password or null authentication) there is no lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os

from circuitloom.errors import is_out_of_descriptors


class TorLock:
    """The right to attach the streams of one Tor."""

    def __init__(self) -> None:
        self._descriptor: int | None = None

    def acquire(self, cookie_path: str | None) -> bool:
        """Take the lock, or keep it.

        Args:
            cookie_path: As Tor names it; Tor may have made a new file since the last time.

        Returns:
            False if another agent has it.

        Raises:
            OSError: This process has no file descriptor left for it.
        """
        if cookie_path is None:
            return True
        try:
            descriptor = os.open(cookie_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if is_out_of_descriptors(error) and self._descriptor is None:
                raise
            # It was readable a moment ago, or we would not be here; nobody is helped by waiting.
            return True
        if self._descriptor is not None and os.path.samestat(
            os.fstat(descriptor), os.fstat(self._descriptor)
        ):
            os.close(descriptor)
            return True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self.release()
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock up."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None
