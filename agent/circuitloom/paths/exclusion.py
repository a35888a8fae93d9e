"""Relays that Tor's own configuration excludes, wherever a path is selected.

Tor looks at ExcludeNodes and ExcludeExitNodes only where it selects the relays itself (tor-facts 7).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from circuitloom.policy.path_types import RelayRule

_COUNTRY = re.compile(r"\{([A-Za-z?]{2})\}")
_FINGERPRINT = re.compile(r"\$?([0-9A-Fa-f]{40})(?:[=~].*)?")


@dataclass(frozen=True, slots=True)
class Exclusion:
    """What one option of torrc excludes.

    Attributes:
        rule: By country (``??`` for those of no country), fingerprint and nickname.
        networks: By IPv4 address.
    """

    rule: RelayRule = field(default_factory=RelayRule)
    networks: tuple[IPv4Network, ...] = ()

    def has_address(self, address: str) -> bool:
        """Whether an address is in one of the networks."""
        return bool(self.networks) and any(IPv4Address(address) in network for network in self.networks)


def read_exclusion(text: str) -> Exclusion:
    """Read ``{us},$FINGERPRINT,nickname,10.0.0.0/8`` (tor(1), ExcludeNodes); IPv6 is passed over."""
    countries, fingerprints, nicknames = set(), set(), set()
    networks = []
    for item in filter(None, (word.strip() for word in text.split(","))):
        country, fingerprint = _COUNTRY.fullmatch(item), _FINGERPRINT.fullmatch(item)
        if country:
            countries.add(country[1].lower())
        elif fingerprint:
            fingerprints.add(fingerprint[1].upper())
        elif "." in item or ":" in item:
            # An address may have ports behind it, as exit policies do; Tor ignores these here.
            networks += _read_network(item.partition(":")[0])
        else:
            nicknames.add(item.lower())
    rule = RelayRule(frozenset(countries), frozenset(fingerprints), frozenset(nicknames))
    return Exclusion(rule, tuple(networks))


def _read_network(text: str) -> list[IPv4Network]:
    try:
        return [IPv4Network(text, strict=False)]
    except ValueError:
        return []
