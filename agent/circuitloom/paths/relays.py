"""A snapshot of the relays that a path can go through.

Rules of this file:

* A snapshot never changes; what it has worked out once it keeps, since many circuits ask the same of it.
* A relay without a microdescriptor is none: Tor would refuse a path through it (tor-facts 2).
"""

from __future__ import annotations

import dataclasses
from bisect import bisect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate

from circuitloom.paths.exclusion import Exclusion
from circuitloom.paths.ports import PortPolicy
from circuitloom.paths.reading import Microdescriptor, Status
from circuitloom.policy.path_types import PathRules, RelayRule

UNKNOWN_COUNTRY = "??"
"""What GETINFO ip-to-country answers for an address that is in no country."""

LONG_LIVED_PORTS = frozenset({21, 22, 706, 1863, 5050, 5190, 5222, 5223, 6523, 6667, 6697, 8300})
"""Tor's LongLivedPorts: streams to these ask for relays that stay (path-spec 2.2)."""

_FULL_WEIGHT = 10_000
"""Of a position weight; what the consensus does not tell counts as it."""

_DRAWS = 16
"""Blind draws before all candidates are looked at: nearly always the first one fits."""


class Position(StrEnum):
    """A place in a path; the letter is that of the consensus's bandwidth weights."""

    MIDDLE = "m"
    EXIT = "e"


@dataclass(frozen=True, slots=True, eq=False)
class Relay:
    """One relay, which is Running and Valid.

    Attributes:
        fingerprint: 40 upper-case hex digits.
        nickname: As written.
        address: IPv4.
        subnets: Networks that no other relay of a path may be in.
        flags: Such as ``Exit``.
        bandwidth: In the consensus's unit.
        family: Fingerprints (and lower-case nicknames) of relays that it says are run by the same people.
        family_ids: Keys that all relays of a family share.
        ports: What it accepts as an exit.
    """

    fingerprint: str
    nickname: str
    address: str
    subnets: tuple[str, ...]
    flags: frozenset[str]
    bandwidth: int
    family: frozenset[str]
    family_ids: frozenset[str]
    ports: PortPolicy

    @property
    def is_exit(self) -> bool:
        """Whether Tor counts it among the exits."""
        return "Exit" in self.flags and "BadExit" not in self.flags

    def is_named_in(self, names: Iterable[str]) -> bool:
        """Whether one of these (fingerprints, lower-case nicknames) is its own."""
        return self.fingerprint in names or self.nickname.lower() in names

    def is_family_of(self, other: Relay) -> bool:
        """Whether both are run by the same people: each says so (path-spec 2.2), or they share a key."""
        return (
            self is other
            or not self.family_ids.isdisjoint(other.family_ids)
            or (self.is_named_in(other.family) and other.is_named_in(self.family))
        )

    def is_near(self, other: Relay) -> bool:
        """Whether both are in one subnet."""
        return any(subnet in other.subnets for subnet in self.subnets)


def join_relay(status: Status, microdescriptor: Microdescriptor) -> Relay:
    """A relay, from the consensus and from what it says of itself."""
    return Relay(
        fingerprint=status.fingerprint,
        nickname=status.nickname,
        address=status.address,
        subnets=status.subnets,
        flags=status.flags,
        bandwidth=status.bandwidth,
        family=microdescriptor.family,
        family_ids=microdescriptor.family_ids,
        ports=microdescriptor.ports,
    )


@dataclass(frozen=True, slots=True)
class Candidates:
    """Relays that may have a position, to draw from by weight.

    Attributes:
        relays: They.
        totals: The sum of the weights up to each; empty: all weigh the same.
        why_none: When there are none, what left none.
    """

    relays: Sequence[Relay]
    totals: Sequence[int]
    why_none: str = ""

    def prefer(
        self, fits: Callable[[Relay], bool], resting: Collection[str], uniform: Callable[[], float]
    ) -> Relay | None:
        """Draw as ``choose`` does, one that rests (by fingerprint) only if all that fit do."""
        if not resting:
            return self.choose(fits, uniform)
        awake = self.choose(lambda relay: relay.fingerprint not in resting and fits(relay), uniform)
        return awake or self.choose(fits, uniform)

    def choose(self, fits: Callable[[Relay], bool], uniform: Callable[[], float]) -> Relay | None:
        """Draw one that fits, by weight among those that do; None if none does. There must be candidates."""
        for _ in range(_DRAWS):
            relay = self.draw(uniform)
            if fits(relay):
                return relay
        fitting = [number for number, relay in enumerate(self.relays) if fits(relay)]
        if not fitting:
            return None
        weights = [self._weight(number) for number in fitting] if self.totals else []
        rest = _candidates([self.relays[number] for number in fitting], weights)
        return rest.draw(uniform)

    def draw(self, uniform: Callable[[], float]) -> Relay:
        """Draw one by weight; there must be one."""
        if not self.totals:
            return self.relays[int(uniform() * len(self.relays))]
        return self.relays[bisect(self.totals, uniform() * self.totals[-1], hi=len(self.relays) - 1)]

    def _weight(self, number: int) -> int:
        return self.totals[number] - (self.totals[number - 1] if number else 0)


def _candidates(relays: Sequence[Relay], weights: Iterable[int], why_none: str = "") -> Candidates:
    totals = tuple(accumulate(weights))
    # As Tor does: where nobody has a weight, as in a network without measurements, all have the same.
    return Candidates(tuple(relays), totals if totals and totals[-1] > 0 else (), why_none)


