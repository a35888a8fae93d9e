"""Probes in the pool: whose stream is whose, where it goes, and what its outcome does to the circuit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from circuitloom.model import CircuitOrdered, Order, ProbeOutcome
from circuitloom.policy.probing import Probe
from circuitloom.policy.types import (
    Eject,
    Isolation,
    Keys,
    Queue,
    Role,
    Slot,
    TcpAddress,
    UnixAddress,
    WhenFull,
    WhenNone,
)
from circuitloom.pool import CircuitSnapshot
from unit.pool_driver import (
    GIVE_BACK,
    Driver,
    balancing,
    built,
    closed,
    conf_changed,
    opened,
    policy_of,
)

ANSWERED, FAILED, UNREACHED = ProbeOutcome.ANSWERED, ProbeOutcome.FAILED, ProbeOutcome.UNREACHED
TARGET = "203.0.113.7:80"
TCP = Probe(TcpAddress("127.0.0.1", 9050), (TARGET,), jitter=0.0, rise=2, fall=2)
UNIX = replace(TCP, socks=UnixAddress("/run/tor/socks"))
SOURCE = "127.0.0.1:5000"


def probing(
    probe: Probe = TCP,
    *names: Slot | str,
    isolation: Isolation = Isolation.TOR,
    eject: Eject | None = None,
    when_none: WhenNone = WhenNone.TOR,
) -> Driver:
    """A pool in charge that probes; under isolation alice has one open stream on each circuit."""
    slots: list[Slot | str] = list(names) if names else ["a", "b"]
    policy = policy_of(
        *slots,
        isolation=isolation,
        probe=probe,
        eject=eject,
        when_none=when_none,
        keys=Keys(),
    )
    driver = balancing(policy)
    count = sum(slot.role is Role.ACTIVE for slot in policy.slots)
    for number in range(1, count + 1):
        driver.tell(*opened(number, user="alice", password="pw"))  # noqa: S106 - a name for a test
        driver.tell(f"STREAM {number} SUCCEEDED {29 + number} example.com:80")
    return driver


def shown(
    stream_id: int, *, source: str = SOURCE, user: str | None = "alice", target: str = TARGET
) -> list[str]:
    """The events of a probe's stream that waits."""
    password = None if user is None else "pw"
    return list(opened(stream_id, target, user=user, password=password, source=source))


def asked(commands: list[str]) -> list[int]:
    """The numbers of the probes that were begun."""
    return [int(command.split()[1]) for command in commands if command.startswith("PROBE ")]


def pin(driver: Driver, probe: int, stream_id: int) -> str:
    """Let a probe come as far as its circuit; returns the circuit's id."""
    source = f"127.0.0.1:{5000 + stream_id}"
    assert driver.start_probe(probe, source) == []
    commands = driver.tell(*shown(stream_id, source=source))
    (attached,) = [command for command in commands if command.startswith(f"ATTACHSTREAM {stream_id} ")]
    circuit_id = attached.split()[2].rstrip(";")
    driver.tell(f"STREAM {stream_id} SENTCONNECT {circuit_id} {TARGET}")
    return circuit_id


class Edge:
    """Plays the connections of probes: those over ``bad`` circuits fail, the others are answered."""

    def __init__(self, driver: Driver, *bad: str) -> None:
        self.driver = driver
        self.bad = set(bad)
        self.probed: list[str] = []
        self.said: list[str] = []
        self._stream_id = 500

    def pass_time(self, seconds: float) -> list[str]:
        """A second at a time; all probes that are asked for run at once. Returns what else was asked for."""
        others: list[str] = []
        for _ in range(round(seconds)):
            pending = self.driver.wait(1.0)
            while pending:
                command = pending.pop(0)
                if command.startswith("PROBE "):
                    pending += self.run(int(command.split()[1]))
                else:
                    others.append(command)
        return others

    def run(self, probe: int) -> list[str]:
        self._stream_id += 1
        stream_id, source = self._stream_id, f"127.0.0.1:{6000 + self._stream_id}"
        self.driver.start_probe(probe, source)
        commands = self.driver.tell(*shown(stream_id, source=source))
        attached = next((c for c in commands if c.startswith(f"ATTACHSTREAM {stream_id} ")), None)
        others = [command for command in commands if command is not attached]
        if attached is None:
            return others + self.driver.tell(closed(stream_id))
        circuit_id = attached.split()[2].rstrip(";")
        self.probed.append(circuit_id)
        others += self.driver.tell(f"STREAM {stream_id} SENTCONNECT {circuit_id} {TARGET}")
        if circuit_id not in self.bad:
            others += self.driver.tell(f"STREAM {stream_id} SUCCEEDED {circuit_id} {TARGET}")
        outcome = FAILED if circuit_id in self.bad else ANSWERED
        others += self.driver.end_probe(probe, outcome)
        self.said += self.driver.said
        return others + self.driver.tell(closed(stream_id))


