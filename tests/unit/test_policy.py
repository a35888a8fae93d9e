"""From bytes to ``Policy``: what the corpus of files cannot show well."""

from __future__ import annotations

import sys

import pytest

from circuitloom.errors import Fault, PolicyError
from circuitloom.policy import (
    Policy,
    Role,
    TcpAddress,
    UnixAddress,
    check_policy,
    parse_policy,
)
from circuitloom.policy.document import parse_document
from circuitloom.policy.nodes import Mapping
from circuitloom.policy.source import MAX_BYTES, decode
from circuitloom.policy.types import Adopt
from circuitloom.policy.values import parse_control, parse_duration, parse_fingerprint, parse_percentage
from circuitloom.policy.wording import any_of, escaped, path_text, quoted

HEAD = b"version: 1\n"
TWO = b"circuits: [{name: a}, {name: b}]\n"
FINGERPRINT = "0123456789ABCDEF0123456789ABCDEF01234567"


def policy_of(text: str | bytes) -> Policy:
    return parse_policy(HEAD + (text.encode() if isinstance(text, str) else text), name="p")


def lines_of(data: bytes) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        parse_policy(data, name="p")
    return str(caught.value).splitlines()


# Slots


def test_count_makes_circuits_that_are_alike() -> None:
    policy = policy_of("circuits: [{name: a, count: 3, weight: 2}, {name: b, count: 1}]\n")

    assert [(slot.name, slot.weight) for slot in policy.slots] == [
        ("a-1", 2),
        ("a-2", 2),
        ("a-3", 2),
        ("b", 1),
    ]


def test_a_thousand_circuits_are_accepted() -> None:
    policy = policy_of("circuits: [{name: a, count: 999}, {name: b}]\n")

    assert len(policy.slots) == 1000


def test_circuits_keep_their_order() -> None:
    policy = policy_of("circuits: [{name: z}, {name: a, role: backup}, {name: m}]\n")

    assert [(slot.name, slot.role) for slot in policy.slots] == [
        ("z", Role.ACTIVE),
        ("a", Role.BACKUP),
        ("m", Role.ACTIVE),
    ]


def test_the_same_path_may_be_used_by_several_circuits() -> None:
    path = f"[{FINGERPRINT}, {FINGERPRINT[::-1]}, {'A' * 40}]"

    policy = policy_of(f"circuits: [{{name: a, count: 2, path: {path}}}, {{name: b, path: {path}}}]\n")

    assert {(FINGERPRINT, FINGERPRINT[::-1], "A" * 40)} == {slot.path for slot in policy.slots}


def test_a_fingerprint_of_digits_only_stays_text() -> None:
    # Without quotes YAML reads these as an integer, an octal number and a float.
    digits = ["1" * 40, "0" * 40, "1" * 20 + "E" + "1" * 19]

    policy = policy_of(f"circuits: [{{name: a, path: [{', '.join(digits)}]}}]\n")

    assert policy.slots[0].path == tuple(digits)


@pytest.mark.parametrize(
    ("circuits", "expected"),
    [
        ("[{name: a}]", 1),
        ("[{name: a}, {name: b, role: backup}]", 1),
        ("[{name: a}, {name: b}]", 2),
        ("[{name: a, count: 8}, {name: b, role: backup}]", 2),
    ],
)
def test_min_active_defaults_to_two_or_to_the_one_there_is(circuits: str, expected: int) -> None:
    assert policy_of(f"circuits: {circuits}\n").failover.min_active == expected


def test_min_active_may_be_every_active_circuit() -> None:
    policy = policy_of("circuits: [{name: a, count: 3}]\nfailover: {min_active: 3}\n")

    assert policy.failover.min_active == 3


def test_weight_one_is_no_fault_with_round_robin() -> None:
    policy_of("balance: {algorithm: round-robin}\ncircuits: [{name: a, weight: 1}, {name: b}]\n")


def test_equal_waits_are_no_fault() -> None:
    policy = policy_of(TWO + b"failover: {rebuild: {initial: 1m, max: 60s}}\n")

    assert policy.failover.rebuild.initial_seconds == policy.failover.rebuild.max_seconds == 60.0


# Values


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1ms", 0.001), ("500ms", 0.5), ("30s", 30.0), ("10m", 600.0), ("1h", 3600.0), ("1d", 86400.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "fraction"), [("0%", 0.0), ("5%", 0.05), ("20%", 0.2), ("100%", 1.0)])
def test_percentages(text: str, fraction: float) -> None:
    assert parse_percentage(text) == fraction


