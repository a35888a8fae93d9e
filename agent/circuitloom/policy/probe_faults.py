"""What the schema cannot say about probes.

A target is never shown: a fault of a reload goes to the log, and no log names a destination.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import AddressValueError, IPv6Address
from typing import Any

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document, Listing, Scalar
from circuitloom.policy.types import Isolation, Policy
from circuitloom.policy.values import ValueFault, parse_control, parse_duration
from circuitloom.policy.wording import Path, quoted

__all__ = ["find_probe_faults", "find_probe_warnings"]

_PROBE: Path = ("health", "probe")

# Below a second the probes of a few circuits would be a stream flood; after a day nobody waits for news.
_MIN_INTERVAL_SECONDS, _MAX_WAIT_SECONDS = 1.0, 86_400.0
_MIN_TIMEOUT_SECONDS = 0.1

# From then on Tor takes an unanswered stream off its circuit by itself, and closes the circuit soon.
_TOR_GIVES_UP_SECONDS = 10.0

_NAME = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def find_probe_faults(document: Document, value: Callable[..., Any]) -> Iterator[Fault]:
    """Judges ``health.probe``.

    Args:
        document: The policy, which may have faults.
        value: Gives the value at a path, or its default; None if it is faulty or has no default.
    """
    if document.node_at(_PROBE) is None:
        return
    yield from _socks_faults(document, value)
    targets = document.node_at((*_PROBE, "targets"))
    items = targets.items if isinstance(targets, Listing) else ()
    for position, item in enumerate(items):
        path = (*_PROBE, "targets", position)
        if not isinstance(item, Scalar) or value(*path) is None:
            continue
        why = _why_not(item.text)
        if why:
            yield document.fault(path, why)
    yield from _time_faults(document, value, len(items))


def _time_faults(document: Document, value: Callable[..., Any], targets: int) -> Iterator[Fault]:
    seconds: dict[str, float] = {}
    for key, least, shown in (
        ("interval", _MIN_INTERVAL_SECONDS, "1s"),
        ("timeout", _MIN_TIMEOUT_SECONDS, "100ms"),
    ):
        text = value(*_PROBE, key)
        if text is None:
            continue
        seconds[key] = parse_duration(text)
        if not least <= seconds[key] <= _MAX_WAIT_SECONDS:
            del seconds[key]
            yield document.fault((*_PROBE, key), f"must be from {shown} to 1d, not {quoted(text)}")
    quorum = value(*_PROBE, "quorum")
    if quorum is None or not targets:
        return
    if quorum > targets:
        message = f"must be at most {targets}, the number of targets, not {quorum}"
        yield document.fault((*_PROBE, "quorum"), message)
        return
    tries = targets - quorum + 1
    if tries * seconds.get("timeout", 0) > seconds.get("interval", _MAX_WAIT_SECONDS):
        times = f"{tries} times " if tries > 1 else ""
        interval, timeout = value(*_PROBE, "interval"), value(*_PROBE, "timeout")
        message = f"{times}this must be at most `interval`, {interval}, so that a check ends in it: {timeout}"
        yield document.fault((*_PROBE, "timeout"), message)


def find_probe_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    """What works, and may not be what the operator wants."""
    probe = policy.health.probe
    if probe is None:
        return
    if probe.timeout_seconds >= _TOR_GIVES_UP_SECONDS:
        message = "after 10 s Tor itself gives up, and closes the circuit soon: one failed probe costs it"
        yield document.fault((*_PROBE, "timeout"), message)
    if policy.rounds is not None and policy.rounds.require_probe and not probe.unused:
        message = "a round waits until its circuit has carried a stream and passed a probe: `unused: true`?"
        yield document.fault(_PROBE, message)
    if probe.unused and policy.balance.isolation is Isolation.TOR:
        message = "circuits that no key has yet are not probed: `isolation: none` if there is but one user"
        yield document.fault((*_PROBE, "unused"), message)


def _socks_faults(document: Document, value: Callable[..., Any]) -> Iterator[Fault]:
    socks = value(*_PROBE, "socks")
    if socks is None:
        return
    path = (*_PROBE, "socks")
    try:
        parse_control(socks)
    except ValueFault:
        message = "must be `unix:/path` or `tcp:127.0.0.1:PORT`, a path of at most 107 bytes or a port"
        yield document.fault(path, f"{message} up to 65535, not {quoted(socks)}")
    else:
        if socks == value("tor", "control"):
            yield document.fault(path, "this is Tor's control port: give one of its SOCKS ports")


def _why_not(target: str) -> str | None:
    """What is wrong with a target that is of the right form."""
    host, _, port = target.rpartition(":")
    if int(port) > 65535:
        return "must have a port from 1 to 65535"
    if host.startswith("["):
        try:
            IPv6Address(host[1:-1])
        except AddressValueError:
            return "must be an IPv6 address between the brackets"
        return None
    if not _NAME.fullmatch(host):
        return "must be a host name, an IPv4 address or an IPv6 address in brackets, and `:PORT`"
    if host.lower().endswith((".onion", ".exit")):
        return "must be a destination that an exit can reach: no circuit of the pool leads to this name"
    return None
