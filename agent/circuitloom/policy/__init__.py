"""The policy: YAML in, frozen dataclasses out, or every fault with its place.

::

    bytes -> source.decode            one UTF-8 text, bounded
          -> document.parse_document  ``nodes`` that know their place  (faults of the YAML)
          -> schema_faults            judged by the JSON Schema        (faults of single values)
          -> semantics                do the values fit together       (faults of the whole; warnings)
          -> parse                    ``types.Policy``

Each stage goes on over the faults of the stage before it, so one run of ``circuitloom check`` shows them all.
"""

from __future__ import annotations

from circuitloom.policy.operating import Destinations, Log, LogFormat, LogLevel, Metrics
from circuitloom.policy.parse import check_policy, parse_policy, read_policy
from circuitloom.policy.rotation import Rotation
from circuitloom.policy.schema import schema_text
from circuitloom.policy.source import read_source
from circuitloom.policy.types import (
    Admin,
    Algorithm,
    Balance,
    ColdStart,
    ControlAddress,
    Eject,
    Failover,
    Health,
    Isolation,
    Keys,
    OnFailure,
    Policy,
    Rebuild,
    Retry,
    Role,
    Rounds,
    Schedule,
    Slot,
    StickyBy,
    TcpAddress,
    TorControl,
    UnixAddress,
    WhenContended,
    WhenExceeded,
    WhenExhausted,
    WhenNone,
)

__all__ = [
    "Admin",
    "Algorithm",
    "Balance",
    "ColdStart",
    "ControlAddress",
    "Destinations",
    "Eject",
    "Failover",
    "Health",
    "Isolation",
    "Keys",
    "Log",
    "LogFormat",
    "LogLevel",
    "Metrics",
    "OnFailure",
    "Policy",
    "Rebuild",
    "Retry",
    "Role",
    "Rotation",
    "Rounds",
    "Schedule",
    "Slot",
    "StickyBy",
    "TcpAddress",
    "TorControl",
    "UnixAddress",
    "WhenContended",
    "WhenExceeded",
    "WhenExhausted",
    "WhenNone",
    "check_policy",
    "parse_policy",
    "read_policy",
    "read_source",
    "schema_text",
]