def health(driver: Driver, name: str) -> str:
    probe = driver.circuit(name).probe
    assert probe is not None
    return probe.health


# --- one stream --------------------------------------------------------------------------------------------


def test_a_probe_has_the_login_of_its_circuit_s_key_and_goes_to_that_circuit_alone() -> None:
    driver = probing()

    assert driver.wait(0.0) == [f"PROBE 1 {TARGET} as alice:pw"]
    assert pin(driver, 1, 90) == "30"
    assert pin(driver, 2, 91) == "31"


def test_only_one_probe_at_a_time_waits_to_be_shown() -> None:
    driver = probing()
    assert asked(driver.wait(0.0)) == [1]
    driver.start_probe(1, SOURCE)

    commands = driver.tell(*shown(90))

    assert commands == [f"PROBE 2 {TARGET} as alice:pw", "ATTACHSTREAM 90 30; probe"]


def test_a_probe_is_no_stream_of_a_user_s() -> None:
    driver = probing()
    before = driver.snapshot()

    driver.wait(0.0)
    pin(driver, 1, 90)

    during = driver.snapshot()
    assert (during.streams_active, during.attached_total) == (before.streams_active, before.attached_total)
    assert [(c.streams, c.attached_total, c.share) for c in during.circuits] == [
        (c.streams, c.attached_total, c.share) for c in before.circuits
    ]
    explained = driver.pool.explain(None, now=driver.now)
    assert {decision.stream_id for decision in explained.decisions} == {"1", "2"}
    # Round robin goes on as if nothing had been.
    assert driver.tell(*opened(8, user="alice", password="pw")) == ["ATTACHSTREAM 8 30; a"]  # noqa: S106


def test_a_full_circuit_is_probed_and_a_probe_takes_no_place() -> None:
    driver = probing(TCP, Slot("a", max_streams=2))

    driver.wait(0.0)
    assert pin(driver, 1, 90) == "30"

    assert driver.tell(*opened(8, user="alice", password="pw")) == ["ATTACHSTREAM 8 30; a"]  # noqa: S106


def test_a_stream_from_another_port_is_a_user_s_even_to_the_target_of_a_probe() -> None:
    driver = probing()
    driver.wait(0.0)
    driver.start_probe(1, SOURCE)

    commands = driver.tell(*shown(90, source="127.0.0.1:5001"))

    assert commands == ["ATTACHSTREAM 90 30; a"]


def test_an_answer_counts_when_tor_has_told_of_it_as_well() -> None:
    driver = probing()
    driver.wait(0.0)
    pin(driver, 1, 90)

    driver.end_probe(1, ANSWERED)
    assert health(driver, "a") == "unknown"
    driver.tell(f"STREAM 90 SUCCEEDED 30 {TARGET}")

    assert health(driver, "a") == "up"
    assert driver.pool.is_probed(driver.circuit("a").circuit_id)  # type: ignore[arg-type]  # it is built


@pytest.mark.parametrize(
    "events",
    [
        # Another controller moved it.
        [f"STREAM 90 SENTCONNECT 31 {TARGET}"],
        # It went with its circuit.
        ["CIRC 30 CLOSED PURPOSE=GENERAL REASON=DESTROYED", f"STREAM 90 FAILED 30 {TARGET} REASON=DESTROY"],
        # The exit does not serve this port.
        [f"STREAM 90 DETACHED 30 {TARGET} REASON=END REMOTE_REASON=EXITPOLICY"],
        # Tor connected it, and its connection says otherwise.
        [f"STREAM 90 SUCCEEDED 30 {TARGET}"],
    ],
)
def test_a_circuit_is_not_blamed_for_what_is_not_its_fault(events: list[str]) -> None:
    driver = probing(replace(TCP, fall=1))
    driver.wait(0.0)
    pin(driver, 1, 90)

    driver.tell(*events)
    driver.end_probe(1, FAILED)

    probe = driver.circuit("a").probe
    assert probe is None or probe.last is None
    assert "down" not in driver.states().values()


