"""Rounds on an exact grid: circuits and the time in, what to record and to run out.

Rules of this file:

* Nothing is run that is not on the disk first: RecordIntent, and RunHook only after IntentRecorded.
* One key, one run at a time. What a run did is known (done, failed) or it is asked again with the same key; a
  round whose run may have done its work never moves to another circuit.
* Round n is due at the first round's date plus n - 1 intervals, however late anything was before.
* A round waits for a usable circuit until the next one is due. Rounds nobody was there for are one record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from circuitloom.kinds import Kind
from circuitloom.model import Announce, CircuitId, Severity
from circuitloom.policy.types import OnFailure, Rounds, Schedule
from circuitloom.rounds.types import (
    Action,
    AskTor,
    CircuitsConfirmed,
    Event,
    HookEnded,
    HookStillRuns,
    Intent,
    IntentNotRecorded,
    IntentRecorded,
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
    hook_document,
    round_key,
)

MAX_PARALLEL = 4
"""Hooks at once: enough for a round of many circuits, few enough for the unit's TasksMax."""

MAX_ATTEMPTS = 3
"""Runs for one key whose end is unknown. A hook that hangs thrice will hang again."""

RETRY_SECONDS = 1.0

NO_CIRCUIT = "no circuit was usable"
NOT_PROBED = "no circuit had passed its last probe"
LATE = "the hooks before it took too long"
NOT_THERE = "the agent did not run, or stood still"


@dataclass(slots=True, eq=False)
class _Task:
    """A part of the round under way that has to find a circuit.

    Attributes:
        round: The round's number.
        due: When it was due.
        planned: The circuit whose turn it is.
        candidates: Circuits that may be served for it, in this order, by name.
        dead: Circuits that Tor says are not BUILT.
        was_run: Whether a hook was run for it.
    """

    round: int
    due: float
    planned: str
    candidates: list[str]
    dead: set[CircuitId] = field(default_factory=set)
    was_run: bool = False


@dataclass(slots=True, eq=False)
class _Run:
    """A run of the hook: on its way to the disk, or started."""

    intent: Intent
    attempt: int
    is_retried: bool
    task: _Task | None


