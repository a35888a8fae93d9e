"""Fuzzes the policy loader: a Policy or a PolicyError, and every fault has its place and can be printed.

Small policies are mutated, because the YAML parser that tells places is slow: a hundred small ones find
more than five large ones in the same second.
"""

from __future__ import annotations

import random
import sys

from circuitloom.errors import Fault, PolicyError
from circuitloom.policy import Policy, check_policy
from fuzz.campaign import Case, main
from fuzz.mutate import cut, mutate

DEFAULT_COUNT = 100_000

HEAD = b"version: 1\n"
TAIL = b"circuits: [{name: a}, {name: b}]\n"

SEEDS = (
    HEAD + TAIL,
    HEAD + b"circuits:\n  - name: a\n    weight: 3\n  - {name: b, role: backup}\n",
    HEAD + b"balance: {algorithm: least-streams, max_streams: 9}\n" + TAIL,
    HEAD + b"tor:\n  control: tcp:127.0.0.1:9051\n" + TAIL,
    HEAD + b"tor: {control: 'unix:/run/tor/control', password_file: /etc/p}\n" + TAIL,
    HEAD
    + b"circuits: [{name: a, path: auto}, {name: b, path: ['$"
    + b"A" * 40
    + b"', '$"
    + b"B" * 40
    + b"']}]",
    HEAD + b"circuits: [{name: swarm, count: 8}]\n",
    HEAD + b"failover: {min_active: 2, when_none: hold}\n" + TAIL,
    HEAD + b"failover:\n  rebuild: {initial: 1s, max: 60s, jitter: 20%}\n" + TAIL,
    HEAD + b"log: {level: debug, format: plain}\n" + TAIL,
    HEAD + b"admin: {socket: /run/circuitloom/admin.sock}\n" + TAIL,
    b"{version: 1, circuits: [{name: a}]}",
)

WORDS = (
    *(
        b"version: 1\n",
        b"circuits:\n",
        b"  - name: a\n",
        b"    weight: 3\n",
        b"path: [",
        b"failover:",
        b"max: ",
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
    ),
    *(
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b"\xed\xa0\x80",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!python/name:x ",
        b"!",
        b"? ",
    ),
    *(
        b": ",
        b"- ",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"|\n",
        b">-\n",
        b"'",
        b'"',
        b"\\",
        b'"\\UFFFFFFFF"',
        b"#",
        b"@",
    ),
    *(
        b'"\\ud800"',
        b"`",
        b"%",
        b"~",
        b"null",
        b"no",
        b".nan",
        b"1:30",
        b"2024-01-01",
        b"010",
        b"0x1F",
        b"1_000",
    ),
    *(b"9" * 400, b"-1", b"1e400", b"=", b"\n", b"\n  ", b"    ", b"auto", b"60s", b"120%", b"round-robin"),
    *(b"[" * 80, b"{a: " * 40, b"unix:", b"tcp:", b"[::1]:1", b"/" * 120, b"$" + b"c" * 40, b"count: 70000"),
)


class PolicyFuzzer:
    """Draws one policy a case."""

    unit = "policies"

    def draw(self, rng: random.Random) -> Case:
        """A small policy, changed at a few places; in pieces only so that a failure can be made smaller."""
        text = mutate(rng, rng.choice(SEEDS), WORDS, edits=rng.choice((1, 1, 2, 3, 5)))
        return cut(rng, text, 4)

    def judge(self, case: Case) -> int:
        """Check it as ``circuitloom check`` does."""
        data = b"".join(case)
        faults: tuple[Fault, ...] = ()
        warnings: tuple[Fault, ...] = ()
        policy: Policy | None = None
        try:
            policy, found = check_policy(data, name="fuzz")
        except PolicyError as error:
            faults = error.faults
            assert faults, "refused without a fault"
        else:
            warnings = tuple(found)
            assert isinstance(policy, Policy)
            assert policy.slots
        last_line = data.count(b"\n") + 1
        for fault in (*faults, *warnings):
            assert str(fault).isprintable(), f"not printable: {fault!r}"
            assert 1 <= fault.line <= last_line, f"no such line: {fault!r}"
            assert fault.column >= 1, f"no such column: {fault!r}"
        return 1


if __name__ == "__main__":
    sys.exit(main(PolicyFuzzer(), default_count=DEFAULT_COUNT))
