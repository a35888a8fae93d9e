"""What the systemd unit does for the agent: start it again when it ends, and give back if told so."""

from __future__ import annotations

import threading
from typing import Self

from tor.agent import Agent

RESTART_SECONDS = 1.0
"""The unit's RestartSec=."""

POLL_SECONDS = 0.02


class Supervisor:
    """Watches an agent in a thread and starts it again; a context manager.

    Args:
        agent: It runs already.
        gives_back: Whether ``circuitloom release`` runs at each end, as ExecStopPost= does.

    Attributes:
        restarts: How often the agent was started again.
    """

    def __init__(self, agent: Agent, *, gives_back: bool) -> None:
        self._agent = agent
        self._gives_back = gives_back
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self.restarts = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            if self._agent.process.poll() is None:
                continue
            if self._gives_back:
                self._agent.release()
            if self._stopping.wait(RESTART_SECONDS):
                return
            self._agent.start()
            self.restarts += 1