@dataclass(frozen=True, slots=True)
class Relays:
    """All relays, as one consensus has them.

    Attributes:
        by_fingerprint: They.
        weights: The consensus's bandwidth weights, such as ``Wed``.
        guards: Fingerprints of Tor's own guards that it would use, in its order of preference.
        countries: Of addresses, in lower case; one that is missing is unknown.
        has_countries: Whether Tor knows countries at all.
        keeps_subnets_apart: Tor's EnforceDistinctSubnets.
        excluded: Tor's ExcludeNodes.
        excluded_exits: Tor's ExcludeExitNodes.
        missing: How many relays have no microdescriptor yet.
    """

    by_fingerprint: Mapping[str, Relay]
    weights: Mapping[str, int] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    countries: Mapping[str, str] = field(default_factory=dict)
    has_countries: bool = True
    keeps_subnets_apart: bool = True
    excluded: Exclusion = field(default_factory=Exclusion)
    excluded_exits: Exclusion = field(default_factory=Exclusion)
    missing: int = 0
    _known: dict[object, Candidates] = field(default_factory=dict, init=False, repr=False, compare=False)

    def with_guards(self, guards: tuple[str, ...]) -> Relays:
        """The same relays, of which Tor would use these as guards."""
        relays = dataclasses.replace(self, guards=guards)
        # Who may have the other positions does not depend on them, so whoever finds that finds it for both.
        object.__setattr__(relays, "_known", self._known)
        return relays

    def country(self, relay: Relay) -> str:
        """Where a relay is: two lower-case letters, or ``??``."""
        return self.countries.get(relay.address, UNKNOWN_COUNTRY)

    def may_share_path(self, one: Relay, other: Relay) -> bool:
        """Whether two relays may be in one path (path-spec 2.2)."""
        return not (one.is_family_of(other) or (self.keeps_subnets_apart and one.is_near(other)))

    def fits(self, relay: Relay, rule: RelayRule) -> bool:
        """Whether a relay is of each kind that the rule names."""
        return (
            (not rule.countries or self.country(relay) in rule.countries)
            and (not rule.fingerprints or relay.fingerprint in rule.fingerprints)
            and (not rule.nicknames or relay.nickname.lower() in rule.nicknames)
        )

    def is_avoided(self, relay: Relay, rule: RelayRule) -> bool:
        """Whether a relay is of any kind that the rule names."""
        return (
            self.country(relay) in rule.countries
            or relay.fingerprint in rule.fingerprints
            or relay.nickname.lower() in rule.nicknames
        )

    def is_excluded(self, relay: Relay, exclusion: Exclusion) -> bool:
        """Whether an option of torrc excludes a relay."""
        return self.is_avoided(relay, exclusion.rule) or exclusion.has_address(relay.address)

    def candidates(self, position: Position, rules: PathRules) -> Candidates:
        """The relays that may have a position, whatever the rest of the path is."""
        key = (position, rules)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._find(position, rules)
        return found

    def weight(self, relay: Relay, position: Position) -> int:
        """How much a relay weighs in a position (path-spec 2.2, dir-spec 3.8.3)."""
        is_guard = "Guard" in relay.flags
        kind = ("d" if is_guard else "e") if relay.is_exit else ("g" if is_guard else "m")
        return relay.bandwidth * self.weights.get(f"W{position}{kind}", _FULL_WEIGHT)

    def _find(self, position: Position, rules: PathRules) -> Candidates:
        left: list[Relay] = list(self.by_fingerprint.values())
        for why, keeps in self._tests(position, rules):
            kept = [relay for relay in left if keeps(relay)]
            if not kept:
                return _candidates((), (), f"{why} leaves none of {_count(len(left))}")
            left = kept
        for flag in ("Fast", "Stable") if _is_long_lived(rules.ports) else ("Fast",):
            # As Tor does: rather a slow relay than none.
            left = [relay for relay in left if flag in relay.flags] or left
        return _candidates(left, [self.weight(relay, position) for relay in left])

    def _tests(self, position: Position, rules: PathRules) -> Iterable[tuple[str, Callable[[Relay], bool]]]:
        is_exit = position is Position.EXIT
        rule, where = (rules.exit, "exit") if is_exit else (rules.middle, "middle")
        if rule.fingerprints:
            yield f"{where}.fingerprint", lambda relay: relay.fingerprint in rule.fingerprints
        if rule.nicknames:
            yield f"{where}.nickname", lambda relay: relay.nickname.lower() in rule.nicknames
        if rule.countries:
            lack = "" if self.has_countries else " (Tor has no GeoIP data: install tor-geoipdb)"
            shown = ", ".join(sorted(rule.countries))
            yield f"{where}.country {shown}{lack}", lambda relay: self.country(relay) in rule.countries
        if is_exit:
            yield "the flag Exit (without BadExit)", lambda relay: relay.is_exit
            yield "an exit policy that accepts anything", lambda relay: bool(relay.ports.accepted)
        yield "avoid", lambda relay: not self.is_avoided(relay, rules.avoid)
        yield "ExcludeNodes in torrc", lambda relay: not self.is_excluded(relay, self.excluded)
        if is_exit:
            excluded = self.excluded_exits
            yield "ExcludeExitNodes in torrc", lambda relay: not self.is_excluded(relay, excluded)
            for first, last in rules.ports:
                shown = str(first) if first == last else f"{first}-{last}"
                yield f"port {shown}", _accepts(first, last)


def _accepts(first: int, last: int) -> Callable[[Relay], bool]:
    return lambda relay: relay.ports.accepts(first, last)


def _is_long_lived(ports: Iterable[tuple[int, int]]) -> bool:
    return any(first <= port <= last for first, last in ports for port in LONG_LIVED_PORTS)


def _count(relays: int) -> str:
    return "1 relay" if relays == 1 else f"{relays} relays"
