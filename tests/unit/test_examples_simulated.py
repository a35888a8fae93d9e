"""Each policy of ``schemas/examples`` does, in a simulation, what its comment promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from circuitloom.policy import read_policy
from circuitloom.policy.types import Policy, Role
from circuitloom.simulation import (
    Course,
    Findings,
    Load,
    Loss,
    Outcome,
    Record,
    Traffic,
    Trial,
    made_up,
    try_out,
)

EXAMPLES = Path(__file__).parents[2] / "schemas" / "examples"


def policy_of(name: str) -> Policy:
    return read_policy(EXAMPLES / f"{name}.yaml")


def trial(name: str, load: Load | None = None, lose: Sequence[str] = ()) -> Trial:
    """What ``circuitloom simulate`` finds out, with the same streams."""
    policy = policy_of(name)
    traffic = Traffic(made_up(load or Load(500), policy, dice("load")))
    return try_out(policy, traffic, lose=lose, outage_seconds=30.0, dice=dice)


def record(name: str, load: Load, losses: tuple[Loss, ...] = ()) -> Record:
    policy = policy_of(name)
    traffic = Traffic(made_up(load, policy, dice("load")), losses)
    return Course(policy, traffic, core_dice=dice("core"), tor_dice=dice("tor")).run()


def dice(name: str) -> Callable[[], float]:
    return Random(f"1 {name}").random  # noqa: S311 - nothing secret hangs on it


def streams_of(findings: Findings) -> dict[str, int]:
    return {circuit.name: circuit.streams for circuit in findings.circuits}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_serves_and_loses_no_stream_but_those_that_it_names(path: Path) -> None:
    findings = trial(path.stem, Load(200, users=3)).findings
    rejects = {"a rule rejects it"}
    leaves = {"a rule leaves it to Tor"}

    assert findings.is_served
    assert findings.cut == 0
    assert findings.rejected.keys() <= rejects
    assert findings.tor.keys() <= leaves
    backups = {slot.name for slot in policy_of(path.stem).slots if slot.role is Role.BACKUP}
    assert sum(count for name, count in streams_of(findings).items() if name in backups) <= 10


def test_two_circuits_half_each_and_each_stands_in_for_the_other() -> None:
    found = trial("two-circuits", lose=["primary"])

    assert streams_of(found.findings) == {"primary": 250, "secondary": 250}
    assert found.losses[0].taken_by == {"secondary": found.losses[0].missed}


def test_two_circuits_512_streams_at_once_are_256_on_each() -> None:
    findings = trial("two-circuits", Load(512, 1000.0, 1e6)).findings

    assert findings.most_open == findings.carried == 512
    assert [circuit.most_streams for circuit in findings.circuits] == [256, 256]


def test_minimal_takes_turns() -> None:
    assert streams_of(trial("minimal").findings) == {"one": 250, "two": 250}


def test_weighted_shares_4_3_2_1() -> None:
    assert streams_of(trial("weighted", Load(1000)).findings) == {
        "large": 400,
        "medium": 300,
        "small": 200,
        "trickle": 100,
    }


def test_weighted_never_gives_large_four_in_a_row() -> None:
    names = [fate.name for fate in record("weighted", Load(500)).fates]

    assert not any(set(names[place : place + 4]) == {"large"} for place in range(len(names) - 3))
    assert all(names[place : place + 10].count("large") == 4 for place in range(0, 490, 10))


def test_primary_carries_everything_and_standby_while_it_is_gone() -> None:
    found = trial("primary-and-standby", lose=["primary"])

    assert streams_of(found.findings) == {"primary": 500, "standby": 0}
    assert found.losses[0].taken_by == {"standby": found.losses[0].missed}
    assert (found.losses[0].tor, found.losses[0].rejected) == (0, 0)


def test_primary_and_standby_lost_together_hold_streams_until_one_is_back() -> None:
    both = tuple(Loss(20.0, name, 30.0) for name in ("primary", "standby"))
    findings = Findings.of(record("primary-and-standby", Load(500), both), policy_of("primary-and-standby"))

    assert findings.carried == 500
    assert findings.waited.streams > 200
    assert findings.waited.longest_seconds > 29


def test_crawler_keeps_a_site_on_one_circuit_and_a_large_one_on_few() -> None:
    policy = policy_of("crawler")
    load = Load(1000)
    arrivals = made_up(load, policy, dice("load"))
    fates = record("crawler", load).fates
    circuits: dict[str, set[str | None]] = {}
    for arrival, fate in zip(arrivals, fates, strict=True):
        circuits.setdefault(arrival.target.partition(":")[0], set()).add(fate.name)

    # The bound of twice its part is met now and then by the circuit that got the most sites.
    assert sum(len(names) == 1 for names in circuits.values()) >= 60
    assert max(map(len, circuits.values())) <= 4


def test_crawler_s_circuits_all_serve_and_none_more_than_twice_its_part() -> None:
    findings = trial("crawler", Load(1000)).findings

    assert findings.carried == 1000
    assert all(0.02 < circuit.share < 2 / 12 for circuit in findings.circuits)


def test_a_crawler_s_circuit_takes_only_its_own_sites_with_it() -> None:
    (loss,) = trial("crawler", Load(1000), lose=["crawl-4"]).losses

    assert (loss.tor, loss.rejected, loss.waited.streams) == (0, 0, 0)
    assert sum(loss.taken_by.values()) >= loss.missed > 10


def test_swarm_s_spare_circuits_serve_while_fewer_than_six_are_usable() -> None:
    load = Load(1000, 20.0)
    three = tuple(Loss(20.0, f"swarm-{number}", 300.0) for number in (1, 2, 3))
    spare = {"spare-1", "spare-2"}
    without = {fate.name for fate in record("swarm", load, three[:2]).fates}
    with_it = {fate.name for fate in record("swarm", load, three).fates if fate.at > 20.0}

    assert not without & spare
    assert with_it == {f"swarm-{number}" for number in range(4, 9)} | spare


def test_swarm_goes_where_the_fewest_streams_are() -> None:
    findings = trial("swarm", Load(1000, 50.0)).findings
    most = [circuit.most_streams for circuit in findings.circuits if circuit.role == "active"]

    assert max(most) - min(most) <= 3


def test_tenants_have_two_of_the_six_circuits_each_and_nobody_else_s() -> None:
    policy = policy_of("tenants")
    load = Load(1000, users=20)
    arrivals = made_up(load, policy, dice("load"))
    fates = record("tenants", load).fates
    circuits: dict[str, set[str | None]] = {}
    for arrival, fate in zip(arrivals, fates, strict=True):
        circuits.setdefault(arrival.keywords["SOCKS_USERNAME"], set()).add(fate.name)

    assert len(circuits) == 20
    assert all(len(names) == 2 for names in circuits.values())
    waits = [fate.waited_seconds for fate in fates if fate.waited_seconds]
    assert 19 <= len(waits) < 60
    assert max(waits) < 4


def test_the_sixty_first_tenant_is_tor_s() -> None:
    findings = trial("tenants", Load(2000, 40.0, users=70)).findings

    assert 0 < findings.tor["no room for circuits of its key"] < 2000 * 10 / 70 * 1.5
    assert not findings.rejected


def test_a_wallet_s_connections_have_circuits_of_their_own_and_the_rest_is_tor_s() -> None:
    found = trial("wallet", Load(300, 0.3, 300.0, users=12), lose=["peer"])
    wallet, others, unmatched = found.findings.rules

    assert wallet.streams > 100
    assert (wallet.carried, wallet.tor, wallet.rejected) == (wallet.streams, 0, 0)
    assert (others.carried, others.tor) == (0, others.streams)
    assert unmatched.streams == 0
    # Each key waits once for its circuits, well below the 10 s.
    assert 10 <= found.findings.waited.streams <= 30
    assert found.findings.waited.longest_seconds < 5
    assert found.losses[0].taken_by == {"reserve": found.losses[0].missed}


def test_more_connections_than_a_wallet_has_circuits_for_are_tor_s() -> None:
    fates = record("wallet", Load(400, 10.0, 600.0, users=100)).fates
    ours = {fate.outcome for fate in fates if fate.rule == 1}

    assert ours == {Outcome.CARRIED, Outcome.TOR}


def test_only_circuits_of_a_rule_take_its_streams_over() -> None:
    losses = trial("rules", Load(1000), lose=["wallet-1", "wallet-2"]).losses

    assert [set(loss.taken_by) for loss in losses] == [{"wallet-2"}, {"wallet-1"}]


def test_rules_send_each_purpose_to_its_own_circuits() -> None:
    fates = record("rules", Load(800)).fates
    names = {number: {fate.name for fate in fates if fate.rule == number} for number in (1, 2, 3, 4)}

    assert names[1] == {None}
    assert names[2] - {None} == {"wallet-1", "wallet-2"}
    assert names[3] - {None} == {"bulk"}
    assert names[4] - {None} == {f"shared-{number}" for number in range(1, 5)}
    assert {fate.outcome for fate in fates if fate.rule == 1} == {Outcome.REJECTED}


def test_rules_whoever_finds_its_circuits_full_waits_20_seconds_and_then_fails() -> None:
    findings = trial("rules", Load(8000, 200.0, 60.0)).findings

    assert findings.waited.streams > 100
    assert findings.waited.longest_seconds == pytest.approx(20.0)
    assert findings.rejected["no circuit had room in time"] > 10
    assert {circuit.name: circuit.most_streams for circuit in findings.circuits}["bulk"] == 400


def test_measurement_leaves_by_the_country_that_is_asked_for_or_not_at_all() -> None:
    fates = record("measurement", Load(600, users=5)).fates
    names = {number: {fate.name for fate in fates if fate.rule == number} for number in (1, 2, 3)}

    assert names == {1: {"de-1", "de-2"}, 2: {"nl-1", "nl-2"}, 3: {"elsewhere"}}
    lost = record("measurement", Load(600, users=5), (Loss(30.0, "elsewhere", 20.0),)).fates
    assert {fate.outcome for fate in lost if fate.rule == 3} == {Outcome.CARRIED, Outcome.REJECTED}
    assert not any(fate.outcome is Outcome.TOR for fate in lost)


def test_pinned_paths_are_helped_out_by_a_circuit_of_tor_s_choice() -> None:
    (loss,) = trial("pinned-paths", lose=["north"]).losses

    # South goes on with its half.
    assert max(loss.taken_by, key=lambda name: loss.taken_by[name]) == "anywhere"
    assert (loss.tor, loss.rejected) == (0, 0)


def test_adopted_and_own_share_until_the_adopted_one_closes() -> None:
    found = trial("adopted", lose=["paid"])

    assert streams_of(found.findings) == {"own": 250, "paid": 250}
    assert found.losses[0].gone_seconds is None
    assert found.losses[0].taken_by == {"own": found.losses[0].missed}


def test_rounds_change_nothing_about_streams() -> None:
    assert streams_of(trial("rounds").findings) == {"primary": 250, "backup": 250}
