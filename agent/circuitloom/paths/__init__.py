"""Which relays a circuit goes through, when the agent selects them: pure, over a snapshot of the consensus.

Rules of this package:

* What Tor's path-spec asks of a path holds for ours: weighted by the consensus, no two relays of one family
  or subnet, the first hop one of Tor's own guards in Tor's order, an exit that accepts what goes there.
* A path that Tor is told relay by relay bypasses Tor's guard system (tor-facts 2), so the guard is chosen
  here, and always from GETINFO entry-guards.
* Nothing here asks Tor, reads a clock or throws dice of its own.
"""

from __future__ import annotations

from circuitloom.paths.exclusion import Exclusion, read_exclusion
from circuitloom.paths.online_faults import Finding, find_online_faults
from circuitloom.paths.ports import PortPolicy
from circuitloom.paths.reading import (
    Microdescriptor,
    Status,
    read_consensus,
    read_guards,
    read_microdescriptors,
    read_weights,
)
from circuitloom.paths.relays import UNKNOWN_COUNTRY, Relay, Relays, join_relay
from circuitloom.paths.selection import Beside, NoPath, breaks, select_path

__all__ = [
    "UNKNOWN_COUNTRY",
    "Beside",
    "Exclusion",
    "Finding",
    "Microdescriptor",
    "NoPath",
    "PortPolicy",
    "Relay",
    "Relays",
    "Status",
    "breaks",
    "find_online_faults",
    "join_relay",
    "read_consensus",
    "read_exclusion",
    "read_guards",
    "read_microdescriptors",
    "read_weights",
    "select_path",
]
