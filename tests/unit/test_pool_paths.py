"""Circuits whose relays the agent selects: when they are built, what they avoid, which streams they get."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.model import CircuitOrdered, Disconnected, Order, RecordedCircuit
from circuitloom.paths import Relays
from circuitloom.policy.path_types import Diversity, PathRules, RelayRule
from circuitloom.policy.types import (
    Adopt,
    Match,
    Overflow,
    Policy,
    Queue,
    Rebuild,
    Rule,
    Slot,
    WhenFull,
    WhenNone,
)
from circuitloom.pool import Pool
from unit.consensus import Made, snapshot
from unit.pool_driver import Driver, created, isolating, opened, policy_of
from unit.simulated_tor import SimulatedTor

ANY = PathRules()
RELAYS = snapshot(*(Made(letter) for letter in "ABCDEF"), guards="A")


def one_exit(letter: str, **more: object) -> PathRules:
    return PathRules(exit=RelayRule(fingerprints=frozenset({letter * 40})), **more)  # type: ignore[arg-type]


def slot(name: str, path: PathRules | tuple[str, ...] | None = ANY, **more: object) -> Slot:
    return Slot(name, path=path, **more)  # type: ignore[arg-type]


def letters(command: str) -> str:
    """``GME`` for guard, middle relay and exit of an EXTENDCIRCUIT; empty where Tor chooses."""
    words = command.partition(";")[0].split(" ")
    return "".join(hop[1] for hop in words[2].split(",")) if len(words) > 2 else ""


def driven(policy: Policy, relays: Relays = RELAYS) -> tuple[Driver, list[str]]:
    """A connected pool that knows the relays, and what it asked for."""
    driver = Driver(policy)
    asked = driver.connect()
    return driver, asked + driver.learn(relays)


def path_of(path: str) -> str:
    return ",".join(f"${letter * 40}~relay{letter}" for letter in path)


# --- building ----------------------------------------------------------------------------------------------


def test_a_circuit_is_built_when_the_relays_are_known_and_others_do_not_wait_for_it() -> None:
    driver = Driver(policy_of(slot("chosen"), "auto"))

    assert driver.connect() == ["EXTENDCIRCUIT 0; auto"]
    assert driver.states() == {"chosen": "idle", "auto": "building"}
    (command,) = driver.learn(RELAYS)
    assert command.endswith("; chosen")
    assert letters(command)[0] == "A"
    assert len(set(letters(command))) == 3
    assert driver.circuit("chosen").path == tuple(f"relay{letter}" for letter in letters(command))


def test_after_a_lost_connection_the_relays_are_asked_for_anew() -> None:
    driver, _ = driven(policy_of(slot("chosen")))

    driver.give(Disconnected())
    assert driver.connect() == []
    assert len(driver.learn(RELAYS)) == 1


def test_a_slot_that_a_reload_removed_is_not_built_when_relays_come() -> None:
    driver = Driver(policy_of(slot("chosen"), "auto"))
    driver.connect()
    driver.reload(policy_of("auto"))

    assert driver.learn(RELAYS) == []


def test_where_no_relay_fits_the_log_says_why_once_an_attempt_and_others_are_built() -> None:
    rebuild = Rebuild(1.0, 8.0, 0.0)
    driver, asked = driven(policy_of(slot("none", one_exit("9")), slot("chosen"), rebuild=rebuild))

    assert [command.partition("; ")[2] for command in asked] == ["chosen"]
    why = "circuit none cannot be built: no relay fits as exit: exit.fingerprint leaves none of 6 relays"
    assert driver.said == [f"warning: {why}, trying again in 1.0 s"]
    assert driver.states()["none"] == "backoff"
    driver.build_as_asked(asked[0], 30)
    # The success of another says nothing about it.
    assert driver.states() == {"none": "backoff", "chosen": "built"}
    assert driver.wait(1.0) == []
    assert driver.said == [f"warning: {why}, trying again in 2.0 s"]
    assert driver.learn(snapshot(*(Made(letter) for letter in "AB9"), guards="A")) == []
    assert [letters(command) for command in driver.wait(2.0)] == ["AB9"]


def test_a_reload_that_avoids_a_country_waits_until_it_is_known_which_relays_are_there() -> None:
    """The agent asks Tor for countries only when a policy needs them."""
    relays = [Made(letter) for letter in "ABCDEF"]
    driver, asked = driven(policy_of(slot("u", one_exit("F"))), snapshot(*relays, guards="A"))
    driver.build_as_asked(asked[0], 30)
    avoided = one_exit("F", avoid=RelayRule(countries=frozenset({"us"})))

    assert driver.reload(policy_of(slot("u", avoided))) == []
    countries = {"B": "us", "C": "us", "D": "us", "E": "de"}
    (command,) = driver.learn(snapshot(*relays, guards="A", countries=countries))
    assert letters(command) == "AEF"


def test_a_path_that_failed_is_selected_anew_and_at_once_when_another_circuit_is_built() -> None:
    driver, _ = driven(policy_of(slot("chosen"), "auto"))
    driver.reply_to_build("250 EXTENDED 30")
    assert driver.reply_to_build("551 Couldn't start circuit") == []
    assert driver.states() == {"chosen": "backoff", "auto": "building"}

    commands = driver.tell(f"CIRC 30 BUILT {path_of('ABC')} PURPOSE=GENERAL {created(30)}")

    assert [letters(command)[0] for command in commands if command.startswith("EXTEND")] == ["A"]


@pytest.mark.parametrize("kind", ["", f" ${'A' * 40}~relayA"])
def test_a_guard_that_no_circuit_reaches_rests_and_is_tried_again(kind: str) -> None:
    """Tor itself learns nothing of it from circuits over relays that it is told."""
    policy = policy_of(slot("u", one_exit("E")), rebuild=Rebuild(10.0, 10.0, 0.0))
    driver, asked = driven(policy, snapshot(*(Made(letter) for letter in "ABCDEF"), guards="AF"))
    firsts = letters(asked[0])[0]

    for number in range(30, 40):
        driver.reply_to_build(f"250 EXTENDED {number}")
        driver.tell(f"CIRC {number} FAILED{kind if firsts[-1] == 'A' else ''} REASON=CHANNEL_CLOSED")
        (command,) = driver.wait(10.0)
        firsts += letters(command)[0]

    # Where the first hop was reached, it is not the guard that fails.
    assert firsts == ("AAA" + "A" * 8 if kind else "AAAFFFAAAAA")


def test_a_guard_rests_only_where_another_one_leads_to_the_exit() -> None:
    """The policy leaves the circuit one of Tor's guards, however often that one fails."""
    rules = one_exit("E", avoid=RelayRule(fingerprints=frozenset({"F" * 40})))
    policy = policy_of(slot("u", rules), rebuild=Rebuild(10.0, 10.0, 0.0))
    driver, asked = driven(policy, snapshot(*(Made(letter) for letter in "ABCDEF"), guards="AF"))
    for number in range(30, 35):
        assert [letters(command)[0] for command in asked] == ["A"]
        driver.reply_to_build(f"250 EXTENDED {number}")
        driver.tell(f"CIRC {number} FAILED REASON=CHANNEL_CLOSED")
        asked = driver.wait(10.0)


