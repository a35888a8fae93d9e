"""What a policy says of relays that the agent selects reaches the dataclasses."""

from __future__ import annotations

import pytest

from circuitloom.policy import parse_policy
from circuitloom.policy.path_types import Diversity, PathRules, RelayRule

FINGERPRINT = "AB" * 20


def paths_of(circuits: str, more: str = "") -> dict[str, object]:
    policy = parse_policy(f"version: 1\ncircuits: {circuits}\n{more}\n".encode(), name="test")
    return {slot.name: slot.path for slot in policy.slots}


def test_every_key_of_a_path_reaches_the_dataclasses() -> None:
    relay = f"${FINGERPRINT.lower()}~x"
    exit_rule = f"country: [DE, nl], fingerprint: [{relay}], nickname: [Nick], ports: [80, 90-99]"
    avoid = "nickname: [Bad], same_exit_as: [b, c]"
    path = f"{{exit: {{{exit_rule}}}, middle: {{country: [se]}}, avoid: {{{avoid}}}}}"

    paths = paths_of(f"[{{name: a, path: {path}}}, {{name: b}}, {{name: c, count: 2, path: {{}}}}]")

    assert paths == {
        "a": PathRules(
            exit=RelayRule(frozenset({"de", "nl"}), frozenset({FINGERPRINT}), frozenset({"nick"})),
            middle=RelayRule(frozenset({"se"})),
            avoid=RelayRule(nicknames=frozenset({"bad"})),
            ports=((80, 80), (90, 99)),
            not_exit_of=frozenset({"b", "c-1", "c-2"}),
        ),
        "b": None,
        "c-1": PathRules(),
        "c-2": PathRules(),
    }


def test_the_ports_of_rules_that_name_a_circuit_are_its_own() -> None:
    rules = (
        "rules: [{match: {port: [25, 80]}, circuits: [a]}, {match: {port: [6667]}, circuits: [b, a]}, "
        "{match: {port: [22]}, action: tor}]"
    )

    paths = paths_of("[{name: a, path: {exit: {ports: [80]}}}, {name: b}, {name: c, path: {}}]", rules)

    assert paths == {"a": PathRules(ports=((80, 80), (25, 25), (6667, 6667))), "b": None, "c": PathRules()}


def test_the_ports_that_probes_go_to_are_every_circuits() -> None:
    probe = 'health: {probe: {targets: ["example.com:8080", "[2001:db8::1]:80"]}}'

    paths = paths_of("[{name: a, path: {exit: {ports: [80]}}}, {name: b, path: {}}, {name: c}]", probe)

    assert paths == {
        "a": PathRules(ports=((80, 80), (8080, 8080))),
        "b": PathRules(ports=((8080, 8080), (80, 80))),
        "c": None,
    }


@pytest.mark.parametrize(
    ("written", "diversity"),
    [
        ("exit: distinct", Diversity(exit=True)),
        ("family: distinct", Diversity(family=True)),
        ("subnet: /16", Diversity(subnet=True)),
        ("exit: any", Diversity()),
    ],
)
def test_under_diversity_the_agent_selects_the_relays_of_auto_circuits(
    written: str, diversity: Diversity
) -> None:
    text = (
        f"version: 1\npaths: {{diversity: {{{written}}}}}\ncircuits: [{{name: a, path: auto}}, {{name: b}}]\n"
    )

    policy = parse_policy(text.encode(), name="test")

    assert policy.diversity == diversity
    assert [slot.path for slot in policy.slots] == [PathRules() if diversity else None] * 2
    assert policy.path_rules == (PathRules(),) * (2 if diversity else 0)


def test_countries_are_needed_only_where_a_path_names_some() -> None:
    rule = RelayRule(frozenset({"de"}))

    assert not PathRules().uses_countries
    assert all(
        rules.uses_countries for rules in (PathRules(rule), PathRules(middle=rule), PathRules(avoid=rule))
    )
