"""``circuitloom simulate``: the core led through made-up and recorded streams, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from circuitloom.cli import main
from circuitloom.model import Purpose
from circuitloom.policy import read_policy
from circuitloom.policy.matching import find_rule
from circuitloom.policy.path_types import Diversity, PathRules, RelayRule
from circuitloom.policy.types import (
    Adopt,
    Algorithm,
    Isolation,
    Match,
    Overflow,
    Policy,
    Queue,
    Role,
    Rule,
    RuleAction,
    Slot,
    WhenFull,
    WhenNone,
)
from circuitloom.simulation import Arrival, Course, Findings, Load, Loss, Record, Traffic, Trial, made_up
from circuitloom.simulation import try_out as try_policy
from unit.pool_driver import policy_of

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = sorted(SCHEMAS.joinpath("examples").glob("*.yaml"))

Run = Callable[..., "Ran"]


def dice(name: str) -> Callable[[], float]:
    return Random(name).random  # noqa: S311 - nothing secret hangs on it


def stream(at: float, open_seconds: float = 10.0, **keywords: str) -> Arrival:
    return Arrival(at, "example.com:443", {"PURPOSE": "USER"} | keywords, open_seconds)


def simulate(policy: Policy, *arrivals: Arrival, losses: tuple[Loss, ...] = ()) -> Record:
    return Course(policy, Traffic(arrivals, losses), core_dice=dice("core"), tor_dice=dice("tor")).run()


def summed(policy: Policy, *arrivals: Arrival, losses: tuple[Loss, ...] = ()) -> Findings:
    return Findings.of(simulate(policy, *arrivals, losses=losses), policy)


def many(count: int, every_seconds: float = 0.1, open_seconds: float = 5.0) -> list[Arrival]:
    return [stream(number * every_seconds, open_seconds) for number in range(count)]


# --- where streams go --------------------------------------------------------------------------------------


def test_shares_are_those_that_the_agent_gives() -> None:
    policy = policy_of(
        Slot("heavy", weight=3), Slot("light"), algorithm=Algorithm.WEIGHTED_ROUND_ROBIN, min_active=2
    )
    findings = summed(policy, *many(400))

    assert {circuit.name: circuit.streams for circuit in findings.circuits} == {"heavy": 300, "light": 100}
    assert findings.carried == findings.streams == 400
    assert not findings.waited.streams
    assert findings.circuits[0].share == findings.circuits[0].weight_share == 0.75


def test_a_full_pool_queues_and_tells_for_how_long() -> None:
    policy = policy_of(Slot("only", max_streams=1), when_full=WhenFull.QUEUE, queue=Queue(10, 60.0))
    findings = summed(policy, stream(0.0, 5.0), stream(1.0, 5.0), stream(2.0, 5.0))

    assert findings.carried == 3
    assert findings.waited.streams == 2
    # Each of the two waits for those before it, which are connected and then open for 5 s.
    assert 4 < findings.waited.mean_seconds < findings.waited.longest_seconds < 11
    assert findings.circuits[0].most_streams == 1


def test_what_the_queue_does_not_take_overflows_with_its_reason() -> None:
    policy = policy_of(
        Slot("only", max_streams=1), when_full=WhenFull.QUEUE, queue=Queue(1, 3.0, Overflow.REJECT)
    )
    findings = summed(policy, *(stream(0.1 * number, 30.0) for number in range(4)))

    assert findings.carried == 1
    assert findings.rejected == {
        "all circuits and their queue are full": 2,
        "no circuit had room in time": 1,
    }


def test_a_client_gives_up_after_two_minutes() -> None:
    policy = policy_of(Slot("only", path=("A" * 40, "B" * 40)), when_none=WhenNone.HOLD)
    findings = summed(policy, stream(0.0), stream(10.0), losses=(Loss(5.0, "only", outage_seconds=1000.0),))

    assert (findings.carried, findings.cut) == (1, 1)
    assert findings.rejected == {"its client gave up": 1}
    assert findings.waited.longest_seconds == pytest.approx(120.0)


def test_while_no_circuit_is_usable_streams_are_tor_s() -> None:
    policy = policy_of("only")
    losses = (Loss(5.0, "only", outage_seconds=30.0),)
    findings = summed(policy, *(stream(float(second), 1.0) for second in range(60)), losses=losses)

    assert 30 <= findings.tor["the agent is not in charge"] < 50
    assert findings.carried + sum(findings.tor.values()) == 60


def test_rules_are_counted_by_their_place() -> None:
    rules = (
        Rule(Match(ports=((25, 25),)), action=RuleAction.REJECT),
        Rule(Match(socks_user="a*"), action=RuleAction.TOR),
        Rule(Match(), circuits=frozenset({"one"})),
    )
    policy = policy_of("one", "two", rules=rules)
    mail = Arrival(0.5, "mail.example:25", {"PURPOSE": "USER"}, 1.0)
    findings = summed(policy, mail, stream(0.6, SOCKS_USERNAME="alice"), stream(0.7), stream(0.8))

    assert [(rule.number, rule.streams) for rule in findings.rules] == [(1, 1), (2, 1), (3, 2), (None, 0)]
    assert [(rule.carried, rule.tor, rule.rejected) for rule in findings.rules] == [
        (0, 0, 1),
        (0, 1, 0),
        (2, 0, 0),
        (0, 0, 0),
    ]
    assert findings.circuits[1].streams == 0


def test_two_users_never_share_and_the_second_one_waits_for_its_circuits() -> None:
    fields = "SOCKS_USERNAME"
    policy = policy_of("only", isolation=Isolation.TOR)
    findings = summed(
        policy,
        stream(0.0, SOCKS_USERNAME="alice", ISO_FIELDS=fields),
        stream(1.0, SOCKS_USERNAME="bob", ISO_FIELDS=fields),
    )

    assert findings.carried == 2
    assert findings.waited.streams == 1


def test_resolves_go_to_tor_under_purpose_controller() -> None:
    policy = policy_of("only", purpose=Purpose.CONTROLLER)
    resolve = Arrival(0.0, "example.com:0", {"PURPOSE": "DNS_REQUEST"}, 0.0, is_resolve=True)
    findings = summed(policy, resolve, stream(1.0))

    assert findings.tor == {"only Tor's own circuits resolve names under purpose controller": 1}
    assert findings.carried == 1


def test_a_name_is_resolved_and_its_stream_ends() -> None:
    resolve = Arrival(0.0, "example.com:0", {"PURPOSE": "DNS_REQUEST"}, 99.0, is_resolve=True)

    assert simulate(policy_of("only"), resolve).seconds < 10


def test_what_the_far_end_refuses_ends() -> None:
    refused = Arrival(0.0, "example.com:80", {"PURPOSE": "USER"}, 99.0, failure="CONNECTREFUSED")
    record = simulate(policy_of("only"), refused)

    assert record.seconds < 10
    assert record.fates[0].name == "only"


def test_slow_circuits_get_less_under_power_of_two() -> None:
    policy = policy_of(*(f"c{number}" for number in range(8)), algorithm=Algorithm.POWER_OF_TWO)
    shares = sorted(circuit.share for circuit in summed(policy, *many(600)).circuits)

    assert shares[-1] > 2 * shares[0]


def test_more_circuits_than_are_built_at_once_are_all_there_before_the_first_stream() -> None:
    policy = policy_of(*(f"c{number}" for number in range(60)), min_active=60)
    findings = summed(policy, *many(120))

    assert findings.is_served
    assert {circuit.streams for circuit in findings.circuits} == {2}


def test_an_adopted_circuit_is_there_and_does_not_come_back() -> None:
    policy = policy_of("own", Slot("paid", adopt=Adopt()))
    record = simulate(policy, *many(200), losses=(Loss(10.0, "paid"),))
    before = [fate.name for fate in record.fates if fate.at < 10.0]
    after = {fate.name for fate in record.fates if fate.at > 10.0}

    assert before.count("paid") == before.count("own")
    assert after == {"own"}
    assert record.lost[0].back_at is None


def test_without_enough_circuits_nothing_is_balanced() -> None:
    policy = policy_of("one")
    course = Course(policy, Traffic((stream(0.0),)), core_dice=dice("core"), tor_dice=dice("tor"))
    course._tor.lose("one", outage_seconds=3600.0)
    record = course.run()

    assert not record.is_served
    assert Findings.of(record, policy).tor == {"the agent is not in charge": 1}


@pytest.mark.timeout(60)
def test_a_deadline_that_rounds_to_a_bit_too_late_ends_all_the_same() -> None:
    """A stream is overdue when ``now - 0.7`` is after its start: in floats not always at ``start + 0.7``."""
    policy = policy_of("one", "two", purpose=Purpose.CONTROLLER, redispatch_seconds=0.7)
    slow = [
        Arrival(0.1 * number, "example.com:80", {"PURPOSE": "USER"}, 1.0, connect_seconds=2.0)
        for number in range(300)
    ]

    assert len(simulate(policy, *slow).fates) == 300


# --- what a loss does --------------------------------------------------------------------------------------


def try_out(policy: Policy, *arrivals: Arrival, lose: list[str] | None = None) -> Trial:
    return try_policy(policy, Traffic(arrivals), lose=lose, outage_seconds=10.0, dice=dice)


def test_a_loss_cuts_what_is_there_and_others_take_what_comes() -> None:
    policy = policy_of("one", "two", "three")
    (loss,) = try_out(policy, *many(600), lose=["two"]).losses

    # 50 streams are open at any time, a third of them on each circuit.
    assert loss.name == "two"
    assert 14 <= loss.cut <= 20
    assert loss.gone_seconds is not None
    assert 10.0 < loss.gone_seconds < 25.0
    assert loss.missed == pytest.approx(10 * loss.gone_seconds / 3, abs=2)
    assert loss.taken_by.keys() == {"one", "three"}
    assert sum(loss.taken_by.values()) == loss.missed
    assert (loss.tor, loss.rejected, loss.waited.streams) == (0, 0, 0)


def test_the_loss_of_a_rule_s_only_circuit_sends_its_streams_to_tor() -> None:
    rules = (Rule(Match(ports=((443, 443),)), circuits=frozenset({"one"})),)
    (loss,) = try_out(policy_of("one", "two", rules=rules), *many(600), lose=["one"]).losses

    assert loss.tor == loss.missed > 100
    assert loss.taken_by == {}


def test_a_loss_makes_streams_wait_where_the_rest_has_no_room() -> None:
    policy = policy_of(
        Slot("one", max_streams=30), Slot("two", max_streams=30), when_full=WhenFull.QUEUE, min_active=2
    )
    trial = try_out(policy, *many(600, open_seconds=4.5), lose=["one"])

    assert trial.findings.waited.streams == 0
    assert trial.losses[0].waited.streams > 50


def test_a_backup_takes_over() -> None:
    policy = policy_of("one", Slot("spare", role=Role.BACKUP))
    (one, spare) = try_out(policy, *many(300)).losses

    assert one.taken_by == {"spare": one.missed}
    assert (spare.cut, spare.missed, spare.taken_by) == (0, 0, {})


def test_only_as_many_losses_as_take_a_while_unless_they_are_asked_for() -> None:
    policy = policy_of(*(f"c{number}" for number in range(30)))

    assert (len(try_out(policy, *many(20)).losses), try_out(policy, *many(20)).untried) == (16, 14)
    assert len(try_out(policy, *many(20), lose=["c29", "c0"]).losses) == 2
    assert try_out(policy, *many(20), lose=["c29"]).untried == 0


def selecting(*paths: PathRules) -> Policy:
    return policy_of(
        *(Slot(f"c{number}", path=path) for number, path in enumerate(paths)), min_active=len(paths)
    )


@pytest.mark.parametrize(
    "rule",
    [
        RelayRule(),
        RelayRule(countries=frozenset({"xy", "de"})),
        RelayRule(fingerprints=frozenset({"A" * 40, "B" * 40})),
        RelayRule(nicknames=frozenset({"alpha"})),
        RelayRule(frozenset({"xy"}), frozenset({"A" * 40}), frozenset({"alpha"})),
    ],
)
def test_relays_are_made_up_so_that_every_path_finds_some(rule: RelayRule) -> None:
    paths = PathRules(exit=rule), PathRules(middle=rule), PathRules(avoid=rule, ports=((25, 25),))
    findings = summed(selecting(*paths), *many(30))

    assert findings.is_served
    assert [circuit.streams for circuit in findings.circuits] == [10, 10, 10]


def test_there_are_exits_enough_for_circuits_that_share_none() -> None:
    policy = replace(
        selecting(*[PathRules(exit=RelayRule(frozenset({"nl"})))] * 20),
        diversity=Diversity(exit=True, family=True, subnet=True),
    )

    assert {circuit.streams for circuit in summed(policy, *many(40)).circuits} == {2}


def test_no_stream_no_share() -> None:
    trial = try_out(policy_of("one"))

    assert trial.findings.streams == 0
    assert trial.losses[0].cut == 0


# --- made-up streams ---------------------------------------------------------------------------------------


def test_every_rule_gets_as_many_streams_as_none() -> None:
    policy = read_policy(SCHEMAS / "examples/rules.yaml")
    arrivals = made_up(Load(4000, users=3), policy, dice("load"))
    rules = [find_rule(policy.rules, one.target, one.keywords) for one in arrivals]

    for rule in policy.rules:
        assert 850 < rules.count(rule) < 1150


@pytest.mark.parametrize(
    "match",
    [
        Match(ports=((8000, 8999), (25, 25))),
        Match(hosts=("example.com", "example.net")),
        Match(socks_user="tenant-*"),
        Match(socks_user="[ab]?c"),
        Match(session_group=7),
        Match(ports=((443, 443),)),
    ],
)
def test_streams_fit_the_rule_that_they_are_made_for(match: Match) -> None:
    policy = policy_of("one", rules=(Rule(match, action=RuleAction.TOR),))
    arrivals = made_up(Load(200), policy, dice("load"))
    fitting = sum(find_rule(policy.rules, one.target, one.keywords) is not None for one in arrivals)

    assert fitting > 60


def test_streams_fit_a_network(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(
        "version: 1\ncircuits: [{name: a}]\nrules:\n"
        "  - {match: {source: [192.0.2.0/24]}, action: tor}\n"
        "  - {match: {source: ['2001:db8::/32']}, action: tor}\n"
    )
    policy = read_policy(path)
    arrivals = made_up(Load(300), policy, dice("load"))
    rules = [find_rule(policy.rules, one.target, one.keywords) for one in arrivals]

    assert min(rules.count(rule) for rule in (*policy.rules, None)) > 60


def test_the_load_is_what_was_asked_for() -> None:
    arrivals = made_up(Load(20_000, 50.0, 3.0, users=7, destinations=9), policy_of("one"), dice("load"))

    assert arrivals[-1].at == pytest.approx(400, rel=0.05)
    assert sum(one.open_seconds for one in arrivals) / 20_000 == pytest.approx(3.0, rel=0.05)
    assert len({one.keywords["SOCKS_USERNAME"] for one in arrivals}) == 7
    assert len({one.target.partition(":")[0] for one in arrivals}) == 9


# --- the command -------------------------------------------------------------------------------------------


class Ran:
    """What a command did."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code = code
        self.out = out
        self.err = err
        assert "Traceback" not in out + err

    def document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.out)
        return document


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def command(*arguments: str) -> Ran:
        try:
            code = main(["simulate", *arguments])
        except SystemExit as end:
            code = int(end.code or 0)
        return Ran(code, *capsys.readouterr())

    return command


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_text_fits_80_columns_and_is_the_same_each_time(path: Path, run: Run) -> None:
    one, other = (run(str(path), "--streams", "200", "--users", "3") for _ in range(2))

    assert (one.code, one.err) == (0, "")
    assert one.out == other.out
    assert max(map(len, one.out.replace(str(path), "").splitlines())) <= 80
    assert one.out.isascii()