def test_a_detached_probe_has_failed_and_is_not_tried_elsewhere() -> None:
    driver = probing(replace(TCP, fall=1))
    driver.wait(0.0)
    pin(driver, 1, 90)

    commands = driver.tell(
        f"STREAM 90 DETACHED 30 {TARGET} REASON=END REMOTE_REASON=CONNECTREFUSED",
        f"STREAM 90 CONTROLLER_WAIT 30 {TARGET}",
    )

    assert [c for c in commands if not c.startswith("PROBE")] == ["STOP 1", "EXTENDCIRCUIT 0; a"]
    assert driver.states()["a"] == "down"


def test_a_circuit_that_tor_closes_soon_for_a_failed_probe_is_replaced_before_that() -> None:
    driver = probing()
    driver.wait(0.0)
    pin(driver, 1, 90)
    driver.tell(f"STREAM 90 DETACHED 30 {TARGET} REASON=END REMOTE_REASON=MISC")

    commands = driver.wait(10.0)

    assert "EXTENDCIRCUIT 0; a" in commands


def test_what_tor_refuses_to_attach_tells_nothing() -> None:
    driver = probing(replace(TCP, fall=1))
    driver.wait(0.0)
    driver.start_probe(1, SOURCE)
    driver.tell(*shown(90))

    commands = driver.refuse_attach(90, 30, '552 Unknown circuit "30"')

    assert commands == ["STOP 1"]
    assert health(driver, "a") == "unknown"


def test_a_refusal_to_take_a_stream_back_changes_nothing() -> None:
    driver = unix_probe()
    driver.tell(
        f"STREAM 90 DETACHED 30 {TARGET} REASON=END REMOTE_REASON=CONNECTREFUSED",
        f"STREAM 90 CONTROLLER_WAIT 30 {TARGET}",
    )

    assert driver.refuse_attach(90, 0, "555 Connection is not managed by controller.") == []
    assert driver.tell(f"STREAM 90 CLOSED 0 {TARGET} REASON=DONE") == []


def test_a_circuit_that_closes_is_not_probed_any_more() -> None:
    driver = probing(TCP, "a", "b", "c")
    driver.wait(0.0)
    driver.start_probe(1, SOURCE)
    driver.tell("CIRC 31 CLOSED PURPOSE=GENERAL REASON=DESTROYED")

    # The stream over b was the next one.
    assert driver.tell(*shown(90)) == [f"PROBE 2 {TARGET} as alice:pw", "ATTACHSTREAM 90 30; probe"]
    assert pin(driver, 2, 91) == "32"
    for number, circuit_id in ((90, 30), (91, 32)):
        driver.tell(f"STREAM {number} SUCCEEDED {circuit_id} {TARGET}")
        driver.end_probe(number - 89, ANSWERED)
        driver.tell(closed(number))
    driver.tell("CIRC 32 CLOSED PURPOSE=GENERAL REASON=DESTROYED")
    edge = Edge(driver)
    edge.pass_time(31)
    assert edge.probed == ["30"]


def test_a_probe_that_closes_before_it_was_attached_tells_nothing() -> None:
    driver = probing(replace(TCP, fall=1), "a")
    driver.wait(0.0)
    driver.start_probe(1, SOURCE)
    driver.start_probe(99, SOURCE)
    driver.tell(shown(90)[0], f"STREAM 90 CLOSED 0 {TARGET} REASON=DONE")

    driver.end_probe(1, FAILED)

    assert health(driver, "a") == "unknown"


def test_a_circuit_drains_until_its_probe_is_gone() -> None:
    driver = probing()
    driver.wait(0.0)
    pin(driver, 1, 90)
    driver.tell(closed(1))
    driver.reload(policy_of("b", isolation=Isolation.TOR, probe=TCP))

    assert driver.snapshot().circuits[-1].state == "draining"
    assert driver.tell(f"STREAM 90 CLOSED 30 {TARGET} REASON=DONE") == ["CLOSECIRCUIT 30 IfUnused"]


# --- over a Unix socket ------------------------------------------------------------------------------------


