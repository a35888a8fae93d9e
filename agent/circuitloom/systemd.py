"""Talks to systemd: sd_notify and the watchdog's settings.

Rules of this file:

* Without systemd every call does nothing, so the agent runs the same in a terminal.
* It never decides when to ping the watchdog: only the work loop knows that it has turned.
"""

from __future__ import annotations

import logging
import os
import time

import sdnotify

_log = logging.getLogger(__name__)


class Notifier:
    """Sends state to the service manager, if there is one."""

    def __init__(self) -> None:
        self._notifier: sdnotify.SystemdNotifier | None = None
        if os.environ.get("NOTIFY_SOCKET"):
            try:
                # Its debug mode is the only one that tells when a message was lost.
                self._notifier = sdnotify.SystemdNotifier(debug=True)
            except OSError as error:
                self._give_up(error)

    def ready(self, status: str) -> None:
        """The agent serves: its policy is valid and its loop runs, whether or not Tor answers."""
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """One line that a person reads in ``systemctl status``."""
        self._send(f"STATUS={text}")

    def reloading(self) -> None:
        """A reload begins; ``ready`` ends it. systemd wants the clock it began at (sd_notify(3))."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The agent is giving back and will end."""
        self._send("STOPPING=1", "STATUS=giving stream attachment back to Tor")

    def watchdog(self) -> None:
        """The loop has turned."""
        self._send("WATCHDOG=1")

    def _send(self, *lines: str) -> None:
        if self._notifier is None:
            return
        try:
            text = "\n".join(line.replace("\n", " ") for line in lines)
            # sdnotify encodes latin-1 and would raise; systemd reads UTF-8.
            self._notifier.notify(text.encode().decode("latin-1"))
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._notifier = None
        _log.warning("systemd cannot be told our state (%s); going on without", error)


def watchdog_seconds() -> float | None:
    """WatchdogSec of our unit in seconds, or None when it does not concern this process."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    process = os.environ.get("WATCHDOG_PID", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return None
    if process and process != str(os.getpid()):
        return None
    return int(microseconds) / 1e6
