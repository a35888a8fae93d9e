"""Which streams a rule is for, and which rules no stream ever reaches.

Rules of this file:

* A rule matches when each of its conditions does; one that cannot be judged, because Tor did not tell, does
  not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from ipaddress import IPv4Network, IPv6Network, ip_address

from circuitloom.policy.types import Match, Rule

__all__ = ["covers", "find_rule", "matches"]


def find_rule(rules: Sequence[Rule], target: str, keywords: Mapping[str, str]) -> Rule | None:
    """The first rule that matches a stream, or None: the rest of the policy decides.

    Args:
        rules: In the policy's order.
        target: ``host:port``, as its client asked for it.
        keywords: Of its NEW or NEWRESOLVE event.
    """
    return next((rule for rule in rules if matches(rule.match, target, keywords)), None)


def matches(match: Match, target: str, keywords: Mapping[str, str]) -> bool:
    """Whether every condition holds."""
    host, _, port = target.rpartition(":")
    return (
        (not match.ports or _has_port(match, port))
        and (not match.hosts or _has_host(match, host.lower()))
        and (match.socks_user is None or _fits(keywords.get("SOCKS_USERNAME"), match.socks_user))
        and (not match.sources or _comes_from(keywords.get("SOURCE_ADDR", ""), match))
        and (match.session_group is None or keywords.get("SESSION_GROUP") == str(match.session_group))
    )


def covers(match: Match, other: Match) -> bool:
    """Whether ``match`` holds wherever ``other`` does, so that a later rule with ``other`` is never used.

    A glob is known to cover itself, and ``*`` whoever has a name; ports of several ranges are not joined. So
    True is certain, and False is not.
    """
    return (
        (not match.ports or (bool(other.ports) and all(_has_ports(match, ports) for ports in other.ports)))
        and (not match.hosts or (bool(other.hosts) and all(_has_host(match, host) for host in other.hosts)))
        and (
            match.socks_user in {None, other.socks_user}
            or (match.socks_user == "*" and other.socks_user is not None)
        )
        and (
            not match.sources
            or (bool(other.sources) and all(_has_network(match, network) for network in other.sources))
        )
        and match.session_group in {None, other.session_group}
    )


def _has_port(match: Match, text: str) -> bool:
    # A name to resolve comes with port 0 and asks for none.
    port = int(text) if text.isdecimal() else 0
    return _has_ports(match, (port, port))


def _has_ports(match: Match, ports: tuple[int, int]) -> bool:
    return any(first <= ports[0] and ports[1] <= last for first, last in match.ports)


def _has_host(match: Match, host: str) -> bool:
    """Whether it is one of the names, or below one."""
    return any(host == name or host.endswith(f".{name}") for name in match.hosts)


def _fits(user: str | None, glob: str) -> bool:
    return user is not None and fnmatchcase(user, glob)


def _comes_from(source: str, match: Match) -> bool:
    try:
        address = ip_address(source.rpartition(":")[0].strip("[]"))
    except ValueError:
        # A client of a Unix socket has no address.
        return False
    return any(address in network for network in match.sources)


def _has_network(match: Match, other: IPv4Network | IPv6Network) -> bool:
    return any(
        other.network_address in network and other.prefixlen >= network.prefixlen for network in match.sources
    )