def test_over_a_unix_socket_the_first_stream_to_the_target_is_the_probe_s() -> None:
    unix = "/run/tor/socks:0"
    driver = balancing(policy_of("a", isolation=Isolation.TOR, probe=UNIX))
    driver.tell(*opened(1, user="alice", password="pw", source=unix))  # noqa: S106
    assert driver.wait(0.0) == [f"PROBE 1 {TARGET} as alice:pw"]
    driver.start_probe(1, None)

    assert driver.tell(*shown(80, source=unix, target="198.51.100.1:80")) == ["ATTACHSTREAM 80 30; a"]
    assert driver.tell(*shown(81, source=unix, user="bob"))[-1] != "ATTACHSTREAM 81 30; probe"
    assert driver.tell(*shown(82, source="127.0.0.1:4712")) != ["ATTACHSTREAM 82 30; probe"]
    assert driver.tell(*shown(90, source=unix)) == ["ATTACHSTREAM 90 30; probe"]


def test_tor_cuts_a_long_path_off_and_its_streams_are_recognised_all_the_same() -> None:
    driver = balancing(policy_of("a", isolation=Isolation.NONE, probe=UNIX))
    cut = "/run/tor-instances/with-a-long-name/and-a-folder/s"
    driver.tell(*opened(1, user="alice", password="pw", source=cut))  # noqa: S106
    driver.wait(0.0)
    driver.start_probe(1, None)

    assert driver.tell(*shown(90, source=cut)) == ["ATTACHSTREAM 90 30; probe"]


def unix_probe() -> Driver:
    """A probe over the Unix socket that was shown as stream 90."""
    driver = balancing(policy_of("a", isolation=Isolation.TOR, probe=replace(UNIX, fall=1)))
    driver.tell(*opened(1, user="alice", password="pw", source="/run/tor/socks:0"))  # noqa: S106
    driver.wait(0.0)
    driver.start_probe(1, None)
    assert driver.tell(*shown(90, source="/run/tor/socks:0")) == ["ATTACHSTREAM 90 30; probe"]
    driver.tell(f"STREAM 90 SENTCONNECT 30 {TARGET}")
    return driver


@pytest.mark.parametrize("outcome", [ANSWERED, FAILED])
def test_two_streams_that_could_both_be_the_probe_s_make_its_outcome_worthless(outcome: ProbeOutcome) -> None:
    driver = unix_probe()

    assert driver.tell(*shown(91, source="/run/tor/socks:0")) == ["ATTACHSTREAM 91 30; a"]
    if outcome is ANSWERED:
        driver.tell(f"STREAM 90 SUCCEEDED 30 {TARGET}")
    driver.end_probe(1, outcome)

    assert health(driver, "a") == "unknown"


def test_a_stream_that_comes_later_is_not_taken_for_the_probe_s() -> None:
    driver = unix_probe()
    driver.now += 1.5

    driver.tell(*shown(91, source="/run/tor/socks:0"))
    driver.tell(f"STREAM 90 SUCCEEDED 30 {TARGET}")
    driver.end_probe(1, ANSWERED)

    assert health(driver, "a") == "up"


def test_a_stream_that_may_be_somebody_else_s_never_waits_for_nobody() -> None:
    driver = unix_probe()

    commands = driver.tell(
        f"STREAM 90 DETACHED 30 {TARGET} REASON=END REMOTE_REASON=CONNECTREFUSED",
        f"STREAM 90 CONTROLLER_WAIT 30 {TARGET}",
    )

    assert commands[-1] == "ATTACHSTREAM 90 0; probe"


# --- circuits that cannot be probed ------------------------------------------------------------------------


def reason(circuit: CircuitSnapshot) -> tuple[str, str]:
    assert circuit.probe is not None
    return circuit.probe.health, circuit.probe.why_not


def test_circuits_that_no_key_has_are_not_probed() -> None:
    driver = balancing(policy_of("a", "b", isolation=Isolation.TOR, probe=replace(TCP, unused=True)))

    assert driver.wait(0.0) == []

    assert reason(driver.circuit("a")) == ("skipped", "no isolation key has it yet")