class Timetable:
    """The rounds of one ledger.

    Args:
        rounds: What the policy says.
        names: Its circuits, in their order.
        ledger: The ledger's id.
        past: Its last round, if there was one.
        unfinished: Its intents without outcome.
    """

    def __init__(
        self,
        rounds: Rounds,
        names: Sequence[str],
        *,
        ledger: UUID,
        past: Past | None = None,
        unfinished: Sequence[Unfinished] = (),
    ) -> None:
        self._rounds = rounds
        self._names = tuple(names)
        self._ledger = ledger
        self._past = past
        self._unfinished = unfinished
        self._has_begun = False
        self._origin = 0.0
        self._next = 1 if past is None else past.round + 1
        self._tasks: list[_Task] = []
        self._asking: dict[int, tuple[_Task, Served]] = {}
        self._questions = 0
        self._runs: dict[str, _Run] = {}
        self._again: list[tuple[float, _Run]] = []
        self._circuits: Mapping[str, Served] = {}
        self._actions: list[Action] = []

    # --- what the conductor calls --------------------------------------------------------------------------

    def handle(
        self, event: Event, *, now: float, circuits: Mapping[str, Served], is_ready: bool
    ) -> list[Action]:
        """Take one event.

        Args:
            event: What happened.
            now: The time (seconds of a clock that never goes back).
            circuits: Those that are BUILT, by name.
            is_ready: Whether as many are as the agent needs to take over.

        Returns:
            What to do, in this order.
        """
        actions: list[Action] = []
        self._actions = actions
        self._circuits = circuits
        match event:
            case CircuitsConfirmed():
                self._on_confirmed(event)
            case IntentRecorded():
                self._on_recorded(event.key)
            case IntentNotRecorded():
                self._runs.pop(event.key, None)
            case HookStillRuns():
                run = self._runs.pop(event.key)
                self._again.append((now + RETRY_SECONDS, run))
            case HookEnded():
                self._on_ended(self._runs.pop(event.key), event.result, now)
            case _:
                pass
        if not circuits:
            # Tor is gone, or they are: what was asked says nothing any more.
            self._tasks += [task for task, _ in self._asking.values()]
            self._asking.clear()
        if not self._has_begun and is_ready:
            self._begin(now)
        if self._has_begun:
            self._advance(now)
            self._serve(now)
        return actions

    def next_deadline(self) -> float | None:
        """When a Looked event is due (seconds of the clock), or None."""
        deadlines = [] if self.next_due is None else [self.next_due]
        if self._has_begun and self._has_room:
            deadlines += [at for at, _ in self._again]
        return min(deadlines, default=None)

    def replace_policy(self, rounds: Rounds, names: Sequence[str], *, now: float) -> None:
        """Go on with another policy: what runs goes on, and the next round comes no later than it says."""
        due = self._due(self._next) if self._has_begun else now
        self._rounds = rounds
        self._names = tuple(names)
        self._origin = min(due, now + rounds.interval_seconds) - (self._next - 1) * rounds.interval_seconds

    @property
    def is_over(self) -> bool:
        """Whether no further round comes."""
        return self._rounds.rounds is not None and self._next > self._rounds.rounds

    @property
    def next_due(self) -> float | None:
        """When the next round is due (seconds of the clock); None: that is not known yet, or never."""
        return None if self.is_over or not self._has_begun else self._due(self._next)

    @property
    def next_round(self) -> int:
        """The number of the next round."""
        return self._next

    @property
    def running(self) -> list[str]:
        """The circuits that a hook runs for."""
        return [run.intent.circuit.name for run in self._runs.values()]

    @property
    def waiting(self) -> int:
        """How many parts of the round under way wait for a circuit, or for their turn."""
        return len(self._tasks)

    def check_invariants(self) -> None:
        """Assert what must always hold; for tests.

        Raises:
            AssertionError: It does not.
        """
        assert len(self._runs) + len(self._asking) <= MAX_PARALLEL
        assert not self._runs.keys() & {run.intent.key for _, run in self._again}
        assert all(task.round == self._next - 1 for task in self._tasks)

    # --- the grid ------------------------------------------------------------------------------------------

    def _due(self, number: int) -> float:
        return self._origin + (number - 1) * self._rounds.interval_seconds

    def _begin(self, now: float) -> None:
        """Circuits are ready: from now on there is a grid."""
        self._has_begun = True
        interval = self._rounds.interval_seconds
        first = now + self._rounds.first_after_seconds
        if self._past is not None:
            # A date far away is a wall clock that was set back; more than an interval is never waited.
            first = min(self._past.due + interval, now + interval)
        self._origin = first - (self._next - 1) * interval
        current = self._resume(now)
        for unfinished in self._unfinished:
            intent = unfinished.intent
            task = current.get(intent.key)
            self._again.append((now, _Run(intent, unfinished.attempts, is_retried=True, task=task)))
        self._unfinished = ()

    def _resume(self, now: float) -> dict[str, _Task | None]:
        """Go on with the last round of the ledger while it lasts; tasks of its unfinished runs, by key."""
        past = self._past
        if past is None or now >= self._due(self._next):
            return {}
        attached: dict[str, _Task | None] = {}
        for task in self._plan(past.round):
            known = {name: past.outcomes[name] for name in task.candidates if name in past.outcomes}
            task.candidates = [name for name in task.candidates if name not in known]
            task.was_run = bool(known)
            if not known:
                self._tasks.append(task)
            for name, outcome in known.items():
                if outcome is None:
                    attached[round_key(self._ledger, past.round, name)] = task
        return attached

    def _advance(self, now: float) -> None:
        """Begin the round that is due; those whose time has passed altogether are missed."""
        due = self._due(self._next)
        if self.is_over or due > now:
            return
        self._expire()
        late = int((now - due) // self._rounds.interval_seconds)
        if self._rounds.rounds is not None:
            late = min(late, self._rounds.rounds - self._next + 1)
        if late:
            self._miss(self._next, late, "", self._due(self._next + late - 1), NOT_THERE)
            self._next += late
            if self.is_over:
                return
        self._tasks = self._plan(self._next)
        self._next += 1

    def _plan(self, number: int) -> list[_Task]:
        due = self._due(number)
        if self._rounds.schedule is Schedule.EVERY_CIRCUIT:
            return [_Task(number, due, name, [name]) for name in self._names]
        start = (number - 1) % len(self._names)
        order = [*self._names[start:], *self._names[:start]]
        if self._rounds.on_failure is not OnFailure.NEXT_CIRCUIT:
            del order[1:]
        return [_Task(number, due, order[0], order)]

    def _expire(self) -> None:
        """The next round is due: what found no circuit until now is missed."""
        tasks = [*self._tasks, *(task for task, _ in self._asking.values())]
        self._tasks = []
        self._asking.clear()
        for task in tasks:
            if not task.was_run:
                there = [self._circuits[name] for name in task.candidates if name in self._circuits]
                has_circuit = any(self._has_passed(served) for served in there)
                reason = LATE if has_circuit else NOT_PROBED if there else NO_CIRCUIT
                self._miss(task.round, 1, task.planned, task.due, reason)

    def _miss(self, number: int, count: int, planned: str, due: float, reason: str) -> None:
        key = round_key(self._ledger, number, planned)
        self._actions.append(RecordMissed(key, number, count, planned, due, reason))
        what = f"round {number}" if count == 1 else f"rounds {number} to {number + count - 1}"
        of = f" of {planned}" if planned else ""
        self._say(Severity.WARNING, f"{what}{of} missed: {reason}")

    # --- runs ----------------------------------------------------------------------------------------------

    @property
    def _has_room(self) -> bool:
        return len(self._runs) + len(self._asking) < MAX_PARALLEL

    def _serve(self, now: float) -> None:
        """Start what can be started: first what is to be done again, then the round under way."""
        for entry in list(self._again):
            if entry[0] <= now and self._has_room:
                self._again.remove(entry)
                self._record(entry[1])
        for task in list(self._tasks):
            served = self._choose(task)
            if served is None or not self._has_room:
                continue
            self._tasks.remove(task)
            if self._rounds.require_probe:
                self._questions += 1
                self._asking[self._questions] = (task, served)
                self._actions.append(AskTor(self._questions))
            else:
                self._begin_run(task, served)

    def _choose(self, task: _Task) -> Served | None:
        for name in task.candidates:
            served = self._circuits.get(name)
            if served is not None and served.circuit_id not in task.dead and self._has_passed(served):
                return served
        return None

    def _has_passed(self, served: Served) -> bool:
        """Whether the circuit's probes let a round have it."""
        return served.is_probed or not self._rounds.require_probe

    def _on_confirmed(self, event: CircuitsConfirmed) -> None:
        task, served = self._asking.pop(event.question, (None, None))
        if task is None or served is None:
            # The next round was due before Tor answered.
            return
        now_there = self._circuits.get(served.name)
        is_there = now_there is not None and now_there.circuit_id == served.circuit_id
        if now_there is not None and is_there and not self._has_passed(now_there):
            # Its probe failed meanwhile; the next one may pass while the round lasts.
            self._tasks.append(task)
        elif is_there and served.circuit_id in event.built:
            self._begin_run(task, served)
        else:
            task.dead.add(served.circuit_id)
            self._tasks.append(task)

    def _begin_run(self, task: _Task, served: Served) -> None:
        task.candidates.remove(served.name)
        task.was_run = True
        key = round_key(self._ledger, task.round, served.name)
        if served.name != task.planned:
            self._say(Severity.INFO, f"round {task.round} moves from {task.planned} to {served.name}")
        self._record(
            _Run(Intent(key, task.round, task.planned, task.due, served), 0, is_retried=False, task=task)
        )

    def _record(self, run: _Run) -> None:
        self._runs[run.intent.key] = run
        self._actions.append(RecordIntent(run.intent, run.attempt + 1, run.is_retried))

    def _on_recorded(self, key: str) -> None:
        run = self._runs[key]
        circuit = self._circuits.get(run.intent.circuit.name)
        document = hook_document(
            run.intent,
            attempt=run.attempt + 1,
            is_retried=run.is_retried,
            is_built=circuit is not None and circuit.circuit_id == run.intent.circuit.circuit_id,
        )
        self._actions.append(RunHook(run.intent, document))

    def _on_ended(self, run: _Run, result: Result, now: float) -> None:
        run.attempt += 1
        if result.outcome is Outcome.FAILED and not result.has_run and run.attempt > 1:
            # This time it could not be started; what it did the time before nobody knows.
            result = Result(Outcome.UNKNOWN, result.detail, has_run=False)
        if result.outcome is Outcome.UNKNOWN and result.has_run and run.attempt < MAX_ATTEMPTS:
            self._say(
                Severity.WARNING, f"{self._label(run)}: {result.detail}, asking again with the same key"
            )
            self._again.append((now + RETRY_SECONDS, run))
            return
        self._actions.append(RecordOutcome(run.intent, result))
        if result.outcome is Outcome.DONE:
            detail = f" ({result.detail})" if result.detail else ""
            severity = Severity.WARNING if result.detail else Severity.INFO
            self._say(severity, f"{self._label(run)} done{detail}")
            return
        self._say(Severity.WARNING, f"{self._label(run)} {result.outcome}: {result.detail}")
        if result.is_final:
            return
        if self._rounds.on_failure is OnFailure.DRAIN:
            self._actions.append(ReplaceCircuit(run.intent.circuit.circuit_id))
        elif result.outcome is Outcome.FAILED:
            self._move(run)

    def _move(self, run: _Run) -> None:
        """The hook has certainly not done its work: another circuit may have the round, while it lasts."""
        task = run.task
        if task is not None and task.round == self._next - 1 and task.candidates:
            self._tasks.append(task)

    @staticmethod
    def _label(run: _Run) -> str:
        return f"round {run.intent.round} on {run.intent.circuit.name}"

    def _say(self, severity: Severity, message: str) -> None:
        self._actions.append(Announce(severity, message, Kind.ROUND))