def test_a_relay_that_a_circuit_did_not_get_to_rests_while_there_is_another() -> None:
    """Even where chance alone would take no other."""
    relays = snapshot(*(Made(letter, bandwidth=int(letter in "AB")) for letter in "ABCDEF"), guards="A")
    policy = policy_of(slot("u", one_exit("F")), rebuild=Rebuild(10.0, 10.0, 0.0))
    driver, asked = driven(policy, relays)
    assert letters(asked[0]) == "ABF"

    def fail(number: int, reached: str) -> str:
        driver.reply_to_build(f"250 EXTENDED {number}")
        driver.tell(f"CIRC {number} FAILED {path_of(reached)} REASON=DESTROYED REMOTE_REASON=CONNECTFAILED")
        said.extend(driver.said)
        (command,) = driver.wait(10.0)
        return letters(command)

    said: list[str] = []
    first = fail(30, "A")
    # Relay F is the only exit: where there is no other, it serves on.
    second = fail(31, first[:2])
    # All hops were there: no relay is to blame.
    third = fail(32, second)
    for number in range(33, 37):
        path = fail(number, third)

    assert said[0].startswith(
        "warning: circuit u (30) could not be built (DESTROYED, CONNECTFAILED at relayB)"
    )
    assert "CONNECTFAILED at relayF)" in said[1]
    assert "CONNECTFAILED)" in said[2]
    assert {first[1], third[1]} <= set("CDE")
    # The rest of B is over.
    assert path == "ABF"


