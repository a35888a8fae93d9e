"""``check --online``: what is wrong with a policy's paths on the network of now, each with its place."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from circuitloom.cli import main
from circuitloom.paths import find_online_faults
from circuitloom.policy import parse_policy
from circuitloom.policy.document import parse_document
from unit.consensus import Made, snapshot
from unit.fake_control_port import PROTOCOL_INFO, FakeControlPort
from unit.test_directory import directory_of

F = {letter: letter * 40 for letter in "0123456789ABCDEF"}
UNKNOWN = (
    "no relay that Tor can use now has this {}: it is not in the consensus, not running, or not described"
)
CANNOT = "circuit a cannot be built: no relay fits as exit:"
NETWORK = [
    Made("A", "Alpha", flags="Fast Guard Running Valid"),
    Made("B", "Beta", family="Gamma"),
    Made("C", "Gamma", family="Beta", ports="accept 80,443"),
    Made("D", "Delta", address="10.11.9.9"),
    Made("E", "Epsilon", flags="BadExit Exit Fast Running Valid"),
    Made("F", "Twin", flags="Running Valid"),
    Made("1", "twin", ports="reject 1-65535"),
    Made("2", "Two", ports="reject 25"),
]


def judge(text: str, **more: object) -> list[str]:
    """What is found, as ``LINE:COLUMN: message``; notes say so."""
    policy = parse_policy(text.encode(), name="p")
    relays = snapshot(*NETWORK, **{"guards": "A", "countries": {"B": "de", "C": "nl"}} | more)  # type: ignore[arg-type]
    uniform = random.Random(1).random  # noqa: S311 - the same each time
    found = find_online_faults(parse_document(text, "p"), policy, relays, uniform=uniform)
    notes = {True: "note: ", False: ""}
    return sorted(f"{f.fault.line}:{f.fault.column}: {notes[f.is_note]}{f.fault.message}" for f in found)


def listed(*letters: str) -> str:
    """Two circuits, of which the first goes through these relays."""
    hops = "".join(f"    - {F[letter]}\n" for letter in letters)
    return f"version: 1\ncircuits:\n- name: a\n  path:\n{hops}- name: b\n  path: auto\n"


@pytest.mark.parametrize(
    ("letters", "found"),
    [
        ("AB2", ["3:1: note: all circuits begin with one guard, Alpha: while it fails, all do"]),
        ("B02", [f"6:7: {UNKNOWN.format('fingerprint')}"]),
        (
            "BAF",
            [
                "7:7: Twin lacks the flag Exit: no stream gets out",
                "7:7: note: Twin lacks the flag Fast: Tor itself would not use it here",
            ],
        ),
        ("BAE", ["7:7: Epsilon has the flag BadExit: no stream gets out"]),
        ("BA1", ["7:7: the exit policy of twin accepts nothing: no stream gets out"]),
        (
            "FA2",
            [
                "5:7: note: Twin lacks the flag Fast: Tor itself would not use it here",
                "5:7: note: Twin lacks the flag Guard: Tor itself would not use it here",
            ],
        ),
        ("BAC", ["7:7: Gamma is of one family with hop 1, Beta: the same people see both ends"]),
        ("BAD", ["7:7: Delta is in one subnet with hop 1, Beta: Tor keeps these apart"]),
        ("BF2", ["6:7: note: Twin lacks the flag Fast: Tor itself would not use it here"]),
    ],
)
def test_relays_of_a_list_are_judged_one_by_one(letters: str, found: list[str]) -> None:
    assert judge(listed(*letters)) == found


def test_subnets_are_judged_as_tor_is_told_to() -> None:
    assert judge(listed(*"BAD"), keeps_subnets_apart=False) == []


def rules_of(path: str, more: str = "") -> str:
    return (
        f"version: 1\ncircuits:\n- name: a\n  path: {path}\n- {{name: b, path: [{F['B']}, {F['2']}]}}\n{more}"
    )


@pytest.mark.parametrize(
    ("path", "found"),
    [
        (f"{{exit: {{fingerprint: [{F['2']}]}}}}", []),
        (
            f"{{exit: {{fingerprint: [{F['0']}, {F['2']}]}}}}",
            [f"4:31: {UNKNOWN.format('fingerprint')}"],
        ),
        (
            f"{{exit: {{fingerprint: [{F['E']}, {F['2']}]}}}}",
            ["4:31: Epsilon has the flag BadExit: no stream gets out"],
        ),
        (
            f"{{middle: {{fingerprint: [{F['F']}]}}}}",
            ["4:33: note: Twin lacks the flag Fast: Tor itself would not use it here"],
        ),
        ("{middle: {nickname: [Delta, Nobody]}}", [f"4:37: {UNKNOWN.format('nickname')}"]),
        (
            f"{{avoid: {{nickname: [Nobody, Twin], fingerprint: [{F['0']}, {F['F']}]}}}}",
            [
                f"4:29: note: {UNKNOWN.format('nickname')}",
                "4:37: note: 2 relays have this nickname: name the one by its fingerprint",
                f"4:58: note: {UNKNOWN.format('fingerprint')}",
            ],
        ),
        ("{exit: {country: [de, fr]}}", ["4:31: note: no relay is in the country `fr`"]),
        (
            "{exit: {country: [fr]}}",
            [
                "4:27: note: no relay is in the country `fr`",
                f"4:9: {CANNOT} exit.country fr leaves none of 8 relays",
            ],
        ),
    ],
)
def test_relays_that_rules_name_are_judged_and_some_are_selected(path: str, found: list[str]) -> None:
    assert judge(rules_of(path)) == found


def test_without_geoip_data_each_country_is_a_fault() -> None:
    found = judge(rules_of("{avoid: {country: [de]}}"), has_countries=False)

    assert found == ["4:28: Tor has no GeoIP data, so no relay is in any country: install tor-geoipdb"]


def test_ports_that_an_exit_refuses_are_shown_where_the_rule_names_them() -> None:
    rules = (
        "rules:\n"
        "- {match: {port: [443, 25]}, circuits: [b]}\n"
        "- {match: {port: [25]}, circuits: [a]}\n"
        "- {match: {port: [25]}, action: tor}\n"
    )
    pair = f"{{exit: {{fingerprint: [{F['2']}, {F['D']}]}}}}"

    assert judge(rules_of("{}", rules)) == ["7:24: Two, an exit of b, refuses this port"]
    assert judge(rules_of(pair, rules)) == [
        "7:24: Two, an exit of b, refuses this port",
        "8:19: note: Two, an exit of a, refuses this port",
    ]
    one = judge(rules_of(f"{{exit: {{fingerprint: [{F['2']}]}}}}", rules))
    assert one == [
        "4:9: circuit a cannot be built: no relay fits as exit: port 25 leaves none of 1 relay",
        "7:24: Two, an exit of b, refuses this port",
        "8:19: Two, an exit of a, refuses this port",
    ]


def test_ports_that_probes_go_to_are_judged_like_those_of_rules() -> None:
    probe = 'health: {probe: {targets: ["example.com:443", "example.com:25"]}}\n'

    assert judge(rules_of("{}", probe)) == ["6:47: Two, an exit of b, refuses this port"]


def test_too_few_exits_for_all_circuits_are_found_out_by_selecting_them() -> None:
    text = (
        "version: 1\npaths: {diversity: {exit: distinct}}\n"
        "circuits:\n"
        "- {name: a, count: 3, path: {exit: {nickname: [Beta, Delta]}}}\n"
        "- {name: paid, adopt: {}}\n"
        "- {name: b, path: {avoid: {same_exit_as: [a]}}}\n"
    )

    assert judge(text) == [
        "4:1: note: all circuits begin with one guard, Alpha: while it fails, all do",
        "4:29: circuit a-3 cannot be built: no relay fits as exit: paths.diversity leaves none of 2",
    ]


def test_without_guards_nothing_is_said_of_them() -> None:
    no_guards = snapshot(*NETWORK[:2])
    text = "version: 1\ncircuits: [{name: a}, {name: b}]\n"
    relays = type(no_guards)(no_guards.by_fingerprint)
    policy = parse_policy(text.encode(), name="p")

    assert list(find_online_faults(parse_document(text, "p"), policy, relays, uniform=lambda: 0.5)) == []


# --- the command -------------------------------------------------------------------------------------------


def check(tmp_path: Path, circuits: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(f"version: 1\ntor: {{control: 'unix:{tmp_path}/control'}}\ncircuits: {circuits}\n")
    code = main(["check", "--online", str(policy)])
    printed = capsys.readouterr()
    return code, printed.out.replace(str(policy), "P"), printed.err.replace(str(policy), "P")


def test_faults_are_printed_with_their_place_and_end_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeControlPort(tmp_path / "control") as fake:
        fake.answers.update(directory_of(*NETWORK))
        circuits = f"[{{name: a, path: {{exit: {{fingerprint: [{F['0']}], country: [de]}}}}}}, {{name: b}}]"
        code, out, err = check(tmp_path, circuits, capsys)

    assert code == 78
    assert out.splitlines() == [
        "P:3:11: note: circuits: all circuits begin with one guard, Alpha: while it fails, all do",
        "P:3:103: note: circuits[0].path.exit.country[0]: no relay is in the country `de`",
    ]
    why = "circuit a cannot be built: no relay fits as exit: exit.fingerprint leaves none of 8 relays"
    assert err.splitlines() == [
        f"P:3:28: circuits[0].path: {why}",
        f"P:3:50: circuits[0].path.exit.fingerprint[0]: {UNKNOWN.format('fingerprint')}",
    ]


def test_without_faults_it_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeControlPort(tmp_path / "control") as fake:
        fake.answers.update(directory_of(*NETWORK))
        assert check(tmp_path, "[{name: a}, {name: b, path: {}}]", capsys)[0] == 0
        assert not any("ip-to-country" in command for command in fake.commands)


def test_a_tor_that_is_not_there_ends_with_69(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = check(tmp_path, "[{name: a}, {name: b}]", capsys)

    assert code == 69
    assert err.startswith("circuitloom: no Tor at unix:")


def test_a_tor_that_refuses_ends_with_77(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeControlPort(tmp_path / "control") as fake:
        fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format("HASHEDPASSWORD")
        code, _, err = check(tmp_path, "[{name: a}, {name: b}]", capsys)

    assert code == 77
    assert len(err.splitlines()) == 1


def test_faults_of_the_policy_itself_come_first_and_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = check(tmp_path, "[{name: a, path: {exit: [de]}}]", capsys)

    assert code == 78
    assert "P:3:35: circuits[0].path.exit: must be a mapping" in err