def test_another_seed_is_another_course(run: Run) -> None:
    path = str(SCHEMAS / "examples/crawler.yaml")
    shown = {run(path, "--streams", "100", "--json", "--seed", seed).out for seed in ("1", "2")}

    assert len(shown) == 2


def test_the_document_has_what_the_text_has(run: Run) -> None:
    document = run(
        str(SCHEMAS / "examples/rules.yaml"), "--streams", "300", "--json", "--lose", "bulk"
    ).document()

    assert (document["version"], document["seed"], document["log"]) == (1, 1, None)
    assert document["streams"] == 300
    carried = sum(circuit["streams"] for circuit in document["circuits"])
    assert carried == document["carried"]
    assert carried + sum(document["tor"].values()) + sum(document["rejected"].values()) == 300
    assert sum(rule["streams"] for rule in document["rules"]) == 300
    assert [loss["name"] for loss in document["losses"]] == ["bulk"]


def test_a_faulty_policy_is_as_check_says(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(SCHEMAS / "invalid/many-faults.yaml")
    ran = run(path)
    main(["check", path])

    assert (ran.code, ran.out) == (78, "")
    assert ran.err == capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--streams", "0"], "must be a number from 1 to"),
        (["--rate", "fast"], "must be a number from 0.001"),
        (["--rate", "nan"], "must be a number from 0.001"),
        (["--lifetime", "10"], "must be a time, such as"),
        (["--users", "\u0663"], "must be a number"),
        (["--seed", "x"], "invalid int value"),
        (["--streams", "5", "--log", "x"], "not allowed with"),
        (["--lose", "nobody"], "--lose nobody: the policy names no such circuit"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], what: str, run: Run) -> None:
    ran = run(str(SCHEMAS / "examples/minimal.yaml"), *arguments)

    assert (ran.code, ran.out) == (64, "")
    assert what in ran.err
    assert ran.err.count("\n") == 1