@pytest.mark.parametrize("isolation", Isolation)
def test_a_circuit_without_a_stream_is_probed_only_if_that_is_wanted(isolation: Isolation) -> None:
    backup = Slot("spare", role=Role.BACKUP)
    driver = probing(TCP, "a", backup, isolation=isolation)
    edge = Edge(driver)
    edge.pass_time(40)
    assert set(edge.probed) == {"30"}
    assert reason(driver.circuit("spare")) == ("skipped", "it has carried no stream yet")

    driver = probing(replace(TCP, unused=True), "a", backup)
    edge = Edge(driver)
    edge.pass_time(40)
    assert set(edge.probed) == {"30", "31"}


def test_a_circuit_whose_streams_come_another_way_is_left_alone_and_that_is_said_once() -> None:
    driver = balancing(policy_of("a", "b", isolation=Isolation.TOR, probe=TCP))
    lines = [line.replace("GROUP=-4", "GROUP=-9") for line in opened(1, user="alice", password="pw")]  # noqa: S106
    driver.tell(*lines)
    driver.tell(*(line.replace("STREAM 1", "STREAM 2") for line in lines))
    assert asked(driver.wait(0.0)) == [1]
    driver.start_probe(1, SOURCE)

    commands = driver.tell(*shown(90))

    assert "STOP 1" in commands
    assert not any(command.startswith("ATTACHSTREAM 90") for command in commands)
    why = "a probe differs from its streams in SESSION_GROUP: see `health.probe.socks`"
    assert reason(driver.circuit("a")) == ("skipped", why)
    assert not driver.pool.is_probed(driver.circuit("a").circuit_id)  # type: ignore[arg-type]  # it is built
    edge = Edge(driver)
    (second,) = asked(commands)
    edge.run(second)
    edge.pass_time(100)
    assert edge.probed == []
    assert reason(driver.circuit("b")) == ("skipped", why)
    assert not any("is not probed" in line for line in edge.said)


def test_a_probe_of_which_tor_does_not_say_what_isolates_it_is_not_attached() -> None:
    driver = probing(TCP, "a")
    driver.wait(0.0)
    driver.start_probe(1, SOURCE)

    driver.tell(*opened(90, TARGET, user="alice", password="pw", source=SOURCE, fields=None))  # noqa: S106

    assert "differs from its streams in what isolates it, which" in reason(driver.circuit("a"))[1]


def test_what_a_probe_differs_in_is_told_in_the_log_without_values() -> None:
    driver = balancing(policy_of("a", isolation=Isolation.TOR, probe=TCP))
    driver.tell(*opened(1, user="alice", password="pw", source="192.0.2.9:1", epoch=4))  # noqa: S106
    driver.wait(0.0)
    driver.start_probe(1, SOURCE)

    driver.tell(shown(90)[0])

    what = "circuit a (30), like others of its kind, is not probed"
    why = "a probe differs from its streams in CLIENTADDR, NYM_EPOCH: see `health.probe.socks`"
    assert driver.said == [f"warning: {what}: {why}"]


def test_without_isolation_a_probe_passes_for_the_circuit_s_first_stream() -> None:
    driver = probing(isolation=Isolation.NONE)
    driver.tell(*opened(7, user="bob", password="pw"))  # noqa: S106 - on a circuit that alice had first

    assert driver.wait(0.0) == [f"PROBE 1 {TARGET} as alice:pw"]
    assert pin(driver, 1, 90) == "30"


def test_without_isolation_an_unused_circuit_is_probed_without_a_login_and_then_always_so() -> None:
    driver = balancing(policy_of("a", probe=replace(TCP, unused=True)))

    assert driver.wait(0.0) == [f"PROBE 1 {TARGET}"]
    driver.start_probe(1, SOURCE)
    assert driver.tell(*shown(90, user=None)) == ["ATTACHSTREAM 90 30; probe"]
    driver.tell(f"STREAM 90 SUCCEEDED 30 {TARGET}")
    driver.end_probe(1, ANSWERED)
    driver.tell(*opened(1, user="alice", password="pw"))  # noqa: S106

    assert driver.wait(30.0) == [f"PROBE 2 {TARGET}"]


