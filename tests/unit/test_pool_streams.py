"""Streams, as Tor's own traces tell of them: each line in, each command out."""

from __future__ import annotations

import pytest

from circuitloom.model import Disconnected
from circuitloom.policy.types import Algorithm, Slot
from unit.pool_driver import Driver, balancing, built, opened, policy_of, sent

VIRTUAL = (
    "250-VirtualAddrNetworkIPv4=127.192.0.0/10\r\n250-VirtualAddrNetworkIPv6=[FE80::]/10\r\n"
    "250-MapAddress=mapped.example x.onion\r\n250-MapAddress=*.shadow.example *.example.onion\r\n"
    "250 MapAddress=192.0.2.1 y.onion"
)


def reserving(reserved: str = VIRTUAL) -> Driver:
    """A pool in charge on a Tor that maps addresses."""
    driver = balancing(policy_of("only"))
    driver.give(Disconnected())
    driver.connect(circuits=built(30), reserved=reserved)
    return driver


# --- what a stream goes through ----------------------------------------------------------------------------


def test_a_normal_stream() -> None:
    driver = balancing()

    assert driver.tell(opened(1)[0]) == []
    assert driver.tell(opened(1)[1]) == ["ATTACHSTREAM 1 30; primary"]
    assert driver.circuit("primary").streams == 1
    assert (
        driver.tell(
            "STREAM 1 SENTCONNECT 30 example.com:80",
            "STREAM 1 REMAP 30 203.0.113.7:80 SOURCE=EXIT",
            "STREAM 1 SUCCEEDED 30 203.0.113.7:80",
        )
        == []
    )
    assert driver.circuit("primary").streams == 1
    assert driver.tell("STREAM 1 CLOSED 30 203.0.113.7:80 REASON=END REMOTE_REASON=DONE") == []
    assert driver.circuit("primary").streams == 0
    assert driver.snapshot().streams_active == 0
    assert (driver.snapshot().attached_total, driver.snapshot().failed_total) == (1, 0)


def test_streams_alternate() -> None:
    driver = balancing()

    assert driver.tell(*opened(1), *opened(2), *opened(3)) == [
        "ATTACHSTREAM 1 30; primary",
        "ATTACHSTREAM 2 31; backup",
        "ATTACHSTREAM 3 30; primary",
    ]


def test_least_streams_follows_what_ends() -> None:
    driver = balancing(policy_of("one", "two", algorithm=Algorithm.LEAST_STREAMS))
    driver.tell(*opened(1), *opened(2), "STREAM 2 CLOSED 31 a:80 REASON=DONE")

    assert driver.tell(*opened(3)) == ["ATTACHSTREAM 3 31; two"]


def test_a_refused_connection_is_tried_on_another_circuit_and_then_fails() -> None:
    driver = balancing()
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 30 example.com:80")

    assert driver.tell(
        "STREAM 1 DETACHED 30 example.com:80 REASON=END REMOTE_REASON=MISC",
        "STREAM 1 CONTROLLER_WAIT 30 example.com:80",
    ) == ["ATTACHSTREAM 1 31; backup"]
    assert [circuit.streams for circuit in driver.snapshot().circuits] == [0, 1]
    assert (
        driver.tell(
            "STREAM 1 SENTCONNECT 31 example.com:80",
            "STREAM 1 FAILED 31 example.com:80 REASON=END REMOTE_REASON=MISC",
            "STREAM 1 CLOSED 31 example.com:80 REASON=END REMOTE_REASON=MISC",
        )
        == []
    )
    assert [circuit.failed_total for circuit in driver.snapshot().circuits] == [1, 1]
    assert driver.snapshot().failed_total == 2


def test_a_name_that_no_circuit_resolves_goes_to_tor_when_all_were_tried() -> None:
    driver = balancing()
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 30 nowhere.example:80")
    detached = "STREAM 1 DETACHED {0} nowhere.example:80 REASON=END REMOTE_REASON=RESOLVEFAILED"
    waits = "STREAM 1 CONTROLLER_WAIT {0} nowhere.example:80"

    assert driver.tell(detached.format(30), waits.format(30)) == ["ATTACHSTREAM 1 31; backup"]
    driver.tell("STREAM 1 SENTCONNECT 31 nowhere.example:80")
    assert driver.tell(detached.format(31), waits.format(31)) == [
        "ATTACHSTREAM 1 0; no other circuit can take it"
    ]


