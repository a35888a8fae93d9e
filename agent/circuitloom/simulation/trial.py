"""One policy tried out: the streams as they come, and once more for each circuit that is lost on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from circuitloom.policy.types import Policy
from circuitloom.simulation.arrivals import Loss, Traffic
from circuitloom.simulation.course import Course, Uniform
from circuitloom.simulation.findings import Findings, LossFindings, losses

FORMAT = 1
"""Of the JSON document; within a version keys are added, never removed or changed."""

MAX_STREAMS_IN_ALL = 100_000
"""Of all runs together, where nobody has asked for a loss: half a minute."""

MAX_LOSSES = 16
"""Where nobody has asked for one: the first circuits of the policy."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What was found out.

    Attributes:
        findings: Of the streams as they come.
        losses: Of each circuit that was lost.
        untried: How many circuits were not lost, although nobody asked for certain ones.
    """

    findings: Findings
    losses: tuple[LossFindings, ...]
    untried: int


def try_out(
    policy: Policy,
    traffic: Traffic,
    *,
    lose: Sequence[str] | None,
    outage_seconds: float,
    dice: Callable[[str], Uniform],
) -> Trial:
    """Simulate a policy.

    Args:
        policy: What to do.
        traffic: What comes.
        lose: The circuits to lose, each by itself, when half of the streams have come; None: those of the
            policy, as far as that takes no more than a while.
        outage_seconds: For how long a lost one cannot be built again.
        dice: Gives what throws random numbers in [0, 1), anew and the same each time it is asked by a name.
    """

    def course(also: tuple[Loss, ...]) -> Course:
        everything = Traffic(traffic.arrivals, traffic.losses + also)
        return Course(policy, everything, core_dice=dice("core"), tor_dice=dice("tor"))

    names = [slot.name for slot in policy.slots] if lose is None else list(lose)
    if lose is None:
        runs = MAX_STREAMS_IN_ALL // max(1, len(traffic.arrivals))
        names = names[: max(0, min(MAX_LOSSES, runs - 1))]
    usual = course(()).run()
    arrivals = traffic.arrivals
    at = arrivals[len(arrivals) // 2].at if arrivals else 0.0
    found: list[LossFindings] = []
    for name in names:
        loss = Loss(at, name, outage_seconds)
        record = course((loss,)).run(after=loss)
        found += [one for one in losses(record, usual) if (one.name, one.at_seconds) == (name, at)]
    untried = len(policy.slots) - len(names) if lose is None else 0
    return Trial(Findings.of(usual, policy), tuple(found), untried)


def document(trial: Trial, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What ``circuitloom simulate --json`` prints.

    Args:
        trial: What was found out.
        asked: What was asked for, by the caller's words.
    """
    losses = [asdict(loss) for loss in trial.losses]
    told: dict[str, Any] = _rounded(asdict(trial.findings) | {"losses": losses})
    return {"version": FORMAT, **asked, **told}


def _rounded(value: Any) -> Any:  # noqa: ANN401 - whatever asdict makes
    """The same without digits that mean nothing."""
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {key: _rounded(item) for key, item in value.items()}
        case list() | tuple():
            return [_rounded(item) for item in value]
        case _:
            return value
