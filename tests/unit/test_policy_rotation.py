"""The policy's words on rotation, as numbers; what is wrong with them stands in ``schemas/invalid``."""

from __future__ import annotations

from circuitloom.policy import Policy, Rotation, check_policy
from circuitloom.policy.values import parse_size

HEAD = "version: 1\ncircuits: [{name: a}, {name: b}]\n"


def read(text: str) -> tuple[Policy, list[str]]:
    policy, warnings = check_policy(f"{HEAD}{text}\n".encode(), name="p")
    return policy, [str(warning) for warning in warnings]


def test_without_the_section_nothing_grows_old() -> None:
    policy, warnings = read("")

    assert (policy.rotation, warnings) == (Rotation(), [])


def test_every_bound_is_read_with_its_unit() -> None:
    policy, warnings = read(
        "rotation: {max_age: 10m, max_streams_total: 5000, max_bytes: 64MiB, drain: 1m, jitter: 10%}"
    )

    assert policy.rotation == Rotation(600.0, 5000, 67_108_864, 60.0, 0.1)
    assert warnings == []


def test_one_bound_is_enough() -> None:
    assert read("rotation: {max_bytes: 2GB}") == (
        Policy(read("")[0].slots, failover=read("")[0].failover, rotation=Rotation(max_bytes=2_000_000_000)),
        [],
    )


def test_a_section_that_makes_nothing_old_is_warned_about() -> None:
    expected = "nothing here makes a circuit old: give `max_age`, `max_streams_total` or `max_bytes`"

    assert read("rotation: {drain: 1m}")[1] == [f"p:3:11: rotation: {expected}"]


def test_sizes() -> None:
    assert [parse_size(text) for text in ("1kB", "1MB", "3GB", "1KiB", "2MiB", "1GiB")] == [
        1000,
        1_000_000,
        3_000_000_000,
        1024,
        2_097_152,
        1_073_741_824,
    ]