def test_a_relay_that_works_again_is_forgiven() -> None:
    relays = snapshot(*(Made(letter, bandwidth=int(letter in "AB")) for letter in "ABCDEF"), guards="A")
    policy = policy_of(slot("u", one_exit("F")), slot("v", one_exit("E")), rebuild=Rebuild(10.0, 10.0, 0.0))
    driver, asked = driven(policy, relays)
    assert [letters(command) for command in asked] == ["ABF", "ABE"]
    driver.reply_to_build("250 EXTENDED 30")
    driver.reply_to_build("250 EXTENDED 31")
    driver.tell(f"CIRC 30 FAILED {path_of('A')} REASON=DESTROYED REMOTE_REASON=CONNECTFAILED")

    commands = driver.tell(f"CIRC 31 BUILT {path_of('ABE')} PURPOSE=GENERAL {created(31)}")

    assert [letters(command) for command in commands if command.startswith("EXTEND")] == ["ABF"]


def test_a_guard_that_works_again_is_forgiven() -> None:
    policy = policy_of(slot("u"), rebuild=Rebuild(10.0, 10.0, 0.0))
    driver, _ = driven(policy, snapshot(*(Made(letter) for letter in "ABCDEF"), guards="AF"))
    for number in (30, 31):
        driver.reply_to_build(f"250 EXTENDED {number}")
        driver.tell(f"CIRC {number} FAILED REASON=CHANNEL_CLOSED")
        (command,) = driver.wait(10.0)
    driver.build_as_asked(command, 32)
    (command,) = driver.give(CircuitOrdered(Order.ROTATE, "u"))
    for number in (33, 34):
        assert letters(command)[0] == "A"
        driver.reply_to_build(f"250 EXTENDED {number}")
        driver.tell(f"CIRC {number} FAILED REASON=CHANNEL_CLOSED")
        (command,) = driver.wait(10.0)
    assert letters(command)[0] == "A"


# --- exits apart -------------------------------------------------------------------------------------------


def test_under_diversity_each_circuit_of_a_key_has_an_exit_of_its_own() -> None:
    policy = replace(policy_of(*map(slot, "uvwxy")), diversity=Diversity(exit=True))

    driver, asked = driven(policy)

    # The guard is A, so nobody's exit is A.
    assert sorted(letters(command)[2] for command in asked) == ["B", "C", "D", "E", "F"]
    driver.build_as_asked(asked[0], 30)
    # Its own exit may be its successor's; no other is left.
    (command,) = driver.give(CircuitOrdered(Order.ROTATE, "u"))
    assert letters(command)[2] == letters(asked[0])[2]


def test_exits_that_drain_count_as_taken() -> None:
    relays = snapshot(*(Made(letter) for letter in "ABCDE"), guards="A")
    rules = PathRules(exit=RelayRule(fingerprints=frozenset({"B" * 40, "C" * 40})))
    policy = replace(policy_of(slot("u", rules)), diversity=Diversity(exit=True))
    driver, asked = driven(policy, relays)
    driver.build_as_asked(asked[0], 30)
    first = letters(asked[0])[2]
    driver.tell(*opened(1))

    asked = driver.reload(replace(policy_of(slot("v", rules)), diversity=Diversity(exit=True)))

    assert {letters(command)[2] for command in asked} == {"B", "C"} - {first}


def test_exits_that_the_policy_names_are_left_to_those_circuits() -> None:
    pinned = ("E" * 40, "B" * 40)
    policy = replace(policy_of(slot("pinned", pinned), *map(slot, "uvw")), diversity=Diversity(exit=True))

    _, asked = driven(policy, snapshot(*(Made(letter) for letter in "ABCDE"), guards="A"))

    assert letters(asked[0]) == "EB"
    assert sorted(letters(command)[2] for command in asked[1:]) == ["C", "D", "E"]


def test_keys_may_share_exits() -> None:
    policy = replace(isolating(slot("u", one_exit("B"))), diversity=Diversity(exit=True))
    driver, asked = driven(policy)
    driver.build_as_asked(asked[0], 30)

    asked = driver.tell(*opened(1, user="alice"), *opened(2, user="bob"))

    assert [letters(command)[2] for command in asked if command.startswith("EXTEND")] == ["B"]