def test_a_large_simulation_tells_that_it_loses_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitloom.simulation.trial.MAX_STREAMS_IN_ALL", 100)
    ran = run(str(SCHEMAS / "examples/minimal.yaml"), "--streams", "60")

    assert ran.out.splitlines()[-1] == "No circuit is lost in so large a simulation: --lose NAME, of 2."


def test_long_tables_are_cut_short(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    name = "a-very-long-name-of-a-circuit"
    path.write_text(f"version: 1\ncircuits: [{{name: {name}, count: 60}}]\n")
    ran = run(str(path), "--streams", "120")

    assert "... and 20 circuits more: --json has all" in ran.out
    assert "... and 44 circuits more: --lose NAME" in ran.out
    assert name not in ran.out
    assert max(map(len, ran.out.splitlines())) <= 80


# --- a recording -------------------------------------------------------------------------------------------

HEAD = {"recording": 1}


def new(time: float, stream_id: str, port: int = 443, **values: object) -> dict[str, object]:
    told = {"destination": "aa", "port": port, "is_resolve": False, "is_tors": False}
    return {"time": time, "stream": stream_id, "event": "new"} | told | values


def then(time: float, stream_id: str, event: str, **values: object) -> dict[str, object]:
    return {"time": time, "stream": stream_id, "event": event} | values


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[..., str]:
    def write(*lines: dict[str, object]) -> str:
        path = tmp_path / "streams.jsonl"
        path.write_text("".join(f"{json.dumps(line)}\n" for line in (HEAD, *lines)))
        return str(path)

    return write


def test_a_recording_is_replayed_with_its_times(run: Run, recorded: Callable[..., str]) -> None:
    log = recorded(
        {"time": 0, "event": "connected"},
        new(100, "1"),
        then(100, "1", "attached", circuit="x"),
        then(100.5, "1", "succeeded"),
        new(101, "2"),
        then(110.5, "1", "closed", reason="DONE"),
        new(112, "3", is_tors=True),
        new(113, "4", port=25),
        then(114, "4", "failed", reason="END", remote_reason="CONNECTREFUSED"),
        then(114, "4", "closed"),
        then(115, "9", "closed"),
    )
    ran = run(str(SCHEMAS / "examples/rules.yaml"), "--log", log)
    document = run(str(SCHEMAS / "examples/rules.yaml"), "--log", log, "--json").document()

    assert ran.out.splitlines()[0] == f"4 streams of {log} over 7 circuits, least-streams"
    assert "2 rules ask for a host, user or network" in ran.out
    assert document["streams"] == 4
    assert document["most_open"] == 3
    assert document["rejected"] == {"a rule rejects it": 1}
    # What isolates a stream of this recording is not told.
    assert sum(document["tor"].values()) == 3


def test_recorded_losses_are_replayed_for_circuits_of_the_same_name(
    run: Run, recorded: Callable[..., str]
) -> None:
    log = recorded(
        *(new(number, str(number)) for number in range(10)),
        {"time": 9.5, "circuit": "own", "event": "lost"},
        {"time": 9.6, "circuit": "other", "event": "lost"},
        *(new(10 + number, str(10 + number)) for number in range(10)),
        {"time": 30, "event": "connected"},
    )
    document = run(
        str(SCHEMAS / "examples/adopted.yaml"), "--log", log, "--json", "--lose", "paid"
    ).document()

    assert document["cut"] == 5
    assert [loss["name"] for loss in document["losses"]] == ["paid"]
    assert document["circuits"][1]["streams"] == 15


def test_users_of_a_recording_are_kept_apart(run: Run, recorded: Callable[..., str]) -> None:
    iso: dict[str, Any] = {
        "isolated_by": "SOCKS_USERNAME,CLIENTADDR",
        "source": "bb",
        "epoch": "0",
        "group": "-4",
    }
    log = recorded(*(new(number, str(number), user="ab"[number % 2], **iso) for number in range(20)))
    document = run(str(SCHEMAS / "examples/minimal.yaml"), "--log", log, "--json").document()

    assert document["carried"] == 20
    assert document["waited"]["streams"] == 1


def test_a_bad_recording_is_one_line_with_its_place(run: Run, recorded: Callable[..., str]) -> None:
    log = recorded(new(1, "1"), new(0, "2"))
    ran = run(str(SCHEMAS / "examples/minimal.yaml"), "--log", log)

    assert (ran.code, ran.out) == (65, "")
    assert ran.err == f"{log}:3: `time` 0 is before that of the line above, 1\n"


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_recording_that_cannot_be_read_is_one_line(name: str, run: Run, tmp_path: Path) -> None:
    path = tmp_path / name
    ran = run(str(SCHEMAS / "examples/minimal.yaml"), "--log", str(path))

    assert (ran.code, ran.out) == (65, "")
    assert ran.err.startswith(f"{path}: cannot be read (")
    assert ran.err.count("\n") == 1


def test_an_empty_recording_shows_an_empty_table(run: Run, recorded: Callable[..., str]) -> None:
    ran = run(str(SCHEMAS / "examples/minimal.yaml"), "--log", recorded())

    assert (ran.code, ran.err) == (0, "")
    assert "0 streams of" in ran.out
