"""What the schema cannot say: how the values of a policy must fit together.

Rules of this file:

* Every check runs on documents with other faults as well. It asks ``_Known`` for values, gets None for one
  that is faulty, and then says nothing: no fault follows from another.
* Warnings are about policies without a fault: they work, and the operator may not know what they cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from circuitloom.errors import Fault
from circuitloom.model import Purpose
from circuitloom.policy.duration_faults import find_duration_faults
from circuitloom.policy.idle_keys import find_idle_keys
from circuitloom.policy.nodes import Bad, Document, Listing, Mapping, Scalar
from circuitloom.policy.operating_faults import find_metrics_faults, find_operating_warnings
from circuitloom.policy.path_rules import find_path_faults
from circuitloom.policy.probe_faults import find_probe_faults, find_probe_warnings
from circuitloom.policy.rule_faults import find_rule_faults, find_rule_warnings
from circuitloom.policy.schema import load_schema
from circuitloom.policy.types import Algorithm, Isolation, Policy, Role, StickyBy, TcpAddress
from circuitloom.policy.values import (
    ValueFault,
    check_socket_path,
    parse_control,
    parse_duration,
)
from circuitloom.policy.wording import Path, quoted

__all__ = ["MAX_CIRCUITS", "find_semantic_faults", "find_warnings", "slot_names"]

# Each circuit costs its relays a handshake at every start, and memory; a thousand from one client is far more
# than the network expects of its users.
MAX_CIRCUITS = 1000

# Below 10 ms a failing path would be tried about as fast as Tor can fail it; after a day nobody waits.
_MIN_WAIT_SECONDS, _MAX_WAIT_SECONDS = 0.01, 86_400.0

# Tor gives a waiting stream up itself after SocksTimeout, by default 120 s; then it is too late to hand over.
_MAX_HELD_SECONDS = 100.0

# These look at no weight: a policy that gives one expects what it does not get.
_WITHOUT_WEIGHTS = (Algorithm.ROUND_ROBIN, Algorithm.FIRST)

# A circuit needs a round trip over three relays to answer; after 10 s Tor takes the stream off by itself.
_MIN_REDISPATCH_SECONDS, _MAX_REDISPATCH_SECONDS = 0.1, 9.0


def find_semantic_faults(document: Document, faulty: frozenset[Path]) -> Iterator[Fault]:
    """Judges how the values fit together.

    Args:
        document: The policy, which may have faults.
        faulty: Paths of values that the schema has already refused.
    """
    known = _Known(document, faulty)
    yield from _control_faults(known)
    yield from _socket_faults(known)
    yield from _rebuild_faults(known)
    yield from _wait_faults(known)
    yield from _rounds_faults(known)
    yield from _redispatch_faults(known)
    yield from find_probe_faults(document, known.value)
    circuits = _read_circuits(known)
    yield from _weight_faults(known, circuits)
    yield from _adopt_faults(known, circuits)
    yield from _name_faults(known, circuits)
    yield from _number_faults(known, circuits)
    yield from find_duration_faults(document, faulty)
    names = _all_names(circuits)
    yield from find_rule_faults(document, faulty, names)
    yield from find_metrics_faults(document, faulty)
    made = {c.index: slot_names(c.name, c.count) if names and c.name and c.count else None for c in circuits}
    yield from find_path_faults(document, faulty, made)


def find_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    """What works, and may not be what the operator wants; ``policy`` is what ``document`` became."""
    if isinstance(policy.tor.control, TcpAddress):
        message = "over TCP a command can wait 40 ms for a delayed acknowledgement: prefer Tor's Unix socket"
        yield document.fault(("tor", "control"), message)
    if len(policy.slots) == 1:
        message = "with one circuit there is nothing to balance and nothing to fail over to: add another"
        yield document.fault(("circuits",), message)
    if policy.balance.isolation is Isolation.NONE:
        message = "streams of different SOCKS users and clients share circuits: their exits can link them"
        yield document.fault(("balance", "isolation"), message)
        if document.node_at(("balance", "keys")) is not None:
            yield document.fault(("balance", "keys"), "this does nothing under `isolation: none`")
    yield from _sticky_warnings(document, policy)
    yield from find_rule_warnings(document, policy)
    yield from _eject_warnings(document, policy)
    yield from find_operating_warnings(document, policy)
    yield from find_idle_keys(document, policy)
    yield from find_probe_warnings(document, policy)
    if policy.rounds is not None and policy.balance.isolation is Isolation.TOR:
        message = "rounds serve the first key's circuits only: `isolation: none` if there is but one user"
        yield document.fault(("rounds",), message)
    yield from _adopt_warnings(document, policy)
    for index in range(len(_items(document, ("circuits",)))):
        path: Path = ("circuits", index, "path")
        hops = len(_items(document, path))
        if hops:
            message = (
                "Tor uses no guard where the relays are given: the first of them always sees this client"
            )
            yield document.fault(path, message)
        if hops == 2:
            message = (
                "with two hops, two relays are enough to link this client to its destinations: use three"
            )
            yield document.fault(path, message)


def _adopt_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    if policy.balance.isolation is Isolation.NONE:
        return
    message = "an adopted circuit serves the first key only: `isolation: none` if there is but one user"
    for index in range(len(_items(document, ("circuits",)))):
        path: Path = ("circuits", index, "adopt")
        if document.node_at(path) is not None:
            yield document.fault(path, message)


def _sticky_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    balance = policy.balance
    if balance.isolation is Isolation.TOR and balance.sticky in {StickyBy.SOCKS_USER, StickyBy.SOURCE}:
        message = (
            "under `isolation: tor` each SOCKS user and each client has circuits of its own, of which it "
            "would use one: sticky is for `isolation: none`, or by destination"
        )
        yield document.fault(("balance", "sticky"), message)
    if balance.sticky is StickyBy.NONE and balance.sticky_load is not None:
        yield document.fault(("balance", "sticky_load"), "this does nothing under `sticky: none`")


def _eject_warnings(document: Document, policy: Policy) -> Iterator[Fault]:
    eject = policy.health.eject
    if eject is None:
        return
    active = sum(slot.role is Role.ACTIVE for slot in policy.slots)
    circuits = len(policy.slots) - active + min(active, policy.balance.keys.slots_per_key or active)
    if circuits == 1 or circuits * eject.max_percent < 100:
        least = "" if circuits == 1 else f": from {-(-100 // circuits)} on one may be"
        message = f"of {_circuits(circuits)} for each key none is ever ejected{least}"
        yield document.fault(("health", "eject", "max_percent"), message)


def _circuits(count: int) -> str:
    return "1 circuit" if count == 1 else f"{count} circuits"


def slot_names(name: str, count: int) -> Sequence[str]:
    """The names of the circuits that one entry makes."""
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


@dataclass(frozen=True, slots=True)
class _Known:
    """A document's values as far as they can be relied on."""

    document: Document
    faulty: frozenset[Path]

    def value(self, *path: str | int) -> Any:  # noqa: ANN401 - the schema has judged its type
        """The value at a path, or the schema's default for it; None if it is faulty or has no default."""
        sub: dict[str, Any] = load_schema()
        node = self.document.node_at(path)
        for length, step in enumerate(path):
            around = self.document.node_at(path[:length])
            if not self.is_sound(path[: length + 1]):
                return None
            if isinstance(around, Mapping) and around.is_partial and node is None:
                return None
            sub = sub["items"] if isinstance(step, int) else sub["properties"][step]
        return node.value if isinstance(node, Scalar) else sub.get("default")

    def is_sound(self, path: Path) -> bool:
        """Whether nothing is known against what stands at a path."""
        return path not in self.faulty and not isinstance(self.document.node_at(path), Bad)


