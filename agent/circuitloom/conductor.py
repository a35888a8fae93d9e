"""Joins the timetable, the ledger, the hook and the clock, as the service does for the pool.

Rules of this file:

* It decides nothing about rounds and nothing about streams.
* Whatever is wrong with rounds is one line, and streams go on: rounds are a guest of the agent.
* At a stop a hook is asked to end; what it did by then stays unfinished, unless it says so in time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from circuitloom import logs, wire
from circuitloom.errors import LedgerBusy, LedgerError, reason_of
from circuitloom.hook import HookRun, Job, StillRuns, complaint, forget_locks, wall_offset
from circuitloom.ledger import Ledger, page
from circuitloom.model import Announce, CircuitId, CircuitStatus
from circuitloom.policy.types import Policy
from circuitloom.pool import Pool
from circuitloom.rounds import Timetable
from circuitloom.rounds.listing import PAGE_ROWS
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
    RecordIntent,
    RecordMissed,
    RecordOutcome,
    ReplaceCircuit,
    Result,
    RoundCounts,
    RunHook,
    Served,
)
from circuitloom.wire import Reply

RETRY_SECONDS = 5.0
"""Between looks at a ledger that another agent serves, or that cannot be opened."""

STOP_SECONDS = 2.5
"""Below the time that giving the streams back may take, so that a stop is no longer for it."""

LOCKS = "rounds-running"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConductorEvents:
    """What a conductor asks of the service.

    Attributes:
        circuits: The circuits that are BUILT, by name.
        is_ready: Whether enough of them are to take over.
        ask_tor: Calls back with the circuits that Tor says are BUILT; with none if it does not answer.
        replace: Has the pool replace a circuit.
    """

    circuits: Callable[[], Mapping[str, Served]]
    is_ready: Callable[[], bool]
    ask_tor: Callable[[Callable[[frozenset[CircuitId]], None]], None]
    replace: Callable[[CircuitId], None]


class Conductor:
    """The rounds of one agent; does nothing while its policy has none.

    Args:
        directory: The state directory; None: there is none, and so no rounds.
        events: What to ask.
    """

    def __init__(self, directory: Path | None, events: ConductorEvents) -> None:
        self._directory = directory
        self._events = events
        self._loop = asyncio.get_running_loop()
        self._policy: Policy | None = None
        self._ledger: Ledger | None = None
        self._timetable: Timetable | None = None
        self._hooks: dict[str, HookRun] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._problem = ""
        self._is_stopping = False
        self._over: Counter[str] = Counter()

    # --- what the service calls ----------------------------------------------------------------------------

    def apply(self, policy: Policy) -> None:
        """Begin, or go on with another policy."""
        self._policy = policy
        if policy.rounds is None:
            self._rest()
            return
        problem = complaint(policy.rounds.command[0])
        if problem:
            _log.error("rounds: %s; every round fails until then", problem)
        if self._timetable is None:
            self._open()
        else:
            names = [slot.name for slot in policy.slots]
            self._timetable.replace_policy(policy.rounds, names, now=self._loop.time())
            self._handle(Looked())

    def look(self) -> None:
        """Circuits may have changed."""
        if self._timetable is not None and not self._is_stopping:
            self._handle(Looked())

    async def stop(self) -> None:
        """End every hook, within ``STOP_SECONDS``, and close the ledger."""
        self._is_stopping = True
        hooks = list(self._hooks.values())
        for hook in hooks:
            hook.terminate()
        if hooks:
            await asyncio.wait(
                [self._loop.create_task(hook.ended.wait()) for hook in hooks], timeout=STOP_SECONDS
            )
        self._policy = None
        self._rest()

    def summary(self) -> dict[str, Any] | None:
        """What the status shows; None without rounds."""
        if self._policy is None or self._policy.rounds is None:
            return None
        timetable = self._timetable
        due = None if timetable is None else timetable.next_due
        return {
            "problem": self._problem or None,
            "next_round": None if timetable is None or timetable.is_over else timetable.next_round,
            "next_in_seconds": None if due is None else round(max(0.0, due - self._loop.time()), 3),
            "running": [] if timetable is None else timetable.running,
            "waiting": 0 if timetable is None else timetable.waiting,
        }

    def counts(self) -> RoundCounts:
        """What the metrics show."""
        timetable = self._timetable
        return RoundCounts(
            self._over,
            running=len(self._hooks),
            waiting=0 if timetable is None else timetable.waiting,
            is_stopped=bool(self._problem),
        )

    def answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Rows of the ledger, for ``circuitloom rounds``."""
        if self._ledger is None:
            return {
                "error": self._problem or "the policy has no rounds; --state DIR reads a ledger without agent"
            }
        after, limit = request.get("after", -1), request.get("limit", PAGE_ROWS)
        if (
            type(after) is not int
            or type(limit) is not int
            or not 1 <= limit <= PAGE_ROWS
            or after >= 1 << 62
        ):
            return {"error": f"`after` is a row's number and `limit` 1 to {PAGE_ROWS}"}
        try:
            return page(self._ledger.rows(after=after, limit=limit))
        except LedgerError as error:
            return {"error": str(error)}

    # --- the ledger ----------------------------------------------------------------------------------------

    def _open(self) -> None:
        """Open the ledger and make a timetable of it; try again later if that cannot be done now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._policy is None or self._policy.rounds is None or self._hooks:
            return
        if self._directory is None:
            self._complain("rounds need a state directory: run --state DIR, or StateDirectory= in the unit")
            return
        offset = wall_offset(self._loop.time())
        self._close_ledger()
        try:
            self._ledger = Ledger(self._directory)
            unfinished = self._ledger.unfinished(offset=offset)
            past = self._ledger.past(offset=offset)
        except LedgerError as error:
            self._close_ledger()
            self._complain(f"no rounds: {error}", is_error=not isinstance(error, LedgerBusy))
            self._timer = self._loop.call_later(RETRY_SECONDS, self._open)
            return
        if self._ledger.set_aside is not None:
            _log.error(
                "ledger %s was unsound: it is now %s; a new one begins, with round 1 and with new keys",
                self._ledger.path,
                self._ledger.set_aside.name,
            )
        if unfinished:
            _log.warning(
                "rounds: %d unfinished from before, asking again with the same keys", len(unfinished)
            )
        forget_locks(self._directory / LOCKS, {entry.intent.key for entry in unfinished})
        self._problem = ""
        self._timetable = Timetable(
            self._policy.rounds,
            [slot.name for slot in self._policy.slots],
            ledger=self._ledger.id,
            past=past,
            unfinished=unfinished,
        )
        self._handle(Looked())

    def _complain(self, problem: str, *, is_error: bool = True) -> None:
        """Say once what is wrong."""
        if problem != self._problem:
            self._problem = problem
            _log.log(logging.ERROR if is_error else logging.WARNING, "%s", problem)

    def _rest(self) -> None:
        """No rounds any more: what runs may finish."""
        self._timetable = None
        self._problem = ""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._hooks or self._is_stopping:
            self._close_ledger()

    def _close_ledger(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    def _give_up(self, error: LedgerError) -> None:
        """The ledger cannot be written or read: close it, and look later what is wrong with it."""
        self._complain(f"rounds stand still: {error}")
        self._timetable = None
        self._close_ledger()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(RETRY_SECONDS, self._open)

    # --- the timetable -------------------------------------------------------------------------------------

    def _handle(self, event: Event) -> None:
        if self._timetable is None:
            return
        actions = self._timetable.handle(
            event,
            now=self._loop.time(),
            circuits=self._events.circuits(),
            is_ready=self._events.is_ready(),
        )
        for action in actions:
            self._carry_out(action)
        self._arm()

    def _arm(self) -> None:
        if self._timetable is None:
            return
        deadline = self._timetable.next_deadline()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        self.look()

    def _carry_out(self, action: Action) -> None:
        match action:
            case AskTor():
                question = action.question
                self._events.ask_tor(lambda built: self._handle(CircuitsConfirmed(question, built)))
            case RecordIntent() | RecordOutcome() | RecordMissed():
                self._record(action)
            case RunHook():
                self._run(action)
            case ReplaceCircuit():
                self._events.replace(action.circuit_id)
            case Announce():
                logs.announce(_log, action)

    def _record(self, action: RecordIntent | RecordOutcome | RecordMissed) -> None:
        if self._ledger is None:
            return
        offset = wall_offset(self._loop.time())
        try:
            match action:
                case RecordIntent():
                    self._ledger.record_intent(
                        action.intent, attempt=action.attempt, is_retried=action.is_retried, offset=offset
                    )
                case RecordOutcome():
                    self._ledger.record_outcome(action.intent, action.result)
                    self._over[action.result.outcome] += 1
                case RecordMissed():
                    self._ledger.record_missed(action, offset=offset)
                    self._over[Outcome.MISSED] += action.count
        except LedgerError as error:
            if isinstance(action, RecordIntent):
                self._handle(IntentNotRecorded(action.intent.key))
            self._give_up(error)
            return
        if isinstance(action, RecordIntent):
            self._handle(IntentRecorded(action.intent.key))

    def _run(self, action: RunHook) -> None:
        if self._policy is None or self._policy.rounds is None or self._directory is None:
            return
        key = action.intent.key
        try:
            job = Job(
                self._policy.rounds.command,
                env=self._policy.rounds.env,
                timeout_seconds=self._policy.rounds.timeout_seconds,
                document=action.document,
                lock=self._directory / LOCKS / key,
            )
            self._hooks[key] = HookRun(job, on_end=partial(self._on_end, action))
        except StillRuns:
            self._handle(HookStillRuns(key))
        except OSError as error:
            self._loop.call_soon(
                self._on_end,
                action,
                Result(Outcome.FAILED, f"not started: {reason_of(error)}", has_run=False),
            )

    def _on_end(self, action: RunHook, result: Result) -> None:
        key = action.intent.key
        self._hooks.pop(key, None)
        if self._is_stopping and result.outcome is Outcome.UNKNOWN:
            # Asked again with the same key after the start.
            return
        if self._timetable is not None and not self._is_stopping:
            self._handle(HookEnded(key, result))
        elif result.outcome is not Outcome.UNKNOWN:
            self._record(RecordOutcome(action.intent, result))
        if self._timetable is None and not self._is_stopping:
            # The policy has no rounds any more, or the ledger was closed under it.
            if self._policy is not None and self._policy.rounds is not None and self._timer is None:
                self._open()
            elif not self._hooks and self._ledger is not None:
                self._close_ledger()


def served_circuits(pool: Pool, *, now: float) -> dict[str, Served]:
    """What rounds know of each circuit that is BUILT, by name.

    Args:
        pool: The circuits.
        now: The time (seconds of the pool's clock).
    """
    return {
        name: Served(
            name,
            circuit.circuit_id,
            circuit.path,
            circuit.streams,
            now - circuit.built_at,
            pool.is_probed(circuit.circuit_id),
        )
        for name, circuit in pool.built().items()
        if circuit.circuit_id is not None
    }


def ask_circuits(
    send: Callable[[bytes, Callable[[Reply], None]], None], take: Callable[[frozenset[CircuitId]], None]
) -> None:
    """Ask Tor which circuits are BUILT.

    Args:
        send: Sends a command, if there is a connection. Without one the round waits for it: circuits are then
            none, and are asked for anew.
        take: Takes the answer.
    """

    def read(reply: Reply) -> None:
        lines = wire.parse_circuits(reply.values().get("circuit-status", "")) if reply.is_ok else ()
        take(frozenset(line.circuit_id for line in lines if line.status is CircuitStatus.BUILT))

    send(wire.command("GETINFO", "circuit-status"), read)
