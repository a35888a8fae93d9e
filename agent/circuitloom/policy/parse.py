"""Bytes to a checked ``Policy``, or to every fault they have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from circuitloom.errors import Fault, PolicyError
from circuitloom.model import Purpose
from circuitloom.policy.document import parse_document
from circuitloom.policy.health import Degrade, Panic, PanicAction
from circuitloom.policy.operating import Destinations, Log, LogFormat, LogLevel, Metrics
from circuitloom.policy.path_rules import build_diversity, build_path, with_needed_ports
from circuitloom.policy.path_types import PathRules
from circuitloom.policy.probing import Probe
from circuitloom.policy.rotation import Rotation
from circuitloom.policy.schema import fill_defaults, load_schema
from circuitloom.policy.schema_faults import find_schema_faults, to_data
from circuitloom.policy.semantics import find_semantic_faults, find_warnings, slot_names
from circuitloom.policy.source import decode, read_source
from circuitloom.policy.types import (
    Admin,
    Adopt,
    Algorithm,
    Balance,
    ColdStart,
    Eject,
    Failover,
    Health,
    Isolation,
    Keys,
    Match,
    OnFailure,
    Overflow,
    Policy,
    Queue,
    Rebuild,
    Retry,
    Role,
    Rounds,
    Rule,
    RuleAction,
    Schedule,
    Slot,
    StickyBy,
    TorControl,
    WhenContended,
    WhenExceeded,
    WhenExhausted,
    WhenFull,
    WhenNone,
)
from circuitloom.policy.values import (
    parse_control,
    parse_duration,
    parse_listen,
    parse_network,
    parse_percentage,
    parse_ports,
    parse_size,
)

__all__ = ["check_policy", "parse_policy", "read_policy"]

# Two, so that there is something to balance when the agent takes over; with one active circuit, one.
_DEFAULT_MIN_ACTIVE = 2

# Sixty-four keys of four circuits; what one client asks of its guards stays well below that of a busy relay.
_DEFAULT_MAX_CIRCUITS = 256


def check_policy(data: bytes, *, name: str) -> tuple[Policy, tuple[Fault, ...]]:
    """Judges a policy and returns it with its warnings, sorted by place.

    Args:
        data: The YAML text, as read.
        name: What to call it in faults: usually the file's name.

    Raises:
        PolicyError: It has faults; all of them are in it, of the YAML, of single values and of their fit.
    """
    document = parse_document(decode(data, name), name)
    schema_faults, faulty = find_schema_faults(document)
    faults = {*document.faults, *schema_faults, *find_semantic_faults(document, faulty)}
    if faults:
        raise PolicyError(sorted(faults))
    written = to_data(document.root)
    adopting = [index for index, entry in enumerate(written["circuits"]) if "adopt" in entry]
    filled = fill_defaults(written, load_schema())
    for key in {"eject", "panic", "degrade"}.difference(written.get("health", {})):
        # Off by default: the section's keys are then only the schema's defaults.
        del filled["health"][key]
    policy = _build(filled, frozenset(adopting))
    return policy, tuple(sorted(find_warnings(document, policy)))


def parse_policy(data: bytes, *, name: str) -> Policy:
    """The policy of ``check_policy``, without its warnings.

    Raises:
        PolicyError: It has faults.
    """
    return check_policy(data, name=name)[0]


def read_policy(path: str | os.PathLike[str]) -> Policy:
    """Reads and judges a policy file.

    Raises:
        PolicyError: It cannot be read, or has faults.
    """
    return parse_policy(read_source(path), name=os.fspath(path))


def _build(data: dict[str, Any], adopting: frozenset[int]) -> Policy:
    """The dataclasses of a document without faults, with the schema's defaults filled in.

    Args:
        data: The document.
        adopting: Positions of the circuits with ``adopt``, whose defaults are filled in for all.
    """
    diversity = build_diversity(data["paths"])
    names = {entry["name"]: slot_names(entry["name"], entry["count"]) for entry in data["circuits"]}
    rules = tuple(_build_rule(rule, names) for rule in data["rules"])
    slots = tuple(
        slot
        for index, entry in enumerate(data["circuits"])
        for slot in _build_slots(
            entry,
            data["balance"],
            path=build_path(entry["path"], diversity, names),
            is_adopted=index in adopting,
        )
    )
    health = _build_health(data["health"])
    slots = with_needed_ports(slots, rules, health.probe.targets if health.probe else ())
    active = sum(slot.role is Role.ACTIVE for slot in slots)
    rebuild, retry = data["failover"]["rebuild"], data["failover"]["retry"]
    redispatch = data["failover"]["redispatch"].get("after")
    keys, sticky_load = data["balance"]["keys"], data["balance"].get("sticky_load")
    queue = data["balance"]["queue"]
    return Policy(
        slots=slots,
        tor=TorControl(
            control=parse_control(data["tor"]["control"]), password_file=data["tor"].get("password_file")
        ),
        balance=Balance(
            algorithm=Algorithm(data["balance"]["algorithm"]),
            isolation=Isolation(data["balance"]["isolation"]),
            keys=Keys(
                max_circuits=keys.get("max_circuits", max(_DEFAULT_MAX_CIRCUITS, len(slots))),
                slots_per_key=keys.get("slots_per_key"),
                idle_seconds=parse_duration(keys["idle"]),
                cold_start=ColdStart(keys["cold_start"]),
                wait_seconds=parse_duration(keys["wait"]),
                when_exceeded=WhenExceeded(keys["when_exceeded"]),
            ),
            purpose=Purpose(data["balance"]["purpose"]),
            sticky=StickyBy(data["balance"]["sticky"]),
            sticky_load=sticky_load and parse_percentage(sticky_load),
            when_full=WhenFull(data["balance"]["when_full"]),
            queue=Queue(
                length=queue["length"],
                timeout_seconds=parse_duration(queue["timeout"]),
                overflow=Overflow(queue["overflow"]),
            ),
        ),
        failover=Failover(
            when_none=WhenNone(data["failover"]["when_none"]),
            min_active=data["failover"].get("min_active", min(_DEFAULT_MIN_ACTIVE, active)),
            rebuild=Rebuild(
                initial_seconds=parse_duration(rebuild["initial"]),
                max_seconds=parse_duration(rebuild["max"]),
                jitter=parse_percentage(rebuild["jitter"]),
            ),
            retry=Retry(
                attempts=retry["attempts"],
                budget=parse_percentage(retry["budget"]),
                exhausted=WhenExhausted(retry["exhausted"]),
            ),
            when_contended=WhenContended(data["failover"]["when_contended"]),
            redispatch_seconds=None if redispatch is None else parse_duration(redispatch),
        ),
        health=health,
        rotation=_build_rotation(data["rotation"]),
        log=Log(
            level=LogLevel(data["log"]["level"]),
            format=LogFormat(data["log"]["format"]),
            destinations=Destinations(data["log"]["destinations"]),
        ),
        admin=Admin(data["admin"]["socket"]),
        rules=rules,
        rounds=_build_rounds(data["rounds"]),
        metrics=_build_metrics(data["metrics"]),
        diversity=diversity,
    )


def _build_rule(rule: dict[str, Any], names: dict[str, Sequence[str]]) -> Rule:
    """A rule; ``names`` tells the circuits that the name of an entry stands for."""
    match = rule["match"]
    circuits = {name for written in rule.get("circuits", ()) for name in names.get(written, [written])}
    return Rule(
        match=Match(
            ports=tuple(parse_ports(str(port)) for port in match.get("port", ())),
            hosts=tuple(host.lower().removeprefix(".") for host in match.get("host", ())),
            socks_user=match.get("socks_user"),
            sources=tuple(map(parse_network, match.get("source", ()))),
            session_group=match.get("session_group"),
        ),
        circuits=frozenset(circuits) or None,
        action=RuleAction(rule["action"]) if "action" in rule else None,
    )


def _build_health(data: dict[str, Any]) -> Health:
    eject, panic, degrade, slow_start = map(data.get, ("eject", "panic", "degrade", "slow_start"))
    return Health(
        eject=eject
        and Eject(eject["consecutive_failures"], parse_duration(eject["base"]), eject["max_percent"]),
        panic=panic and Panic(parse_percentage(panic["threshold"]), PanicAction(panic["action"])),
        slow_start_seconds=slow_start and parse_duration(slow_start),
        degrade=degrade
        and Degrade(parse_percentage(degrade["slower_than"]), parse_duration(degrade["interval"])),
        probe=_build_probe(data["probe"]),
    )


def _build_probe(data: dict[str, Any]) -> Probe | None:
    # Without targets there is no such section: its other keys are only the schema's defaults.
    if "targets" not in data:
        return None
    return Probe(
        socks=parse_control(data["socks"]),
        targets=tuple(data["targets"]),
        interval_seconds=parse_duration(data["interval"]),
        timeout_seconds=parse_duration(data["timeout"]),
        rise=data["rise"],
        fall=data["fall"],
        quorum=data["quorum"],
        jitter=parse_percentage(data["jitter"]),
        read_bytes=data["read"],
        budget_bytes=parse_size(data["budget"]) if "budget" in data else None,
        unused=data["unused"],
    )


def _build_rotation(data: dict[str, Any]) -> Rotation:
    max_age, max_bytes, drain = (data.get(key) for key in ("max_age", "max_bytes", "drain"))
    return Rotation(
        max_age_seconds=max_age and parse_duration(max_age),
        max_streams_total=data.get("max_streams_total"),
        max_bytes=max_bytes and parse_size(max_bytes),
        drain_seconds=drain and parse_duration(drain),
        jitter=parse_percentage(data["jitter"]),
    )


def _build_metrics(data: dict[str, Any]) -> Metrics:
    listen = data.get("listen")
    address = None if listen is None else parse_listen(listen)
    return Metrics(
        textfile=data.get("textfile"),
        interval_seconds=parse_duration(data["interval"]),
        listen=None if address is None else (address.host, address.port),
        agent=data.get("agent"),
    )


def _build_rounds(data: dict[str, Any]) -> Rounds | None:
    # Without a command there is no such section: its other keys are only the schema's defaults.
    if "command" not in data:
        return None
    return Rounds(
        command=tuple(data["command"]),
        interval_seconds=parse_duration(data["interval"]),
        first_after_seconds=parse_duration(data["first_after"]),
        rounds=data.get("rounds"),
        schedule=Schedule(data["schedule"]),
        timeout_seconds=parse_duration(data["timeout"]),
        env=tuple(data.get("env", ())),
        on_failure=OnFailure(data["on_failure"]),
        require_probe=data["require_probe"],
    )


def _build_slots(
    entry: dict[str, Any],
    balance: dict[str, Any],
    *,
    path: tuple[str, ...] | PathRules | None,
    is_adopted: bool,
) -> list[Slot]:
    return [
        Slot(
            name=name,
            weight=entry["weight"],
            role=Role(entry["role"]),
            path=path,
            max_streams=entry.get("max_streams", balance["max_streams"]),
            purpose=Purpose(balance["purpose"]),
            adopt=Adopt(entry["adopt"]["rebuild"]) if is_adopted else None,
        )
        for name in slot_names(entry["name"], entry["count"])
    ]
