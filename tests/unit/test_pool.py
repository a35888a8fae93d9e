"""Who attaches streams: taking over from Tor, giving back, and starting anew from what Tor says."""

from __future__ import annotations

import pytest

from circuitloom.model import DOUBT_SECONDS, Disconnected, StillWaiting, StopRequested, StreamId
from circuitloom.policy.types import WhenNone
from unit.pool_driver import (
    ASK_WAITING,
    GIVE_BACK,
    TAKE_OVER,
    TWO,
    Driver,
    balancing,
    built,
    conf_changed,
    opened,
    policy_of,
)

ONE_HOLDS = policy_of("only", when_none=WhenNone.HOLD)


def still_waiting(*stream_ids: int) -> StillWaiting:
    return StillWaiting(frozenset(StreamId(str(stream_id)) for stream_id in stream_ids))


def test_it_asks_for_its_circuits_when_connected() -> None:
    assert Driver().connect() == ["EXTENDCIRCUIT 0; primary", "EXTENDCIRCUIT 0; backup"]


def test_it_takes_over_once_the_floor_is_built_and_not_before() -> None:
    driver = Driver()
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")
    driver.reply_to_build("250 EXTENDED 31")

    assert driver.tell(f"CIRC {built(30)}") == []
    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 0; Tor assigns streams now"]
    assert driver.tell(f"CIRC {built(31)}") == [TAKE_OVER]
    assert driver.said == [
        "info: circuit backup (31) built: alpha, beta, gamma",
        "info: taking stream attachment over from Tor",
    ]
    assert driver.snapshot().state == "balancing"


def test_it_is_in_charge_while_it_balances_and_only_then() -> None:
    driver = Driver()

    assert not driver.pool.is_in_charge
    driver = balancing()
    assert driver.pool.is_in_charge
    driver.give(StopRequested())
    assert not driver.pool.is_in_charge


def test_the_last_circuit_s_end_gives_back() -> None:
    driver = balancing()
    driver.now += 60

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == ["EXTENDCIRCUIT 0; primary"]
    assert driver.tell("CIRC 31 CLOSED REASON=DESTROYED REMOTE_REASON=FINISHED") == [
        "EXTENDCIRCUIT 0; backup",
        GIVE_BACK,
    ]
    assert driver.said == [
        "info: circuit backup (31) closed (DESTROYED, FINISHED), building another",
        "warning: giving stream attachment back to Tor: no circuit is usable",
    ]
    assert driver.snapshot().state == "released"


def test_a_stream_that_comes_while_tor_assigns_is_released_although_it_waits() -> None:
    driver = balancing(policy_of("only"))
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")

    assert driver.tell(*opened(5)) == ["ATTACHSTREAM 5 0; Tor assigns streams now"]


def test_under_hold_streams_wait_for_the_next_circuit() -> None:
    driver = balancing(ONE_HOLDS)
    driver.now += 60

    assert driver.tell("CIRC 30 CLOSED REASON=FINISHED") == ["EXTENDCIRCUIT 0; only"]
    assert driver.tell(*opened(5), *opened(6)) == []
    assert driver.snapshot().streams_waiting == 2
    driver.reply_to_build("250 EXTENDED 31")
    assert driver.tell(f"CIRC {built(31)}") == ["ATTACHSTREAM 5 31; only", "ATTACHSTREAM 6 31; only"]
    assert driver.snapshot().streams_waiting == 0


def test_under_reject_streams_are_closed() -> None:
    driver = balancing(policy_of("only", when_none=WhenNone.REJECT))
    driver.tell("CIRC 30 CLOSED REASON=FINISHED")

    assert driver.tell(*opened(5)) == ["CLOSESTREAM 5 1; no circuit is usable"]
    assert driver.snapshot().state == "balancing"


