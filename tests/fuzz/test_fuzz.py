"""A short seeded run of each fuzzer, and the campaign itself: it finds, and makes small, what is there."""

from __future__ import annotations

import random

import pytest

from fuzz.campaign import Bounds, Case, Fuzzer, resident_bytes, run_campaign
from fuzz.fuzz_admin import AdminFuzzer
from fuzz.fuzz_codec import CodecFuzzer
from fuzz.fuzz_policy import PolicyFuzzer

SEED = 20240
"""Any number; the programs take another each time."""


class NoZero:
    """A thing with one flaw."""

    unit = "letters"

    def draw(self, rng: random.Random) -> Case:
        return (rng.randbytes(200), rng.randbytes(200))

    def judge(self, case: Case) -> int:
        data = b"".join(case)
        if b"\0" in data:
            raise ZeroDivisionError
        return len(data)


class Sleepless:
    """A thing that never fails."""

    unit = "turns"

    def draw(self, _rng: random.Random) -> Case:
        return ()

    def judge(self, _case: Case) -> int:
        return 3


@pytest.mark.parametrize(
    ("fuzzer", "units"),
    [(CodecFuzzer(), 20_000), (PolicyFuzzer(), 400)],
    ids=["codec", "policy"],
)
def test_no_case_breaks_the_contract(fuzzer: Fuzzer, units: int) -> None:
    tally, failure = run_campaign(fuzzer, seed=SEED, bounds=Bounds(units=units))

    assert failure is None
    assert tally.units >= units


def test_no_client_breaks_the_admin_socket() -> None:
    with AdminFuzzer() as fuzzer:
        tally, failure = run_campaign(fuzzer, seed=SEED, bounds=Bounds(units=600))

    assert failure is None
    assert tally.units >= 600


def test_a_failure_is_found_again_by_its_seed_and_made_small() -> None:
    tally, failure = run_campaign(NoZero(), seed=1, bounds=Bounds(cases=1000))

    assert failure is not None
    assert isinstance(failure.error, ZeroDivisionError)
    assert failure.seed == 1 + tally.cases
    assert failure.case == (b"\0",)
    again, same = run_campaign(NoZero(), seed=failure.seed, bounds=Bounds(cases=1))
    assert same is not None
    assert (again.cases, same.case) == (0, failure.case)


@pytest.mark.parametrize(
    ("bounds", "cases"), [(Bounds(cases=5), 5), (Bounds(units=10), 4), (Bounds(units=10, cases=2), 2)]
)
def test_the_first_bound_ends_a_campaign(bounds: Bounds, cases: int) -> None:
    tally, failure = run_campaign(Sleepless(), seed=0, bounds=bounds)

    assert failure is None
    assert tally.cases == cases
    assert tally.resident_bytes <= resident_bytes() * 2
