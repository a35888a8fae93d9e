"""Directory documents are read as Tor tells them, and no selected path breaks a rule of Tor or the policy."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitloom.model import Hop
from circuitloom.paths import (
    Beside,
    NoPath,
    PortPolicy,
    Relay,
    Relays,
    breaks,
    read_consensus,
    read_exclusion,
    read_guards,
    read_microdescriptors,
    read_weights,
    select_path,
)
from circuitloom.paths.ports import read_policy
from circuitloom.paths.relays import Position
from circuitloom.policy.path_types import Diversity, PathRules, RelayRule
from unit.consensus import ALL_FLAGS, Made, consensus, microdescriptors, snapshot

ANY = PathRules()
NO_DIVERSITY = Diversity()
NOBODY = Beside()


def dice(seed: int) -> Callable[[], float]:
    return random.Random(seed).random  # noqa: S311 - tests want the same numbers each time


def select(
    relays: Relays,
    rules: PathRules = ANY,
    *,
    seed: int = 0,
    diversity: Diversity = NO_DIVERSITY,
    beside: Beside = NOBODY,
) -> str:
    """The path as letters of its relays, or why there is none."""
    path = select_path(relays, rules, diversity=diversity, beside=beside, uniform=dice(seed))
    return path.why if isinstance(path, NoPath) else "".join(relay.fingerprint[0] for relay in path)


def of(**words: str) -> RelayRule:
    """A rule; fingerprints are given by letters."""
    return RelayRule(
        frozenset(words.get("countries", "").split()),
        frozenset(letter * 40 for letter in words.get("letters", "")),
        frozenset(words.get("nicknames", "").split()),
    )


# --- documents ---------------------------------------------------------------------------------------------


def test_a_relay_is_read_from_consensus_and_microdescriptor() -> None:
    made = Made("A", "Alpha", "192.0.2.7", family="$BBBB", ports="accept 80,443", ipv6="2001:db8:1::5")

    (relay,) = snapshot(made).by_fingerprint.values()

    assert (relay.fingerprint, relay.nickname, relay.address) == ("A" * 40, "Alpha", "192.0.2.7")
    assert relay.flags == frozenset(ALL_FLAGS.split())
    assert relay.bandwidth == 10
    assert relay.subnets == ("c000/16", "20010db8::/32")
    assert relay.family == {"$bbbb"}
    assert relay.ports == PortPolicy(((80, 80), (443, 443)))


def test_microdescriptors_are_found_by_their_digest_wherever_they_stand() -> None:
    relays = [Made("A"), Made("B", family="$" + "A" * 40), Made("C", ports="")]

    known = dict(read_microdescriptors("@last-listed 2026-11-25 12:00:00\n" + microdescriptors(relays)))
    digests = [status.digest for status in read_consensus(consensus(relays))]

    assert [known[digest].ports.accepts(80) for digest in digests] == [True, True, False]
    assert known[digests[1]].family == {"A" * 40}


@pytest.mark.parametrize(
    "bad",
    [
        Made("A", flags="Exit Fast Valid"),
        Made("A", flags="Exit Fast Running"),
        Made("A", address="10.0.0"),
        Made("A", address="10.0.0.1 9001"),
    ],
)
def test_a_relay_that_cannot_be_used_is_passed_over(bad: Made) -> None:
    found = list(read_consensus(consensus([bad, Made("B")])))

    assert "B" * 40 in [status.fingerprint for status in found]
    assert all(status.address in {"10.11.0.1", "10.0.0.1"} for status in found)


@pytest.mark.parametrize(
    "entry",
    ["r relayA short", "r relayA ??? 2038-01-01 00:00:00 10.0.0.1 9001 0", "r relayA QUFB a b 10.0.0.1 1 0"],
)
def test_malformed_entries_are_passed_over(entry: str) -> None:
    text = consensus([Made("B")]).replace("directory-footer", f"{entry}\ns Running Valid\ndirectory-footer")

    assert [status.fingerprint for status in read_consensus(text)] == ["B" * 40]


def test_documents_without_relays_or_weights() -> None:
    assert list(read_consensus("")) == []
    assert list(read_microdescriptors("")) == []
    assert read_weights("network-status-version 3\n") == {}
    assert read_weights(consensus([], "bandwidth-weights Wbd=0 Wee=9000\n")) == {"Wbd": 0, "Wee": 9000}
    assert [s.bandwidth for s in read_consensus(consensus([Made("A", bandwidth=None)]))] == [0]
    assert len(list(read_consensus("\n" + Made("A").status))) == 1
    no_address = Made("A", ipv6="nonsense")
    assert [s.subnets for s in read_consensus(consensus([no_address]))] == [("a0a/16",)]


def test_guards_come_in_tors_order_those_it_has_met_first() -> None:
    lines = (
        f"${'A' * 40}~one never-connected\n"
        f"${'B' * 40}~two down 2026-11-25 12:00:00\n"
        f"${'C' * 40}~three up\n"
        f"${'D' * 40}=four unusable 2026-11-25 12:00:00\n"
        f"${'E' * 40} unlisted 2026-11-25 12:00:00\n"
        f"${'F' * 40}~up up\n"
    )

    assert read_guards(lines) == ("C" * 40, "F" * 40, "A" * 40)


@pytest.mark.parametrize(
    ("text", "accepted", "refused"),
    [
        ("accept 80,443,8000-8999", [80, 443, 8000, 8999], [1, 79, 81, 9000, 65535]),
        ("reject 25,119,135-139", [1, 24, 26, 140, 65535], [25, 119, 135, 137]),
        ("reject 1-65535", [], [1, 80, 65535]),
        ("reject 1-24,25-60000", [60001, 65535], [1, 25, 60000]),
        ("reject 60000-65535", [1, 59999], [60000, 65535]),
        ("accept 1-65535", [1, 65535], []),
        ("accept 80,x,0,99999,9-8,\u0661,8000-x,100000000000", [80], [8, 9]),
        ("maybe 80", [], [80]),
        ("", [], [80]),
    ],
)
def test_port_policies(text: str, accepted: list[int], refused: list[int]) -> None:
    policy = read_policy(text)

    assert [port for port in (*accepted, *refused) if policy.accepts(port)] == accepted
    assert policy.accepts_all == (text == "accept 1-65535")


def test_a_range_is_accepted_whole_or_not_at_all() -> None:
    policy = read_policy("accept 80-90,91-100,200")

    assert policy.accepts(80, 100)
    assert not policy.accepts(80, 101)


# --- selection ---------------------------------------------------------------------------------------------

WIDE = [Made(letter) for letter in "ABCDEF"]


def test_the_first_hop_is_the_first_of_tors_guards_that_is_not_the_exit() -> None:
    relays = snapshot(*WIDE, guards="CAB")

    firsts = {select(relays, seed=seed)[0] for seed in range(50)}
    assert firsts == {"C", "A"}
    assert all(select(relays, PathRules(exit=of(letters="C")), seed=seed)[0] == "A" for seed in range(20))


def test_another_guard_is_taken_where_the_only_middle_relays_are_the_guard() -> None:
    relays = snapshot(*WIDE, guards="CAB")
    rules = PathRules(exit=of(letters="D"), middle=of(letters="CA"))

    assert {select(relays, rules, seed=seed) for seed in range(20)} == {"CAD"}
    assert select(relays, PathRules(exit=of(letters="D"), middle=of(letters="C"))) == "ACD"


def test_relays_that_rest_are_taken_only_where_no_other_fits() -> None:
    relays = snapshot(*WIDE, guards="FA")

    def paths(rules: PathRules, resting: str) -> set[str]:
        tired = {letter * 40 for letter in resting}
        return {select(relays, rules, seed=seed, beside=Beside(resting=tired)) for seed in range(40)}

    assert paths(ANY, "ABCD") == {"FAE", "FBE", "FCE", "FDE", "AEF"}
    assert paths(PathRules(exit=of(letters="B")), "ABCD") == {"FEB"}
    # Guard F leaves no middle relay that is awake; guard A would: that is no reason to change the guard.
    assert paths(PathRules(exit=of(letters="E"), middle=of(letters="BCF")), "ABCD") == {"FBE", "FCE"}


def test_what_was_worked_out_for_other_guards_need_not_be_again() -> None:
    """While a guard rests each build asks for the others; among 8,000 relays to find them takes 20 ms."""
    relays = snapshot(*WIDE, guards="CA")
    found = relays.with_guards(relays.guards[:1]).candidates(Position.EXIT, PathRules())

    assert relays.candidates(Position.EXIT, PathRules()) is found
    assert relays.with_guards(relays.guards[1:]).candidates(Position.EXIT, PathRules()) is found


def test_a_guard_that_is_not_in_the_consensus_is_passed_over() -> None:
    relays = snapshot(*WIDE, guards="CA")
    gone = Relays(
        {f: relay for f, relay in relays.by_fingerprint.items() if f[0] != "C"}, guards=relays.guards
    )

    assert {select(gone, PathRules(exit=of(letters="F")), seed=seed)[0] for seed in range(20)} == {"A"}


def test_bandwidth_and_position_decide_how_often_a_relay_is_used() -> None:
    relays = snapshot(
        Made("A", flags="Fast Guard Running Valid"),
        Made("B", bandwidth=300),
        Made("C", bandwidth=100, flags="Exit Fast Running Valid"),
        Made("D", bandwidth=100, flags="Fast Running Valid"),
        Made("E", bandwidth=300, flags="Fast Guard Running Valid"),
        guards="A",
        weights="bandwidth-weights Wed=5000 Wee=10000 Wmm=10000 Wmg=0\n",
    )

    paths = Counter(select(relays, seed=seed) for seed in range(4000))

    exits = Counter(path[2] for path in paths.elements())
    assert exits["B"] / 4000 == pytest.approx(150 / 250, abs=0.03)
    assert exits["B"] + exits["C"] == 4000
    middles = Counter(path[1] for path in paths.elements() if path[2] == "C")
    assert "E" not in middles
    assert middles["B"] / middles.total() == pytest.approx(300 / 400, abs=0.05)


def test_where_nothing_is_measured_all_relays_are_used_alike() -> None:
    relays = snapshot(*(Made(letter, bandwidth=0) for letter in "ABCDEF"), guards="A")

    exits = Counter(select(relays, seed=seed)[2] for seed in range(2000))

    assert set(exits) == set("BCDEF")
    assert max(exits.values()) / min(exits.values()) < 1.4


def test_the_last_candidate_is_found_however_unlikely() -> None:
    others = [Made(letter, bandwidth=10**6, family="$" + "A" * 40) for letter in "BCDE"]
    own = Made("A", family=" ".join("$" + letter * 40 for letter in "BCDE"))
    relays = snapshot(own, *others, Made("F", bandwidth=1), Made("1", bandwidth=1), guards="A")

    assert {select(relays, seed=seed) for seed in range(10)} == {"AF1", "A1F"}
    zero = snapshot(own, *others, Made("F", bandwidth=0), Made("1", bandwidth=0), guards="A")
    assert {select(zero, seed=seed) for seed in range(10)} == {"AF1", "A1F"}


def test_slow_and_unstable_relays_are_used_only_where_there_are_no_others() -> None:
    slow = [Made(letter, flags="Exit Guard Running Valid") for letter in "ABC"]
    stable = [Made(letter) for letter in "DEF"]
    unstable = [Made(letter, flags="Exit Fast Guard Running Valid") for letter in "123"]

    mixed = snapshot(*slow, *stable, *unstable, guards="A")
    web = [select(mixed, seed=seed) for seed in range(60)]
    assert set("".join(path[1:] for path in web)) == set("DEF123")
    irc = [select(mixed, PathRules(ports=((6660, 6669),)), seed=seed) for seed in range(60)]
    assert set("".join(path[1:] for path in irc)) == set("DEF")
    assert set("".join(select(snapshot(*slow), seed=seed) for seed in range(20))) == set("ABC")


def test_two_relays_of_a_family_need_to_say_so_both() -> None:
    ends = [Made("A"), Made("F")]
    one_sided = snapshot(*ends, Made("B", family="$" + "F" * 40 + "~relayF"), guards="A")
    mutual = snapshot(
        Made("A"), Made("F", family="RelayB"), Made("B", family="$" + "F" * 40 + "=relayF"), guards="A"
    )

    assert select(one_sided, PathRules(exit=of(letters="F"))) == "ABF"
    why = "no relay fits as middle relay: all are of the family or subnet of guard or exit"
    assert select(mutual, PathRules(exit=of(letters="F"))) == why


def test_a_network_of_one_subnet_is_given_up_in_bounded_time() -> None:
    relays = [Made(f"{number:02X}", address=f"10.1.0.{number}") for number in range(16, 120)]

    why = "no relay fits as middle relay: all are of the family or subnet of guard or exit"
    assert select(snapshot(Made("A"), *relays, guards="A")) == why


def test_relays_that_share_a_family_key_are_of_one_family() -> None:
    keys = [Made("A"), Made("B", family_ids="ed25519:x ed25519:y"), Made("C", family_ids="ed25519:y")]

    assert select(snapshot(*keys, guards="A"), PathRules(exit=of(letters="C"))).startswith("no relay fits")
    assert select(snapshot(*keys, Made("D"), guards="A"), PathRules(exit=of(letters="C"))) == "ADC"


def test_subnets_are_kept_apart_as_tor_is_told_to() -> None:
    loopback = [Made(letter, address=f"127.0.0.{n}") for n, letter in enumerate("ABC", 1)]

    assert select(snapshot(*loopback)) == (
        "no relay fits as exit: every guard of Tor is the exit itself, or of its family or subnet, "
        "leaves none of 3"
    )
    assert sorted(select(snapshot(*loopback, keeps_subnets_apart=False))) == ["A", "B", "C"]
    ipv6 = [Made("A", ipv6="2001:db8:1::1"), Made("B", ipv6="2001:db8:2::1"), Made("C")]
    assert select(snapshot(*ipv6, guards="A"), PathRules(exit=of(letters="C"))).startswith("no relay fits")


COUNTRIES = {"A": "us", "B": "de", "C": "nl", "D": "de", "E": "se"}


def test_exit_and_middle_are_where_the_policy_wants_them() -> None:
    relays = snapshot(*WIDE, guards="A", countries=COUNTRIES)
    rules = PathRules(exit=of(countries="de nl"), middle=of(countries="se", nicknames="relaye relayf"))

    assert {select(relays, rules, seed=seed) for seed in range(40)} == {"AEB", "AEC", "AED"}


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (PathRules(exit=of(countries="fr it")), "exit: exit.country fr, it leaves none of 6 relays"),
        (PathRules(exit=of(letters="9")), "exit: exit.fingerprint leaves none of 6 relays"),
        (PathRules(exit=of(nicknames="x")), "exit: exit.nickname leaves none of 6 relays"),
        (
            PathRules(exit=of(nicknames="relayb", countries="nl")),
            "exit: exit.country nl leaves none of 1 relay",
        ),
        (PathRules(exit=of(countries="nl"), avoid=of(letters="C")), "exit: avoid leaves none of 1 relay"),
        (PathRules(middle=of(countries="fr")), "middle relay: middle.country fr leaves none of 6 relays"),
        (
            PathRules(avoid=of(countries="us")),
            "first hop: avoid and ExcludeNodes leave none of Tor's 1 guards",
        ),
    ],
)
def test_when_no_relay_fits_the_reason_names_what_left_none(rules: PathRules, why: str) -> None:
    relays = snapshot(*WIDE, guards="A", countries=COUNTRIES)

    assert select(relays, rules) == f"no relay fits as {why}"


def test_exits_must_be_exits_and_accept_the_ports() -> None:
    relays = snapshot(
        Made("A"),
        Made("B", flags="Exit BadExit Fast Running Valid"),
        Made("C", flags="Fast Running Valid"),
        Made("D", ports="reject 1-65535"),
        Made("E", ports="accept 443,8000-8999"),
        Made("F", ports="accept 443,8000-8500"),
        guards="A",
    )

    def exits(*ports: tuple[int, int]) -> set[str]:
        return {select(relays, PathRules(ports=ports), seed=seed)[-1] for seed in range(40)}

    assert exits((443, 443)) == {"E", "F"}
    assert exits((443, 443), (8000, 8999)) == {"E"}
    rules = PathRules(exit=of(letters="EF"), ports=((443, 443), (25, 25)))
    assert select(relays, rules) == "no relay fits as exit: port 25 leaves none of 2 relays"
    rules = PathRules(exit=of(letters="EF"), ports=((8000, 9000),))
    assert select(relays, rules) == "no relay fits as exit: port 8000-9000 leaves none of 2 relays"
    why = "no relay fits as exit: the flag Exit (without BadExit) leaves none of 2 relays"
    assert select(relays, PathRules(exit=of(letters="BC"))) == why
    why = "no relay fits as exit: an exit policy that accepts anything leaves none of 1 relay"
    assert select(relays, PathRules(exit=of(letters="D"))) == why


def test_without_geoip_data_the_reason_says_so() -> None:
    relays = snapshot(*WIDE, has_countries=False)

    assert select(relays, PathRules(exit=of(countries="de"))) == (
        "no relay fits as exit: exit.country de (Tor has no GeoIP data: install tor-geoipdb) "
        "leaves none of 6 relays"
    )


def test_without_guards_the_reason_says_so() -> None:
    no_guards = Relays(snapshot(*WIDE).by_fingerprint)
    bridges = Relays(no_guards.by_fingerprint, guards=("9" * 40,))

    assert select(no_guards) == "Tor has no guard that is up: wait until it has connected to the network"
    assert select(bridges) == (
        "none of Tor's guards is in the consensus (with bridges only `path: auto` works)"
    )


def test_exits_of_other_circuits_are_left_to_them() -> None:
    relays = snapshot(
        Made("A"),
        Made("B", address="10.9.0.1"),
        Made("C", address="10.9.0.2"),
        Made("D"),
        Made("E"),
        guards="A",
    )

    def exits(diversity: Diversity = NO_DIVERSITY, **beside: str) -> set[str]:
        others = Beside(*(frozenset(x * 40 for x in beside.get(key, "")) for key in ("exits", "barred")))
        paths = (select(relays, seed=s, diversity=diversity, beside=others) for s in range(60))
        return {path[2] if len(path) == 3 else path for path in paths}

    assert exits(exits="BC9") == {"B", "C", "D", "E"}
    assert exits(barred="BC") == {"D", "E"}
    assert exits(Diversity(exit=True), exits="BD9") == {"C", "E"}
    assert exits(Diversity(subnet=True), exits="B9") == {"D", "E"}
    why = "no relay fits as exit: {} leaves none of {}"
    assert exits(Diversity(exit=True), exits="ABCDE") == {why.format("paths.diversity", 5)}
    assert exits(Diversity(exit=True), exits="AD", barred="BCE") == {why.format("paths.diversity", 2)}
    assert exits(barred="ABCDE") == {why.format("avoid.same_exit_as", 5)}
    assert exits(Diversity(subnet=True), exits="ABDE") == {why.format("paths.diversity.subnet", 1)}


def test_what_torrc_excludes_is_excluded_here() -> None:
    plain = snapshot(*WIDE, guards="AB", countries=COUNTRIES)

    def used(excluded: str = "", exits: str = "") -> list[set[str]]:
        """The relays in each position."""
        relays = replace(plain, excluded=read_exclusion(excluded), excluded_exits=read_exclusion(exits))
        return [set(hops) for hops in zip(*(select(relays, seed=seed) for seed in range(80)), strict=True)]

    assert used() == [{"A", "B"}, set("BCDEF"), set("ABCDEF")]
    assert used("{DE}, {xx}") == [{"A"}, set("CEF"), set("CEF")]
    assert used("{??}") == [{"A", "B"}, set("BCDE"), set("ABCDE")]
    assert used(f"${'A' * 40}~x,RelayF") == [{"B"}, set("CDE"), set("CDE")]
    assert used(exits="10.12.0.0/14:80,10.11.0.1,1.2.3,[2001:db8::]/32") == [{"B"}, set("CDEF"), {"A"}]
    why = "no relay fits as exit: {} in torrc leaves none of 6 relays"
    everything = read_exclusion("10.0.0.0/8")
    assert select(replace(plain, excluded=everything)) == why.format("ExcludeNodes")
    assert select(replace(plain, excluded_exits=everything)) == why.format("ExcludeExitNodes")
    rules = PathRules(exit=of(letters="CD"))
    no_guard = replace(plain, excluded=read_exclusion("relaya,relayb"))
    assert select(no_guard, rules).startswith("no relay fits as first hop: avoid and ExcludeNodes leave none")


# --- what holds for every path ---------------------------------------------------------------------------

LETTERS = "0123456789ABCDEF"
FLAGS = st.sampled_from(
    ["", "", "Exit", "Exit Fast", "Exit Fast Guard", "Fast Guard Stable", "Exit BadExit", "Exit Stable Fast"]
)


@st.composite
def networks(draw: st.DrawFn) -> Relays:
    letters = draw(st.lists(st.sampled_from(LETTERS), min_size=3, max_size=9, unique=True))
    some = st.lists(st.sampled_from(letters), max_size=4)
    made = [
        Made(
            letter,
            address=f"10.{draw(st.integers(0, 4))}.0.{number}",
            flags=f"{draw(FLAGS)} Running Valid",
            bandwidth=draw(st.sampled_from([0, 1, 10, 5000])),
            family=" ".join(f"${other * 40}" for other in draw(some)),
            ports=draw(st.sampled_from(["accept 1-65535", "accept 80,443", "reject 25", "reject 1-65535"])),
        )
        for number, letter in enumerate(letters)
    ]
    return snapshot(
        *made,
        guards="".join(draw(st.lists(st.sampled_from(letters), min_size=1, max_size=4, unique=True))),
        countries={letter: draw(st.sampled_from(["de", "nl", "us"])) for letter in letters[1:]},
        weights=draw(st.sampled_from(["", "bandwidth-weights Wed=0 Wee=10000 Wmm=1 Wmd=0 Wme=0\n"])),
        keeps_subnets_apart=draw(st.booleans()),
    )


RELAY_RULES = st.builds(
    RelayRule,
    st.sets(st.sampled_from(["de", "nl", "us"]), max_size=2).map(frozenset),
    st.sets(st.sampled_from([letter * 40 for letter in LETTERS]), max_size=3).map(frozenset),
    st.just(frozenset[str]()) | st.just(frozenset({"relaya", "relay1", "relay2"})),
)
MILD_RULES = st.just(RelayRule()) | RELAY_RULES
RULES = st.builds(
    PathRules,
    MILD_RULES,
    MILD_RULES,
    MILD_RULES,
    st.lists(st.sampled_from([(80, 80), (443, 443), (25, 25), (20, 30)]), max_size=2).map(tuple),
)
EXITS = st.sets(st.sampled_from([letter * 40 for letter in LETTERS]), max_size=4).map(frozenset)
DIVERSITIES = st.builds(Diversity, st.booleans(), st.booleans(), st.booleans())


def are_family(one: Relay, other: Relay) -> bool:
    return one.fingerprint in other.family and other.fingerprint in one.family


def same_subnet(one: Relay, other: Relay) -> bool:
    return one.address.split(".")[:2] == other.address.split(".")[:2]


@settings(suppress_health_check=[HealthCheck.too_slow])  # a network is much to draw
@given(networks(), RULES, DIVERSITIES, EXITS, EXITS, st.integers(0, 1000))
def test_no_path_breaks_a_rule(  # noqa: PLR0917 - all of them are drawn
    relays: Relays,
    rules: PathRules,
    diversity: Diversity,
    exits: frozenset[str],
    barred: frozenset[str],
    seed: int,
) -> None:
    beside = Beside(exits, barred)
    path = select_path(relays, rules, diversity=diversity, beside=beside, uniform=dice(seed))
    if isinstance(path, NoPath):
        assert path.why
        return
    guard, middle, exit_relay = path
    assert guard.fingerprint in relays.guards
    for one, other in ((guard, middle), (guard, exit_relay), (middle, exit_relay)):
        assert one.fingerprint != other.fingerprint
        assert not are_family(one, other)
        assert not (relays.keeps_subnets_apart and same_subnet(one, other))
    for relay in path:
        assert {"Running", "Valid"} <= relay.flags
        assert relay.fingerprint not in rules.avoid.fingerprints
        assert relay.nickname.lower() not in rules.avoid.nicknames
        assert relays.country(relay) not in rules.avoid.countries
    assert "Exit" in exit_relay.flags
    assert "BadExit" not in exit_relay.flags
    for relay, rule in ((middle, rules.middle), (exit_relay, rules.exit)):
        assert not rule.countries or relays.country(relay) in rule.countries
        assert not rule.fingerprints or relay.fingerprint in rule.fingerprints
        assert not rule.nicknames or relay.nickname.lower() in rule.nicknames
    assert all(
        exit_relay.ports.accepts(port) for first, last in rules.ports for port in range(first, last + 1)
    )
    assert exit_relay.fingerprint not in barred
    others = [relays.by_fingerprint[other] for other in exits if other in relays.by_fingerprint]
    if diversity.exit:
        assert exit_relay.fingerprint not in exits
    if diversity.family:
        assert not any(other is exit_relay or are_family(other, exit_relay) for other in others)
    if diversity.subnet:
        assert not any(same_subnet(other, exit_relay) for other in others)
    # The guard is the first in Tor's order that can go with this exit, and leaves a middle relay.
    middles = relays.candidates(Position.MIDDLE, rules).relays
    for earlier in relays.guards[: relays.guards.index(guard.fingerprint)]:
        passed = relays.by_fingerprint[earlier]
        assert (
            relays.is_avoided(passed, rules.avoid)
            or not relays.may_share_path(passed, exit_relay)
            or not any(
                relays.may_share_path(relay, passed) and relays.may_share_path(relay, exit_relay)
                for relay in middles
            )
        )
    hops = [Hop(relay.fingerprint, relay.nickname) for relay in path]
    assert not breaks(relays, rules, hops, diversity=diversity, beside=beside)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.integers(0, 1000))
def test_where_some_path_is_possible_one_is_found(relays: Relays, seed: int) -> None:
    path = select_path(relays, ANY, diversity=NO_DIVERSITY, beside=NOBODY, uniform=dice(seed))
    if not isinstance(path, NoPath):
        return
    fast = {f for f, relay in relays.by_fingerprint.items() if "Fast" in relay.flags}
    for last in relays.by_fingerprint.values():
        if not last.is_exit or not last.ports.accepted or (last.fingerprint not in fast and fast):
            continue
        for fingerprint in relays.guards:
            guard = relays.by_fingerprint[fingerprint]
            for middle in relays.by_fingerprint.values():
                assert (
                    not relays.may_share_path(guard, last)
                    or (middle.fingerprint not in fast and fast)
                    or not relays.may_share_path(middle, guard)
                    or not relays.may_share_path(middle, last)
                )


# --- circuits that are there -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "diversity", "beside", "is_broken"),
    [
        (ANY, NO_DIVERSITY, NOBODY, False),
        (PathRules(exit=of(countries="de")), NO_DIVERSITY, NOBODY, False),
        (PathRules(exit=of(countries="nl")), NO_DIVERSITY, NOBODY, True),
        (PathRules(middle=of(letters="E")), NO_DIVERSITY, NOBODY, False),
        (PathRules(middle=of(letters="F")), NO_DIVERSITY, NOBODY, True),
        (PathRules(avoid=of(countries="us")), NO_DIVERSITY, NOBODY, True),
        (PathRules(ports=((25, 25),)), NO_DIVERSITY, NOBODY, True),
        (ANY, NO_DIVERSITY, Beside(frozenset({"B" * 40})), False),
        (ANY, Diversity(exit=True), Beside(frozenset({"B" * 40})), True),
        (ANY, NO_DIVERSITY, Beside(barred=frozenset({"B" * 40})), True),
        (ANY, Diversity(subnet=True), Beside(frozenset({"C" * 40})), True),
        (ANY, Diversity(family=True), Beside(frozenset({"C" * 40})), False),
    ],
)
def test_a_circuit_that_is_there_is_judged_by_the_policy(
    rules: PathRules, diversity: Diversity, beside: Beside, is_broken: bool
) -> None:
    relays = snapshot(
        Made("A"),
        Made("B", address="10.9.0.1", ports="accept 80"),
        Made("C", address="10.9.0.2"),
        Made("E"),
        Made("F"),
        guards="A",
        countries=COUNTRIES,
    )
    path = [Hop(letter * 40, "") for letter in "AEB"]

    assert breaks(relays, rules, path, diversity=diversity, beside=beside) is is_broken


def test_a_circuit_over_relays_that_nobody_knows_is_left_alone() -> None:
    path = [Hop(letter * 40, "") for letter in "123"]
    rules = PathRules(of(countries="de"), of(countries="de"), of(countries="us"), ((25, 25),))

    assert not breaks(snapshot(*WIDE), rules, path, diversity=NO_DIVERSITY, beside=NOBODY)
