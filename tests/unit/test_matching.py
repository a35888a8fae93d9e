"""Which streams a rule is for, and which rules nobody reaches."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.policy.matching import covers, find_rule, matches
from circuitloom.policy.types import Match, Rule, RuleAction

ALL = Match(
    ports=((80, 80), (8000, 8999)),
    hosts=("example.com",),
    socks_user="tenant-*",
    sources=(ip_network("10.1.0.0/16"), ip_network("::1")),
    session_group=3,
)
KEYWORDS = {"SOCKS_USERNAME": "tenant-7", "SOURCE_ADDR": "10.1.2.3:4711", "SESSION_GROUP": "3"}


@pytest.mark.parametrize(
    ("target", "keywords", "is_match"),
    [
        ("example.com:80", {}, True),
        ("WWW.Example.com:8500", {}, True),
        ("example.com:80", {"SOURCE_ADDR": "[::1]:4711"}, True),
        ("notexample.com:80", {}, False),
        ("example.com:9000", {}, False),
        ("example.com", {}, False),
        ("example.com:80", {"SOCKS_USERNAME": "tenan"}, False),
        ("example.com:80", {"SOURCE_ADDR": "10.2.2.3:4711"}, False),
        ("example.com:80", {"SOURCE_ADDR": ""}, False),
        ("example.com:80", {"SESSION_GROUP": "-4"}, False),
    ],
)
def test_every_condition_must_hold(target: str, keywords: dict[str, str], is_match: bool) -> None:
    assert matches(ALL, target, KEYWORDS | keywords) is is_match


def test_what_tor_does_not_tell_does_not_match() -> None:
    assert not any(
        matches(match, "example.com:80", {})
        for match in (
            Match(socks_user="*"),
            Match(sources=(ip_network("0.0.0.0/0"),)),
            Match(session_group=0),
        )
    )
    assert matches(Match(), "", {})


def test_the_first_match_wins() -> None:
    rules = [Rule(Match(ports=((25, 25),)), action=RuleAction.REJECT), Rule(Match(), action=RuleAction.TOR)]

    assert find_rule(rules, "a:25", {}) is rules[0]
    assert find_rule(rules, "a:26", {}) is rules[1]
    assert find_rule(rules[:1], "a:26", {}) is None


MATCHES = st.builds(
    Match,
    ports=st.sampled_from([(), ((80, 80),), ((25, 100),), ((80, 80), (443, 443))]),
    hosts=st.sampled_from([(), ("com",), ("example.com",), ("example.com", "org")]),
    socks_user=st.sampled_from([None, "*", "a*", "alice"]),
    sources=st.sampled_from(
        [(), (ip_network("10.0.0.0/8"),), (ip_network("10.1.0.0/16"),), (ip_network("::/0"),)]
    ),
    session_group=st.sampled_from([None, 1]),
)


@given(
    MATCHES,
    MATCHES,
    st.sampled_from(["example.com:80", "a.example.com:443", "com:25", "b.org:80", "x.net:443"]),
    st.fixed_dictionaries(
        {},
        optional={
            "SOCKS_USERNAME": st.sampled_from(["alice", "abc", "bob"]),
            "SOURCE_ADDR": st.sampled_from(["10.1.1.1:1", "10.2.1.1:1", "[::1]:1"]),
            "SESSION_GROUP": st.sampled_from(["1", "2"]),
        },
    ),
)
def test_where_one_covers_another_it_matches_whatever_that_matches(
    one: Match, other: Match, target: str, keywords: dict[str, str]
) -> None:
    assert covers(one, one)
    if covers(one, other) and matches(other, target, keywords):
        assert matches(one, target, keywords)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Match(), ALL),
        (Match(socks_user="*"), ALL),
        (Match(ports=((1, 65535),)), ALL),
        (Match(hosts=("com",)), ALL),
        (Match(sources=(ip_network("10.0.0.0/8"), ip_network("::/0"))), ALL),
        (Match(session_group=3), ALL),
    ],
)
def test_a_wider_rule_covers_a_narrower_one_and_not_the_other_way(one: Match, other: Match) -> None:
    assert covers(one, other)
    assert not covers(other, one)
