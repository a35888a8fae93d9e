"""Panic: too few circuits are healthy, so all serve, or Tor does, or streams wait for enough of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.health import Alarm, Ejector
from circuitloom.policy import check_policy
from circuitloom.policy.health import Panic, PanicAction
from circuitloom.policy.types import Eject, Match, Overflow, Queue, Role, Rule, Slot, WhenFull
from circuitloom.status import status_line
from unit.pool_driver import Driver, balancing, closed, opened, policy_of

ONCE = Eject(consecutive_failures=1, base_seconds=30.0, max_percent=100)


def fail(driver: Driver, stream_id: int) -> None:
    """A stream fails on the circuit whose turn it is, by the circuit's fault."""
    (command,) = driver.tell(*opened(stream_id, f"host{stream_id}.example:80"))
    circuit_id = command.split("; ")[0].rpartition(" ")[2]
    driver.tell(
        f"STREAM {stream_id} FAILED {circuit_id} host{stream_id}.example:80 REASON=END REMOTE_REASON=MISC",
        closed(stream_id),
    )


def panicking(
    action: PanicAction, *, queue: Queue | None = None, when_full: WhenFull = WhenFull.TOR
) -> Driver:
    """Of four circuits three are ejected, for less than 30 s each."""
    driver = balancing(
        policy_of(*"abcd", eject=ONCE, panic=Panic(0.5, action), queue=queue, when_full=when_full)
    )
    for stream_id in (101, 102):
        fail(driver, stream_id)
        driver.now += 5
        assert driver.snapshot().notice == ""
    fail(driver, 103)
    return driver


def went(driver: Driver, *stream_ids: int) -> set[str]:
    return {driver.tell(*opened(stream_id))[0].rpartition("; ")[2] for stream_id in stream_ids}


def test_all_circuits_serve_when_too_few_are_healthy() -> None:
    driver = panicking(PanicAction.ALL)
    assert driver.states() == {"a": "ejected", "b": "ejected", "c": "ejected", "d": "built"}
    assert [c.weight_share for c in driver.snapshot().circuits] == [0.25] * 4
    assert driver.snapshot().notice == "1 key has too few healthy circuits, ejected ones take streams as well"

    assert went(driver, 1, 2, 3, 4) == {"a", "b", "c", "d"}


def test_it_is_over_when_enough_are_back() -> None:
    driver = panicking(PanicAction.ALL)
    driver.wait(20)

    assert driver.said == [
        "info: enough circuits are healthy again: 2 of 4",
        "info: circuit a (30) takes streams again",
    ]
    assert driver.snapshot().notice == ""
    assert went(driver, 1, 2, 3, 4) == {"a", "d"}
    driver.wait(30)
    assert went(driver, 5, 6, 7, 8) == {"a", "b", "c", "d"}


def test_the_status_line_tells_of_it() -> None:
    driver = panicking(PanicAction.TOR)

    line = status_line(driver.snapshot(), driver.pool.policy, "")
    assert line.endswith("; 1 key has too few healthy circuits, streams are left to Tor")


def test_tor_serves_when_too_few_are_healthy() -> None:
    driver = panicking(PanicAction.TOR)
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 0; too few circuits are healthy"]
    why = {c.name: c.why for c in driver.pool.explain(None, now=driver.now).candidates}
    assert set(why.values()) == {"too few circuits are healthy, so none takes streams"}
    driver.wait(20)

    assert went(driver, 2, 3) == {"a", "d"}


@pytest.mark.parametrize("when_full", WhenFull)
def test_streams_wait_when_too_few_are_healthy_and_are_served_when_enough_are(when_full: WhenFull) -> None:
    driver = panicking(PanicAction.HOLD, when_full=when_full)
    assert driver.tell(*opened(1), *opened(2)) == []
    assert driver.snapshot().streams_waiting == 2

    assert driver.wait(20) == ["ATTACHSTREAM 1 30; a", "ATTACHSTREAM 2 33; d"]


def test_those_that_wait_do_so_within_the_queue_s_bounds() -> None:
    driver = panicking(PanicAction.HOLD, queue=Queue(length=1, timeout_seconds=7.0, overflow=Overflow.TOR))
    driver.tell(*opened(1))

    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 0; all circuits and their queue are full"]
    assert driver.wait(7) == ["ATTACHSTREAM 1 0; no circuit had room in time"]


