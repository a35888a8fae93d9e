"""The rounds' schedule: exact grid, whose turn it is, what is asked again and what never is."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom.model import Announce, CircuitId, Hop
from circuitloom.policy.types import OnFailure, Rounds, Schedule
from circuitloom.rounds import Timetable
from circuitloom.rounds.timetable import MAX_PARALLEL
from circuitloom.rounds.types import (
    Action,
    AskTor,
    CircuitsConfirmed,
    Event,
    HookEnded,
    HookStillRuns,
    IntentNotRecorded,
    IntentRecorded,
    Looked,
    Outcome,
    Past,
    RecordIntent,
    RecordMissed,
    RecordOutcome,
    ReplaceCircuit,
    Result,
    RunHook,
    Served,
    Unfinished,
    round_key,
)

LEDGER = uuid.UUID(int=7)
PLAIN = Rounds(("/hook",), require_probe=False)
DONE = Result(Outcome.DONE)
FAILED = Result(Outcome.FAILED, "exit status 1")
UNKNOWN = Result(Outcome.UNKNOWN, "killed by SIGKILL")


def circuit(name: str, number: int = 0) -> Served:
    return Served(name, CircuitId(f"{name}#{number}"), (Hop("A" * 40, "alpha"),), 3, 60.0)


class Driver:
    """A timetable with a clock; intents reach the disk unless told otherwise."""

    def __init__(
        self,
        rounds: Rounds = PLAIN,
        names: Sequence[str] = ("primary", "backup"),
        *,
        past: Past | None = None,
        unfinished: Sequence[Unfinished] = (),
    ) -> None:
        self.names = names
        self.table = Timetable(rounds, names, ledger=LEDGER, past=past, unfinished=unfinished)
        self.circuits = {name: circuit(name) for name in names}
        self.is_ready = True
        self.is_disk_full = False
        self.now = 100.0
        self.log: list[tuple[float, Action]] = []

    def tell(self, event: Event) -> None:
        actions = self.table.handle(event, now=self.now, circuits=self.circuits, is_ready=self.is_ready)
        self.table.check_invariants()
        for action in actions:
            self.log.append((self.now, action))
            if isinstance(action, RecordIntent):
                key = action.intent.key
                self.tell(IntentNotRecorded(key) if self.is_disk_full else IntentRecorded(key))

    def go(self, until: float, *, result: Result | None = DONE) -> None:
        """Let time pass; every hook that starts ends at once with this result."""
        self.tell(Looked())
        self.end_all(result)
        while (at := self.table.next_deadline()) is not None and at <= until:
            self.now = max(self.now, at)
            self.tell(Looked())
            self.end_all(result)
        self.now = until

    def end_all(self, result: Result | None) -> None:
        while result is not None and (keys := self.running):
            self.tell(HookEnded(keys[0], result))

    @property
    def running(self) -> list[str]:
        """Keys of started runs that have not ended."""
        keys: dict[str, None] = {}
        for _, action in self.log:
            if isinstance(action, RunHook):
                keys[action.intent.key] = None
            elif isinstance(action, RecordOutcome):
                keys.pop(action.intent.key, None)
        retrying = {run.intent.key for _, run in self.table._again}
        return [key for key in keys if key not in retrying]

    def of(self, kind: type) -> list[Any]:
        return [action for _, action in self.log if isinstance(action, kind)]

    def runs(self) -> list[tuple[float, int, str]]:
        """When, which round, which circuit."""
        return [
            (at - 100.0, action.intent.round, action.intent.circuit.name)
            for at, action in self.log
            if isinstance(action, RunHook)
        ]


# --- the grid ----------------------------------------------------------------------------------------------


def test_the_timeline_of_the_origin() -> None:
    driver = Driver()
    driver.go(100 + 140)

    assert driver.runs() == [(2, 1, "primary"), (47, 2, "backup"), (92, 3, "primary"), (137, 4, "backup")]


def test_no_round_before_circuits_are_ready_and_the_grid_starts_then() -> None:
    driver = Driver()
    driver.is_ready = False
    driver.go(150)
    assert driver.table.next_deadline() is None
    driver.is_ready = True
    driver.go(155)

    assert driver.runs() == [(52, 1, "primary")]


def test_every_circuit_is_served_each_interval() -> None:
    driver = Driver(replace(PLAIN, schedule=Schedule.EVERY_CIRCUIT), ["a", "b", "c"])
    driver.go(100 + 50)

    assert [(at, number, name) for at, number in ((2, 1), (47, 2)) for name in "abc"] == driver.runs()


def test_the_grid_does_not_drift_however_late_it_is_looked_at() -> None:
    driver = Driver()
    driver.go(101)
    for number in range(5):
        driver.now = 102.0 + 45 * number + 7
        driver.tell(Looked())
        driver.end_all(DONE)

    assert driver.table.next_deadline() == 102 + 45 * 5
    assert [action.intent.due for action in driver.of(RunHook)] == [102 + 45 * n for n in range(5)]


def test_rounds_end_at_their_number() -> None:
    driver = Driver(replace(PLAIN, rounds=3))
    driver.go(10_000)

    assert len(driver.runs()) == 3
    assert driver.table.is_over
    assert driver.table.next_deadline() is None


def test_a_standstill_is_one_record_and_the_round_of_the_moment_is_run() -> None:
    driver = Driver()
    driver.go(103)
    driver.now = 102 + 45 * 5 + 1
    driver.tell(Looked())

    (missed,) = driver.of(RecordMissed)
    assert (missed.round, missed.count, missed.due) == (2, 4, 102 + 45 * 4)
    assert driver.runs()[-1][1:] == (6, "backup")


def test_missed_rounds_count_against_their_number() -> None:
    driver = Driver(replace(PLAIN, rounds=4))
    driver.go(103)
    driver.now = 10_000
    driver.tell(Looked())

    assert [(missed.round, missed.count) for missed in driver.of(RecordMissed)] == [(2, 3)]
    assert driver.table.is_over


# --- no circuit --------------------------------------------------------------------------------------------


def test_a_circuit_that_is_gone_gives_its_round_to_the_next_one() -> None:
    driver = Driver()
    del driver.circuits["primary"]
    driver.go(103)

    (run,) = driver.of(RunHook)
    assert (run.intent.circuit.name, run.intent.planned) == ("backup", "primary")


@pytest.mark.parametrize("on_failure", [OnFailure.SKIP, OnFailure.DRAIN])
def test_only_next_circuit_moves_a_round(on_failure: OnFailure) -> None:
    driver = Driver(replace(PLAIN, on_failure=on_failure))
    del driver.circuits["primary"]
    driver.go(100 + 46)
    driver.go(100 + 48)

    assert driver.runs() == [(47, 2, "backup")]
    assert [(m.round, m.reason) for m in driver.of(RecordMissed)] == [(1, "no circuit was usable")]


def test_all_gone_is_missed_at_the_next_date_and_rounds_go_on() -> None:
    driver = Driver()
    driver.go(101)
    circuits, driver.circuits = driver.circuits, {}
    driver.go(100 + 60)
    assert [(missed.round, missed.planned) for missed in driver.of(RecordMissed)] == [(1, "primary")]
    driver.circuits = circuits
    driver.go(100 + 95)

    assert driver.runs() == [(60, 2, "backup"), (92, 3, "primary")]


def test_tor_is_asked_first_and_a_circuit_that_it_does_not_know_is_not_served() -> None:
    driver = Driver(replace(PLAIN, require_probe=True))
    driver.go(103, result=None)
    (ask,) = driver.of(AskTor)
    assert driver.runs() == []
    driver.tell(CircuitsConfirmed(ask.question, frozenset({CircuitId("backup#0")})))
    second = driver.of(AskTor)[1]
    driver.tell(CircuitsConfirmed(second.question, frozenset({CircuitId("backup#0")})))

    assert driver.runs() == [(3, 1, "backup")]


def test_an_answer_that_comes_too_late_starts_nothing() -> None:
    driver = Driver(replace(PLAIN, require_probe=True))
    driver.go(103, result=None)
    driver.go(148, result=None)
    first = driver.of(AskTor)[0]
    driver.tell(CircuitsConfirmed(first.question, frozenset({CircuitId("primary#0")})))

    assert driver.runs() == []
    assert [missed.round for missed in driver.of(RecordMissed)] == [1]


def test_without_connection_the_question_is_asked_again() -> None:
    driver = Driver(replace(PLAIN, require_probe=True))
    driver.go(103, result=None)
    circuits, driver.circuits = driver.circuits, {}
    driver.tell(Looked())
    driver.circuits = circuits
    driver.tell(Looked())

    assert len(driver.of(AskTor)) == 2


# --- what the hook says ------------------------------------------------------------------------------------


def test_a_failed_round_moves_on_and_each_circuit_has_its_own_key() -> None:
    driver = Driver()
    driver.go(103, result=FAILED)

    assert [run.intent.circuit.name for run in driver.of(RunHook)] == ["primary", "backup"]
    assert len({run.intent.key for run in driver.of(RunHook)}) == 2
    assert driver.of(RecordMissed) == []


@pytest.mark.parametrize(
    "result",
    [
        Result(Outcome.FAILED, "exit status 1", {"retry": False}),
        Result(Outcome.FAILED, "/hook is not executable", has_run=False),
    ],
)
def test_a_failure_that_would_be_the_same_elsewhere_does_not_move(result: Result) -> None:
    driver = Driver()
    driver.go(103, result=result)

    assert len(driver.runs()) == 1


def test_a_round_of_unknown_end_is_asked_again_with_its_key_and_never_moves() -> None:
    driver = Driver()
    driver.go(120, result=UNKNOWN)

    runs = driver.of(RunHook)
    assert len({run.intent.key for run in runs}) == 1
    assert [run.document["attempt"] for run in runs] == [1, 2, 3]
    assert [record.result.outcome for record in driver.of(RecordOutcome)] == [Outcome.UNKNOWN]


def test_a_second_start_that_fails_does_not_say_that_nothing_was_done() -> None:
    driver = Driver()
    driver.go(103, result=None)
    (key,) = driver.running
    driver.tell(HookEnded(key, UNKNOWN))
    driver.now += 2
    driver.tell(Looked())
    driver.tell(HookEnded(key, Result(Outcome.FAILED, "/hook: No such file", has_run=False)))

    assert [record.result.outcome for record in driver.of(RecordOutcome)] == [Outcome.UNKNOWN]
    assert {"primary"} == {name for _, _, name in driver.runs()}


def test_drain_replaces_the_circuit() -> None:
    driver = Driver(replace(PLAIN, on_failure=OnFailure.DRAIN))
    driver.go(103, result=FAILED)

    assert [ReplaceCircuit(CircuitId("primary#0"))] == driver.of(ReplaceCircuit)


def test_nothing_runs_that_is_not_on_the_disk() -> None:
    driver = Driver()
    driver.is_disk_full = True
    driver.go(103)
    assert driver.runs() == []
    driver.is_disk_full = False
    driver.go(148)

    assert driver.runs() == [(47, 2, "backup")]


def test_a_few_hooks_at_once() -> None:
    names = [f"c{number}" for number in range(10)]
    driver = Driver(replace(PLAIN, schedule=Schedule.EVERY_CIRCUIT), names)
    driver.go(103, result=None)
    assert len(driver.runs()) == MAX_PARALLEL
    driver.go(148, result=None)

    reasons = {missed.reason for missed in driver.of(RecordMissed)}
    assert reasons == {"the hooks before it took too long"}
    assert [missed.round for missed in driver.of(RecordMissed)] == [1] * 6


# --- restarts ----------------------------------------------------------------------------------------------


def unfinished(number: int, name: str, attempts: int = 1) -> Unfinished:
    driver = Driver()
    driver.go(103, result=None)
    intent = replace(
        driver.of(RunHook)[0].intent,
        key=round_key(LEDGER, number, name),
        round=number,
        circuit=circuit(name, 9),
    )
    return Unfinished(intent, attempts)


def test_an_unfinished_run_is_asked_again_for_the_circuit_of_then() -> None:
    driver = Driver(past=Past(7, 90.0, {"primary": None}), unfinished=[unfinished(7, "primary")])
    driver.go(101, result=None)

    (run,) = driver.of(RunHook)
    assert round_key(LEDGER, 7, "primary") == run.intent.key
    assert (run.document["attempt"], run.document["retried"]) == (2, True)
    assert run.document["circuit"]["id"] == "primary#9"
    assert run.document["circuit"]["built"] is False
    assert driver.table.next_deadline() == 90 + 45


def test_an_unfinished_run_that_fails_moves_while_its_round_lasts() -> None:
    driver = Driver(past=Past(7, 90.0, {"primary": None}), unfinished=[unfinished(7, "primary")])
    driver.go(101, result=FAILED)

    assert [name for _, _, name in driver.runs()] == ["primary", "backup"]


def test_an_unfinished_run_of_an_older_round_does_not_move() -> None:
    driver = Driver(past=Past(8, 90.0, {"backup": Outcome.DONE}), unfinished=[unfinished(7, "primary")])
    driver.go(101, result=FAILED)

    assert [name for _, _, name in driver.runs()] == ["primary"]


def test_a_run_that_has_not_ended_is_waited_for() -> None:
    driver = Driver(past=Past(7, 90.0, {"primary": None}), unfinished=[unfinished(7, "primary")])
    driver.tell(Looked())
    for _ in range(3):
        driver.tell(HookStillRuns(round_key(LEDGER, 7, "primary")))
        driver.now += 1.5
        driver.tell(Looked())

    assert [run.document["attempt"] for run in driver.of(RunHook)] == [2, 2, 2, 2]


def test_rounds_of_the_time_without_agent_are_missed() -> None:
    driver = Driver(past=Past(7, 0.0, {"primary": Outcome.DONE}))
    driver.go(101)

    # Round 8 was due at 45, round 9 at 90: that is the round of the moment.
    assert [(missed.round, missed.count) for missed in driver.of(RecordMissed)] == [(8, 1)]
    assert driver.runs() == [(0, 9, "primary")]


def test_a_wall_clock_that_was_set_back_delays_no_round_by_more_than_an_interval() -> None:
    driver = Driver(past=Past(7, 1e6, {}))
    driver.go(101)

    assert driver.table.next_deadline() == 145


def test_a_round_that_was_cut_between_its_circuits_goes_on_with_the_others() -> None:
    rounds = replace(PLAIN, schedule=Schedule.EVERY_CIRCUIT)
    driver = Driver(rounds, ["a", "b", "c"], past=Past(7, 90.0, {"a": Outcome.DONE}))
    driver.go(101)

    assert driver.runs() == [(0, 7, "b"), (0, 7, "c")]


def test_a_finished_round_is_not_run_again() -> None:
    for past in (Past(7, 90.0, {"primary": Outcome.DONE}), Past(7, 90.0, {"backup": Outcome.FAILED})):
        driver = Driver(past=past)
        driver.go(101)
        assert driver.runs() == []


def test_keys_differ_by_ledger_round_and_circuit_and_by_nothing_else() -> None:
    keys = {
        round_key(ledger, n, name) for ledger in (LEDGER, uuid.UUID(int=8)) for n in (1, 11) for name in "ab"
    }

    assert len(keys) == 8
    assert round_key(LEDGER, 1, "a") in keys


# --- reload ------------------------------------------------------------------------------------------------


def test_another_interval_counts_from_the_reload() -> None:
    driver = Driver()
    driver.go(103)
    driver.table.replace_policy(replace(PLAIN, interval_seconds=10.0), ["primary", "backup"], now=103)
    driver.go(125)

    assert driver.runs() == [(2, 1, "primary"), (13, 2, "backup"), (23, 3, "primary")]


def test_a_longer_interval_leaves_the_next_date() -> None:
    driver = Driver()
    driver.go(103)
    driver.table.replace_policy(replace(PLAIN, interval_seconds=100.0), ["primary", "backup"], now=103)

    assert driver.table.next_deadline() == 147


def test_every_failure_is_one_line() -> None:
    driver = Driver()
    driver.go(103, result=FAILED)

    assert [line.message for line in driver.of(Announce)] == [
        "round 1 on primary failed: exit status 1",
        "round 1 moves from primary to backup",
        "round 1 on backup failed: exit status 1",
    ]


def test_a_failed_round_that_waits_for_another_circuit_is_not_missed_as_well() -> None:
    driver = Driver()
    del driver.circuits["backup"]
    driver.go(103, result=FAILED)
    assert driver.table.waiting == 1
    driver.go(148, result=FAILED)

    assert [missed for missed in driver.of(RecordMissed) if missed.round == 1] == []


# --- random histories --------------------------------------------------------------------------------------

STEPS = st.one_of(
    st.tuples(st.just("time"), st.floats(0.1, 100.0)),
    st.tuples(st.just("circuits"), st.sets(st.sampled_from(["a", "b", "c"]))),
    st.tuples(st.just("end"), st.sampled_from([DONE, FAILED, UNKNOWN])),
    st.tuples(st.just("answer"), st.sets(st.sampled_from(["a#0", "b#0", "c#0"]))),
    st.tuples(st.just("disk"), st.booleans()),
)


def apply(driver: Driver, kind: str, value: Any) -> None:  # noqa: ANN401 - what the step of this kind takes
    """Carry one random step out."""
    if kind == "time":
        driver.now += value
    elif kind == "circuits":
        driver.circuits = {name: circuit(name) for name in value}
    elif kind == "end" and driver.running:
        driver.tell(HookEnded(driver.running[0], value))
    elif kind == "answer":
        for ask in driver.of(AskTor)[-4:]:
            driver.tell(CircuitsConfirmed(ask.question, frozenset(map(CircuitId, value))))
    elif kind == "disk":
        driver.is_disk_full = value
    driver.tell(Looked())


def check_keys(driver: Driver) -> None:
    """Each key has one end, and nothing runs for it afterwards."""
    ended = set()
    for _, action in driver.log:
        if isinstance(action, RunHook):
            assert action.intent.key not in ended
        elif isinstance(action, RecordOutcome | RecordMissed):
            key = action.key if isinstance(action, RecordMissed) else action.intent.key
            assert key not in ended
            ended.add(key)


@given(
    schedule=st.sampled_from(Schedule),
    on_failure=st.sampled_from(OnFailure),
    asks=st.booleans(),
    steps=st.lists(STEPS, max_size=40),
)
def test_whatever_happens_no_round_is_lost_or_done_twice(
    schedule: Schedule, on_failure: OnFailure, *, asks: bool, steps: list[tuple[str, Any]]
) -> None:
    rounds = replace(PLAIN, schedule=schedule, on_failure=on_failure, require_probe=asks)
    driver = Driver(rounds, ["a", "b", "c"])
    for kind, value in steps:
        apply(driver, kind, value)

    check_keys(driver)
    if schedule is Schedule.ALTERNATE:
        finals: dict[int, list[Outcome]] = {}
        for record in driver.of(RecordOutcome):
            finals.setdefault(record.intent.round, []).append(record.result.outcome)
        # Only what certainly did nothing was tried elsewhere, and nothing after what may have done something.
        assert all(Outcome.FAILED is outcome for row in finals.values() for outcome in row[:-1])
    numbers = [missed.round + n for missed in driver.of(RecordMissed) for n in range(missed.count)]
    seen = {record.intent.round for record in driver.of(RecordIntent)} | set(numbers)
    assert seen >= set(range(1, driver.table.next_round - 1))


# --- probes ------------------------------------------------------------------------------------------------


def probed(name: str, *, is_probed: bool, number: int = 0) -> Served:
    return replace(circuit(name, number), is_probed=is_probed)


def test_a_round_goes_only_to_a_circuit_whose_last_probe_passed() -> None:
    driver = Driver(replace(PLAIN, require_probe=True))
    driver.circuits["primary"] = probed("primary", is_probed=False)
    driver.go(103)
    (ask,) = driver.of(AskTor)

    driver.tell(CircuitsConfirmed(ask.question, frozenset(c.circuit_id for c in driver.circuits.values())))

    assert driver.runs() == [(3, 1, "backup")]


def test_a_round_waits_for_a_probe_to_pass_and_is_missed_without() -> None:
    driver = Driver(replace(PLAIN, require_probe=True, on_failure=OnFailure.SKIP))
    driver.circuits["primary"] = probed("primary", is_probed=False)
    driver.go(120)
    assert driver.of(AskTor) == []
    driver.go(146)
    driver.tell(Looked())
    driver.now = 147.0
    driver.tell(Looked())

    (missed,) = driver.of(RecordMissed)
    assert missed.reason == "no circuit had passed its last probe"


def test_a_probe_that_fails_while_tor_is_asked_puts_the_circuit_off_and_not_out() -> None:
    driver = Driver(replace(PLAIN, require_probe=True, on_failure=OnFailure.SKIP))
    driver.go(103)
    (ask,) = driver.of(AskTor)
    built = frozenset(c.circuit_id for c in driver.circuits.values())
    driver.circuits["primary"] = probed("primary", is_probed=False)
    driver.tell(CircuitsConfirmed(ask.question, built))
    assert driver.runs() == []

    driver.circuits["primary"] = probed("primary", is_probed=True)
    driver.tell(Looked())
    driver.tell(CircuitsConfirmed(driver.of(AskTor)[-1].question, built))

    assert driver.runs() == [(3, 1, "primary")]


def test_without_require_probe_what_a_probe_found_does_not_matter() -> None:
    driver = Driver()
    driver.circuits["primary"] = probed("primary", is_probed=False)
    driver.go(103)

    assert driver.runs() == [(2, 1, "primary")]