@dataclass(frozen=True, slots=True)
class _Circuit:
    """One entry of ``circuits``; what is faulty is None."""

    index: int
    name: str | None
    weight: int | None
    count: int | None
    role: str | None

    def path(self, key: str) -> Path:
        return ("circuits", self.index, key)


def _read_circuits(known: _Known) -> list[_Circuit]:
    if not known.is_sound(("circuits",)):
        return []
    return [
        _Circuit(index, *(known.value("circuits", index, key) for key in ("name", "weight", "count", "role")))
        for index in range(len(_items(known.document, ("circuits",))))
    ]


def _all_names(circuits: list[_Circuit]) -> set[str] | None:
    """The names of entries and of the circuits that they make; None if not all are known."""
    names: set[str] = set()
    for circuit in circuits:
        if circuit.name is None or circuit.count is None:
            return None
        names.update((circuit.name, *slot_names(circuit.name, circuit.count)))
        if len(names) > 2 * MAX_CIRCUITS:
            return None
    return names or None


def _items(document: Document, path: Path) -> Sequence[Any]:
    node = document.node_at(path)
    return node.items if isinstance(node, Listing) else ()


def _control_faults(known: _Known) -> Iterator[Fault]:
    control, socket = known.value("tor", "control"), known.value("admin", "socket")
    if control is None:
        return
    try:
        parse_control(control)
    except ValueFault as fault:
        yield known.document.fault(("tor", "control"), str(fault))
    if control == f"unix:{socket}":
        message = "this is Tor's control socket: give the agent another"
        yield known.document.fault(("admin", "socket"), message)


