"""What a policy says of relays that the agent selects, as frozen dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RelayRule:
    """Which relays are meant; what is empty says nothing.

    Attributes:
        countries: Lower-case codes of two letters.
        fingerprints: 40 upper-case hex digits, no ``$``.
        nicknames: Lower case.
    """

    countries: frozenset[str] = frozenset()
    fingerprints: frozenset[str] = frozenset()
    nicknames: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PathRules:
    """What the relays of a circuit must be, when the agent selects them.

    Attributes:
        exit: The exit fits each of these that is not empty.
        middle: So does the middle relay.
        avoid: No relay of the path fits any of these.
        ports: Ranges of ports that the exit must accept, both ends included.
        not_exit_of: Names of circuits whose exit this circuit must not have.
    """

    exit: RelayRule = field(default_factory=RelayRule)
    middle: RelayRule = field(default_factory=RelayRule)
    avoid: RelayRule = field(default_factory=RelayRule)
    ports: tuple[tuple[int, int], ...] = ()
    not_exit_of: frozenset[str] = frozenset()

    @property
    def uses_countries(self) -> bool:
        """Whether it has to be known in which country each relay is."""
        return any(rule.countries for rule in (self.exit, self.middle, self.avoid))


@dataclass(frozen=True, slots=True)
class Diversity:
    """What the exits of two circuits of one key must not have in common.

    Attributes:
        exit: The relay itself.
        family: Those who run it, as far as they say so.
        subnet: The IPv4 network of 16 bits (IPv6: of 32).
    """

    exit: bool = False
    family: bool = False
    subnet: bool = False

    def __bool__(self) -> bool:
        return self.exit or self.family or self.subnet
