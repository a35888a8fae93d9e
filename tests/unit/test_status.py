"""The status in words: its line, its document, and a table that stays in 80 columns."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from circuitloom.kinds import Kind
from circuitloom.model import Announce, Severity
from circuitloom.policy.probing import Probe
from circuitloom.policy.types import Failover, Health, Policy, Slot, UnixAddress, WhenNone
from circuitloom.pool import CircuitSnapshot, Histogram, PoolSnapshot
from circuitloom.pool.snapshot import ProbeSnapshot
from circuitloom.status import event_document, status_document, status_line
from circuitloom.tables import explanation_text, status_table

POLICY = Policy((Slot("primary", weight=3), Slot("standby")))


def circuit(name: str = "primary", state: str = "built", **more: object) -> CircuitSnapshot:
    values: dict[str, Any] = {
        "name": name,
        "role": "active",
        "weight": 3,
        "max_streams": 256,
        "state": state,
        "circuit_id": "30",
        "path": ("alpha", "beta", "gamma"),
        "streams": 12,
        "attached_total": 1500,
        "failed_total": 7,
        "age_seconds": 125.4,
        "share": 0.75123,
        "weight_share": 0.75,
        "key": 0,
    }
    return CircuitSnapshot(**(values | more))


WAITING = circuit(
    "standby",
    "backoff",
    role="backup",
    weight=1,
    circuit_id=None,
    path=(),
    streams=0,
    attached_total=0,
    failed_total=0,
    age_seconds=None,
    share=0.0,
    weight_share=1.0,
    key=0,
)


def snapshot(state: str = "balancing", *circuits: CircuitSnapshot, streams: int = 12) -> PoolSnapshot:
    return PoolSnapshot(
        state=state,
        since_seconds=3725.04,
        algorithm="weighted-round-robin",
        is_ready=True,
        circuits=circuits or (circuit(), WAITING),
        streams_active=streams,
        streams_waiting=2,
        attached_total=1500,
        released_total=4,
        failed_total=7,
    )


def document(of: PoolSnapshot, version: str = "0.4.9.11") -> dict[str, Any]:
    return status_document(
        of,
        POLICY,
        reason="a reason",
        tor_version=version,
        guard_pid=4711,
        country_of=lambda fingerprint: {"C" * 40: "de"}.get(fingerprint, "??"),
    )


@pytest.mark.parametrize(
    ("of", "line"),
    [
        (snapshot(), "balancing 12 streams over 1 of 2 circuits, weighted-round-robin"),
        (snapshot(streams=1), "balancing 1 stream over 1 of 2 circuits, weighted-round-robin"),
        (snapshot("released"), "Tor assigns streams: 1 of 2 circuits built"),
        (snapshot("disconnected"), "not connected to Tor: it is away"),
        (snapshot("stopping"), "giving stream attachment back to Tor"),
    ],
)
def test_the_line_says_who_assigns_streams(of: PoolSnapshot, line: str) -> None:
    assert status_line(of, POLICY, "it is away") == line


@pytest.mark.parametrize(
    ("when_none", "what"),
    [
        (WhenNone.TOR, "Tor assigns streams"),
        (WhenNone.HOLD, "streams wait"),
        (WhenNone.REJECT, "streams are refused"),
    ],
)
def test_the_line_says_what_happens_without_circuits(when_none: WhenNone, what: str) -> None:
    policy = Policy(POLICY.slots, failover=Failover(when_none))

    assert status_line(snapshot("balancing", WAITING), policy, "") == (
        f"no circuit is usable, {what}: 0 of 1 circuits built"
    )


def test_the_document_is_json_and_rounded() -> None:
    shown = json.loads(json.dumps(document(snapshot())))

    assert shown["version"] == 1
    assert (shown["state"], shown["since_seconds"], shown["reason"]) == ("balancing", 3725.04, "a reason")
    assert shown["tor"] == {"connected": True, "version": "0.4.9.11", "control": "unix:/run/tor/control"}
    assert shown["streams"] == {
        "active": 12,
        "waiting": 2,
        "attached_total": 1500,
        "released_total": 4,
        "failed_total": 7,
    }
    assert shown["circuits"][0] == {
        "name": "primary",
        "role": "active",
        "weight": 3,
        "max_streams": 256,
        "state": "built",
        "circuit_id": "30",
        "path": ["alpha", "beta", "gamma"],
        "streams": 12,
        "attached_total": 1500,
        "failed_total": 7,
        "age_seconds": 125.4,
        "share": 0.7512,
        "weight_share": 0.75,
        "key": 0,
        "is_adopted": False,
        "weight_factor": 1.0,
        "is_degraded": False,
        "connect_p50_seconds": None,
        "connect_p99_seconds": None,
        "exit_country": None,
        "probe": None,
    }
    assert shown["circuits"][1]["age_seconds"] is None


def test_the_document_is_as_its_schema_says_and_the_schema_knows_every_key() -> None:
    schema = json.loads((files("circuitloom") / "schemas" / "status.schema.json").read_text())
    shown = json.loads(json.dumps(document(snapshot())))

    Draft202012Validator.check_schema(schema)
    assert list(Draft202012Validator(schema).iter_errors(shown)) == []
    assert shown.keys() == schema["properties"].keys()
    for part in ("tor", "streams"):
        assert shown[part].keys() == schema["properties"][part]["properties"].keys()
    assert shown["circuits"][0].keys() == schema["properties"]["circuits"]["items"]["properties"].keys()


def test_probes_are_told_circuit_by_circuit() -> None:
    schema = json.loads((files("circuitloom") / "schemas" / "status.schema.json").read_text())
    unused = "it has carried no stream yet"
    of = snapshot(
        "balancing",
        circuit(probe=ProbeSnapshot("up", "passed", 9, 1.23456, "")),
        circuit("b", "down", probe=ProbeSnapshot("down", "passed", 1, 2.0, "")),
        circuit("c", probe=ProbeSnapshot("up", "failed", 2, 2.0, "")),
        circuit("d", probe=ProbeSnapshot("unknown", None, 0, None, "")),
        circuit("e", probe=ProbeSnapshot("skipped", None, 0, None, unused)),
        circuit("e", key=3, probe=ProbeSnapshot("skipped", None, 0, None, unused)),
        circuit("f", "building"),
    )
    policy = Policy(POLICY.slots, health=Health(probe=Probe(UnixAddress("/s"), ("a:1",))))
    troubled = replace(of, probe_problem="unix:/s: Connection refused")

    shown = status_document(
        troubled, policy, reason="a reason", tor_version="", guard_pid=None, country_of=lambda _: "de"
    )

    assert list(Draft202012Validator(schema).iter_errors(json.loads(json.dumps(shown)))) == []
    probe = schema["properties"]["circuits"]["items"]["properties"]["probe"]
    assert shown["circuits"][0]["probe"].keys() == probe["properties"].keys()
    assert shown["circuits"][0]["probe"]["seconds_ago"] == 1.235
    lines = status_table(shown).splitlines()
    start = next(number for number, line in enumerate(lines) if "PROBE" in line)
    cells = [line[lines[start].index("PROBE") :].split("  ")[0] for line in lines[start : start + 8]]
    assert cells == ["PROBE", "up", "down, 1 passed", "up, 2 failed", "unknown", "skipped", "skipped", "-"]
    assert lines[-2:] == [
        "probes: unix:/s: Connection refused",
        "not probed: e: it has carried no stream yet",
    ]


@pytest.mark.parametrize(
    ("state", "is_connected"), [("released", True), ("disconnected", False), ("stopping", False)]
)
def test_the_document_says_whether_tor_is_there(state: str, is_connected: bool) -> None:
    assert document(snapshot(state))["tor"]["connected"] is is_connected


def test_the_table_is_as_it_is() -> None:
    connects = Histogram()
    for seconds in (0.08, 0.09, 0.3):
        connects.observe(seconds, 50)
    measured = circuit(connects=connects, exit_fingerprint="C" * 40)

    assert status_table(document(snapshot("balancing", measured, WAITING))) == (
        "BALANCING for 1h02m: a reason\n"
        "Tor 0.4.9.11 at unix:/run/tor/control\n"
        "\n"
        "CIRCUIT  STATE      AGE  OPEN  TOTAL  FAILED  SHARE  WEIGHT   P50    P99\n"
        "primary  built    2m05s    12   1500       7  75.1%   75.0%  94ms  297ms\n"
        "standby  backoff      -     0      0       0   0.0%  backup     -      -\n"
        "\n"
        "CIRCUIT  ID  ROLE    PATH (COUNTRY OF ITS EXIT)\n"
        "primary  30  active  alpha > beta > gamma (de)\n"
        "standby   -  backup  -\n"
        "\n"
        "12 streams, 2 waiting; since the start 1500 attached, 4 left to Tor, 7 failed"
    )


def test_the_table_fits_80_columns_with_names_and_counts_of_a_busy_day() -> None:
    connects = Histogram()
    connects.observe(70.0)
    busy = circuit(
        "swarm-12",
        "draining",
        circuit_id="12345",
        streams=256,
        attached_total=9_999_999,
        failed_total=12_345,
        age_seconds=86400.0 * 9,
        share=1.0,
        weight_share=1.0,
        key=0,
        path=("AnUnnamedRelayOfTor", "A" * 40, "gamma"),
        exit_fingerprint="D" * 40,
        is_adopted=True,
        connects=connects,
    )

    shown = document(snapshot("balancing", busy))
    shown["reason"] = "balancing 1024 streams over 12 of 12 circuits for 12 keys, weighted-round-robin"
    lines = status_table(shown).splitlines()

    assert max(map(len, lines)) <= 80
    assert lines[:2] == [
        "BALANCING for 1h02m: 1024 streams over 12 of 12 circuits for 12 keys,",
        "  weighted-round-robin",
    ]
    assert "10.0M" in lines[5]
    assert "10.0s" in lines[5]
    assert lines[8].endswith("adopted  AnUnnamedRela\u2026 > AAAAAAAA > gamma (??)")


def test_what_is_too_wide_is_cut_or_goes_on_in_the_next_line() -> None:
    """With several keys, probes and long names, and whole on a terminal that is wide enough."""
    connects = Histogram()
    connects.observe(0.5)
    name = "measurement-of-germany-number-"
    circuits = [
        circuit(
            f"{name}{number}",
            "draining",
            circuit_id="12345",
            streams=256,
            attached_total=9_999_999,
            failed_total=123_456,
            age_seconds=86400.0 * 9,
            key=key,
            path=("AnUnnamedRelayOfTor", "A" * 40, "gamma"),
            exit_fingerprint="D" * 40,
            is_adopted=True,
            connects=connects,
            probe=ProbeSnapshot("down", "passed", 1, 2.0, ""),
        )
        for number, key in ((1, 0), (2, 1234))
    ]
    policy = Policy(POLICY.slots, health=Health(probe=Probe(UnixAddress("/s"), ("a:1",))))
    shown = status_document(
        snapshot("balancing", *circuits),
        policy,
        reason="a reason",
        tor_version="0.4.9.11",
        guard_pid=None,
        country_of=lambda _: "de",
    )

    assert status_table(shown).splitlines()[3:12] == [
        "CIRCUIT            KEY STATE      AGE OPEN TOTAL FAILED SHARE WEIGHT   P50   P99",
        "measurem\u2026number-1    0 draining 9d00h  256 10.0M 123456 75.1%  75.0% 400ms 498ms",
        "measurem\u2026number-2 1234 draining 9d00h  256 10.0M 123456 75.1%  75.0% 400ms 498ms",
        "",
        "CIRCUIT              KEY    ID ROLE    PROBE          PATH (COUNTRY OF ITS EXIT)",
        "measureme\u2026-number-1    0 12345 adopted down, 1 passed AnUnnamedRela\u2026 > AAAAAAAA",
        "                                                      > gamma (de)",
        "measureme\u2026-number-2 1234 12345 adopted down, 1 passed AnUnnamedRela\u2026 > AAAAAAAA",
        "                                                      > gamma (de)",
    ]
    wide = status_table(shown, width=200)
    assert f"{name}1     0  draining  9d00h" in wide
    assert "down, 1 passed  AnUnnamedRela\u2026 > AAAAAAAA > gamma (de)" in wide


def test_a_tor_whose_version_is_unknown() -> None:
    assert "\nTor ? at unix:/run/tor/control\n" in status_table(document(snapshot(), version=""))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0s"), (59.9, "59s"), (60.0, "1m00s"), (3599.0, "59m59s"), (7384.0, "2h03m"), (90000.0, "1d01h")],
)
def test_durations_have_two_units(seconds: float, words: str) -> None:
    shown = document(snapshot("balancing", circuit(age_seconds=seconds)))

    assert f"  {words}  " in status_table(shown)


def test_circuits_of_several_keys_show_whose_they_are() -> None:
    both = snapshot("balancing", circuit(), circuit(circuit_id="31", key=3))

    assert status_line(both, POLICY, "").endswith("over 2 of 2 circuits for 2 keys, weighted-round-robin")
    assert status_table(document(both)).splitlines()[3:6] == [
        "CIRCUIT  KEY  STATE    AGE  OPEN  TOTAL  FAILED  SHARE  WEIGHT  P50  P99",
        "primary    0  built  2m05s    12   1500       7  75.1%   75.0%    -    -",
        "primary    3  built  2m05s    12   1500       7  75.1%   75.0%    -    -",
    ]


def test_an_event_names_its_kind_and_what_it_is_about() -> None:
    ejected = Announce(Severity.WARNING, "it is out", Kind.CIRCUIT_EJECTED, "heavy", "12")

    assert event_document(ejected, at=1.23456) == {
        "time": 1.235,
        "severity": "warning",
        "event": "circuit-ejected",
        "message": "it is out",
        "circuit": "heavy",
        "circuit_id": "12",
    }


@pytest.mark.parametrize("shows", [True, False])
def test_an_explanation_shows_destinations_where_the_answer_has_them(*, shows: bool) -> None:
    decision = {
        "stream": "7",
        "seconds_ago": 3.0,
        "did": "attach",
        "circuit": "heavy",
        "circuit_id": "12",
        "why": None,
        **({"destination": "example.com:443"} if shows else {}),
    }
    answer = {"stream": "7", "algorithm": "first", "decisions": [decision], "candidates": []}

    lines = explanation_text(answer).splitlines()[2:4]
    assert lines == (
        [
            "STREAM  AGO  CIRCUIT  ID  DESTINATION      WHY",
            "     7   3s  heavy    12  example.com:443  its turn by first",
        ]
        if shows
        else ["STREAM  AGO  CIRCUIT  ID  WHY", "     7   3s  heavy    12  its turn by first"]
    )