def test_a_stream_is_tried_on_three_circuits_at_most() -> None:
    driver = balancing(policy_of("a", "b", "c", "d"))
    commands = driver.tell(*opened(1))
    for circuit_id in (30, 31, 32):
        commands += driver.tell(
            f"STREAM 1 SENTCONNECT {circuit_id} a:80",
            f"STREAM 1 DETACHED {circuit_id} a:80 REASON=TIMEOUT",
            f"STREAM 1 CONTROLLER_WAIT {circuit_id} a:80",
        )

    assert commands == [
        "ATTACHSTREAM 1 30; a",
        "ATTACHSTREAM 1 31; b",
        "ATTACHSTREAM 1 32; c",
        "ATTACHSTREAM 1 0; failed on 3 circuits",
    ]


def test_an_exit_policy_refusal_is_saved_by_another_circuit() -> None:
    driver = balancing()
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 30 example.com:25")

    assert driver.tell(
        "STREAM 1 DETACHED 30 example.com:25 REASON=END REMOTE_REASON=EXITPOLICY",
        "STREAM 1 CONTROLLER_WAIT 30 example.com:25",
    ) == ["ATTACHSTREAM 1 31; backup"]
    assert driver.tell("STREAM 1 SENTCONNECT 31 example.com:25", "STREAM 1 SUCCEEDED 31 203.0.113.7:25") == []
    assert driver.circuit("backup").streams == 1


def test_a_stream_without_an_answer_is_tried_on_another_circuit() -> None:
    driver = balancing()
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 30 example.com:80")

    assert driver.tell(
        "STREAM 1 DETACHED 30 example.com:80 REASON=TIMEOUT", "STREAM 1 CONTROLLER_WAIT 30 example.com:80"
    ) == ["ATTACHSTREAM 1 31; backup"]


def test_a_circuit_that_dies_takes_its_unanswered_stream_with_it() -> None:
    driver = balancing()
    driver.now += 60
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 30 example.com:80")

    assert driver.tell("CIRC 30 CLOSED REASON=REQUESTED") == ["EXTENDCIRCUIT 0; primary"]
    assert (
        driver.tell(
            "STREAM 1 FAILED 30 example.com:80 REASON=DESTROY",
            "STREAM 1 CLOSED 30 example.com:80 REASON=DESTROY",
        )
        == []
    )
    assert driver.snapshot().streams_active == 0
    assert driver.circuit("primary").failed_total == 1


def test_a_circuit_that_dies_with_open_streams_leaves_nothing_counted() -> None:
    driver = balancing()
    driver.tell(*opened(1), "STREAM 1 SENTCONNECT 30 a:80", "STREAM 1 SUCCEEDED 30 203.0.113.7:80")

    driver.tell("CIRC 30 CLOSED REASON=REQUESTED", "STREAM 1 CLOSED 30 a:80 REASON=DESTROY")

    assert driver.circuit("primary").streams == 0
    assert driver.tell(*opened(2)) == ["ATTACHSTREAM 2 31; backup"]


def test_a_failure_before_any_circuit_counts_for_none() -> None:
    driver = balancing()

    assert (
        driver.tell(
            opened(1, "example.com:0")[0],
            "STREAM 1 FAILED 0 example.com:0 REASON=TIMEOUT",
            "STREAM 1 CLOSED 0 example.com:0 REASON=TIMEOUT",
        )
        == []
    )
    assert driver.snapshot().failed_total == 0


@pytest.mark.parametrize(
    "line",
    [
        "STREAM 9 SENTCONNECT 30 a:80",
        "STREAM 9 SUCCEEDED 30 a:80",
        "STREAM 9 DETACHED 30 a:80 REASON=TIMEOUT",
        "STREAM 9 FAILED 30 a:80 REASON=DONE",
        "STREAM 9 CLOSED 0 a b!c:80 REASON=SOCKS_PROTOCOL",
        "STREAM 9 XOFF_SENT 30 a:80",
    ],
)
def test_a_stream_that_was_never_announced_is_nobody_s_business(line: str) -> None:
    driver = balancing()

    assert driver.tell(line) == []
    assert driver.snapshot().streams_active == 0


def test_a_stream_known_only_by_waiting_is_served() -> None:
    assert balancing().tell("STREAM 9 CONTROLLER_WAIT 0 a:80") == ["ATTACHSTREAM 9 30; primary"]