def test_a_circuit_that_another_agent_used_is_probed_when_its_key_is_known() -> None:
    policy = policy_of("a", isolation=Isolation.TOR, probe=TCP)
    first = Driver(policy)
    first.connect(secret=b"x")
    first.build(30)
    first.tell(*opened(1, user="alice", password="pw"))  # noqa: S106
    driver = Driver(policy)
    driver.connect(circuits=built(30), records=first.pool.records(), secret=b"x")

    assert driver.wait(0.0) == []
    why = "no stream of its isolation key has come since the agent started"
    assert reason(driver.circuit("a")) == ("skipped", why)
    assert driver.tell(*opened(1, user="alice", password="pw")) == ["ATTACHSTREAM 1 30; a"]  # noqa: S106
    assert asked(driver.wait(30.0)) == [1]


def test_without_isolation_a_circuit_of_an_unknown_past_is_not_probed() -> None:
    driver = balancing(policy_of("a", "b"))
    driver.tell(*opened(1, user="alice"))

    driver.reload(policy_of("a", "b", probe=TCP))

    assert driver.wait(0.0) == []
    assert reason(driver.circuit("a")) == ("skipped", "what it has carried is not known")
    assert reason(driver.circuit("b")) == ("skipped", "it has carried no stream yet")


def test_without_isolation_a_probe_never_follows_a_stream_of_another_kind() -> None:
    driver = balancing(policy_of("a", probe=replace(TCP, unused=True)))
    assert driver.wait(0.0) == [f"PROBE 1 {TARGET}"]
    driver.start_probe(1, SOURCE)
    birth, waits = shown(90, user=None)
    driver.tell(birth)
    # A user was faster, with a login.
    driver.tell(*opened(1, user="alice", password="pw"))  # noqa: S106

    assert driver.tell(waits) == ["STOP 1"]


def test_circuits_of_an_old_identity_are_not_probed_any_more() -> None:
    driver = probing(TCP, "a")
    driver.tell("SIGNAL NEWNYM")

    edge = Edge(driver)
    edge.pass_time(40)

    assert edge.probed == []


# --- who is out --------------------------------------------------------------------------------------------


def test_a_circuit_that_falls_takes_no_streams_until_it_has_risen() -> None:
    driver = probing(TCP, "a", "b")
    edge = Edge(driver, "30")

    edge.pass_time(1)
    assert driver.states() == {"a": "built", "b": "built"}
    commands = edge.pass_time(30)

    assert driver.states() == {"a": "down", "b": "built"}
    assert commands == ["EXTENDCIRCUIT 0; a"]
    tallies = driver.pool.tally.circuits
    assert (tallies["a"].checks_passed, tallies["a"].checks_failed) == (0, edge.probed.count("30"))
    assert (tallies["b"].checks_passed, tallies["b"].checks_failed) == (edge.probed.count("31"), 0)
    for stream_id in (8, 9):
        assert driver.tell(*opened(stream_id, user="alice", password="pw")) == [  # noqa: S106
            f"ATTACHSTREAM {stream_id} 31; b"
        ]
    explained = {c.name: c.why for c in driver.pool.explain(None, now=driver.now).candidates}
    assert explained["a"] == "down: its last probes failed"
    assert driver.circuit("a").weight_share == 0.0

    edge.bad.clear()
    edge.pass_time(30)
    assert driver.states()["a"] == "down"
    edge.pass_time(30)

    assert driver.states()["a"] == "built"
    chosen = [driver.tell(*opened(i, user="alice", password="pw"))[0].split("; ")[1] for i in (10, 11)]  # noqa: S106
    assert sorted(chosen) == ["a", "b"]


def test_falling_and_rising_are_told_in_the_log() -> None:
    driver = probing(replace(TCP, fall=1, rise=1), "a", "b")
    edge = Edge(driver, "30")
    edge.pass_time(5)
    edge.bad.clear()
    edge.pass_time(30)

    assert edge.said == [
        "warning: circuit a (30) is down: its last probe failed",
        "info: circuit a (30) is down, building another",
        "info: circuit a (30) takes streams again",
    ]


def test_its_successor_serves_instead_and_is_probed_itself() -> None:
    driver = probing(TCP, "a", "b")
    edge = Edge(driver, "30")
    edge.pass_time(31)
    assert driver.states()["a"] == "down"

    driver.build(40)

    assert driver.states() == {"a": "built", "b": "built"} | {"a": "draining"}
    assert driver.circuit("a").circuit_id == "40"
    driver.tell(*opened(8, user="alice", password="pw"), *opened(9, user="alice", password="pw"))  # noqa: S106
    edge.pass_time(35)
    assert "40" in edge.probed
    assert health(driver, "a") == "up"


