"""The JSON Schema keeps its own rules, and agrees with the code beside it."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from circuitloom.policy import (
    Admin,
    Algorithm,
    Balance,
    ColdStart,
    Destinations,
    Eject,
    Failover,
    Health,
    Isolation,
    Log,
    LogFormat,
    LogLevel,
    Metrics,
    OnFailure,
    Policy,
    Rebuild,
    Role,
    Rounds,
    Schedule,
    Slot,
    StickyBy,
    TorControl,
    WhenExceeded,
    WhenExhausted,
    WhenNone,
    parse_policy,
    schema_text,
)
from circuitloom.policy.health import Degrade, Panic
from circuitloom.policy.path_types import Diversity
from circuitloom.policy.probing import Probe
from circuitloom.policy.rotation import Rotation
from circuitloom.policy.schema import fill_defaults, load_schema
from circuitloom.policy.types import Match, Overflow, Rule, RuleAction, UnixAddress, WhenFull
from circuitloom.policy.values import ValueFault, parse_control

SCHEMAS = Path(__file__).parents[2] / "schemas"
MINIMAL = b"version: 1\ncircuits: [{name: a}, {name: b}]\n"


def walk(sub: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The schema and every schema in it, with a path to show."""
    yield path or "top", sub
    for key, child in sub.get("properties", {}).items():
        yield from walk(child, f"{path}.{key}")
    if "items" in sub:
        yield from walk(sub["items"], f"{path}[]")


PARTS = [pytest.param(part, id=path) for path, part in walk(load_schema())]


def test_package_carries_the_schema_of_the_repository() -> None:
    assert SCHEMAS.joinpath("policy.schema.json").read_text(encoding="utf-8") == schema_text()


def test_package_carries_the_examples() -> None:
    assert files("circuitloom").joinpath("schemas", "examples", "minimal.yaml").is_file()


def test_schema_is_a_schema() -> None:
    Draft202012Validator.check_schema(load_schema())
    assert load_schema()["$schema"] == Draft202012Validator.META_SCHEMA["$id"]


def test_schema_names_no_host() -> None:
    assert load_schema()["$id"] == "urn:circuitloom:policy:1"


@pytest.mark.parametrize("part", PARTS)
def test_every_key_is_described_in_whole_sentences(part: dict[str, Any]) -> None:
    assert part["description"].endswith(".")


@pytest.mark.parametrize("part", PARTS)
def test_every_mapping_refuses_unknown_keys(part: dict[str, Any]) -> None:
    assert ("object" in part.get("type", ())) == ("properties" in part)
    if "properties" in part:
        assert part["additionalProperties"] is False
        assert set(part.get("required", ())) <= set(part["properties"])


@pytest.mark.parametrize("part", PARTS)
def test_every_value_has_a_sentence_for_what_it_must_be(part: dict[str, Any]) -> None:
    if "errorMessage" in part:
        assert part["errorMessage"].startswith("must be ")
    else:
        assert "enum" in part or "properties" in part or {"minimum", "maximum"} < set(part)


@pytest.mark.parametrize("part", PARTS)
def test_defaults_and_examples_are_valid(part: dict[str, Any]) -> None:
    for value in [*part.get("examples", ()), *([part["default"]] if "default" in part else ())]:
        Draft202012Validator(part).validate(value)


@pytest.mark.parametrize("part", PARTS)
def test_every_required_key_has_an_example_to_show(part: dict[str, Any]) -> None:
    assert all("examples" in part["properties"][key] for key in part.get("required", ()))


def test_keys_without_default_are_those_whose_description_says_how() -> None:
    def optional_without_default(sub: dict[str, Any]) -> Iterator[str]:
        for key, child in sub.get("properties", {}).items():
            if (
                key not in sub.get("required", ())
                and "default" not in child
                and child.get("type") != "object"
            ):
                assert "ithout " in child["description"] or "Leave it out" in child["description"]
                yield key

    found = {key for _, part in walk(load_schema()) for key in optional_without_default(part)}

    assert found == {
        "password_file",
        "min_active",
        "max_streams",
        "max_circuits",
        "slots_per_key",
        "sticky_load",
        "port",
        "host",
        "socks_user",
        "source",
        "session_group",
        "circuits",
        "action",
        "slow_start",
        "max_age",
        "max_streams_total",
        "max_bytes",
        "drain",
        "rounds",
        "env",
        "after",
        "budget",
        "textfile",
        "listen",
        "agent",
        "country",
        "fingerprint",
        "nickname",
        "ports",
        "same_exit_as",
    }