@pytest.mark.parametrize(
    "text", [FINGERPRINT, f"${FINGERPRINT.lower()}", f"{FINGERPRINT}=n", f"${FINGERPRINT}~n"]
)
def test_fingerprints(text: str) -> None:
    assert parse_fingerprint(text) == FINGERPRINT


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/tor/control", UnixAddress("/run/tor/control")),
        ("unix:/with: colon and space", UnixAddress("/with: colon and space")),
        (f"unix:/{'x' * 106}", UnixAddress(f"/{'x' * 106}")),
        ("tcp:127.0.0.1:9051", TcpAddress("127.0.0.1", 9051)),
        ("tcp:127.1.2.3:65535", TcpAddress("127.1.2.3", 65535)),
        ("tcp:[::1]:1", TcpAddress("::1", 1)),
    ],
)
def test_control_addresses_read_as_they_are_written(text: str, address: UnixAddress | TcpAddress) -> None:
    assert parse_control(text) == address
    assert str(address) == text


# Warnings


ONE_CIRCUIT = "with one circuit there is nothing to balance and nothing to fail over to: add another"
TCP = "over TCP a command can wait 40 ms for a delayed acknowledgement: prefer Tor's Unix socket"
NO_GUARD = "Tor uses no guard where the relays are given: the first of them always sees this client"
TWO_HOPS = "with two hops, two relays are enough to link this client to its destinations: use three"


@pytest.mark.parametrize(
    ("text", "warnings"),
    [
        ("circuits: [{name: a}, {name: b, path: auto}]\n", []),
        ("circuits:\n  - name: a\n", [f"p:3:3: circuits: {ONE_CIRCUIT}"]),
        (
            "tor: {control: tcp:127.0.0.1:9051}\ncircuits: [{name: a, count: 2}]\n",
            [f"p:2:16: tor.control: {TCP}"],
        ),
        (
            f"circuits:\n  - name: a\n  - name: b\n    path: [{FINGERPRINT}, {'A' * 40}]\n",
            [f"p:5:11: circuits[1].path: {NO_GUARD}", f"p:5:11: circuits[1].path: {TWO_HOPS}"],
        ),
        (
            f"circuits:\n  - name: a\n  - name: b\n    path: [{FINGERPRINT}, {'A' * 40}, {'B' * 40}]\n",
            [f"p:5:11: circuits[1].path: {NO_GUARD}"],
        ),
    ],
)
def test_warnings(text: str, warnings: list[str]) -> None:
    policy, found = check_policy(HEAD + text.encode(), name="p")

    assert list(map(str, found)) == warnings
    assert policy == policy_of(text)


# Faults: places, order, and what is not said


def test_place_counts_characters_not_bytes() -> None:
    lines = lines_of(HEAD + '"\u00e4\U0001f9c5": {\u00fc: &a 1}\ncircuits: [{name: a}]\n'.encode())

    assert lines[0].startswith("p:2:1: unknown key `\u00e4\U0001f9c5`")
    assert lines[1].startswith('p:2:11: "\u00e4\U0001f9c5"."\u00fc": anchor')


def test_byte_order_mark_is_no_character() -> None:
    assert lines_of(b"\xef\xbb\xbfversion: 2\n" + TWO) == [
        "p:1:10: version: must be 1, the only version there is, not `2`"
    ]


def test_windows_line_ends_are_accepted() -> None:
    data = (HEAD + TWO).replace(b"\n", b"\r\n")

    assert parse_policy(data, name="p") == policy_of(TWO)


def test_json_is_accepted() -> None:
    assert parse_policy(b'{"version": 1, "circuits": [{"name": "a"}, {"name": "b"}]}', name="p") == policy_of(
        TWO
    )


def test_name_of_several_lines_does_not_break_a_fault() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(b"", name="a\nb")

    assert str(caught.value) == r"a\nb:1:1: the policy is empty: it needs at least `version` and `circuits`"


def test_faults_are_values() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(b"version: 2\n" + TWO, name="p")

    expected = Fault("p", 1, 10, "version", "must be 1, the only version there is, not `2`")
    assert caught.value.faults == (expected,)