@pytest.mark.parametrize(
    ("when_none", "commands"),
    [
        (WhenNone.REJECT, ["CLOSESTREAM 5 1; no circuit is usable"]),
        (WhenNone.TOR, [GIVE_BACK, "ATTACHSTREAM 5 0; no circuit is usable"]),
        (WhenNone.HOLD, []),
    ],
)
def test_a_reload_decides_anew_on_streams_that_wait(when_none: WhenNone, commands: list[str]) -> None:
    driver = balancing(ONE_HOLDS)
    driver.now += 60
    driver.tell("CIRC 30 CLOSED REASON=FINISHED", *opened(5))

    assert driver.reload(policy_of("only", when_none=when_none)) == commands


# --- Tor's configuration -----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["0", None])
def test_an_option_that_tor_reset_is_set_again(value: str | None) -> None:
    driver = balancing()

    assert driver.receive(conf_changed(value)) == [TAKE_OVER]
    assert driver.said == ["warning: Tor reset the option: taking stream attachment over again"]


def test_the_echo_of_our_own_setting_is_no_news() -> None:
    assert balancing().receive(conf_changed("1")) == []


def test_another_option_s_change_is_no_news() -> None:
    assert balancing().receive("650-CONF_CHANGED\r\n650-Nickname=x\r\n650 OK\r\n") == []


def test_a_reset_option_is_no_news_while_tor_assigns() -> None:
    driver = Driver()
    driver.connect()

    assert driver.receive(conf_changed("0")) == []


def test_tor_s_reload_is_told() -> None:
    driver = balancing()

    assert driver.tell("SIGNAL RELOAD") == []
    assert driver.said == ["info: Tor re-read its configuration"]
    assert driver.tell("SIGNAL HUP") == []
    assert driver.said == []


def test_a_refused_take_over_gives_back_and_is_tried_again_later() -> None:
    driver = balancing()

    assert driver.refuse_take_over("553 Unable to set option") == [GIVE_BACK]
    assert driver.said == [
        "warning: giving stream attachment back to Tor: Tor refused (Unable to set option)"
    ]
    assert driver.tell(*opened(5)) == ["ATTACHSTREAM 5 0; Tor assigns streams now"]
    assert driver.wait(9.9) == []
    assert driver.wait(0.1) == [TAKE_OVER]


def test_a_refused_take_over_is_not_tried_before_its_time_when_a_circuit_is_built() -> None:
    driver = balancing(policy_of("one", "two"))
    driver.refuse_take_over("553 Unable to set option")
    driver.now += 5
    driver.tell("CIRC 31 CLOSED REASON=FINISHED")
    driver.reply_to_build("250 EXTENDED 32")

    assert driver.tell(f"CIRC {built(32)}") == []


# --- stopping ----------------------------------------------------------------------------------------------


def test_a_stop_gives_back_with_every_stream_that_waits() -> None:
    driver = balancing(ONE_HOLDS)
    driver.now += 60
    driver.tell("CIRC 30 CLOSED REASON=FINISHED", *opened(5), *opened(6))

    assert driver.give(StopRequested()) == [
        GIVE_BACK,
        "ATTACHSTREAM 5 0; stopping",
        "ATTACHSTREAM 6 0; stopping",
    ]
    assert driver.said == ["info: giving stream attachment back to Tor: stopping"]
    assert driver.tell(*opened(7)) == ["ATTACHSTREAM 7 0; Tor assigns streams now"]


def test_a_stop_gives_back_even_what_was_not_taken() -> None:
    driver = Driver()
    driver.connect()

    assert driver.give(StopRequested()) == [GIVE_BACK]


def test_after_a_stop_nothing_is_taken_over_again() -> None:
    driver = Driver()
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")
    driver.reply_to_build("250 EXTENDED 31")
    driver.give(StopRequested())

    assert driver.tell(f"CIRC {built(30)}", f"CIRC {built(31)}") == []
    assert driver.give(Disconnected()) == []
    assert driver.connect() == []
    assert driver.snapshot().state == "stopping"


def test_a_stop_while_disconnected_asks_for_nothing() -> None:
    driver = Driver()

    assert driver.give(StopRequested()) == []
    assert driver.snapshot().state == "stopping"


