"""What is wrong with the paths of a policy on the network of today: what ``check --online`` tells.

Rules of this file:

* A fault keeps a circuit from being built, or breaks a rule that Tor keeps for its own; a note does neither.
* Whether relays can be selected is found out by selecting some, as the agent does at its start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from circuitloom.errors import Fault
from circuitloom.paths.relays import Relay, Relays
from circuitloom.paths.selection import Beside, NoPath, select_path
from circuitloom.policy.nodes import Document, Scalar
from circuitloom.policy.path_types import PathRules
from circuitloom.policy.types import Policy, Rule, Slot
from circuitloom.policy.values import parse_fingerprint, parse_ports
from circuitloom.policy.wording import Path, quoted

_UNKNOWN = (
    "no relay that Tor can use now has this {}: it is not in the consensus, not running, or not described"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a place of a policy.

    Attributes:
        fault: What, and where.
        is_note: Whether the policy works all the same.
    """

    fault: Fault
    is_note: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry of ``circuits`` and the slots it makes."""

    path: Path
    slots: Sequence[Slot]


def find_online_faults(
    document: Document, policy: Policy, relays: Relays, *, uniform: Callable[[], float]
) -> Iterator[Finding]:
    """Judge every path by the relays that there are.

    Args:
        document: The policy as written, without faults of its own.
        policy: What it means.
        relays: All there are.
        uniform: Gives a random number in [0, 1).
    """
    entries = _entries(document, policy)
    for entry in entries:
        path = entry.slots[0].path
        if isinstance(path, tuple):
            yield from _judge_list(document, entry, path, relays)
        elif isinstance(path, PathRules):
            yield from _judge_rules(document, entry, relays)
        yield from _refused_ports(document, entry, policy.rules, relays)
    yield from _select_all(document, entries, policy, relays, uniform)
    yield from _one_guard(document, policy, relays)


def _entries(document: Document, policy: Policy) -> list[_Entry]:
    """The entries whose circuits the agent builds; their slots come one after the other."""
    entries: list[_Entry] = []
    left = list(policy.slots)
    index = 0
    while left:
        count = document.node_at(("circuits", index, "count"))
        made = int(count.text) if isinstance(count, Scalar) else 1
        if left[0].adopt is None:
            entries.append(_Entry(("circuits", index), left[:made]))
        del left[:made]
        index += 1
    return entries


# --- relays that the policy names --------------------------------------------------------------------------


def _judge_list(document: Document, entry: _Entry, path: Sequence[str], relays: Relays) -> Iterator[Finding]:
    hops = [relays.by_fingerprint.get(fingerprint) for fingerprint in path]
    for position, relay in enumerate(hops):
        place: Path = (*entry.path, "path", position)
        if relay is None:
            yield Finding(document.fault(place, _UNKNOWN.format("fingerprint")), is_note=False)
            continue
        is_last = position == len(hops) - 1
        wanted = "Guard" if position == 0 else "Exit" if is_last else "Fast"
        yield from _judge_flags(document, place, relay, wanted)
        for number, other in enumerate(hops[:position], 1):
            if other is not None:
                yield from _clash(document, place, relays, (relay, other), f"hop {number}")


def _judge_flags(document: Document, place: Path, relay: Relay, wanted: str) -> Iterator[Finding]:
    """Flags that Tor asks for in the relay's position."""
    if wanted == "Exit" and not relay.is_exit:
        flag = "has the flag BadExit" if "Exit" in relay.flags else "lacks the flag Exit"
        yield Finding(document.fault(place, f"{relay.nickname} {flag}: no stream gets out"), is_note=False)
    elif wanted == "Exit" and not relay.ports.accepted:
        message = f"the exit policy of {relay.nickname} accepts nothing: no stream gets out"
        yield Finding(document.fault(place, message), is_note=False)
    for flag in dict.fromkeys((wanted, "Fast")):
        if flag != "Exit" and flag not in relay.flags:
            message = f"{relay.nickname} lacks the flag {flag}: Tor itself would not use it here"
            yield Finding(document.fault(place, message), is_note=True)


def _clash(
    document: Document, place: Path, relays: Relays, pair: tuple[Relay, Relay], other: str
) -> Iterator[Finding]:
    one, two = pair
    if one.is_family_of(two):
        message = (
            f"{one.nickname} is of one family with {other}, {two.nickname}: the same people see both ends"
        )
        yield Finding(document.fault(place, message), is_note=False)
    elif relays.keeps_subnets_apart and one.is_near(two):
        message = f"{one.nickname} is in one subnet with {other}, {two.nickname}: Tor keeps these apart"
        yield Finding(document.fault(place, message), is_note=False)