def test_never_more_than_max_percent_are_down_and_one_always_serves() -> None:
    names = [f"c{number}" for number in range(8)]
    driver = probing(replace(TCP, fall=1), *names, eject=Eject(max_percent=25))
    # Three of eight: too few for the target to be taken for dead.
    edge = Edge(driver, "30", "31", "32")

    edge.pass_time(100)

    assert list(driver.states().values()).count("down") == 2
    assert [health(driver, name) for name in names[:3]] == ["down"] * 3


def test_an_ejected_circuit_whose_probes_fail_stays_out_when_its_time_is_over() -> None:
    driver = probing(
        replace(TCP, fall=1), "a", "b", eject=Eject(consecutive_failures=1, base_seconds=5.0, max_percent=50)
    )
    for stream_id in (10, 11):
        driver.tell(*opened(stream_id, "host.example:80", user="alice", password="pw"))  # noqa: S106
        driver.tell(
            f"STREAM {stream_id} FAILED 30 host.example:80 REASON=END REMOTE_REASON=MISC", closed(stream_id)
        )
    assert driver.states()["a"] == "ejected"

    Edge(driver, "30").pass_time(20)

    assert driver.states()["a"] == "down"


def test_a_dead_target_takes_no_circuit_out() -> None:
    names = [f"c{number}" for number in range(5)]
    driver = probing(replace(TCP, fall=2), *names)
    edge = Edge(driver, *(str(30 + number) for number in range(5)))

    edge.pass_time(300)

    assert "down" not in driver.states().values()
    # All of them once, and then one an interval.
    assert len(edge.probed) <= 3 + 2 + 10
    edge.bad.clear()
    edge.pass_time(65)
    assert [health(driver, name) for name in names] == ["up"] * 5


def test_backup_circuits_stand_in_for_one_that_is_down() -> None:
    driver = probing(TCP, "a", "b", Slot("spare", role=Role.BACKUP))
    policy = replace(driver.pool.policy, failover=replace(driver.pool.policy.failover, min_active=2))
    driver.reload(policy)
    edge = Edge(driver, "30")

    edge.pass_time(35)

    assert driver.states()["a"] == "down"
    chosen = {driver.tell(*opened(i, user="alice", password="pw"))[0].split("; ")[1] for i in range(8, 12)}  # noqa: S106
    assert chosen == {"b", "spare"}


def test_those_that_wait_are_served_when_a_circuit_rises() -> None:
    driver = probing(replace(TCP, fall=1, rise=1), Slot("a", max_streams=9), Slot("b", max_streams=1))
    edge = Edge(driver, "30")
    edge.pass_time(1)
    assert driver.states()["a"] == "down"
    policy = driver.pool.policy
    balance = replace(policy.balance, when_full=WhenFull.QUEUE, queue=Queue(timeout_seconds=60.0))
    driver.reload(replace(policy, balance=balance))
    assert driver.tell(*opened(8, user="alice", password="pw")) == []  # noqa: S106

    edge.bad.clear()
    commands = edge.pass_time(29)
    commands += edge.pass_time(2)

    assert "ATTACHSTREAM 8 30; a" in commands


def test_a_policy_without_probes_lets_everyone_in_and_one_with_others_begins_anew() -> None:
    driver = probing(TCP, "a", "b")
    edge = Edge(driver, "30")
    edge.pass_time(31)
    assert driver.states()["a"] == "down"

    driver.reload(policy_of("a", "b", isolation=Isolation.TOR, probe=replace(TCP, fall=9)))
    assert driver.states()["a"] == "built"
    edge.pass_time(1)
    assert health(driver, "a") == "up"

    driver.reload(policy_of("a", "b", isolation=Isolation.TOR))
    assert driver.circuit("a").probe is None
    assert edge.pass_time(100) == []


def test_a_circuit_that_is_down_stays_out_whatever_else_a_reload_or_the_operator_changes() -> None:
    driver = probing(TCP, "a", "b")
    Edge(driver, "30").pass_time(31)
    assert driver.states()["a"] == "down"

    policy = driver.pool.policy
    driver.reload(replace(policy, health=replace(policy.health, eject=Eject(5, 30.0, 50))))
    assert driver.states()["a"] == "down"
    for order in (Order.DRAIN, Order.READY):
        driver.give(CircuitOrdered(order, "a"))
    assert driver.states()["a"] == "down"
    assert driver.tell(*opened(8, user="alice", password="pw")) == ["ATTACHSTREAM 8 31; b"]  # noqa: S106