@pytest.mark.parametrize(
    ("path", "enum"),
    [
        (("balance", "algorithm"), Algorithm),
        (("balance", "isolation"), Isolation),
        (("balance", "sticky"), StickyBy),
        (("balance", "when_full"), WhenFull),
        (("failover", "when_none"), WhenNone),
        (("log", "level"), LogLevel),
        (("log", "format"), LogFormat),
        (("log", "destinations"), Destinations),
        (("rounds", "schedule"), Schedule),
        (("rounds", "on_failure"), OnFailure),
    ],
)
def test_enums_are_those_of_the_code(path: tuple[str, str], enum: type) -> None:
    section, key = path

    assert load_schema()["properties"][section]["properties"][key]["enum"] == list(enum)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("path", "enum"),
    [
        (("balance", "keys", "cold_start"), ColdStart),
        (("balance", "queue", "overflow"), Overflow),
        (("balance", "keys", "when_exceeded"), WhenExceeded),
        (("failover", "retry", "exhausted"), WhenExhausted),
    ],
)
def test_nested_enums_are_those_of_the_code(path: tuple[str, str, str], enum: type) -> None:
    sub = load_schema()
    for key in path:
        sub = sub["properties"][key]

    assert sub["enum"] == list(enum)  # type: ignore[call-overload]


def test_a_rules_actions_are_those_of_the_code() -> None:
    rule = load_schema()["properties"]["rules"]["items"]

    assert rule["properties"]["action"]["enum"] == list(RuleAction)


def test_roles_are_those_of_the_code() -> None:
    assert load_schema()["properties"]["circuits"]["items"]["properties"]["role"]["enum"] == list(Role)


def test_schema_defaults_are_the_defaults_of_the_dataclasses() -> None:
    expected = Policy(
        slots=(Slot("a"), Slot("b")),
        tor=TorControl(),
        balance=Balance(),
        # The one default that is counted, not written.
        failover=Failover(min_active=2, rebuild=Rebuild()),
        log=Log(),
        admin=Admin(),
        metrics=Metrics(),
    )

    assert expected == parse_policy(MINIMAL, name="minimal")


def test_nobody_is_ejected_by_default_and_by_the_defaults_of_the_dataclass_if_asked() -> None:
    assert parse_policy(MINIMAL + b"health: {}\n", name="off").health == Health(None)

    assert parse_policy(MINIMAL + b"health: {eject: {}}\n", name="on").health == Health(Eject())


def test_nothing_is_probed_by_default_and_by_the_defaults_of_the_dataclass_if_asked() -> None:
    assert parse_policy(MINIMAL + b"health: {eject: {}}\n", name="off").health.probe is None

    probe = parse_policy(MINIMAL + b"health: {probe: {targets: [a.example:80]}}\n", name="on").health.probe
    assert probe == Probe(UnixAddress("/run/tor/socks"), ("a.example:80",))


def test_what_a_part_of_health_does_is_by_default_what_its_dataclass_does() -> None:
    assert parse_policy(MINIMAL + b"health: {panic: {}}\n", name="on").health == Health(panic=Panic())

    assert parse_policy(MINIMAL + b"health: {degrade: {}}\n", name="on").health == Health(degrade=Degrade())


def test_the_defaults_of_rotation_and_paths_are_those_of_the_dataclasses() -> None:
    policy = parse_policy(MINIMAL + b"rotation: {}\npaths: {}\n", name="minimal")

    assert (policy.rotation, policy.diversity) == (Rotation(), Diversity())