def _socket_faults(known: _Known) -> Iterator[Fault]:
    socket = known.value("admin", "socket")
    if socket is None:
        return
    try:
        check_socket_path(socket)
    except ValueFault as fault:
        yield known.document.fault(("admin", "socket"), str(fault))


def _rebuild_faults(known: _Known) -> Iterator[Fault]:
    waits: dict[str, float] = {}
    for key in ("initial", "max"):
        path = ("failover", "rebuild", key)
        text = known.value(*path)
        if text is None:
            continue
        seconds = parse_duration(text)
        if _MIN_WAIT_SECONDS <= seconds <= _MAX_WAIT_SECONDS:
            waits[key] = seconds
        else:
            yield known.document.fault(path, f"must be from 10ms to 1d, not {quoted(text)}")
    if len(waits) == 2 and waits["initial"] > waits["max"]:
        # If only one of the two is written, it is the one to change.
        key = "max" if known.document.node_at(("failover", "rebuild", "max")) else "initial"
        initial, longest = (known.value("failover", "rebuild", name) for name in ("initial", "max"))
        message = f"the waits would start at {initial} and end at {longest}: let `max` be at least `initial`"
        yield known.document.fault(("failover", "rebuild", key), message)


def _wait_faults(known: _Known) -> Iterator[Fault]:
    for path, longest, shown in (
        (("balance", "keys", "idle"), _MAX_WAIT_SECONDS, "1d"),
        (("balance", "keys", "wait"), _MAX_HELD_SECONDS, "100s"),
        (("balance", "queue", "timeout"), _MAX_HELD_SECONDS, "100s"),
        (("health", "eject", "base"), _MAX_WAIT_SECONDS, "1d"),
    ):
        text = known.value(*path)
        if text is not None and not _MIN_WAIT_SECONDS <= parse_duration(text) <= longest:
            yield known.document.fault(path, f"must be from 10ms to {shown}, not {quoted(text)}")


def _rounds_faults(known: _Known) -> Iterator[Fault]:
    command = _items(known.document, ("rounds", "command"))
    program = command[0].text if command and isinstance(command[0], Scalar) else "/hook"
    is_path = program.startswith("/") and not program.endswith("/")
    if not is_path and known.is_sound(("rounds", "command", 0)):
        message = f"must be the absolute path of a program, not {quoted(program)}"
        yield known.document.fault(("rounds", "command", 0), message)
    if known.document.node_at(("rounds",)) is None:
        return
    seconds: dict[str, float] = {}
    for key, least, shown in (
        ("interval", 0.1, "100ms"),
        ("first_after", 0.01, "10ms"),
        ("timeout", 0.1, "100ms"),
    ):
        text = known.value("rounds", key)
        if text is None:
            continue
        seconds[key] = parse_duration(text)
        if not least <= seconds[key] <= _MAX_WAIT_SECONDS:
            del seconds[key]
            yield known.document.fault(("rounds", key), f"must be from {shown} to 1d, not {quoted(text)}")
    if seconds.get("timeout", 0) > seconds.get("interval", _MAX_WAIT_SECONDS):
        # If only the interval is written, the timeout's default has to be lowered.
        timeout, interval = known.value("rounds", "timeout"), known.value("rounds", "interval")
        message = f"must be at most `interval`, {interval}, not {timeout}"
        yield known.document.fault(("rounds", "timeout"), message)


