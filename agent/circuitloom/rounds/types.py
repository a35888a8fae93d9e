"""What a timetable is told, and what it asks for.

Rules of this file:

* A *round* is one date on the grid; a *key* names one circuit's part of it, for ever.
* Past tense comes in, the imperative goes out; both are values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid5

from circuitloom.model import Announce, CircuitId, Hop

DOCUMENT_VERSION = 1


class Outcome(StrEnum):
    """How a part of a round ended.

    ``done`` and ``failed`` are the hook's word; after ``unknown`` it may have done its work; ``missed`` means
    that it was not run.
    """

    DONE = "done"
    FAILED = "failed"
    UNKNOWN = "unknown"
    MISSED = "missed"


@dataclass(frozen=True, slots=True)
class Served:
    """A circuit that a round can serve, as it is now.

    Attributes:
        name: As the policy names it.
        circuit_id: Tor's id.
        path: Its relays, first hop first.
        streams: Streams on it.
        age_seconds: Since it was BUILT.
        is_probed: Whether its last probe passed; True where nothing is probed.
    """

    name: str
    circuit_id: CircuitId
    path: tuple[Hop, ...]
    streams: int
    age_seconds: float
    is_probed: bool = True


@dataclass(frozen=True, slots=True)
class Intent:
    """One run of the hook, as it is written down before it starts; a later attempt is for the same.

    Attributes:
        key: The idempotency key.
        round: The round's number, from 1.
        planned: The circuit whose turn it was.
        due: When the round was due (seconds of the timetable's clock).
        circuit: The circuit that is served.
    """

    key: str
    round: int
    planned: str
    due: float
    circuit: Served


@dataclass(frozen=True, slots=True)
class Unfinished:
    """An intent without an outcome, from before a restart, and how often the hook was started for it."""

    intent: Intent
    attempts: int


@dataclass(frozen=True, slots=True)
class Past:
    """The last round of the ledger.

    Attributes:
        round: Its number.
        due: When it was due (seconds of the timetable's clock, so perhaps below zero).
        outcomes: By circuit; None: unfinished.
    """

    round: int
    due: float
    outcomes: Mapping[str, Outcome | None]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one run of the hook.

    Attributes:
        outcome: ``done``, ``failed`` or ``unknown``.
        detail: One line for log and ledger; empty when all went well.
        answer: The hook's JSON object, if it gave one.
        has_run: False: it could not even be started.
    """

    outcome: Outcome
    detail: str = ""
    answer: Mapping[str, Any] | None = None
    has_run: bool = True

    @property
    def is_final(self) -> bool:
        """Whether another circuit would fare no better, or the hook wants none to be tried."""
        return not self.has_run or (self.answer is not None and self.answer.get("retry") is False)


@dataclass(frozen=True, slots=True)
class RoundCounts:
    """What has become of rounds since the agent started, and how they are.

    Attributes:
        over: Those of circuits that are over, by outcome.
        running: Hooks that run.
        waiting: Those that are due and wait.
        is_stopped: Whether something keeps all of them from going on.
    """

    over: Mapping[str, int] = field(default_factory=dict)
    running: int = 0
    waiting: int = 0
    is_stopped: bool = False


# --- what happened -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Looked:
    """Time has passed, or circuits have changed."""


@dataclass(frozen=True, slots=True)
class CircuitsConfirmed:
    """What Tor answered to AskTor: the circuits that are BUILT."""

    question: int
    built: frozenset[CircuitId]


@dataclass(frozen=True, slots=True)
class IntentRecorded:
    """The intent is on the disk."""

    key: str


@dataclass(frozen=True, slots=True)
class IntentNotRecorded:
    """The intent could not be written, so nothing may be run."""

    key: str


@dataclass(frozen=True, slots=True)
class HookStillRuns:
    """A run for this key, started before a restart, has not ended yet."""

    key: str


@dataclass(frozen=True, slots=True)
class HookEnded:
    """The hook's run for this key has ended."""

    key: str
    result: Result


Event = Looked | CircuitsConfirmed | IntentRecorded | IntentNotRecorded | HookStillRuns | HookEnded


# --- what to do --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AskTor:
    """Ask which circuits are BUILT; CircuitsConfirmed answers, also when there is no Tor."""

    question: int


@dataclass(frozen=True, slots=True)
class RecordIntent:
    """Commit the intent; IntentRecorded or IntentNotRecorded answers, before anything else happens."""

    intent: Intent
    attempt: int
    is_retried: bool


@dataclass(frozen=True, slots=True)
class RunHook:
    """Start the hook; HookEnded or HookStillRuns answers."""

    intent: Intent
    document: Mapping[str, Any] = field(hash=False)


@dataclass(frozen=True, slots=True)
class RecordOutcome:
    """Write what came of an intent."""

    intent: Intent
    result: Result


@dataclass(frozen=True, slots=True)
class RecordMissed:
    """Write that ``count`` rounds from ``round`` on were not run.

    ``planned`` is empty where several circuits would have had their turn; ``due`` is the last round's date.
    """

    key: str
    round: int
    count: int
    planned: str
    due: float
    reason: str


@dataclass(frozen=True, slots=True)
class ReplaceCircuit:
    """Have the pool replace this circuit."""

    circuit_id: CircuitId


Action = AskTor | RecordIntent | RunHook | RecordOutcome | RecordMissed | ReplaceCircuit | Announce


def round_key(ledger: UUID, number: int, name: str) -> str:
    """The idempotency key of a circuit's part of a round: the same after every restart, and only then."""
    return str(uuid5(ledger, f"{number}/{name}"))


def hook_document(intent: Intent, *, attempt: int, is_retried: bool, is_built: bool) -> dict[str, Any]:
    """What the hook reads on its standard input.

    Args:
        intent: What is to be done.
        attempt: From 1; how often the hook was started for this key, this time included.
        is_retried: Whether the runs before ended with the agent, so that nobody knows what they did.
        is_built: Whether the circuit is there now; a later attempt is for the same circuit all the same.
    """
    circuit = intent.circuit
    return {
        "version": DOCUMENT_VERSION,
        "round": intent.round,
        "key": intent.key,
        "attempt": attempt,
        "retried": is_retried,
        "circuit": {
            "name": circuit.name,
            "id": circuit.circuit_id,
            "built": is_built,
            "path": [{"fingerprint": hop.fingerprint, "nickname": hop.nickname} for hop in circuit.path],
        },
        "streams": circuit.streams,
        "age_seconds": round(circuit.age_seconds, 3),
    }