def test_a_take_over_that_is_refused_after_a_stop_does_not_undo_the_stop() -> None:
    driver = balancing()
    driver.give(StopRequested())

    assert driver.refuse_take_over("553 Unable to set option") == []
    assert driver.wait(60) == []
    assert driver.snapshot().state == "stopping"


# --- the connection ----------------------------------------------------------------------------------------


def test_a_lost_connection_leaves_nothing_to_ask() -> None:
    driver = balancing()
    driver.refuse_take_over("553 Unable to set option")

    assert driver.give(Disconnected()) == []
    assert driver.snapshot().state == "disconnected"
    assert driver.pool.next_deadline() is None


def test_a_new_connection_to_the_same_tor_goes_on_with_the_same_circuits() -> None:
    driver = balancing()
    driver.tell(*opened(5), "STREAM 5 SENTCONNECT 30 example.com:80")
    driver.give(Disconnected())

    assert driver.connect(
        circuits=f"{built(30)}\n{built(31)}\n",
        streams="5 SUCCEEDED 30 203.0.113.7:80\n6 SENTCONNECT 31 a:1\n7 SENTRESOLVE 31 a:0\n8 NEW 0 b:80\n",
        option="1",
    ) == [TAKE_OVER, "ATTACHSTREAM 8 30; primary"]
    assert [circuit.streams for circuit in driver.snapshot().circuits] == [2, 2]


def test_streams_of_others_found_waiting_are_released_when_no_circuit_is_ready() -> None:
    driver = Driver()

    assert driver.connect(
        streams="3 NEW 0 a.example:80\n4 NEWRESOLVE 0 b.example:0\n5 SUCCEEDED 9 c.example:80\n", option="1"
    ) == [
        "EXTENDCIRCUIT 0; primary",
        "EXTENDCIRCUIT 0; backup",
        GIVE_BACK,
        "ATTACHSTREAM 3 0; it waited before we came",
        "ATTACHSTREAM 4 0; it waited before we came",
    ]


def test_what_waits_although_the_option_is_not_set_is_released_when_tor_does_not_choose_for_it() -> None:
    driver = Driver(policy_of("only"))

    assert driver.connect(streams="3 NEW 0 a.example:80\n", option="0") == ["EXTENDCIRCUIT 0; only"]
    assert driver.wait(DOUBT_SECONDS - 0.1) == []
    assert driver.wait(0.1) == [ASK_WAITING]
    assert driver.give(still_waiting(3)) == ["ATTACHSTREAM 3 0; it waited before we came"]
    assert driver.give(still_waiting(3)) == []
    assert driver.wait(DOUBT_SECONDS) == []


def test_a_stream_that_tor_is_choosing_for_is_not_torn_off_its_circuit() -> None:
    """Its early bytes would be lost: after a restart Tor chooses for all that came meanwhile."""
    driver = Driver(policy_of("only"))
    driver.connect(streams="3 NEW 0 a.example:80\n4 NEW 0 b.example:80\n", option="0")
    driver.build(30)

    assert driver.tell("STREAM 3 SENTCONNECT 30 a.example:80", "STREAM 4 CLOSED 0 b.example:80") == []
    assert driver.wait(DOUBT_SECONDS) == []


def test_tor_s_time_to_choose_begins_when_it_has_circuits() -> None:
    driver = Driver(policy_of("only"))
    driver.connect(streams="3 NEW 0 a.example:80\n", option="0")
    driver.wait(DOUBT_SECONDS - 0.5)
    driver.tell("STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED")

    assert driver.wait(DOUBT_SECONDS - 0.5) == []
    assert driver.wait(0.5) == [ASK_WAITING]


def test_tor_chooses_at_the_last_moment() -> None:
    driver = Driver(policy_of("only"))
    driver.connect(streams="3 NEW 0 a.example:80\n4 NEW 0 b.example:80\n", option="0")
    assert driver.wait(DOUBT_SECONDS) == [ASK_WAITING]

    # Tor put the one on a circuit before it answered, and told so; it does not show the other any more.
    driver.tell("STREAM 3 SENTCONNECT 30 a.example:80")
    assert driver.give(still_waiting(3)) == []


