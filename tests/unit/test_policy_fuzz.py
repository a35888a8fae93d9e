"""Arbitrary input gives a ``Policy`` or a ``PolicyError``; a policy that is written is read back.

The number of examples is Hypothesis's own, so that a profile can raise it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitloom.errors import Fault, PolicyError
from circuitloom.policy import (
    Admin,
    Algorithm,
    Balance,
    Failover,
    Log,
    LogFormat,
    LogLevel,
    Policy,
    Rebuild,
    Role,
    Slot,
    TcpAddress,
    TorControl,
    UnixAddress,
    WhenNone,
    check_policy,
    parse_policy,
)
from circuitloom.policy.schema import schema_validator

pytestmark = pytest.mark.timeout(300)

SCHEMAS = Path(__file__).parents[2] / "schemas"
SEEDS = [
    path.read_bytes()
    for folder in ("examples", "invalid")
    for path in sorted((SCHEMAS / folder).glob("*.yaml"))
]

# Pieces that mean something to YAML or to the policy.
TOKENS = [
    *(
        b"version: 1\n",
        b"circuits:\n",
        b"  - name: a\n",
        b"    weight: 3\n",
        b"path: [",
        b"failover:",
        b"tor: {control: ",
    ),
    *(
        b"---\n",
        b"...\n",
        b"%YAML 1.1\n",
        b"%TAG ! x\n",
        b"\t",
        b"\r\n",
        b"\r",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\xe2\x80\xa8",
    ),
    *(
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/name:x ",
        b"!",
        b"? ",
        b": ",
        b"- ",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"|\n",
        b">-\n",
    ),
    *(
        b"'",
        b'"',
        b"\\",
        b'"\\UFFFFFFFF"',
        b'"\\ud800"',
        b"#",
        b"@",
        b"`",
        b"%",
        b"~",
        b"null",
        b"no",
        b".nan",
        b"1:30",
    ),
    *(
        b"2024-01-01",
        b"010",
        b"0x1F",
        b"1_000",
        b"9" * 5000,
        b"-1",
        b"1e400",
        b"=",
        b"\n",
        b"\n  ",
        b"    ",
        b"auto",
    ),
]


def judge(data: bytes) -> Policy | None:
    """The contract of every fuzz test here."""
    faults: tuple[Fault, ...] = ()
    try:
        policy, warnings = check_policy(data, name="fuzz")
    except PolicyError as error:
        policy, warnings, faults = None, (), error.faults
        assert faults, error  # noqa: PT017 - an error without a fault would name nothing
    last_line = data.count(b"\n") + 1
    for fault in (*faults, *warnings):
        assert str(fault).isprintable()
        assert str(fault).startswith("fuzz:")
        assert 1 <= fault.line <= last_line
        assert fault.column >= 1
    assert list(faults) == sorted(set(faults))
    return policy


@given(st.binary(max_size=200))
def test_arbitrary_bytes(data: bytes) -> None:
    judge(data)


@given(st.text(max_size=200))
def test_arbitrary_text(text: str) -> None:
    judge(text.encode(errors="surrogatepass"))


@given(st.lists(st.sampled_from(TOKENS), max_size=40))
@settings(deadline=None)
def test_arbitrary_tokens(tokens: list[bytes]) -> None:
    judge(b"".join(tokens))


@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(
        st.tuples(
            st.integers(min_value=0, max_value=2000),
            st.integers(min_value=0, max_value=20),
            st.one_of(st.sampled_from(TOKENS), st.binary(max_size=4)),
        ),
        min_size=1,
        max_size=6,
    ),
)
@settings(deadline=None)
def test_mutated_policies(seed: bytes, edits: list[tuple[int, int, bytes]]) -> None:
    for position, length, insert in edits:
        start = position % (len(seed) + 1)
        seed = seed[:start] + insert + seed[start + length :]

    judge(seed)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda children: st.one_of(
        st.lists(children, max_size=4),
        st.dictionaries(
            st.one_of(
                st.text(max_size=8),
                st.sampled_from(["version", "circuits", "name", "path", "rebuild", "max"]),
            ),
            children,
            max_size=4,
        ),
    ),
    max_leaves=12,
)

SECTIONS = dict.fromkeys(("version", "tor", "balance", "circuits", "failover", "log", "admin"), JSON)


@given(st.fixed_dictionaries({}, optional=SECTIONS))
@settings(deadline=None)
def test_arbitrary_values_in_known_sections(document: dict[str, Any]) -> None:
    data = yaml.safe_dump(document, allow_unicode=True).encode(errors="surrogatepass")

    judge(data)


# Round trip

FINGERPRINT = st.text(alphabet="0123456789ABCDEF", min_size=40, max_size=40)
NAME = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,20}", fullmatch=True)
PATH = st.from_regex(r"/[a-z :#'\"\u00e4{\[]{0,30}[a-z]", fullmatch=True)
SLOT = st.builds(
    Slot,
    name=NAME,
    weight=st.integers(min_value=1, max_value=1000),
    role=st.sampled_from(Role),
    path=st.none() | st.lists(FINGERPRINT, min_size=2, max_size=8, unique=True).map(tuple),
    max_streams=st.integers(min_value=1, max_value=65535),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Policies that a document can say."""
    algorithm = draw(st.sampled_from(Algorithm))
    slots = draw(st.lists(SLOT, min_size=1, max_size=6, unique_by=lambda slot: slot.name))
    if algorithm in {Algorithm.ROUND_ROBIN, Algorithm.FIRST}:
        slots = [Slot(slot.name, 1, slot.role, slot.path, slot.max_streams) for slot in slots]
    first = slots[0]
    slots[0] = Slot(first.name, first.weight, Role.ACTIVE, first.path, first.max_streams)
    active = sum(slot.role is Role.ACTIVE for slot in slots)
    initial, longest = sorted(draw(st.tuples(*[st.integers(min_value=10, max_value=86_400_000)] * 2)))
    tcp = st.builds(
        TcpAddress,
        st.sampled_from(["::1", "127.0.0.1", "127.255.255.255"]),
        st.integers(min_value=1, max_value=65535),
    )
    return Policy(
        slots=tuple(slots),
        tor=TorControl(draw(tcp | st.builds(UnixAddress, PATH)), draw(st.none() | PATH)),
        balance=Balance(algorithm),
        failover=Failover(
            when_none=draw(st.sampled_from(WhenNone)),
            min_active=draw(st.integers(min_value=1, max_value=active)),
            rebuild=Rebuild(
                initial / 1000, longest / 1000, draw(st.integers(min_value=0, max_value=100)) / 100
            ),
        ),
        log=Log(draw(st.sampled_from(LogLevel)), draw(st.sampled_from(LogFormat))),
        # Never Tor's own control socket.
        admin=Admin(draw(PATH) + "/admin.sock"),
    )