def test_a_circuit_keeps_clear_of_the_exits_of_those_it_names() -> None:
    only = one_exit("B")
    both = PathRules(
        exit=RelayRule(fingerprints=frozenset({"B" * 40, "C" * 40})), not_exit_of=frozenset({"u"})
    )

    _, asked = driven(policy_of(slot("u", only), slot("v", both), slot("w", only)))

    assert [letters(command)[2] for command in asked] == ["B", "C", "B"]


def test_when_tor_gives_another_circuit_the_same_exit_the_one_that_avoids_it_is_replaced() -> None:
    avoiding = PathRules(not_exit_of=frozenset({"primary"}))
    driver, asked = driven(policy_of(Slot("primary"), slot("other", avoiding)))
    exit_letter = letters(asked[1])[2]
    primary, other = asked
    driver.reply_to_build("250 EXTENDED 30")
    driver.build_as_asked(other, 31)

    asked = driver.tell(f"CIRC 30 BUILT {path_of('A' + 'BC' + exit_letter)} PURPOSE=GENERAL {created(30)}")

    assert primary == "EXTENDCIRCUIT 0; primary"
    commands = [command for command in asked if command.startswith("EXTEND")]
    assert [command.partition("; ")[2] for command in commands] == ["other"]
    assert letters(commands[0])[2] != exit_letter
    assert "info: circuit other (31) is not what its path asks for now, building another" in driver.said
    # It serves until then.
    assert driver.states() == {"primary": "built", "other": "built"}


def test_a_circuit_that_clashes_when_it_is_built_is_replaced_itself() -> None:
    avoiding = PathRules(not_exit_of=frozenset({"primary"}))
    driver, asked = driven(policy_of(Slot("primary"), slot("other", avoiding)))
    exit_letter = letters(asked[1])[2]
    driver.reply_to_build("250 EXTENDED 30")
    driver.tell(f"CIRC 30 BUILT {path_of('A' + 'BC' + exit_letter)} PURPOSE=GENERAL {created(30)}")

    commands = driver.build_as_asked(asked[1], 31)

    (command,) = [command for command in commands if command.startswith("EXTEND")]
    assert letters(command)[2] != exit_letter


def test_a_circuit_that_another_controller_built_is_not_judged() -> None:
    adopting = slot("paid", one_exit("F"), adopt=Adopt())
    driver, asked = driven(policy_of(slot("u"), adopting))
    driver.build_as_asked(asked[0], 30)

    assert driver.learn(RELAYS) == []


# --- circuits of before ------------------------------------------------------------------------------------


