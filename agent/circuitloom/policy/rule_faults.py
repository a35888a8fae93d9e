"""What is wrong with the rules of a policy, and which of them no stream reaches."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from circuitloom.errors import Fault
from circuitloom.policy.matching import covers
from circuitloom.policy.nodes import Document, Listing, Mapping, Scalar
from circuitloom.policy.types import Policy
from circuitloom.policy.values import ValueFault, parse_network, parse_ports
from circuitloom.policy.wording import Path, no_circuit

__all__ = ["find_rule_faults", "find_rule_warnings"]


def find_rule_faults(
    document: Document, faulty: frozenset[Path], names: Collection[str] | None
) -> Iterator[Fault]:
    """Judges every rule.

    Args:
        document: The policy, which may have faults.
        faulty: Paths of values that the schema has already refused.
        names: The circuits that rules may name; None while the circuits themselves have faults.
    """
    rules = document.node_at(("rules",))
    if not isinstance(rules, Listing) or ("rules",) in faulty:
        return
    for index, rule in enumerate(rules.items):
        if not isinstance(rule, Mapping) or rule.is_partial or ("rules", index) in faulty:
            continue
        if ("circuits" in rule.entries) == ("action" in rule.entries):
            message = "a rule needs either `circuits`, which its streams may use, or `action`, where they go"
            yield document.fault(("rules", index), message)
        for path, node in document.sound_texts(("rules", index, "match", "port"), faulty):
            yield from _judge(document, path, node, parse_ports)
        for path, node in document.sound_texts(("rules", index, "match", "source"), faulty):
            yield from _judge(document, path, node, parse_network)
        for path, node in document.sound_texts(("rules", index, "circuits"), faulty):
            if names is not None and node.text not in names:
                yield document.fault(path, no_circuit(node.text, names))
    if document.node_at(("balance", "keys", "slots_per_key")) is not None and any(
        isinstance(rule, Mapping) and "circuits" in rule.entries for rule in rules.items
    ):
        message = (
            "not every key would have the circuits that the rules name: remove this, or their `circuits`"
        )
        yield document.fault(("balance", "keys", "slots_per_key"), message)


def find_rule_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    """Rules that an earlier one leaves nothing."""
    for index, rule in enumerate(policy.rules):
        for earlier in range(index):
            if covers(policy.rules[earlier].match, rule.match):
                line = document.fault(("rules", earlier), "").line
                message = f"no stream gets here: the rule in line {line} takes all that match"
                yield document.fault(("rules", index), message)
                break


def _judge(document: Document, path: Path, node: Scalar, parse: object) -> Iterator[Fault]:
    assert callable(parse)  # noqa: S101 - one of two functions of this package
    try:
        parse(node.text)
    except ValueFault as fault:
        yield document.fault(path, str(fault))
