"""The commands of the admin socket, for whoever operates the agent; the README lists them in one table.

Rules of this file:

* A command is checked here whole, and only then carried out; what is wrong with it is an AdminError.
* An answer is a dictionary of JSON values, and holds no SOCKS name or password; a destination only if the
  policy allows it and the request asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from circuitloom.errors import AdminError, PolicyError
from circuitloom.model import CircuitId, CircuitOrdered, Order, StreamId
from circuitloom.policy.types import Policy, Slot
from circuitloom.pool import Explanation, shows_destinations

MAX_WEIGHT = 1000
"""As the policy's schema says."""

DEFAULT_DECISIONS = 20

CHANGING = frozenset({*Order, "adopt", "reload"})
"""Commands that change something: who gave them is logged."""

Request = Mapping[str, Any]
Answer = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Agent:
    """What the commands need of the agent.

    Attributes:
        policy: The policy in force.
        status: The status document.
        give: Hands an order to the pool.
        read: Reads the policy file anew; raises PolicyError.
        apply: Puts a policy into force.
        explain: What was decided on this stream, or on the last ones.
        adopt: Takes another controller's circuit into the slot of this name; raises AdminError.
    """

    policy: Callable[[], Policy]
    status: Callable[[], Answer]
    give: Callable[[CircuitOrdered], None]
    read: Callable[[], Policy]
    apply: Callable[[Policy], None]
    explain: Callable[[StreamId | None], Explanation]
    adopt: Callable[[str, CircuitId], Awaitable[None]]


def commands(agent: Agent) -> dict[str, Callable[[Request], Answer | Awaitable[Answer]]]:
    """Every command by its name; ``events`` is the server's own."""

    def order(what: Order) -> Callable[[Request], Answer]:
        def give(request: Request) -> Answer:
            event = _read_order(what, request, agent.policy())
            agent.give(event)
            return {"command": what.value, "name": event.name}

        return give

    async def adopt(request: Request) -> Answer:
        name, circuit_id = _read_adoption(request, agent.policy())
        await agent.adopt(name, circuit_id)
        return {"command": "adopt", "name": name, "circuit": circuit_id}

    def reload(request: Request) -> Answer:
        return _reload(agent, is_plan_only=_read_flag(request, "plan"))

    def explain(request: Request) -> Answer:
        return _explain(agent, request)

    return {
        "status": lambda _request: agent.status(),
        "adopt": adopt,
        "reload": reload,
        "explain": explain,
        **{what.value: order(what) for what in Order},
    }


def plan(old: Policy, new: Policy) -> dict[str, list[str]]:
    """What a reload does to the circuits, by name.

    Returns:
        ``kept`` as they are, ``changed`` (weight, limit or role) in place, ``built`` (also anew, for
        another path), ``awaited`` from another controller, and ``drained``.
    """
    before = {slot.name: slot for slot in old.slots}
    after = {slot.name: slot for slot in new.slots}
    words: dict[str, list[str]] = {"kept": [], "changed": [], "built": [], "awaited": [], "drained": []}
    for name, slot in after.items():
        words[_fate(before.get(name), slot)].append(name)
    words["drained"] = [name for name in before if name not in after]
    return words


def _fate(before: Slot | None, after: Slot) -> str:
    if before is None and after.adopt is not None:
        return "awaited"
    is_given_back = before is not None and before.adopt is not None and after.adopt is None
    if before is None or is_given_back or before.path != after.path:
        return "built"
    return "kept" if before == after else "changed"


def _read_order(what: Order, request: Request, policy: Policy) -> CircuitOrdered:
    slot = _read_slot(what, request, policy)
    name = slot.name
    if what in {Order.ROTATE, Order.CLOSE} and slot.adopt is not None and not slot.adopt.rebuild:
        raise AdminError("another controller builds and closes this circuit: adopt another, or drain it")
    if what is not Order.WEIGHT:
        return CircuitOrdered(what, name)
    weight = request.get("weight")
    if not isinstance(weight, int) or isinstance(weight, bool) or not 1 <= weight <= MAX_WEIGHT:
        raise AdminError(f"weight is a whole number from 1 to {MAX_WEIGHT}; to take a circuit out, drain it")
    return CircuitOrdered(what, name, weight)


def _read_slot(command: str, request: Request, policy: Policy) -> Slot:
    name = request.get("name")
    names = [slot.name for slot in policy.slots]
    if not isinstance(name, str):
        example = f'{{"command": "{command}", "name": "{names[0]}"}}'
        raise AdminError(f"{command} needs the name of a circuit: {example}")
    if name not in names:
        shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise AdminError(f"the policy names no such circuit; there are: {shown}")
    return policy.slots[names.index(name)]


def _read_adoption(request: Request, policy: Policy) -> tuple[str, CircuitId]:
    slot = _read_slot("adopt", request, policy)
    if slot.adopt is None:
        raise AdminError(f"the agent builds {slot.name} itself: give it `adopt` in the policy")
    circuit_id = request.get("circuit")
    if not (isinstance(circuit_id, str) and circuit_id.isascii() and circuit_id.isalnum()):
        raise AdminError("circuit is the id that Tor gave it, as a string")
    return slot.name, CircuitId(circuit_id)


def _read_flag(request: Request, name: str) -> bool:
    value = request.get(name, False)
    if not isinstance(value, bool):
        raise AdminError(f"{name} is true or false")
    return value


def _reload(agent: Agent, *, is_plan_only: bool) -> Answer:
    try:
        policy = agent.read()
    except PolicyError as error:
        return {"is_applied": False, "faults": [str(fault) for fault in error.faults]}
    planned = plan(agent.policy(), policy)
    if not is_plan_only:
        agent.apply(policy)
    return {"is_applied": not is_plan_only, "faults": [], "plan": planned}


def _explain(agent: Agent, request: Request) -> Answer:
    stream_id = request.get("stream")
    if stream_id is not None and not (isinstance(stream_id, str) and stream_id.isalnum()):
        raise AdminError("stream is the id that Tor gave it, as a string")
    shows = _read_flag(request, "destinations")
    if shows and not shows_destinations(agent.policy()):
        raise AdminError("the policy keeps destinations to itself: `log: {destinations: full}` shows them")
    explanation = agent.explain(None if stream_id is None else StreamId(stream_id))
    decisions = explanation.decisions if stream_id is not None else explanation.decisions[-DEFAULT_DECISIONS:]
    return {
        "stream": stream_id,
        "algorithm": agent.policy().balance.algorithm.value,
        "decisions": [
            {
                "stream": decision.stream_id,
                "seconds_ago": round(decision.seconds_ago, 3),
                "did": decision.did,
                "circuit": decision.circuit,
                "circuit_id": decision.circuit_id,
                "why": decision.why,
                **({"destination": decision.target} if shows else {}),
            }
            for decision in decisions
        ],
        "candidates": [dataclasses.asdict(candidate) for candidate in explanation.candidates],
    }
