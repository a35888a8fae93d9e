"""Relays made up for a policy that has the agent select them: each of its rules finds some.

So what the rules do to the streams can be seen; whether Tor's relays of now leave any, ``check --online``
says.
"""

from __future__ import annotations

from collections.abc import Iterator

from circuitloom.paths import PortPolicy, Relay, Relays
from circuitloom.policy.path_types import RelayRule
from circuitloom.policy.types import Policy

COUNTRIES = ("de", "fr", "nl", "se", "us")
"""Where relays are whatever the policy says."""

_ALL_PORTS = PortPolicy(((1, 65535),))
_NO_PORTS = PortPolicy(())
_COMMON = frozenset({"Fast", "Running", "Stable", "Valid"})


def made_up_relays(policy: Policy) -> Relays:
    """A consensus with exits for all circuits of the policy in each country that it names."""
    rules = [rule for path in policy.path_rules for rule in (path.exit, path.middle)]
    countries = sorted({*COUNTRIES, *(country for rule in rules for country in rule.countries)})
    each = 4 + 2 * len(policy.path_rules)
    relays: list[Relay] = []
    where: dict[str, str] = {}

    def add(country: str | None, flag: str, *, fingerprint: str = "", nickname: str = "") -> None:
        number = len(relays)
        relay = Relay(
            fingerprint or f"{number:040X}",
            nickname or f"relay{number}",
            # Neither address nor subnet is ever used: they only have to differ.
            f"made-up-{number}",
            (f"subnet {number}",),
            _COMMON | {flag},
            1000,
            frozenset(),
            frozenset(),
            _ALL_PORTS if flag == "Exit" else _NO_PORTS,
        )
        relays.append(relay)
        if country is not None:
            where[relay.address] = country

    # In no country, so that no rule avoids Tor's own guards.
    for _ in range(3):
        add(None, "Guard")
    guards = tuple(relay.fingerprint for relay in relays)
    for country in countries:
        for _ in range(each):
            add(country, "Exit")
            add(country, "HSDir")
    for rule in rules:
        country = min(rule.countries, default=COUNTRIES[0])
        for fingerprint, nickname in _named(rule):
            # An exit may be in the middle as well.
            add(country, "Exit", fingerprint=fingerprint, nickname=nickname)
    return Relays({relay.fingerprint: relay for relay in relays}, guards=guards, countries=where)


def _named(rule: RelayRule) -> Iterator[tuple[str, str]]:
    """Fingerprint and nickname of each relay that the rule names; a relay has to fit both kinds."""
    fingerprints, nicknames = sorted(rule.fingerprints), sorted(rule.nicknames)
    if fingerprints and nicknames:
        yield from ((fingerprint, nicknames[0]) for fingerprint in fingerprints)
    else:
        yield from ((fingerprint, "") for fingerprint in fingerprints)
        yield from (("", nickname) for nickname in nicknames)
