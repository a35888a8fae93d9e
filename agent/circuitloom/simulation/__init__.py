"""What a policy does with streams, without a Tor: ``circuitloom simulate``.

Rules of this package:

* The pool is the agent's; only Tor and time are made up (``tor``, ``course``).
* The same policy, streams and seed give the same text, on every machine. Random numbers are arguments.
* It imports no test, and no test's Tor: tests check the core, this shows it.
"""

from __future__ import annotations

from circuitloom.simulation.arrivals import DEFAULT_OUTAGE_SECONDS, Arrival, Loss, Traffic
from circuitloom.simulation.course import Course, Fate, Outcome, Record
from circuitloom.simulation.findings import Findings, LossFindings
from circuitloom.simulation.load import Load, made_up
from circuitloom.simulation.replay import hidden_rules, replayed
from circuitloom.simulation.report import report
from circuitloom.simulation.trial import Trial, document, try_out

__all__ = [
    "DEFAULT_OUTAGE_SECONDS",
    "Arrival",
    "Course",
    "Fate",
    "Findings",
    "Load",
    "Loss",
    "LossFindings",
    "Outcome",
    "Record",
    "Traffic",
    "Trial",
    "document",
    "hidden_rules",
    "made_up",
    "replayed",
    "report",
    "try_out",
]
