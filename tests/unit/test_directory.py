"""What the agent asks of Tor's directory, and when; what it makes of the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from circuitloom.admin import ask
from circuitloom.directory import ADDRESSES_PER_COMMAND, CONSENSUS, fetch_relays, parse_countries
from circuitloom.errors import ControlError
from circuitloom.paths import Relays
from circuitloom.policy.types import TorControl
from unit.consensus import Made, consensus, microdescriptors
from unit.fake_control_port import HANG_UP, Answer, FakeControlPort
from unit.service_driver import change_policy, serve, status, wait_until

WIDE = [Made(letter) for letter in "ABCDEF"]


def data(key: str, text: str) -> str:
    """A GETINFO answer of many lines, as Tor sends it."""
    lines = "".join(f"{line}\r\n" for line in text.removesuffix("\n").split("\n"))
    return f"250+{key}=\r\n{lines}.\r\n250 OK\r\n"


def countries_of(known: Mapping[str, str]) -> Callable[[str], str]:
    def answer(command: str) -> str:
        keys = command.split(" ")[1:]
        addresses = (key.removeprefix("ip-to-country/") for key in keys)
        lines = (f"250-ip-to-country/{address}={known.get(address, '??')}\r\n" for address in addresses)
        return "".join(lines) + "250 OK\r\n"

    return answer


def options_of(distinct: int = 1, excluded: str = "", exits: str = "") -> str:
    return (
        f"250-EnforceDistinctSubnets={distinct}\r\n"
        f"250-ExcludeNodes{'=' if excluded else ''}{excluded}\r\n"
        f"250 ExcludeExitNodes{'=' if exits else ''}{exits}\r\n"
    )


def directory_of(
    *relays: Made, guards: str = "A", countries: Mapping[str, str] | None = None
) -> dict[str, Answer]:
    up = "".join(f"${letter * 40}~relay{letter} up\n" for letter in guards)
    return {
        f"GETINFO {CONSENSUS}": data(CONSENSUS, consensus(relays)),
        "GETINFO md/all": data("md/all", microdescriptors(relays)),
        "GETINFO entry-guards": data("entry-guards", up),
        "GETINFO ip-to-country": countries_of(countries or {}),
        "GETINFO ip-to-country/ipv4-available": "250-ip-to-country/ipv4-available=1\r\n250 OK\r\n",
        "GETCONF EnforceDistinctSubnets": options_of(),
    }


def fetch(
    answers: Mapping[str, Answer], countries: Mapping[str, str] | None = None
) -> tuple[Relays, list[str]]:
    with FakeControlPort() as fake:
        fake.answers.update(answers)
        relays = asyncio.run(fetch_relays(TorControl(fake.address), countries=countries))
        return relays, fake.commands


# --- fetching ----------------------------------------------------------------------------------------------


def test_relays_guards_and_tors_own_rule_of_subnets_are_fetched() -> None:
    relays, commands = fetch(directory_of(*WIDE, guards="CA"))

    assert set(relays.by_fingerprint) == {letter * 40 for letter in "ABCDEF"}
    assert relays.guards == ("C" * 40, "A" * 40)
    assert relays.weights == {"Wed": 10000, "Wee": 10000}
    assert relays.keeps_subnets_apart
    assert not any("ip-to-country" in command for command in commands)
    loopback = directory_of(*WIDE)
    loopback["GETCONF EnforceDistinctSubnets"] = options_of(distinct=0)
    assert not fetch(loopback)[0].keeps_subnets_apart


def test_relays_without_microdescriptor_are_counted() -> None:
    answers = directory_of(*WIDE)
    answers["GETINFO md/all"] = data("md/all", microdescriptors(WIDE[:4]))

    relays, _ = fetch(answers)

    assert set(relays.by_fingerprint) == {letter * 40 for letter in "ABCD"}
    assert relays.missing == 2


def test_countries_are_asked_for_in_bounded_commands_and_once() -> None:
    relays = [Made(f"{number:02X}", address=f"10.1.{number}.1") for number in range(16, 16 + 200)]
    known = {"10.1.16.1": "DE", "10.1.17.1": "nl"}

    snapshot, commands = fetch(directory_of(*relays, countries=known), {"10.1.18.1": "se", "10.9.9.9": "us"})

    asked = [command for command in commands if command.startswith("GETINFO ip-to-country/10.")]
    assert [len(command.split(" ")) - 1 for command in asked] == [
        ADDRESSES_PER_COMMAND,
        199 - ADDRESSES_PER_COMMAND,
    ]
    by_country = {snapshot.country(relay) for relay in snapshot.by_fingerprint.values()}
    assert by_country == {"de", "nl", "se", "??"}
    assert "10.9.9.9" not in snapshot.countries


def test_countries_are_unknown_where_tor_has_no_geoip_data() -> None:
    answers = directory_of(*WIDE)
    answers["GETINFO ip-to-country/ipv4-available"] = "250-ip-to-country/ipv4-available=0\r\n250 OK\r\n"

    relays, commands = fetch(answers, {})

    assert not relays.has_countries
    assert not any(command.startswith("GETINFO ip-to-country/10.") for command in commands)
    assert parse_countries({"ip-to-country/10.0.0.1": "US"}) == {"10.0.0.1": "us"}


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({f"GETINFO {CONSENSUS}": "551 Could not open cached consensus\r\n"}, "Tor has no consensus yet"),
        ({"GETINFO md/all": '552 Unrecognized key "md/all"\r\n'}, "Tor refused GETINFO md/all"),
        ({"GETINFO entry-guards": HANG_UP}, "Tor closed the control connection"),
    ],
)
def test_what_tor_does_not_tell_is_one_line(answers: Mapping[str, Answer], message: str) -> None:
    with pytest.raises(ControlError, match=message):
        fetch({**directory_of(*WIDE), **answers})


def test_a_tor_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitloom.directory.FETCH_SECONDS", 0.05)

    with pytest.raises(ControlError, match="does not tell its relays in time"):
        fetch({**directory_of(*WIDE), "GETINFO md/all": ""})


def test_what_torrc_excludes_is_fetched_with_the_countries_that_it_names() -> None:
    answers = directory_of(*WIDE, countries={"10.11.0.1": "us"})
    answers["GETCONF EnforceDistinctSubnets"] = options_of(excluded=f"${'A' * 40}", exits="{us},Bad")

    relays, _ = fetch(answers)

    assert relays.excluded.rule.fingerprints == {"A" * 40}
    assert relays.excluded_exits.rule.nicknames == {"bad"}
    excluded = [
        r.nickname for r in relays.by_fingerprint.values() if relays.is_excluded(r, relays.excluded_exits)
    ]
    assert excluded == ["relayB"]


# --- in the agent ------------------------------------------------------------------------------------------

POLICY = """\
version: 1
tor: {{control: 'unix:{directory}/control'}}
circuits: [{{name: auto}}, {{name: chosen, path: {path}}}]
admin: {{socket: '{directory}/admin.sock'}}
log: {{format: plain}}
"""


def extend_over(letters: str) -> str:
    return f"EXTENDCIRCUIT 0 {','.join('$' + letter * 40 for letter in letters)}"


@pytest.fixture
def policy_path(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.format(directory=tmp_path, path=f"{{exit: {{fingerprint: [{'B' * 40}]}}}}"))
    return path


def agent(
    policy_path: Path, answers: Mapping[str, Answer], script: Callable[[FakeControlPort], object]
) -> None:
    with FakeControlPort(policy_path.parent / "control") as fake:
        fake.answers.update(answers)
        assert serve(policy_path, lambda: script(fake)) == 0


def test_nothing_is_asked_while_no_policy_selects_relays(policy_path: Path) -> None:
    policy_path.write_text(POLICY.format(directory=policy_path.parent, path="auto"))

    def script(fake: FakeControlPort) -> None:
        fake.wait_for("SETCONF __LeaveStreamsUnattached=1")
        fake.tell("STATUS_CLIENT NOTICE CONSENSUS_ARRIVED", f"GUARD ENTRY ${'A' * 40}~relayA DOWN")
        fake.tell("CIRC 99 FAILED REASON=TIMEOUT")
        status(policy_path)
        assert fake.count("GETINFO dir/") == fake.count("GETINFO entry-guards") == 0

    agent(policy_path, directory_of(*WIDE[:3]), script)


def test_a_selected_path_begins_with_tors_guard_and_ends_as_the_policy_says(policy_path: Path) -> None:
    def script(fake: FakeControlPort) -> None:
        fake.wait_for(extend_over("ACB"))
        fake.wait_for("SETCONF __LeaveStreamsUnattached=1")

    agent(policy_path, directory_of(*WIDE[:3]), script)


def test_a_new_consensus_is_fetched_and_used(policy_path: Path) -> None:
    def script(fake: FakeControlPort) -> None:
        fake.wait_for("GETINFO entry-guards")
        assert fake.count("EXTENDCIRCUIT 0 $") == 0
        fake.answers.update(directory_of(*WIDE[:3]))
        fake.tell("STATUS_CLIENT NOTICE CONSENSUS_ARRIVED")
        # Where nothing fitted, the next attempt comes after the wait that the policy says.
        fake.wait_for(extend_over("ACB"))

    agent(policy_path, directory_of(Made("A"), Made("C")), script)


def test_what_is_not_described_yet_is_looked_for_again(
    policy_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("circuitloom.directory.INCOMPLETE_SECONDS", 0.05)

    def script(fake: FakeControlPort) -> None:
        fake.wait_for("GETINFO dir/", 3)
        fake.answers.update(directory_of(*WIDE[:3]))
        fake.wait_for(extend_over("ACB"))

    answers = directory_of(*WIDE[:3])
    answers["GETINFO md/all"] = data("md/all", microdescriptors([WIDE[0], WIDE[2]]))
    agent(policy_path, answers, script)


def test_guards_are_asked_for_alone_when_tor_thinks_otherwise_of_them(policy_path: Path) -> None:
    def script(fake: FakeControlPort) -> None:
        fake.wait_for(extend_over("ACB"))
        fake.answers.update(directory_of(*WIDE[:3], guards="CA"))
        fake.tell(f"GUARD ENTRY ${'A' * 40}~relayA DOWN")
        fake.wait_for("GETINFO entry-guards", 2)
        wait_until(lambda: status(policy_path)["circuits"][1]["state"] == "built")
        fake.tell("CIRC 31 CLOSED REASON=DESTROYED")
        fake.wait_for(extend_over("CAB"))
        assert fake.count("GETINFO dir/") == 1
        fake.tell("CIRC 99 FAILED REASON=TIMEOUT")
        fake.wait_for("GETINFO entry-guards", 3)

    agent(policy_path, directory_of(*WIDE[:3]), script)


def test_relays_are_asked_for_until_tor_knows_some_and_others_serve_meanwhile(
    policy_path: Path, log: pytest.LogCaptureFixture
) -> None:
    def script(fake: FakeControlPort) -> None:
        fake.wait_for("EXTENDCIRCUIT 0")
        fake.wait_for("GETINFO dir/", 2)
        assert fake.count("EXTENDCIRCUIT 0 $") == 0
        fake.answers.update(directory_of(*WIDE[:3]))
        fake.wait_for(extend_over("ACB"))

    answers: dict[str, Answer] = {"GETINFO dir/": "551 Could not open cached consensus\r\n"}
    agent(policy_path, answers, script)
    assert log.text.count("no relays to select from (Tor has no consensus yet") == 1


def test_a_reload_that_selects_relays_fetches_them_and_one_that_does_not_stops(policy_path: Path) -> None:
    chosen = policy_path.read_text().partition("chosen, path: ")[2].partition("}]")[0]

    def script(fake: FakeControlPort) -> None:
        fake.wait_for("SETCONF __LeaveStreamsUnattached=1")
        change_policy(policy_path, "path: auto", f"path: {chosen}")
        reload(policy_path)
        fake.wait_for(extend_over("ACB"))
        change_policy(policy_path, f"path: {chosen}", "path: auto")
        reload(policy_path)
        before = fake.count("GETINFO dir/")
        fake.tell("STATUS_CLIENT NOTICE CONSENSUS_ARRIVED", f"GUARD ENTRY ${'A' * 40}~relayA DOWN")
        status(policy_path)
        assert fake.count("GETINFO dir/") == before

    change_policy(policy_path, f"path: {chosen}", "path: auto")
    agent(policy_path, directory_of(*WIDE[:3]), script)


def test_after_a_reload_that_asks_for_countries_nothing_is_selected_without_them(policy_path: Path) -> None:
    rule = f"fingerprint: [{'B' * 40}]}}"
    answers = directory_of(*WIDE[:3])

    def script(fake: FakeControlPort) -> None:
        fake.wait_for(extend_over("ACB"))
        wait_until(lambda: status(policy_path)["circuits"][1]["state"] == "built")
        fake.answers.update(directory_of(*WIDE[:4], guards="DA"))
        fake.answers["GETINFO ip-to-country"] = ""
        change_policy(policy_path, rule, f"{rule}, avoid: {{country: [us]}}")
        reload(policy_path)
        fake.wait_for("GETINFO ip-to-country/10.10.0.1")
        # Other guards are no reason to go on without what is still being asked for.
        fake.tell(f"GUARD ENTRY ${'A' * 40}~relayA DOWN")
        status(policy_path)
        fake.tell("CIRC 99 FAILED REASON=TIMEOUT")
        status(policy_path)
        assert fake.count("EXTENDCIRCUIT 0 $") == 1

    agent(policy_path, answers, script)


def reload(policy_path: Path) -> None:
    answer = ask(str(policy_path.parent / "admin.sock"), {"command": "reload"})
    assert answer["is_applied"]


def test_without_geoip_data_the_log_says_so_once(policy_path: Path, log: pytest.LogCaptureFixture) -> None:
    policy_path.write_text(POLICY.format(directory=policy_path.parent, path="{exit: {country: [de]}}"))
    answers = directory_of(*WIDE[:3])
    answers["GETINFO ip-to-country/ipv4-available"] = "250-ip-to-country/ipv4-available=0\r\n250 OK\r\n"

    def script(fake: FakeControlPort) -> None:
        for times in (1, 2):
            fake.wait_for("GETINFO dir/", times)
            fake.wait_for("GETINFO ip-to-country/ipv4-available", times)
            fake.tell("STATUS_CLIENT NOTICE CONSENSUS_ARRIVED")
        wait_until(lambda: status(policy_path)["circuits"][1]["state"] == "backoff")

    agent(policy_path, answers, script)
    assert log.text.count("Tor has no GeoIP data, so no relay is in any country") == 1
    assert (
        "circuit chosen cannot be built: no relay fits as exit: exit.country de (Tor has no GeoIP" in log.text
    )