def test_what_tor_holds_for_us_is_not_in_doubt_any_more() -> None:
    driver = Driver(policy_of("only"))
    driver.connect(streams="3 NEW 0 a.example:80\n", option="0")
    driver.build(30)

    assert driver.tell("STREAM 3 CONTROLLER_WAIT 0 a.example:80") == ["ATTACHSTREAM 3 30; only"]
    assert driver.wait(DOUBT_SECONDS) == []


def test_tor_s_directory_streams_and_ended_ones_are_not_adopted() -> None:
    driver = Driver(policy_of("only"))

    assert driver.connect(
        streams=f"3 NEW 0 203.0.113.9.${'D' * 40}.exit:9001\n4 CLOSED 0 a:80\n5 FAILED 0 b:80\n"
    ) == ["EXTENDCIRCUIT 0; only"]
    assert driver.snapshot().streams_active == 0


def test_an_adopted_onion_stream_is_left_to_tor() -> None:
    driver = balancing()
    driver.give(Disconnected())

    assert driver.connect(
        circuits=f"{built(30)}\n{built(31)}\n", streams="8 NEW 0 example.onion:80\n", option="1"
    ) == [
        TAKE_OVER,
        "ATTACHSTREAM 8 0; only Tor can serve this address",
    ]


def test_after_a_restart_of_tor_equal_ids_are_not_believed() -> None:
    driver = balancing(policy_of("only"))
    driver.give(Disconnected())
    other = built(30).replace("11:00:00", "12:00:00")

    assert driver.connect(circuits=f"{other}\n") == ["EXTENDCIRCUIT 0; only"]
    assert driver.snapshot().state == "released"


@pytest.mark.parametrize(
    "line",
    [
        built(30).replace("BUILT", "EXTENDED"),
        built(30).replace("~beta", "~other"),
        built(29),
        "",
    ],
)
def test_a_circuit_that_is_not_as_remembered_is_built_anew(line: str) -> None:
    driver = balancing(policy_of("only"))
    driver.give(Disconnected())

    assert driver.connect(circuits=line) == ["EXTENDCIRCUIT 0; only"]


def test_builds_of_the_old_connection_are_asked_for_again() -> None:
    driver = Driver()
    driver.connect()
    driver.reply_to_build("250 EXTENDED 30")
    driver.give(Disconnected())

    assert driver.connect(circuits=f"{built(30)}\n") == [
        "EXTENDCIRCUIT 0; primary",
        "EXTENDCIRCUIT 0; backup",
    ]


def test_a_second_snapshot_on_the_same_connection_forgets_builds_without_an_answer() -> None:
    driver = Driver()
    driver.connect()

    assert driver.connect() == ["EXTENDCIRCUIT 0; primary", "EXTENDCIRCUIT 0; backup"]


def test_a_policy_can_change_while_disconnected() -> None:
    driver = balancing()
    driver.give(Disconnected())

    assert driver.reload(policy_of("primary", "third", min_active=2)) == []
    assert driver.connect(circuits=f"{built(30)}\n{built(31)}\n") == ["EXTENDCIRCUIT 0; third"]
    driver.reply_to_build("250 EXTENDED 32")
    assert driver.tell(f"CIRC {built(32)}") == ["CLOSECIRCUIT 31 IfUnused", TAKE_OVER]


def test_the_snapshot_tells_the_whole() -> None:
    driver = balancing()
    driver.tell(*opened(5), *opened(6, "example.onion:80"))
    driver.now += 2.5
    snapshot = driver.snapshot()

    assert (snapshot.state, snapshot.since_seconds, snapshot.algorithm) == ("balancing", 2.5, "round-robin")
    assert snapshot.is_ready
    assert (snapshot.streams_active, snapshot.streams_waiting) == (2, 0)
    assert (snapshot.attached_total, snapshot.released_total, snapshot.failed_total) == (1, 1, 0)
    assert [circuit.name for circuit in snapshot.circuits] == [slot.name for slot in TWO.slots]