@pytest.mark.parametrize(
    "text",
    [
        # A faulty role or count: how many circuits are active is not known.
        "circuits: [{name: a, role: x}]\nfailover: {min_active: 5}\n",
        "circuits: [{name: a, count: x}, {name: a, role: backup}]\nfailover: {min_active: 5}\n",
        # A faulty algorithm: whether weights count is not known.
        "balance: {algorithm: round}\ncircuits: [{name: a, weight: 2}]\n",
        # A faulty duration beside one that is too long for the other's default.
        "circuits: [{name: a}]\nfailover: {rebuild: {initial: 5m, max: x}}\n",
        # Circuits that are no list, or an entry that is no mapping.
        "circuits: 3\nfailover: {min_active: 5}\n",
        "circuits: [{name: a, role: backup}, 3]\n",
        # What a merge key might have brought.
        "circuits: [{name: a, role: backup}, {name: b, <<: {role: active}}]\n",
        "circuits: [{name: a, weight: 2}]\nbalance: {<<: {algorithm: x}}\n<<: {tor: {control: x}}\n",
        # What a tag hides.
        "circuits: !x [{name: a, role: backup}]\n",
        "circuits: [!x {name: a, role: backup}, {name: b, role: backup}]\n",
        "circuits: [{name: a}]\ntor: !x {control: y}\n",
        # The wrong kind of section.
        "circuits: [{name: a}]\ntor: []\n",
    ],
)
def test_no_fault_follows_from_another(text: str) -> None:
    lines = lines_of(HEAD + text.encode())

    # A merge key, and the second one of the same text.
    assert len(lines) == max(1, text.count("<<"))


def test_no_message_shows_what_may_be_a_password() -> None:
    text = b"tor: {password_file: hunter2}\n" + TWO

    assert lines_of(HEAD + text) == ["p:2:22: tor.password_file: must be the absolute path of a file"]


# Bounds


def test_nodes_beyond_the_limit_are_refused() -> None:
    data = HEAD + b"circuits: [" + b"a," * 40_000 + b"]\n"

    assert lines_of(data) == [
        "p:2:65538: circuits[32763]: more than 32768 keys and values: no policy needs so many"
    ]


def test_a_policy_of_a_thousand_long_paths_is_within_the_limits() -> None:
    relays = "".join(f"    - ${number:X}{'0' * 39}~nickname\n" for number in range(1, 9))
    entries = "".join(f"- name: circuit-{number}\n  path:\n{relays}" for number in range(1000))

    policy = policy_of(f"circuits:\n{entries}")

    assert len(policy.slots) == 1000