def written(policy: Policy) -> dict[str, Any]:
    """A policy as the document that says it."""
    tor = {"control": str(policy.tor.control), "password_file": policy.tor.password_file}
    rebuild = policy.failover.rebuild
    return {
        "version": 1,
        "tor": {key: value for key, value in tor.items() if value is not None},
        "balance": {"algorithm": str(policy.balance.algorithm)},
        "circuits": [
            {
                "name": slot.name,
                "weight": slot.weight,
                "role": str(slot.role),
                "path": [f"${relay.lower()}~nick" for relay in slot.path]
                if isinstance(slot.path, tuple)
                else "auto",
                "max_streams": slot.max_streams,
            }
            for slot in policy.slots
        ],
        "failover": {
            "when_none": str(policy.failover.when_none),
            "min_active": policy.failover.min_active,
            "rebuild": {
                "initial": f"{rebuild.initial_seconds * 1000:.0f}ms",
                "max": f"{rebuild.max_seconds * 1000:.0f}ms",
                "jitter": f"{rebuild.jitter:.0%}",
            },
        },
        "log": {"level": str(policy.log.level), "format": str(policy.log.format)},
        "admin": {"socket": policy.admin.socket},
    }


@given(policies())
@settings(deadline=None)
def test_what_is_written_is_read_back(policy: Policy) -> None:
    document = written(policy)

    assert list(schema_validator().iter_errors(document)) == []
    assert policy == parse_policy(yaml.safe_dump(document, allow_unicode=True).encode(), name="p")


@given(policies(), st.booleans())
@settings(deadline=None)
def test_what_we_accept_an_editor_accepts(policy: Policy, is_flow: bool) -> None:
    text = yaml.safe_dump(written(policy), default_flow_style=is_flow)

    assert judge(text.encode()) == policy
    assert list(schema_validator().iter_errors(yaml.safe_load(text))) == []