def _judge_rules(document: Document, entry: _Entry, relays: Relays) -> Iterator[Finding]:
    by_nickname: dict[str, list[Relay]] = {}
    for relay in relays.by_fingerprint.values():
        by_nickname.setdefault(relay.nickname.lower(), []).append(relay)
    for key in ("exit", "middle", "avoid"):
        path: Path = (*entry.path, "path", key)
        # To avoid what is not there costs nothing.
        is_note = key == "avoid"
        for place, node in document.sound_texts((*path, "fingerprint"), ()):
            named = relays.by_fingerprint.get(parse_fingerprint(node.text))
            if named is None:
                yield Finding(document.fault(place, _UNKNOWN.format("fingerprint")), is_note=is_note)
            elif not is_note:
                yield from _judge_flags(document, place, named, "Exit" if key == "exit" else "Fast")
        for place, node in document.sound_texts((*path, "nickname"), ()):
            called = by_nickname.get(node.text.lower(), [])
            if not called:
                yield Finding(document.fault(place, _UNKNOWN.format("nickname")), is_note=is_note)
            elif len(called) > 1:
                message = f"{len(called)} relays have this nickname: name the one by its fingerprint"
                yield Finding(document.fault(place, message), is_note=True)
        yield from _judge_countries(document, (*path, "country"), relays)


def _judge_countries(document: Document, path: Path, relays: Relays) -> Iterator[Finding]:
    inhabited = {relays.country(relay) for relay in relays.by_fingerprint.values()}
    for place, node in document.sound_texts(path, ()):
        if not relays.has_countries:
            message = "Tor has no GeoIP data, so no relay is in any country: install tor-geoipdb"
            yield Finding(document.fault(place, message), is_note=False)
        elif node.text.lower() not in inhabited:
            message = f"no relay is in the country {quoted(node.text.lower())}"
            yield Finding(document.fault(place, message), is_note=True)


def _refused_ports(
    document: Document, entry: _Entry, rules: Sequence[Rule], relays: Relays
) -> Iterator[Finding]:
    """Ports of rules and probes that the exits which the policy names for a circuit refuse."""
    path = entry.slots[0].path
    if isinstance(path, PathRules):
        named: Sequence[str] = sorted(path.exit.fingerprints)
    else:
        named = path[-1:] if path else ()
    exits = [relay for exit_ in named if (relay := relays.by_fingerprint.get(exit_)) is not None]
    names = {slot.name for slot in entry.slots}
    lists: list[Path] = [("health", "probe", "targets")]
    for index, rule in enumerate(rules):
        if rule.circuits is not None and not names.isdisjoint(rule.circuits):
            lists.append(("rules", index, "match", "port"))
    for path_of_list in lists:
        for place, node in document.sound_texts(path_of_list, ()):
            ports = parse_ports(node.text.rpartition(":")[2])
            for relay in exits:
                if not relay.ports.accepts(*ports):
                    message = f"{relay.nickname}, an exit of {entry.slots[0].name}, refuses this port"
                    yield Finding(document.fault(place, message), is_note=len(exits) > 1)


# --- relays that the agent selects -------------------------------------------------------------------------


def _select_all(
    document: Document,
    entries: Sequence[_Entry],
    policy: Policy,
    relays: Relays,
    uniform: Callable[[], float],
) -> Iterator[Finding]:
    exits = {slot.name: slot.path[-1] for slot in policy.slots if isinstance(slot.path, tuple)}
    for entry in entries:
        for slot in entry.slots:
            if not isinstance(slot.path, PathRules):
                continue
            barred = frozenset(exit_ for name, exit_ in exits.items() if name in slot.path.not_exit_of)
            path = select_path(
                relays,
                slot.path,
                diversity=policy.diversity,
                beside=Beside(frozenset(exits.values()), barred),
                uniform=uniform,
            )
            if isinstance(path, NoPath):
                message = f"circuit {slot.name} cannot be built: {path.why}"
                yield Finding(document.fault((*entry.path, "path"), message), is_note=False)
                break
            exits[slot.name] = path[-1].fingerprint


def _one_guard(document: Document, policy: Policy, relays: Relays) -> Iterator[Finding]:
    firsts = {
        slot.path[0] if isinstance(slot.path, tuple) else _first(relays.guards) for slot in policy.slots
    }
    if len(policy.slots) > 1 and len(firsts) == 1:
        guard = relays.by_fingerprint.get(firsts.pop())
        if guard is not None:
            message = f"all circuits begin with one guard, {guard.nickname}: while it fails, all do"
            yield Finding(document.fault(("circuits",), message), is_note=True)


def _first(guards: Sequence[str]) -> str:
    return guards[0] if guards else ""