def _redispatch_faults(known: _Known) -> Iterator[Fault]:
    path = ("failover", "redispatch", "after")
    text = known.value(*path)
    if text is None:
        return
    if not _MIN_REDISPATCH_SECONDS <= parse_duration(text) <= _MAX_REDISPATCH_SECONDS:
        yield known.document.fault(path, f"must be from 100ms to 9s, not {quoted(text)}")
    elif known.value("balance", "purpose") == Purpose.GENERAL:
        message = (
            "needs `balance.purpose: controller`: a stream that leaves a general circuit on its way "
            "loses what the application has sent early"
        )
        yield known.document.fault(path, message)


def _weight_faults(known: _Known, circuits: list[_Circuit]) -> Iterator[Fault]:
    algorithm = known.value("balance", "algorithm")
    if algorithm not in _WITHOUT_WEIGHTS:
        return
    for circuit in circuits:
        if circuit.weight not in (None, 1):
            message = (
                f"{algorithm} ignores weights: remove this one, or use `algorithm: weighted-round-robin`"
            )
            yield known.document.fault(circuit.path("weight"), message)


def _adopt_faults(known: _Known, circuits: list[_Circuit]) -> Iterator[Fault]:
    for circuit in circuits:
        if known.document.node_at(circuit.path("adopt")) is None:
            continue
        for key, why in (
            ("path", "whoever builds the circuit chooses its relays"),
            ("count", "each entry with it is one circuit"),
        ):
            if known.document.node_at(circuit.path(key)) is not None and known.is_sound(circuit.path(key)):
                yield known.document.fault(circuit.path(key), f"does not go with `adopt`: {why}")


def _name_faults(known: _Known, circuits: list[_Circuit]) -> Iterator[Fault]:
    makers: dict[str, _Circuit] = {}
    for circuit in circuits:
        if circuit.name is None or circuit.count is None:
            continue
        names = slot_names(circuit.name, circuit.count)
        clash = next((name for name in names if name in makers), None)
        if clash is not None:
            first = makers[clash]
            line = known.document.fault(first.path("name"), "").line
            source = (
                f"in line {line}" if first.count == 1 else f"from `count` of `{first.name}` in line {line}"
            )
            message = f"there is a circuit `{clash}` already, {source}: choose another name"
            yield known.document.fault(circuit.path("name"), message)
        makers.update((name, circuit) for name in names if name not in makers)
        if len(makers) > MAX_CIRCUITS:
            # There is a fault for their number, and names beyond it are not worth their memory.
            return


def _number_faults(known: _Known, circuits: list[_Circuit]) -> Iterator[Fault]:
    total = 0
    for circuit in circuits:
        total += circuit.count or 0
        if total > MAX_CIRCUITS:
            message = f"this makes {total} circuits, and {MAX_CIRCUITS} is the most: lower a `count`"
            yield known.document.fault(circuit.path("count"), message)
            return
    if not circuits or any(circuit.role is None or circuit.count is None for circuit in circuits):
        return
    active = sum(circuit.count or 0 for circuit in circuits if circuit.role == Role.ACTIVE)
    if active == 0:
        message = "every circuit is a backup: give at least one `role: active`"
        yield known.document.fault(("circuits",), message)
        return
    max_circuits = known.value("balance", "keys", "max_circuits")
    if max_circuits is not None and max_circuits < total:
        message = f"must be at least {total}, the number of circuits that the first key gets"
        yield known.document.fault(("balance", "keys", "max_circuits"), message)
    slots_per_key = known.value("balance", "keys", "slots_per_key")
    if slots_per_key is not None and slots_per_key > active:
        message = f"must be at most {active}, the number of active circuits, not {slots_per_key}"
        yield known.document.fault(("balance", "keys", "slots_per_key"), message)
    min_active = known.value("failover", "min_active")
    if min_active is not None and min_active > active:
        message = f"must be at most {active}, the number of active circuits, not {min_active}"
        yield known.document.fault(("failover", "min_active"), message)
