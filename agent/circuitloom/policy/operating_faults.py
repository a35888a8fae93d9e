"""What is wrong with ``metrics`` and ``log`` in a policy, and what may not be what the operator wants."""

from __future__ import annotations

from collections.abc import Iterator

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document, Mapping, Scalar
from circuitloom.policy.operating import Destinations
from circuitloom.policy.types import Policy
from circuitloom.policy.values import ValueFault, parse_duration, parse_listen
from circuitloom.policy.wording import Path, quoted

__all__ = ["find_metrics_faults", "find_operating_warnings"]

# More often than once a second nobody scrapes; after an hour no alert would be of use.
_MIN_INTERVAL_SECONDS, _MAX_INTERVAL_SECONDS = 1.0, 3600.0


def find_metrics_faults(document: Document, faulty: frozenset[Path]) -> Iterator[Fault]:
    """Judges the section.

    Args:
        document: The policy, which may have faults.
        faulty: Paths of values that the schema has already refused.
    """
    section = document.node_at(("metrics",))
    if not isinstance(section, Mapping) or section.is_partial:
        return
    if section.entries.keys().isdisjoint({"textfile", "listen"}):
        message = "needs `textfile`, `listen` or both: nobody would be told anything"
        yield document.fault(("metrics",), message)
    listen, interval = (document.node_at(("metrics", key)) for key in ("listen", "interval"))
    if isinstance(listen, Scalar) and ("metrics", "listen") not in faulty:
        try:
            parse_listen(listen.text)
        except ValueFault as fault:
            yield document.fault(("metrics", "listen"), str(fault))
    if isinstance(interval, Scalar) and ("metrics", "interval") not in faulty:
        seconds = parse_duration(interval.text)
        if not _MIN_INTERVAL_SECONDS <= seconds <= _MAX_INTERVAL_SECONDS:
            message = f"must be from 1s to 1h, not {quoted(interval.text)}"
            yield document.fault(("metrics", "interval"), message)


def find_operating_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    """What does nothing, or tells more than usual; ``policy`` is what ``document`` became."""
    if policy.log.destinations is Destinations.FULL:
        message = (
            "whoever reads the log or asks `explain` sees where this Tor's users go: only to find a fault"
        )
        yield document.fault(("log", "destinations"), message)
    if document.node_at(("metrics", "interval")) and not document.node_at(("metrics", "textfile")):
        message = "this does nothing without `textfile`: on the port Prometheus asks when it likes"
        yield document.fault(("metrics", "interval"), message)