def left(path: str) -> RecordedCircuit:
    relays = tuple(letter * 40 for letter in path)
    time_created = created(12).partition("=")[2]
    return RecordedCircuit("u", "12", time_created, relays, is_used=True, number=0, key="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(("path", "is_kept"), [("AEB", True), ("AEC", False)])
def test_a_circuit_of_an_agent_before_serves_and_is_replaced_if_it_breaks_a_rule(
    path: str, is_kept: bool
) -> None:
    driver = Driver(policy_of(slot("u", one_exit("B"))))

    commands = driver.connect(
        circuits=f"12 BUILT {path_of(path)} PURPOSE=GENERAL {created(12)}", records=(left(path),)
    )
    assert driver.states() == {"u": "built"}
    commands = driver.learn(RELAYS)

    assert [letters(command)[2] for command in commands if command.startswith("EXTEND")] == (
        [] if is_kept else ["B"]
    )


def test_a_reload_after_which_nothing_is_selected_lets_the_relays_go() -> None:
    driver, _ = driven(policy_of(slot("u")))
    driver.reload(policy_of("u"))

    assert driver.reload(policy_of("u", slot("v"))) == []
    assert [command.partition("; ")[2] for command in driver.learn(RELAYS)] == ["v"]


def test_a_reload_replaces_what_the_new_diversity_forbids() -> None:
    policy = policy_of(slot("u", one_exit("B")), slot("v", one_exit("B")))
    driver, asked = driven(policy)
    for number, command in enumerate(asked, 30):
        driver.build_as_asked(command, number)

    commands = driver.reload(replace(policy, diversity=Diversity(exit=True)))

    assert commands == []
    assert any("circuit u (30) is not what its path asks for now" in line for line in driver.said)
    assert any("circuit u cannot be built: no relay fits as exit" in line for line in driver.said)


# --- which streams a circuit gets --------------------------------------------------------------------------

CHOOSY = snapshot(
    Made("A"), Made("B", ports="accept 80,443"), Made("C", ports="accept 25,80"), Made("D"), guards="A"
)


def choosy(
    when_none: WhenNone = WhenNone.TOR,
    *,
    max_streams: int = 100,
    rules: tuple[Rule, ...] = (),
    more: str = "",
) -> Driver:
    """Circuit web (30) takes ports 80 and 443, mail (31) takes 25 and 80; more of those that take any."""
    slots = [slot("web", one_exit("B"), max_streams=max_streams)]
    slots.append(slot("mail", one_exit("C"), max_streams=max_streams))
    slots += [slot(name, one_exit("D")) for name in more]
    policy = policy_of(
        *slots,
        when_none=when_none,
        when_full=WhenFull.QUEUE,
        queue=Queue(3, 30.0, Overflow.REJECT),
        rules=rules,
        min_active=len(slots),
    )
    driver, asked = driven(policy, CHOOSY)
    for number, command in enumerate(asked, 30):
        driver.build_as_asked(command, number)
    return driver


@pytest.mark.parametrize(
    ("target", "circuits"),
    [
        ("example.com:443", {"30"}),
        ("example.com:25", {"31"}),
        ("example.com:80", {"30", "31"}),
        ("203.0.113.5:25", {"31"}),
        # The summary of a policy is about IPv4; Tor tells what an exit does with others.
        ("[2001:db8::1]:25", {"30", "31"}),
        ("example.com:0", {"30", "31"}),
    ],
)
def test_a_stream_goes_only_where_the_exit_accepts_its_port(target: str, circuits: set[str]) -> None:
    driver = choosy()

    commands = [driver.tell(*opened(number, target))[0] for number in range(1, 9)]

    assert {command.partition(";")[0].split(" ")[2] for command in commands} == circuits


@pytest.mark.parametrize(
    ("when_none", "command"),
    [
        (WhenNone.TOR, "ATTACHSTREAM 1 0; every exit refuses its port"),
        (WhenNone.HOLD, "CLOSESTREAM 1 1; every exit refuses its port"),
        (WhenNone.REJECT, "CLOSESTREAM 1 1; every exit refuses its port"),
    ],
)
def test_a_stream_that_every_exit_refuses_does_not_wait(when_none: WhenNone, command: str) -> None:
    assert choosy(when_none).tell(*opened(1, "example.com:6667")) == [command]


def test_an_exit_that_takes_all_takes_what_the_others_refuse() -> None:
    driver = choosy(more="x")

    assert driver.tell(*opened(1, "example.com:6667")) == ["ATTACHSTREAM 1 32; x"]
    driver.tell("CIRC 32 CLOSED REASON=FINISHED")
    assert driver.tell(*opened(2, "example.com:6667")) == ["ATTACHSTREAM 2 0; every exit refuses its port"]


def test_drained_circuits_are_no_way_out() -> None:
    driver = choosy(more="x")
    driver.give(CircuitOrdered(Order.DRAIN, "x"))

    assert driver.tell(*opened(1, "example.com:6667")) == ["ATTACHSTREAM 1 0; every exit refuses its port"]


def test_rules_and_exits_are_judged_together() -> None:
    driver = choosy(rules=(Rule(Match(), circuits=frozenset({"web"})),), more="x")

    assert driver.tell(*opened(1, "example.com:80")) == ["ATTACHSTREAM 1 30; web"]
    assert driver.tell(*opened(2, "example.com:25")) == ["ATTACHSTREAM 2 0; every exit refuses its port"]


def test_a_stream_waits_for_the_exits_that_take_it_and_for_nobody_else() -> None:
    driver = choosy(max_streams=1)
    driver.tell(*opened(1, "example.com:443"), *opened(2, "example.com:25"))

    assert driver.tell(*opened(3, "example.com:25"), *opened(4, "example.com:443")) == []
    # A place on web is for the stream that came later: the one before it cannot use it.
    assert driver.tell("STREAM 1 CLOSED 30 example.com:443 REASON=DONE") == ["ATTACHSTREAM 4 30; web"]
    assert driver.tell("STREAM 2 CLOSED 31 example.com:25 REASON=DONE") == ["ATTACHSTREAM 3 31; mail"]


def test_the_queue_is_bounded_over_all_ports() -> None:
    driver = choosy(max_streams=1)
    driver.tell(*opened(1, "example.com:443"), *opened(2, "example.com:25"))
    driver.tell(*opened(3, "example.com:25"), *opened(4, "example.com:443"), *opened(5, "example.com:80"))

    assert driver.tell(*opened(6, "example.com:443")) == [
        "CLOSESTREAM 6 1; all circuits and their queue are full"
    ]


def test_a_stream_that_failed_where_it_could_go_is_left_to_tor() -> None:
    driver = choosy()
    driver.tell(*opened(1, "example.com:443"))

    commands = driver.tell(
        "STREAM 1 SENTCONNECT 30 example.com:443",
        "STREAM 1 DETACHED 30 example.com:443 REASON=TIMEOUT",
        "STREAM 1 CONTROLLER_WAIT 30 example.com:443",
    )

    assert commands == ["ATTACHSTREAM 1 0; no other circuit can take it"]


def test_a_client_that_tries_every_port_is_answered_alike() -> None:
    driver = choosy()

    for port in range(1, 1200):
        driver.tell(*opened(port, f"example.com:{30_000 + port}"))
    assert driver.tell(*opened(5000, "example.com:443")) == ["ATTACHSTREAM 5000 30; web"]


def test_explain_says_that_the_exit_refuses_the_port() -> None:
    driver = choosy(max_streams=1)
    driver.tell(*opened(1, "example.com:443"), *opened(2, "example.com:443"))

    explained = driver.pool.explain("2", now=driver.now)  # type: ignore[arg-type]

    whys = {candidate.name: candidate.why for candidate in explained.candidates}
    assert whys == {"web": "full", "mail": "its exit refuses the port of this stream"}


def test_an_exit_that_is_not_in_the_next_consensus_is_remembered() -> None:
    driver = choosy()
    driver.learn(snapshot(Made("A"), Made("E"), Made("F"), guards="A"))

    assert driver.tell(*opened(1, "example.com:25")) == ["ATTACHSTREAM 1 31; mail"]


def test_the_exits_of_circuits_that_tor_chose_are_looked_up_too() -> None:
    driver = Driver(policy_of("auto", slot("chosen", one_exit("D")), min_active=2))
    driver.connect()
    (command,) = driver.learn(CHOOSY)
    driver.reply_to_build("250 EXTENDED 30")
    driver.tell(f"CIRC 30 BUILT {path_of('ADB')} PURPOSE=GENERAL {created(30)}")
    driver.build_as_asked(command, 31)

    sent_to = {driver.tell(*opened(number, "example.com:25"))[0].split(" ")[2] for number in range(1, 5)}

    assert sent_to == {"31;"}


# --- over many histories -----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["built", "failed", "closed", "rotate"]), st.integers(0, 99))))
def test_two_circuits_never_share_an_exit_whatever_fails_and_closes(steps: list[tuple[str, int]]) -> None:
    policy = replace(policy_of(*map(slot, "uvw")), diversity=Diversity(exit=True))
    tor = SimulatedTor()
    pool = Pool(policy, uniform=random.Random(1).random, now=0.0)  # noqa: S311 - the same each time
    now = 0.0

    def give(actions: list[object]) -> None:
        for reply in tor.perform(actions):  # type: ignore[arg-type]
            give(pool.handle(reply, now=now))  # type: ignore[arg-type]
        while tor.events:
            give(pool.handle(tor.events.popleft(), now=now))  # type: ignore[arg-type]

    give(pool.handle(tor.connected(), now=now))  # type: ignore[arg-type]
    give(pool.renew_relays(RELAYS, now=now))  # type: ignore[arg-type]
    for what, number in steps:
        now += 100.0
        ids = sorted(tor.circuits)
        if what == "rotate":
            give(pool.handle(CircuitOrdered(Order.ROTATE, "uvw"[number % 3]), now=now))  # type: ignore[arg-type]
        elif ids and what == "closed":
            tor.end_circuit(ids[number % len(ids)])
        elif ids:
            tor.finish_build(ids[number % len(ids)], is_success=what == "built")
        give([])
        pool.check_invariants()
        exits: dict[str, str] = {}
        for circuit in pool.snapshot(now=now).circuits:
            if circuit.path:
                assert exits.setdefault(circuit.path[-1], circuit.name) == circuit.name