def test_a_stream_announced_twice_is_one_stream() -> None:
    driver = balancing()

    assert driver.tell(opened(1)[0], *opened(1)) == ["ATTACHSTREAM 1 30; primary"]
    assert driver.snapshot().streams_active == 1


# --- streams that are not ours to attach -------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["DIR_FETCH", "DIR_UPLOAD", "DIRPORT_TEST"])
def test_tor_s_directory_streams_are_never_touched(purpose: str) -> None:
    target = f"203.0.113.9.${'D' * 40}.exit:9001"
    driver = balancing()

    assert driver.tell(opened(1, target, purpose)[0], f"STREAM 1 SENTCONNECT 12 {target}") == []
    assert driver.tell(f"STREAM 1 DETACHED 12 {target} REASON=TIMEOUT PURPOSE={purpose}") == []
    assert driver.snapshot().streams_active == 0


@pytest.mark.parametrize("target", ["example.onion:80", "EXAMPLE.ONION:80", "x.relay.exit:80"])
def test_what_only_tor_can_serve_is_left_to_it(target: str) -> None:
    assert balancing().tell(*opened(1, target)) == ["ATTACHSTREAM 1 0; only Tor can serve this address"]


def test_a_resolve_goes_where_streams_go_and_ends_without_succeeded() -> None:
    driver = balancing()
    new, waits = opened(1, "example.com:0", "DNS_REQUEST")

    assert driver.tell(new.replace(" NEW ", " NEWRESOLVE "), waits) == ["ATTACHSTREAM 1 30; primary"]
    assert driver.tell("STREAM 1 SENTRESOLVE 30 example.com:0") == []
    assert driver.circuit("primary").streams == 1
    assert driver.tell("STREAM 1 CLOSED 30 example.com:0 REASON=DONE") == []
    assert driver.circuit("primary").streams == 0


def test_a_resolve_that_tor_answers_itself_never_is_on_the_circuit() -> None:
    driver = balancing()
    driver.tell(*opened(1, "192.0.2.1:0", "DNS_REQUEST"))

    assert driver.tell("STREAM 1 CLOSED 0 192.0.2.1:0 REASON=DONE") == []
    assert driver.circuit("primary").streams == 0


@pytest.mark.parametrize(
    "target",
    [
        "127.192.0.1:80",
        "[fe80::1]:80",
        "mapped.example:80",
        "MAPPED.example:80",
        "a.b.shadow.example:80",
        "192.0.2.1:80",
    ],
)
def test_an_address_that_tor_rewrites_is_left_to_it(target: str) -> None:
    assert reserving().tell(*opened(1, target)) == ["ATTACHSTREAM 1 0; only Tor can serve this address"]


@pytest.mark.parametrize(
    "target",
    [
        "127.128.0.1:80",
        "[2001:db8::1]:80",
        "xmapped.example:80",
        "mapped.example.com:80",
        "192.0.2.10:80",
        "1and1.example:80",
        "localhost:80",
    ],
)
def test_an_address_that_tor_does_not_rewrite_is_balanced(target: str) -> None:
    assert reserving().tell(*opened(1, target)) == ["ATTACHSTREAM 1 30; only"]


def test_everything_mapped_leaves_everything_to_tor() -> None:
    driver = reserving("250 MapAddress=*. *.x.exit")

    assert driver.tell(*opened(1)) == ["ATTACHSTREAM 1 0; only Tor can serve this address"]


def test_a_mapping_that_is_added_later_counts_from_then_on() -> None:
    driver = reserving("250 MapAddress")
    before = driver.tell(*opened(1, "mapped.example:80"))
    driver.reserve(VIRTUAL)

    assert before == ["ATTACHSTREAM 1 30; only"]
    assert driver.tell(*opened(2, "mapped.example:80")) == [
        "ATTACHSTREAM 2 0; only Tor can serve this address"
    ]


def test_a_stream_of_before_us_that_tor_may_be_choosing_for_takes_no_place_in_the_queue() -> None:
    driver = balancing(policy_of(Slot("only", max_streams=1)))
    driver.tell(*opened(1), sent(1, 30))
    driver.give(Disconnected())

    commands = driver.connect(circuits=built(30), streams="1 SENTCONNECT 30 a:80\n2 NEW 0 b:80\n", option="1")
    assert "ATTACHSTREAM 2 0; all circuits are full" in commands
    assert driver.snapshot().streams_waiting == 0
