"""What a simulation shows, as values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuitloom.policy.types import Policy, Role, Rule, RuleAction
from circuitloom.simulation.course import Fate, Lost, Outcome, Record


@dataclass(frozen=True, slots=True)
class CircuitFindings:
    """One circuit of the policy.

    Attributes:
        name: As the policy names it.
        role: ``active`` or ``backup``.
        streams: How many it carried.
        share: Its part of all that circuits carried, 0 to 1.
        weight_share: Its part of the weights of its role, 0 to 1.
        most_streams: How many it carried at once, at most; over all isolation keys.
        max_streams: How many each of its circuits may carry at once.
    """

    name: str
    role: str
    streams: int
    share: float
    weight_share: float
    most_streams: int
    max_streams: int


@dataclass(frozen=True, slots=True)
class WaitFindings:
    """Streams that waited for a circuit, or for room on one, before it was decided where they go."""

    streams: int
    mean_seconds: float
    longest_seconds: float


@dataclass(frozen=True, slots=True)
class RuleFindings:
    """What became of the streams of one rule; ``number`` None: of those that no rule matches."""

    number: int | None
    does: str
    matches: str
    streams: int
    carried: int
    tor: int
    rejected: int


@dataclass(frozen=True, slots=True)
class LossFindings:
    """What the loss of a circuit does, beside the same streams without it.

    Attributes:
        name: Of the circuit.
        at_seconds: When it was lost.
        cut: How many streams ended with it.
        gone_seconds: For how long it was missing; None: to the end.
        missed: How many streams it would have carried in that time.
        waited: How many more streams of that time waited, and how long they did.
        tor: How many more were left to Tor.
        rejected: How many more were rejected, or given up by their clients.
        taken_by: How many more each other circuit carried, of the rules whose streams it missed.
    """

    name: str
    at_seconds: float
    cut: int
    gone_seconds: float | None
    missed: int
    waited: WaitFindings
    tor: int
    rejected: int
    taken_by: dict[str, int]


@dataclass(frozen=True, slots=True)
class Findings:
    """All that is told of a policy."""

    algorithm: str
    is_served: bool
    streams: int
    seconds: float
    most_open: int
    carried: int
    cut: int
    circuits: tuple[CircuitFindings, ...]
    waited: WaitFindings
    tor: dict[str, int]
    rejected: dict[str, int]
    rules: tuple[RuleFindings, ...]

    @classmethod
    def of(cls, record: Record, policy: Policy) -> Findings:
        """Sum a simulation up.

        Args:
            record: What happened.
            policy: What was asked for.
        """
        fates = record.fates
        return cls(
            algorithm=policy.balance.algorithm.value,
            is_served=record.is_served,
            streams=len(fates),
            seconds=record.seconds,
            most_open=record.most_open,
            carried=sum(fate.outcome is Outcome.CARRIED for fate in fates),
            cut=sum(fate.is_cut for fate in fates),
            circuits=_circuits(record, policy),
            waited=_waited(fates),
            tor=_reasons(fates, {Outcome.TOR}),
            rejected=_reasons(fates, {Outcome.REJECTED, Outcome.GIVEN_UP}),
            rules=_rules(fates, policy.rules),
        )


def losses(record: Record, without: Record) -> tuple[LossFindings, ...]:
    """What each circuit that was lost cost.

    Args:
        record: What happened.
        without: What happened to the same streams without these losses.
    """
    return tuple(_loss(lost, record, without) for lost in record.lost)


def _circuits(record: Record, policy: Policy) -> tuple[CircuitFindings, ...]:
    streams = Counter(_carrier(fate) for fate in record.fates)
    del streams[None]
    weights = {role: sum(slot.weight for slot in policy.slots if slot.role is role) for role in Role}
    return tuple(
        CircuitFindings(
            slot.name,
            slot.role.value,
            streams[slot.name],
            streams[slot.name] / (streams.total() or 1),
            slot.weight / weights[slot.role],
            record.crowds[slot.name].most,
            slot.max_streams,
        )
        for slot in policy.slots
    )


def _waited(fates: Iterable[Fate]) -> WaitFindings:
    waits = [fate.waited_seconds for fate in fates if fate.waited_seconds > 0]
    return WaitFindings(len(waits), sum(waits) / (len(waits) or 1), max(waits, default=0.0))


def _reasons(fates: Iterable[Fate], outcomes: set[Outcome]) -> dict[str, int]:
    return dict(Counter(fate.why for fate in fates if fate.outcome in outcomes).most_common())


def _rules(fates: Sequence[Fate], rules: Sequence[Rule]) -> tuple[RuleFindings, ...]:
    numbers: list[int | None] = [*range(1, len(rules) + 1), None] if rules else []
    return tuple(
        _rule(number, None if number is None else rules[number - 1], [f for f in fates if f.rule == number])
        for number in numbers
    )


def _rule(number: int | None, rule: Rule | None, fates: Sequence[Fate]) -> RuleFindings:
    outcomes = Counter(fate.outcome for fate in fates)
    return RuleFindings(
        number,
        _does(rule),
        "no rule" if rule is None else _words(rule),
        len(fates),
        outcomes[Outcome.CARRIED],
        outcomes[Outcome.TOR],
        outcomes[Outcome.REJECTED] + outcomes[Outcome.GIVEN_UP],
    )


def _does(rule: Rule | None) -> str:
    if rule is None or (rule.action is None and rule.circuits is None):
        return "all circuits"
    if rule.action is not None:
        return "Tor" if rule.action is RuleAction.TOR else "reject"
    return ", ".join(sorted(rule.circuits or ()))


def _words(rule: Rule) -> str:
    match = rule.match
    parts = [
        ("port", [str(first) if first == last else f"{first}-{last}" for first, last in match.ports]),
        ("host", list(match.hosts)),
        ("socks_user", [] if match.socks_user is None else [match.socks_user]),
        ("source", [str(network) for network in match.sources]),
        ("session_group", [] if match.session_group is None else [str(match.session_group)]),
    ]
    return "; ".join(f"{what} {', '.join(values)}" for what, values in parts if values) or "everybody"


def _loss(lost: Lost, record: Record, without: Record) -> LossFindings:
    end = record.seconds if lost.back_at is None else lost.back_at
    # Both tell of the same streams in the same order; the one with the loss may end earlier.
    pairs = [
        (fate, other)
        for fate, other in zip(record.fates, without.fates, strict=False)
        if lost.loss.at <= fate.at <= end
    ]
    outcomes = Counter(fate.outcome for fate, _ in pairs)
    outcomes.subtract(other.outcome for _, other in pairs)
    missed = Counter(_carrier(other) for _, other in pairs)
    # What differs among the streams of a rule that has no use for the circuit is chance.
    rules = {other.rule for _, other in pairs if _carrier(other) == lost.loss.name}
    gains = Counter(_carrier(fate) for fate, _ in pairs if fate.rule in rules)
    gains.subtract(_carrier(other) for _, other in pairs if other.rule in rules)
    tor = max(0, outcomes[Outcome.TOR])
    rejected = max(0, outcomes[Outcome.REJECTED] + outcomes[Outcome.GIVEN_UP])
    # Where none of them found another circuit, what differs between two circuits is chance.
    is_taken = missed[lost.loss.name] > tor + rejected
    return LossFindings(
        lost.loss.name,
        lost.loss.at,
        lost.cut,
        None if lost.back_at is None else lost.back_at - lost.loss.at,
        missed[lost.loss.name],
        _waited([fate for fate, other in pairs if fate.waited_seconds > other.waited_seconds]),
        tor,
        rejected,
        {name: gain for name, gain in gains.most_common() if name and gain > 0 and is_taken},
    )


def _carrier(fate: Fate) -> str | None:
    return fate.name if fate.outcome is Outcome.CARRIED else None