def test_the_defaults_of_rounds_are_those_of_the_dataclass() -> None:
    policy = parse_policy(MINIMAL + b"rounds: {command: [/hook]}\n", name="minimal")

    assert Rounds(("/hook",)) == policy.rounds


def test_every_key_reaches_the_dataclasses() -> None:
    # What differs from every default must differ in the result.
    policy = parse_policy(
        b"""
version: 1
tor: {control: "tcp:[::1]:9151", password_file: /p}
balance:
  algorithm: least-streams
  max_streams: 7
  isolation: none
  purpose: controller
  sticky: source
  sticky_load: 150%%
  when_full: reject
  queue: {length: 9, timeout: 8s, overflow: reject}
  keys: {max_circuits: 5, idle: 3s, cold_start: tor, wait: 2s, when_exceeded: reject}
circuits:
  - {name: a, weight: 2, count: 2, max_streams: 9}
  - {name: b, role: backup, path: [$%s~x, %s=y]}
failover:
  redispatch: {after: 2500ms}
  when_none: hold
  when_contended: stand-aside
  min_active: 1
  rebuild: {initial: 250ms, max: 2h, jitter: 5%%}
  retry: {attempts: 4, budget: 50%%, exhausted: close}
health:
  eject: {consecutive_failures: 6, base: 40s, max_percent: 70}
  panic: {threshold: 40%%, action: hold}
  slow_start: 4s
  degrade: {slower_than: 150%%, interval: 500ms}
  probe: {socks: "tcp:127.0.0.1:9050", targets: ["[2001:db8::7]:80", "example.com:443"], interval: 20s,
    timeout: 7s, rise: 4, fall: 5, quorum: 2, jitter: 30%%, read: 8, budget: 2MB, unused: true}
rotation: {max_age: 90s, max_streams_total: 11, max_bytes: 2kB, drain: 5s, jitter: 3%%}
log: {level: debug, format: plain, destinations: full}
admin: {socket: /s}
metrics: {textfile: /m.prom, interval: 20s, listen: "[::1]:9955", agent: one}
rules:
  - match: {port: [25, 80-90], host: [.Example.com], socks_user: t*, source: [10.0.0.0/8], session_group: 3}
    circuits: [a, b]
  - {match: {port: [443]}, circuits: [a-2]}
  - action: reject
rounds: {command: [/h, x], interval: 9s, first_after: 1s, rounds: 4, schedule: every-circuit, timeout: 8s,
  env: [A, B=c], on_failure: drain, require_probe: false}
"""
        % (b"ab" * 20, b"CD" * 20),
        name="all",
    )

    assert repr(policy) == (
        "Policy(slots=("
        "Slot(name='a-1', weight=2, role=<Role.ACTIVE: 'active'>, path=None, max_streams=9, "
        "purpose=<Purpose.CONTROLLER: 'controller'>, adopt=None), "
        "Slot(name='a-2', weight=2, role=<Role.ACTIVE: 'active'>, path=None, max_streams=9, "
        "purpose=<Purpose.CONTROLLER: 'controller'>, adopt=None), "
        "Slot(name='b', weight=1, role=<Role.BACKUP: 'backup'>, "
        f"path=('{'AB' * 20}', '{'CD' * 20}'), max_streams=7, "
        "purpose=<Purpose.CONTROLLER: 'controller'>, adopt=None)), "
        "tor=TorControl(control=TcpAddress(host='::1', port=9151), password_file='/p'), "
        "balance=Balance(algorithm=<Algorithm.LEAST_STREAMS: 'least-streams'>, "
        "isolation=<Isolation.NONE: 'none'>, keys=Keys(max_circuits=5, slots_per_key=None, idle_seconds=3.0, "
        "cold_start=<ColdStart.TOR: 'tor'>, wait_seconds=2.0, "
        "when_exceeded=<WhenExceeded.REJECT: 'reject'>), purpose=<Purpose.CONTROLLER: 'controller'>, "
        "sticky=<StickyBy.SOURCE: 'source'>, sticky_load=1.5, "
        "when_full=<WhenFull.REJECT: 'reject'>, "
        "queue=Queue(length=9, timeout_seconds=8.0, overflow=<Overflow.REJECT: 'reject'>)), "
        "failover=Failover(when_none=<WhenNone.HOLD: 'hold'>, min_active=1, "
        "rebuild=Rebuild(initial_seconds=0.25, max_seconds=7200.0, jitter=0.05), "
        "retry=Retry(attempts=4, budget=0.5, exhausted=<WhenExhausted.CLOSE: 'close'>), "
        "redispatch_seconds=2.5, when_contended=<WhenContended.STAND_ASIDE: 'stand-aside'>), "
        "health=Health(eject=Eject(consecutive_failures=6, base_seconds=40.0, max_percent=70), "
        "panic=Panic(threshold=0.4, action=<PanicAction.HOLD: 'hold'>), "
        "slow_start_seconds=4.0, degrade=Degrade(slower_than=1.5, interval_seconds=0.5), "
        "probe=Probe(socks=TcpAddress(host='127.0.0.1', port=9050), "
        "targets=('[2001:db8::7]:80', 'example.com:443'), interval_seconds=20.0, timeout_seconds=7.0, "
        "rise=4, fall=5, quorum=2, jitter=0.3, read_bytes=8, budget_bytes=2000000, unused=True)), "
        "rotation=Rotation(max_age_seconds=90.0, max_streams_total=11, max_bytes=2000, drain_seconds=5.0, "
        "jitter=0.03), "
        "log=Log(level=<LogLevel.DEBUG: 'debug'>, format=<LogFormat.PLAIN: 'plain'>, "
        "destinations=<Destinations.FULL: 'full'>), "
        "admin=Admin(socket='/s'), "
        f"rules={policy.rules}, "
        "rounds=Rounds(command=('/h', 'x'), interval_seconds=9.0, first_after_seconds=1.0, rounds=4, "
        "schedule=<Schedule.EVERY_CIRCUIT: 'every-circuit'>, timeout_seconds=8.0, env=('A', 'B=c'), "
        "on_failure=<OnFailure.DRAIN: 'drain'>, require_probe=False), "
        "metrics=Metrics(textfile='/m.prom', interval_seconds=20.0, listen=('::1', 9955), agent='one'), "
        "diversity=Diversity(exit=False, family=False, subnet=False))"
    )
    nowhere = Match()
    assert policy.rules == (
        Rule(
            Match(((25, 25), (80, 90)), ("example.com",), "t*", (ip_network("10.0.0.0/8"),), 3),
            circuits=frozenset({"a-1", "a-2", "b"}),
        ),
        Rule(Match(ports=((443, 443),)), circuits=frozenset({"a-2"})),
        Rule(nowhere, action=RuleAction.REJECT),
    )