def test_a_rule_s_circuits_serve_in_a_panic_though_all_of_them_are_ejected() -> None:
    only_a = Rule(Match(ports=((443, 443),)), circuits=frozenset({"a"}))
    policy = policy_of(*"abcd", eject=ONCE, panic=Panic(0.75), rules=(only_a,))
    driver = balancing(policy)
    fail(driver, 101)
    assert driver.tell(*opened(1, "h.example:443")) == ["ATTACHSTREAM 1 0; no circuit is usable"]
    fail(driver, 102)

    assert driver.tell(*opened(2, "h.example:443")) == ["ATTACHSTREAM 2 30; a"]


def test_circuits_that_are_lost_are_not_held_against_the_others() -> None:
    driver = balancing(policy_of(*"abcd", eject=ONCE, panic=Panic(0.75)))
    fail(driver, 101)
    driver.now += 5
    assert driver.snapshot().notice == ""
    # Of the three that are left one is ejected; that is less than three quarters healthy.
    driver.tell("CIRC 33 CLOSED REASON=FINISHED")
    assert driver.snapshot().notice != ""
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")

    assert driver.snapshot().notice == ""
    assert went(driver, 1, 2) == {"b", "c"}


def test_backup_circuits_count_among_the_healthy() -> None:
    spare = Slot("spare", role=Role.BACKUP)
    driver = balancing(policy_of("a", spare, eject=ONCE, panic=Panic(0.5)))
    fail(driver, 101)

    assert driver.snapshot().notice == ""
    assert went(driver, 1, 2) == {"spare"}


def test_a_reload_may_end_it() -> None:
    driver = panicking(PanicAction.HOLD)
    driver.tell(*opened(1))

    assert driver.reload(policy_of(*"abcd", eject=ONCE)) == ["ATTACHSTREAM 1 33; d"]
    driver.reload(policy_of(*"abcd", eject=ONCE, panic=Panic(0.5)))
    assert driver.said[0] == "warning: only 1 of 4 circuits are healthy: ejected ones take streams as well"
    driver.reload(policy_of(*"abcd"))
    assert driver.states() == dict.fromkeys("abcd", "built")


def test_check_says_when_a_panic_never_comes() -> None:
    def warnings(health: str) -> list[str]:
        text = f"version: 1\ncircuits: [{{name: a}}, {{name: b}}]\nhealth: {health}\n"
        return [str(fault) for fault in check_policy(text.encode(), name="p")[1]]

    assert warnings("{panic: {}}") == [
        "p:3:17: health.panic: without `eject` or `probe` no circuit is ever unhealthy"
    ]
    always = "by `eject.max_percent` 40 % of the circuits are always healthy: raise one of the two"
    assert warnings("{eject: {max_percent: 60}, panic: {threshold: 40%}}") == [
        f"p:3:55: health.panic.threshold: {always}"
    ]
    assert warnings("{eject: {max_percent: 60}, panic: {threshold: 41%}}") == []
    # What fails its probes is out as well, within the same bound and its default.
    probe = 'probe: {targets: ["203.0.113.7:80"]}'
    half = "by `eject.max_percent` 50 % of the circuits are always healthy: raise one of the two"
    assert [line.partition(": ")[2] for line in warnings(f"{{{probe}, panic: {{}}}}")] == [
        f"health.panic.threshold: {half}"
    ]
    assert warnings(f"{{{probe}, panic: {{threshold: 51%}}}}") == []


@given(
    st.lists(st.tuples(st.sampled_from(["add", "remove", "fail"]), st.integers(0, 7)), max_size=80),
    st.sampled_from([50, 70, 100]),
    st.sampled_from([0.2, 0.5, 0.9, 1.0]),
)
def test_the_alarm_is_on_exactly_below_the_threshold_and_time_ends_it(
    steps: list[tuple[str, int]], max_percent: int, threshold: float
) -> None:
    members, alarm = Ejector[int](Eject(1, 10.0, max_percent)), Alarm(Panic(threshold))
    for now, (what, member) in enumerate(steps):
        was_on = alarm.is_on
        if what == "add":
            members.add(member)
        elif what == "remove":
            members.remove(member)
        else:
            members.fail(member, now=float(now))
        healthy = len(members) - len(members.out)
        has_changed = alarm.count(healthy=healthy, members=len(members))
        assert alarm.is_on == (len(members) > 0 and healthy / len(members) < threshold)
        assert has_changed == (alarm.is_on != was_on)
        assert (alarm.action is PanicAction.ALL) == alarm.is_on
    members.due(now=1e6)
    alarm.count(healthy=len(members) - len(members.out), members=len(members))
    assert not alarm.is_on
