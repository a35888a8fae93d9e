"""The part of the policy that says what an operator is told, and how; of ``types``, which has the rules."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Destinations", "Log", "LogFormat", "LogLevel", "Metrics"]


class LogLevel(StrEnum):
    """The least severe lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a line looks; ``auto`` is ``journal`` where the journal reads standard error, else ``plain``."""

    AUTO = "auto"
    JOURNAL = "journal"
    PLAIN = "plain"
    JSON = "json"


class Destinations(StrEnum):
    """Whether log and ``explain`` may show where streams go."""

    SCRUB = "scrub"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Log:
    """What is logged, and how."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO
    destinations: Destinations = Destinations.SCRUB


@dataclass(frozen=True, slots=True)
class Metrics:
    """Where metrics are told.

    Attributes:
        textfile: A file for node_exporter; None: no file.
        interval_seconds: How often it is written.
        listen: Loopback address and port that answer Prometheus; None: no port.
        agent: A label that tells this agent from others of the host; None: no label.
    """

    textfile: str | None = None
    interval_seconds: float = 15.0
    listen: tuple[str, int] | None = None
    agent: str | None = None

    @property
    def is_asked_for(self) -> bool:
        """Whether they are told anywhere."""
        return self.textfile is not None or self.listen is not None