HUGE = {
    "one word": b"a" * MAX_BYTES,
    "one key": b"a" * (MAX_BYTES - 2) + b": ",
    "one quoted word": b'"' + b"a" * (MAX_BYTES - 2) + b'"',
    "one name": HEAD + b"circuits: [{name: " + b"a" * 1_000_000 + b"}]",
    "one relay": HEAD + b"circuits: [{name: a, path: [" + b"$" + b"a" * 1_000_000 + b"]}]",
    "one duration": HEAD + TWO + b"failover: {rebuild: {max: " + b"9" * 1_000_000 + b"s}}",
    "one integer": HEAD + b"circuits: [{name: a, weight: " + b"9" * 1_000_000 + b"}]",
    "one address": HEAD + TWO + b"tor: {control: 'tcp:" + b"[" * 1_000_000 + b"'}",
    "one port": HEAD + TWO + b"tor: {control: 'tcp:127.0.0.1:" + b"9" * 1_000_000 + b"'}",
    "escapes": b'"' + b"\\x41" * (MAX_BYTES // 4 - 1) + b'"',
    "comments": b"#\n" * (MAX_BYTES // 2),
    "blank lines": b" \n" * (MAX_BYTES // 2),
    "directives": b"%a\n" * (MAX_BYTES // 3),
    "documents": b"---\n" * (MAX_BYTES // 4),
    "flow lists": b"[" * MAX_BYTES,
    "flow lists on lines": b"[\n" * (MAX_BYTES // 2),
    "flow mappings": b"{a: " * (MAX_BYTES // 4),
    "block lists": b"- " * (MAX_BYTES // 2),
    "complex keys": b"? " * (MAX_BYTES // 2),
    "stairs": b"".join(b" " * depth + b"a:\n" for depth in range(1400)),
    "anchors": b"&a " * (MAX_BYTES // 3),
    "aliases": b"[" + b"*a," * (MAX_BYTES // 3 - 1) + b"]",
    "tags": b"[" + b"!a ," * (MAX_BYTES // 4 - 1) + b"]",
    "tag handles": b"".join(b"%%TAG !%d! x\n" % number for number in range(60_000)) + b"--- a",
    "commas": b"[" + b"," * (MAX_BYTES - 1),
    "colons": b": " * (MAX_BYTES // 2),
    "quotes": b"'" * MAX_BYTES,
    "unknown keys": b"".join(b"wieght%d: 1\n" % number for number in range(16_000)),
    "the same key": b"a: 1\n" * 16_000,
    "circuits": HEAD + b"circuits: [" + b"{name: a, count: 1000}," * 6_000 + b"]",
    "names": HEAD + b"circuits: [" + b"".join(b"{name: a%d, count: 1000}," % n for n in range(1000)) + b"]",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("data", HUGE.values(), ids=HUGE.keys())
def test_the_largest_file_ends_in_bounded_lines(data: bytes) -> None:
    lines = lines_of(data[:MAX_BYTES])

    assert max(map(len, lines)) < 300


def test_more_than_the_largest_file_is_refused() -> None:
    assert lines_of(b"#" * (MAX_BYTES + 1)) == ["p:1:1: the file is larger than 1 MiB, so it is no policy"]


def test_depth_is_judged_long_before_the_recursion_limit() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        lines = lines_of(HEAD + b"a: " + b"[" * 31 + b"]" * 31 + b"\n" + TWO)
    finally:
        sys.setrecursionlimit(limit)

    assert lines[0].startswith("p:2:1: unknown key `a`")


# Pieces


def test_decode_of_nothing_is_nothing() -> None:
    assert decode(b"", "p") == ""


def test_nodes_are_found_by_path() -> None:
    document = parse_document("a: [{b: 1}]\n", "p")

    assert document.node_at(()) is document.root
    assert isinstance(document.node_at(("a", 0)), Mapping)
    assert document.node_at(("a", 0, "c")) is None
    assert document.node_at(("a", "b")) is None
    assert document.node_at(("a", 0, "b", "c")) is None


def test_a_fault_of_an_absent_value_shows_at_what_is_around_it() -> None:
    document = parse_document("a:\n  - b: 1\n", "p")

    assert str(document.fault(("a", 0, "c", "d"), "x")) == "p:2:5: a[0].c.d: x"
    assert str(document.fault((), "x")) == "p:1:1: x"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("a",), "a"),
        (("a", 1, "b"), "a[1].b"),
        (("a b", "c.d"), '"a b"."c.d"'),
        (("x" * 100,), f'"{"x" * 61}..."'),
    ],
)
def test_paths_as_text(path: tuple[str | int, ...], text: str) -> None:
    assert path_text(path) == text


def test_words_in_messages() -> None:
    assert any_of(["a"]) == "`a`"
    assert any_of(["a", "b"]) == "`a` or `b`"
    assert any_of(["a", "b", "c"]) == "`a`, `b` or `c`"
    assert quoted("x" * 64) == f"`{'x' * 64}`"
    assert quoted("x" * 65) == f"`{'x' * 61}...`"
    assert escaped("a\tb\x1b\u2028\U000e0001\u00e9") == "a\\tb\\x1b\\u2028\\U000e0001\u00e9"


def test_sharing_circuits_is_warned_about() -> None:
    text = b"version: 1\nbalance:\n  isolation: none\n%scircuits: [{name: a}, {name: b}]\n"
    _, plain = check_policy(text % b"", name="p")
    _, with_keys = check_policy(text % b"  keys: {idle: 5m}\n", name="p")

    sharing = (
        "p:3:14: balance.isolation: streams of different SOCKS users and clients share circuits: "
        "their exits can link them"
    )
    assert [str(warning) for warning in plain] == [sharing]
    assert [str(warning) for warning in with_keys] == [
        sharing,
        "p:4:9: balance.keys: this does nothing under `isolation: none`",
    ]


def test_rules_that_no_stream_reaches_are_warned_about() -> None:
    text = (
        b"version: 1\ncircuits: [{name: a}, {name: b}]\nrules:\n"
        b"  - {match: {port: [1-1000]}, action: tor}\n"
        b"  - {match: {port: [25], host: [example.com]}, action: reject}\n"
        b"  - {match: {socks_user: x}, circuits: [a]}\n"
    )
    _, found = check_policy(text, name="p")

    assert [str(warning) for warning in found] == [
        "p:5:5: rules[1]: no stream gets here: the rule in line 4 takes all that match"
    ]


@pytest.mark.parametrize("sticky", ["socks-user", "source"])
def test_sticking_by_what_isolation_keeps_apart_is_warned_about(sticky: str) -> None:
    text = f"version: 1\nbalance: {{sticky: {sticky}}}\ncircuits: [{{name: a}}, {{name: b}}]\n"
    _, found = check_policy(text.encode(), name="p")

    assert [warning.path for warning in found] == ["balance.sticky"]
    assert "of which it would use one" in found[0].message


def test_a_bound_for_what_does_not_stick_is_warned_about() -> None:
    text = b"version: 1\nbalance: {sticky_load: 150%}\ncircuits: [{name: a}, {name: b}]\n"
    _, found = check_policy(text, name="p")

    assert [str(warning) for warning in found] == [
        "p:2:24: balance.sticky_load: this does nothing under `sticky: none`"
    ]


def test_rules_of_a_policy_with_faulty_circuits_are_judged_as_far_as_they_can_be() -> None:
    lines = lines_of(
        b"version: 1\ncircuits: [{name: a, count: 0}, {name: 1}]\n"
        b"rules: [{circuits: [nobody]}, {match: {port: [9-8]}, action: tor}, {<<: x, action: tor}]\n"
    )

    assert [line for line in lines if "nobody" in line] == []
    assert any("range of ports that grows" in line for line in lines)


def test_rules_are_judged_also_when_there_are_too_many_circuits() -> None:
    lines = lines_of(
        b"version: 1\ncircuits: [{name: a, count: 1000}, {name: b, count: 1000}]\nrules: [{circuits: [c]}]\n"
    )

    assert len(lines) == 1


@pytest.mark.parametrize(
    ("circuits", "percent", "fault"),
    [
        ("[{name: a, count: 4}]", 25, None),
        (
            "[{name: a, count: 4}]",
            24,
            "of 4 circuits for each key none is ever ejected: from 25 on one may be",
        ),
        ("[{name: a, count: 2}, {name: b, role: backup}]", 34, None),
        (
            "[{name: a, count: 2}, {name: b, role: backup}]",
            33,
            "of 3 circuits for each key none is ever ejected: from 34 on one may be",
        ),
        ("[{name: a}]", 100, "of 1 circuit for each key none is ever ejected"),
    ],
)
def test_an_ejection_that_can_never_come_is_warned_about(
    circuits: str, percent: int, fault: str | None
) -> None:
    text = f"circuits: {circuits}\nhealth: {{eject: {{max_percent: {percent}}}}}\n"
    found = [
        warning for warning in check_policy(HEAD + text.encode(), name="p")[1] if "health" in warning.path
    ]

    assert [str(warning) for warning in found] == (
        [] if fault is None else [f"p:3:31: health.eject.max_percent: {fault}"]
    )


GIVES_UP = "after 10 s Tor itself gives up, and closes the circuit soon: one failed probe costs it"
NO_KEY = "circuits that no key has yet are not probed: `isolation: none` if there is but one user"


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("", None),
        ("timeout: 9s, interval: 20s", None),
        ("timeout: 10s", f"health.probe.timeout: {GIVES_UP}"),
        ("unused: true", f"health.probe.unused: {NO_KEY}"),
    ],
)
def test_what_probes_may_not_do_as_expected_is_warned_about(more: str, fault: str | None) -> None:
    text = f"circuits: [{{name: a}}, {{name: b}}]\nhealth: {{probe: {{targets: ['a.example:80'], {more}}}}}\n"
    found = [
        warning for warning in check_policy(HEAD + text.encode(), name="p")[1] if "probe" in warning.path
    ]

    assert [f"{warning.path}: {warning.message}" for warning in found] == ([] if fault is None else [fault])


def test_rounds_on_circuits_that_are_never_probed_are_warned_about() -> None:
    text = (
        b"circuits: [{name: a}, {name: b}]\nbalance: {isolation: none}\nrounds: {command: [/hook]}\n"
        b"health: {probe: {targets: ['a.example:80']%s}}\n"
    )
    found = check_policy(HEAD + text % b"", name="p")[1]
    unused = check_policy(HEAD + text % b", unused: true", name="p")[1]
    unasked = check_policy(
        HEAD + (text % b"").replace(b"[/hook]", b"[/hook], require_probe: false"), name="p"
    )[1]

    assert "health.probe" in [warning.path for warning in found]
    assert "health.probe" not in [warning.path for warning in (*unused, *unasked)]


def test_an_adopted_circuit_that_only_the_first_key_gets_is_warned_of() -> None:
    text = b"version: 1\ncircuits:\n  - name: own\n  - {name: paid, adopt: {rebuild: true}}\n"
    policy, found = check_policy(text, name="p")
    _, shared = check_policy(text + b"balance: {isolation: none}\n", name="p")

    assert [slot.adopt for slot in policy.slots] == [None, Adopt(rebuild=True)]
    assert [warning.path for warning in found] == ["circuits[1].adopt"]
    assert found[0].message.startswith("an adopted circuit serves the first key only")
    assert "first key" not in " ".join(map(str, shared))