def test_a_reload_that_changes_nothing_of_probes_keeps_what_they_found() -> None:
    driver = probing(TCP, "a", "b")
    edge = Edge(driver, "30")
    edge.pass_time(31)

    driver.reload(replace(driver.pool.policy))

    assert driver.states()["a"] == "down"


# --- what keeps probes from working ------------------------------------------------------------------------


def test_a_socks_port_that_is_not_there_is_told_once_and_no_circuit_is_blamed() -> None:
    driver = probing(replace(TCP, fall=1))
    said: list[str] = []
    for _ in range(100):
        numbers = asked(driver.wait(1.0))
        while numbers:
            numbers = asked(driver.end_probe(numbers[0], UNREACHED, "tcp:127.0.0.1:9050: connection refused"))
            said += driver.said

    problem = "tcp:127.0.0.1:9050: connection refused"
    assert said == [f"warning: probes do not work, and no circuit is blamed for it: {problem}"]
    assert driver.snapshot().probe_problem == problem
    assert set(driver.states().values()) == {"built"}
    Edge(driver).pass_time(31)
    assert driver.snapshot().probe_problem == ""
    assert health(driver, "a") == "up"


def test_a_stream_that_tor_never_shows_is_a_problem_of_the_probes() -> None:
    driver = probing(replace(TCP, fall=1))
    driver.wait(0.0)
    driver.start_probe(1, SOURCE)

    driver.end_probe(1, FAILED)

    assert driver.snapshot().probe_problem.startswith("Tor shows no such stream")
    assert health(driver, "a") == "unknown"


def test_giving_back_stops_probes_and_taking_over_begins_them_again() -> None:
    driver = probing(TCP, "a", when_none=WhenNone.TOR)
    driver.wait(0.0)
    pin(driver, 1, 90)

    commands = driver.tell("CIRC 30 CLOSED PURPOSE=GENERAL REASON=DESTROYED")

    assert GIVE_BACK in commands
    assert "STOP 1" in commands
    assert asked(driver.wait(60.0)) == []


def test_a_lost_connection_stops_probes_and_what_is_left_of_them_is_counted_as_a_stream() -> None:
    driver = probing(TCP, "a")
    driver.wait(0.0)
    pin(driver, 1, 90)

    commands = driver.connect(
        circuits=built(30), streams=f"90 SENTCONNECT 30 {TARGET}\n1 SUCCEEDED 30 example.com:80"
    )

    assert "STOP 1" in commands
    assert driver.circuit("a").streams == 2
    driver.end_probe(1, FAILED)
    assert "down" not in driver.states().values()


def test_a_probe_that_ends_after_it_was_stopped_says_nothing() -> None:
    driver = probing(replace(TCP, fall=1), "a")
    driver.wait(0.0)
    pin(driver, 1, 90)
    driver.receive(conf_changed("0"))
    driver.reload(policy_of("a", isolation=Isolation.TOR))

    assert driver.end_probe(1, FAILED) == []
    assert driver.tell(f"STREAM 90 CLOSED 30 {TARGET} REASON=DONE") == []


def test_a_spent_budget_makes_checks_late() -> None:
    # One stream is 1,542 bytes: two an hour, and two at the start.
    driver = probing(replace(TCP, budget_bytes=2 * 1542), "a", "b")
    edge = Edge(driver)

    edge.pass_time(1700)
    assert len(edge.probed) == 2
    assert driver.snapshot().probe_problem == "late, because the budget of bytes is used up"
    edge.pass_time(200)
    assert len(edge.probed) == 3


def test_what_is_of_a_probe_is_known_until_the_next_event() -> None:
    driver = probing(TCP, "a")
    driver.wait(0.0)
    pin(driver, 1, 90)
    assert driver.pool.is_of_probe
    driver.reload(policy_of("a", isolation=Isolation.TOR))

    driver.tell(f"STREAM 90 CLOSED 30 {TARGET} REASON=DONE")
    assert driver.pool.is_of_probe
    driver.tell(closed(1))

    assert not driver.pool.is_of_probe
