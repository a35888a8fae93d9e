"""From the paths of a policy to what the agent does, and what is wrong with them.

Rules of this file:

* A circuit's own ``exit.ports``, the ports of the rules that name it and those of probes count alike: streams
  come by all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document, Scalar
from circuitloom.policy.path_types import Diversity, PathRules, RelayRule
from circuitloom.policy.types import Rule, Slot
from circuitloom.policy.values import ValueFault, parse_fingerprint, parse_ports
from circuitloom.policy.wording import Path, no_circuit

__all__ = ["build_diversity", "build_path", "find_path_faults", "with_needed_ports"]

_KINDS = ("country", "fingerprint", "nickname")


def build_diversity(data: Mapping[str, Any]) -> Diversity:
    """The section ``paths`` of a document without faults, defaults filled in."""
    wanted = data["diversity"]
    return Diversity(**{key: wanted[key] != "any" for key in ("exit", "family", "subnet")})


def build_path(
    path: str | Sequence[str] | Mapping[str, Any], diversity: Diversity, names: Mapping[str, Sequence[str]]
) -> tuple[str, ...] | PathRules | None:
    """What ``path`` of a document without faults means.

    Args:
        path: As written.
        diversity: With any, the agent selects the relays of ``auto`` circuits as well.
        names: The circuits that each entry makes.
    """
    if path == "auto":
        return PathRules() if diversity else None
    if not isinstance(path, Mapping):
        return tuple(map(parse_fingerprint, path))
    return PathRules(
        exit=_build_rule(path.get("exit", {})),
        middle=_build_rule(path.get("middle", {})),
        avoid=_build_rule(path.get("avoid", {})),
        ports=tuple(parse_ports(str(port)) for port in path.get("exit", {}).get("ports", ())),
        not_exit_of=frozenset(
            name
            for written in path.get("avoid", {}).get("same_exit_as", ())
            for name in names.get(written, [written])
        ),
    )


def with_needed_ports(
    slots: Sequence[Slot], rules: Sequence[Rule], targets: Sequence[str]
) -> tuple[Slot, ...]:
    """The slots, each with all ports that its streams need, where the agent selects the exit.

    Args:
        slots: As the policy has them.
        rules: Of which some name circuits.
        targets: ``host:port`` of what every circuit is probed with.
    """
    probed = [parse_ports(target.rpartition(":")[2]) for target in targets]
    return tuple(
        dataclasses.replace(slot, path=_with_ports(slot.path, slot.name, rules, probed))
        if isinstance(slot.path, PathRules)
        else slot
        for slot in slots
    )


def _with_ports(
    path: PathRules, name: str, rules: Sequence[Rule], probed: Sequence[tuple[int, int]]
) -> PathRules:
    named = (rule.match.ports for rule in rules if rule.circuits is not None and name in rule.circuits)
    ports = dict.fromkeys((*path.ports, *(port for ports in named for port in ports), *probed))
    return dataclasses.replace(path, ports=tuple(ports))


def _build_rule(data: Mapping[str, Any]) -> RelayRule:
    return RelayRule(
        countries=frozenset(country.lower() for country in data.get("country", ())),
        fingerprints=frozenset(map(parse_fingerprint, data.get("fingerprint", ()))),
        nicknames=frozenset(nickname.lower() for nickname in data.get("nickname", ())),
    )


# --- faults ------------------------------------------------------------------------------------------------


def find_path_faults(
    document: Document, faulty: frozenset[Path], names: Mapping[int, Sequence[str] | None]
) -> Iterator[Fault]:
    """Judges every path.

    Args:
        document: The policy, which may have faults.
        faulty: Paths of values that the schema has already refused.
        names: Of each entry the circuits that it makes; None while its name or number has a fault.
    """
    known: set[str] | None = set()
    for index, made in names.items():
        if made is None or known is None:
            known = None
        else:
            known.update(made, _written_names(document, index))
    for index, made in names.items():
        path: Path = ("circuits", index, "path")
        yield from _relays_twice(document, path, faulty)
        for place, node in document.sound_texts((*path, "exit", "ports"), faulty):
            try:
                parse_ports(node.text)
            except ValueFault as fault:
                yield document.fault(place, str(fault))
        for position in ("exit", "middle"):
            yield from _contradictions(document, (*path, position), (*path, "avoid"), faulty)
        if known is not None:
            yield from _unknown_circuits(document, path, faulty, known, made or ())
    yield from _shared_exits(document, faulty, names)


def _relays_twice(document: Document, path: Path, faulty: frozenset[Path]) -> Iterator[Fault]:
    hops: dict[str, int] = {}
    for place, node in document.sound_texts(path, faulty):
        relay = parse_fingerprint(node.text)
        if relay in hops:
            message = f"this relay is hop {hops[relay]} as well: a path goes through a relay once"
            yield document.fault(place, message)
        hops.setdefault(relay, int(place[-1]) + 1)


def _contradictions(
    document: Document, wanted: Path, avoided: Path, faulty: frozenset[Path]
) -> Iterator[Fault]:
    for kind in _KINDS:
        out = {_meaning(kind, node) for _, node in document.sound_texts((*avoided, kind), faulty)}
        asked = {_meaning(kind, node) for _, node in document.sound_texts((*wanted, kind), faulty)}
        if asked and asked <= out:
            yield document.fault((*wanted, kind), f"`avoid.{kind}` leaves out all of these: no relay fits")


def _unknown_circuits(
    document: Document, path: Path, faulty: frozenset[Path], known: Collection[str], made: Sequence[str]
) -> Iterator[Fault]:
    for place, node in document.sound_texts((*path, "avoid", "same_exit_as"), faulty):
        if node.text not in known:
            yield document.fault(place, no_circuit(node.text, known))
        elif list(made) == [node.text]:
            yield document.fault(place, "this is the circuit itself: name others")


def _shared_exits(
    document: Document, faulty: frozenset[Path], names: Mapping[int, Sequence[str] | None]
) -> Iterator[Fault]:
    """Exits that the policy itself gives to two circuits, where each is to have one of its own."""
    wanted = document.node_at(("paths", "diversity", "exit"))
    if not isinstance(wanted, Scalar) or wanted.text != "distinct":
        return
    lines: dict[str, int] = {}
    for index, made in names.items():
        path: Path = ("circuits", index, "path")
        hops = list(document.sound_texts(path, faulty))
        exits = {
            _meaning("fingerprint", n)
            for _, n in document.sound_texts((*path, "exit", "fingerprint"), faulty)
        }
        count = len(made or ())
        if hops and count > 1:
            message = f"these are {count} circuits with one exit, and `paths.diversity` wants one for each"
            yield document.fault(path, message)
        elif hops:
            place, node = hops[-1]
            relay = parse_fingerprint(node.text)
            if relay in lines:
                message = (
                    f"the circuit in line {lines[relay]} has this exit, and `paths.diversity` wants another"
                )
                yield document.fault(place, message)
            lines.setdefault(relay, node.place.line)
        elif exits and count > len(exits):
            message = (
                f"{count} circuits need as many exits under `paths.diversity`, and {len(exits)} are named"
            )
            yield document.fault((*path, "exit", "fingerprint"), message)


def _written_names(document: Document, index: int) -> list[str]:
    node = document.node_at(("circuits", index, "name"))
    return [node.text] if isinstance(node, Scalar) else []


def _meaning(kind: str, node: Scalar) -> str:
    return parse_fingerprint(node.text) if kind == "fingerprint" else node.text.lower()
