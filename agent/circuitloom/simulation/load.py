"""Streams made up for a policy: how many, how often and for how long the caller says.

Rules of this file:

* Gaps between streams and the time that one stays open are exponential, as those of many independent clients.
* For each rule of the policy that asks for something as many streams are made as for none, so that the
  simulation shows what every rule does. How much traffic a rule really gets only a recording tells.
* What is drawn depends on nothing but the numbers that ``uniform`` gives.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import log

from circuitloom.policy.types import Match, Policy
from circuitloom.simulation.arrivals import Arrival

ISOLATED_BY = "SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH"
"""What Tor isolates streams by unless its configuration says otherwise (tor-facts 7)."""

HTTPS_PART = 0.8
"""Of streams for which nothing asks for a port; the others go to port 80."""

_GROUP = re.compile(r"\[(!?)([^]])[^]]*\]")


@dataclass(frozen=True, slots=True)
class Load:
    """How much comes.

    Attributes:
        streams: How many.
        per_second: How many in a second, on average.
        open_seconds: How long each stays open, on average.
        users: How many SOCKS users they are of.
        destinations: How many hosts they go to.
    """

    streams: int = 1000
    per_second: float = 10.0
    open_seconds: float = 10.0
    users: int = 1
    destinations: int = 100


def made_up(load: Load, policy: Policy, uniform: Callable[[], float]) -> tuple[Arrival, ...]:
    """The streams, in the order of their coming.

    Args:
        load: How much comes.
        policy: Whose rules they are for.
        uniform: Gives a random number in [0, 1).
    """
    matches = [Match(), *(rule.match for rule in policy.rules if rule.match != Match())]
    arrivals, at = [], 0.0
    for _ in range(load.streams):
        at += _exponential(1 / load.per_second, uniform)
        match = _pick(matches, uniform)
        user = 1 + int(uniform() * load.users)
        site = 1 + int(uniform() * load.destinations)
        port = 443 if uniform() < HTTPS_PART else 80
        arrivals.append(
            Arrival(
                at,
                _target(match, site, port),
                _keywords(match, user),
                _exponential(load.open_seconds, uniform),
            )
        )
    return tuple(arrivals)


def _exponential(mean: float, uniform: Callable[[], float]) -> float:
    return -log(1 - uniform()) * mean


def _pick(matches: Sequence[Match], uniform: Callable[[], float]) -> Match:
    return matches[int(uniform() * len(matches))]


def _target(match: Match, site: int, port: int) -> str:
    host = f"site-{site}.example"
    if match.hosts:
        host = f"site-{site}.{match.hosts[site % len(match.hosts)]}"
    if match.ports and not any(first <= port <= last for first, last in match.ports):
        port = match.ports[site % len(match.ports)][0]
    return f"{host}:{port}"


def _keywords(match: Match, user: int) -> Mapping[str, str]:
    name = f"user-{user}"
    if match.socks_user is not None:
        name = _fitting(match.socks_user, user)
    source = f"10.{user >> 16 & 255}.{user >> 8 & 255}.{user & 255}:4711"
    if match.sources:
        address = match.sources[0].network_address
        source = f"[{address}]:4711" if address.version == 6 else f"{address}:4711"
    return {
        "PURPOSE": "USER",
        "SOURCE_ADDR": source,
        "SOCKS_USERNAME": name,
        "CLIENT_PROTOCOL": "SOCKS5",
        "NYM_EPOCH": "0",
        "SESSION_GROUP": str(-4 if match.session_group is None else match.session_group),
        "ISO_FIELDS": ISOLATED_BY,
    }


def _fitting(glob: str, number: int) -> str:
    """A name that the glob lets through."""
    name = _GROUP.sub(lambda found: "~" if found[1] else found[2], glob)
    name = name.replace("*", str(number)).replace("?", "x")
    return name if fnmatchcase(name, glob) else glob