def test_fill_defaults_leaves_the_document_as_it_is() -> None:
    data: dict[str, Any] = {"version": 1, "circuits": [{"name": "a"}], "failover": {"rebuild": {}}}

    filled = fill_defaults(data, load_schema())

    assert data == {"version": 1, "circuits": [{"name": "a"}], "failover": {"rebuild": {}}}
    assert filled["failover"]["rebuild"]["max"] == "60s"
    assert "max_streams" not in filled["circuits"][0]


ADDRESS = st.one_of(
    st.text(alphabet="unix:/tcp[]1270.9\u00e4", max_size=120),
    st.builds(
        "{}{}{}".format,
        st.sampled_from(["", "unix:", "tcp:", "tcp:127.0.0.", "tcp:[::1]", "unix:/"]),
        st.text(alphabet="/x1270.:[]", max_size=110),
        st.sampled_from(["", ":9051", ":0", ":65536", "/", "x"]),
    ),
)


@given(ADDRESS)
def test_what_the_schema_refuses_as_control_the_parser_explains(text: str) -> None:
    # The schema's own fault for tor.control is dropped, so the parser must not accept more than its pattern.
    control = load_schema()["properties"]["tor"]["properties"]["control"]
    try:
        parse_control(text)
    except ValueFault:
        return

    assert Draft202012Validator(control).is_valid(text)
