"""Any policy with any traffic: the simulation ends, every stream has one fate, and no limit is broken."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitloom.policy.rotation import Rotation
from circuitloom.policy.types import Isolation, Policy
from circuitloom.simulation import Arrival, Course, Loss, Outcome, Traffic
from unit.test_pool_machine import policies

ISOLATED_BY = "SOCKS_USERNAME,CLIENTADDR,NYM_EPOCH"


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[Arrival, ...]:
    made, at = [], 0.0
    for _ in range(draw(st.integers(0, 40))):
        at += draw(st.sampled_from([0.0, 0.1, 1.0, 20.0]))
        user = draw(st.sampled_from(["alice", "bob", "carol"]))
        made.append(
            Arrival(
                at,
                draw(st.sampled_from(["example.com:80", "203.0.113.7:443", "abcdef.onion:80"])),
                {"PURPOSE": "USER", "SOCKS_USERNAME": user, "NYM_EPOCH": "0", "ISO_FIELDS": ISOLATED_BY},
                draw(st.sampled_from([0.0, 5.0, 300.0])),
                draw(st.sampled_from([None, 0.0, 2.0])),
                is_resolve=draw(st.sampled_from([False, False, True])),
                failure=draw(st.sampled_from([None, None, None, "CONNECTREFUSED"])),
            )
        )
    return tuple(made)


@st.composite
def losses(draw: st.DrawFn) -> tuple[Loss, ...]:
    names = draw(st.lists(st.sampled_from("abcdef"), max_size=3))
    return tuple(
        Loss(draw(st.sampled_from([0.0, 1.0, 10.0, 60.0])), name, draw(st.sampled_from([0.0, 5.0, 400.0])))
        for name in names
    )


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(policies(), arrivals(), losses(), st.integers(0, 99))
def test_every_stream_has_one_fate_and_no_circuit_more_than_its_limit(
    policy: Policy, coming: tuple[Arrival, ...], lost: tuple[Loss, ...], seed: int
) -> None:
    # With one key for all, and none rotated, a circuit of the policy is one of Tor's at a time.
    balance = replace(policy.balance, isolation=Isolation.NONE)
    policy = replace(policy, balance=balance, rotation=Rotation())

    def run() -> tuple[object, ...]:
        dice = Random(seed)  # noqa: S311 - nothing secret hangs on it
        course = Course(policy, Traffic(coming, lost), core_dice=dice.random, tor_dice=dice.random)
        record = course.run()
        course._pool.check_invariants()
        outcomes = Counter(fate.outcome for fate in record.fates)
        assert outcomes.total() == len(coming)
        assert outcomes[Outcome.WAITING] == 0
        assert all(fate.waited_seconds >= 0 for fate in record.fates)
        assert all((fate.name is None) == (fate.outcome is not Outcome.CARRIED) for fate in record.fates)
        assert not any(crowd.now for crowd in record.crowds.values())
        limits = {slot.name: slot.max_streams for slot in policy.slots}
        assert all(crowd.most <= limits[name] for name, crowd in record.crowds.items())
        return tuple((fate.outcome, fate.name, fate.waited_seconds, fate.is_cut) for fate in record.fates)

    assert run() == run()
