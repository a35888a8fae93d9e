"""The status: one line for systemd, a document for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from circuitloom.model import Announce
from circuitloom.policy.types import Policy, WhenNone
from circuitloom.pool import Attachment, CircuitSnapshot, Histogram, PoolSnapshot

STATUS_VERSION = 1

_WHEN_NONE = {
    WhenNone.TOR: "Tor assigns streams",
    WhenNone.HOLD: "streams wait",
    WhenNone.REJECT: "streams are refused",
}


def status_line(snapshot: PoolSnapshot, policy: Policy, disconnected_reason: str) -> str:
    """One line that a person understands.

    Args:
        snapshot: The pool's state.
        policy: What is asked for.
        disconnected_reason: Why there is no connection, if there is none.
    """
    line = _state_line(snapshot, policy, disconnected_reason)
    return f"{line}; {snapshot.notice}" if snapshot.notice else line


def _state_line(snapshot: PoolSnapshot, policy: Policy, disconnected_reason: str) -> str:
    built = sum(1 for circuit in snapshot.circuits if circuit.state == "built")
    # One that nobody has adopted yet is not missed.
    wanted = sum(
        1 for c in snapshot.circuits if c.state != "draining" and not (c.is_adopted and c.state == "idle")
    )
    keys = len({circuit.key for circuit in snapshot.circuits if circuit.state != "draining"})
    for_keys = f" for {keys} keys" if keys > 1 else ""
    match snapshot.state:
        case Attachment.DISCONNECTED:
            return f"not connected to Tor: {disconnected_reason}"
        case Attachment.STOPPING:
            return "giving stream attachment back to Tor"
        case Attachment.BALANCING if built == 0:
            return (
                f"no circuit is usable, {_WHEN_NONE[policy.failover.when_none]}: 0 of {wanted} circuits built"
            )
        case Attachment.BALANCING:
            streams = _plural(snapshot.streams_active, "stream")
            return f"balancing {streams} over {built} of {wanted} circuits{for_keys}, {snapshot.algorithm}"
    return f"Tor assigns streams: {built} of {wanted} circuits built"


def status_document(  # noqa: PLR0913 - each by name, and none can be made from another
    snapshot: PoolSnapshot,
    policy: Policy,
    *,
    reason: str,
    tor_version: str,
    guard_pid: int | None,
    country_of: Callable[[str], str],
) -> dict[str, Any]:
    """What ``circuitloom status --json`` prints.

    Args:
        snapshot: The pool's state.
        policy: What is asked for.
        reason: The status line.
        tor_version: As Tor told it.
        guard_pid: The process that gives back when the agent cannot.
        country_of: The country of the relay with this fingerprint.
    """
    return {
        "version": STATUS_VERSION,
        "state": snapshot.state,
        "since_seconds": round(snapshot.since_seconds, 3),
        "reason": reason,
        "algorithm": snapshot.algorithm,
        "tor": {
            "connected": snapshot.state in {Attachment.RELEASED, Attachment.BALANCING},
            "version": tor_version or None,
            "control": str(policy.tor.control),
        },
        "guard_pid": guard_pid,
        "circuits": [_circuit_document(circuit, country_of) for circuit in snapshot.circuits],
        "probes": {"problem": snapshot.probe_problem or None} if policy.health.probe else None,
        "streams": {
            "active": snapshot.streams_active,
            "waiting": snapshot.streams_waiting,
            "attached_total": snapshot.attached_total,
            "released_total": snapshot.released_total,
            "failed_total": snapshot.failed_total,
        },
    }


def event_document(action: Announce, *, at: float) -> dict[str, Any]:
    """What ``circuitloom events`` prints of a change of state.

    Args:
        action: The change.
        at: When (Unix time, seconds).
    """
    subject = {"circuit": action.circuit, "circuit_id": action.circuit_id, "stream": action.stream_id}
    return {
        "time": round(at, 3),
        "severity": action.severity,
        "event": action.kind,
        "message": action.message,
        **{name: value for name, value in subject.items() if value},
    }


def _circuit_document(circuit: CircuitSnapshot, country_of: Callable[[str], str]) -> dict[str, Any]:
    # Not asdict: it would copy every histogram.
    document = {field.name: getattr(circuit, field.name) for field in dataclasses.fields(circuit)}
    connects: Histogram = document.pop("connects")
    exit_fingerprint = document.pop("exit_fingerprint")
    document["probe"] = dataclasses.asdict(circuit.probe) if circuit.probe else None
    document["connect_p50_seconds"] = connects.quantile(0.5)
    document["connect_p99_seconds"] = connects.quantile(0.99)
    document["exit_country"] = None if exit_fingerprint is None else country_of(exit_fingerprint)
    for key in ("age_seconds", "share", "weight_share", "connect_p50_seconds", "connect_p99_seconds"):
        if document[key] is not None:
            document[key] = round(document[key], 4)
    if circuit.probe is not None and circuit.probe.seconds_ago is not None:
        document["probe"]["seconds_ago"] = round(circuit.probe.seconds_ago, 3)
    return document


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
