"""On the private Tor network, under load: a circuit is closed, and a relay is killed.

Everything happens to all ways at the same moment, each with the same steady load: what differs is the way.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.chart import Bar, bars
from benchmarks.measure import Spread
from benchmarks.report import Part, table
from benchmarks.ways import Way
from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient, TorRelay
from circuitloom.lab.torrc import LOOPBACK
from circuitloom.lab.traffic import Load, LoadReport, Outcome, SocksProxy, StreamShape
from circuitloom.lab.witness import EventWitness, StreamWitness
from circuitloom.wire import parse_circuits

PER_SECOND = 40.0
HOLD_SECONDS = 0.1
BEFORE_SECONDS = 1.5
AFTER_SECONDS = 4.0
RECOVERY_SECONDS = 3.0
STREAM_SECONDS = 10.0
"""How long a stream may take; after it the application has given up."""

CLOSED, KILLED = "a circuit in use is closed", "a relay in use is killed"


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What one event did to one way.

    Attributes:
        hit: The share of its circuits in use that the event took.
        cut: Streams that were there before it and ended with it.
        failed: Streams that were started after it and did not succeed.
        hurt_ms: From the event to the start of the last of them; 0 without any.
        slowest_ms: The longest that a stream started after it took to connect.
        rebuilt_ms: From the event until a circuit launched after it is BUILT; NaN: none, or not watched.
    """

    hit: float
    cut: int
    failed: int
    hurt_ms: float
    slowest_ms: float
    rebuilt_ms: float


class CircuitWitness(EventWitness):
    """Notes when a client's circuits are launched and built; a context manager.

    Attributes:
        seen: On the clock of ``time.monotonic``, with circuit id and status.
    """

    def __init__(self, client: TorClient) -> None:
        self.seen: list[tuple[float, str, str]] = []
        super().__init__(client, "CIRC")

    def _take(self, words: Sequence[str]) -> None:
        self.seen.append((time.monotonic(), words[1], words[2]))


def rebuilt_ms(seen: Sequence[tuple[float, str, str]], since: float) -> float:
    """When the first circuit was BUILT that was launched since then; NaN: none.

    Args:
        seen: As ``CircuitWitness`` notes it.
        since: On the same clock, seconds.
    """
    later = [entry for entry in seen if entry[0] >= since]
    launched = {circuit_id for _, circuit_id, status in later if status == "LAUNCHED"}
    built = [at for at, circuit_id, status in later if status == "BUILT" and circuit_id in launched]
    return (min(built) - since) * 1e3 if built else math.nan


Ends = Mapping[str, Mapping[str, Sequence[Aftermath]]]
"""By event and by way: one for each round."""


def chosen_ways(network: PrivateNetwork, ways: Sequence[Way]) -> list[Way]:
    """Tor's own assignment, an agent on another client, and the largest HAProxy, with as many circuits."""
    proxies = [way for way in ways if len(way.clients) > 1]
    agents = [way for way in ways if way.is_ours]
    wanted = proxies[-1].circuits if proxies else None
    agent = next((way for way in agents if way.circuits == wanted), agents[-1])
    return [ways[0], agent.on(network.add_client()), *proxies[-1:]]


def measure(
    network: PrivateNetwork, ways: Sequence[Way], target: int, rounds: int, tell: Callable[[str], None]
) -> Part:
    """Close and kill, ``rounds`` times each, while all ways run at once."""
    with contextlib.ExitStack() as stack:
        for way in ways:
            stack.enter_context(way.running())
        return make_part(ways, _strike(network, ways, target, rounds, tell))


def _strike(
    network: PrivateNetwork, ways: Sequence[Way], target: int, rounds: int, tell: Callable[[str], None]
) -> Ends:
    ends: dict[str, dict[str, list[Aftermath]]] = {
        event: {way.name: [] for way in ways} for event in (CLOSED, KILLED)
    }
    for number in range(rounds):
        for event, by_way in ends.items():
            found = _observe(network, ways, target, event)
            for way in ways:
                by_way[way.name].append(found[way.name])
            hurt = ", ".join(f"{way.name}: {found[way.name].failed} failed" for way in ways)
            tell(f"round {number + 1} of {rounds}: {event}: {hurt}")
    return ends


def _observe(network: PrivateNetwork, ways: Sequence[Way], target: int, event: str) -> dict[str, Aftermath]:
    clients = [client for way in ways for client in way.clients]
    victims: list[TorRelay] = []
    hits: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        witnesses = {client.nickname: stack.enter_context(StreamWitness(client)) for client in clients}
        watches = {
            way.name: stack.enter_context(CircuitWitness(way.clients[0]))
            for way in ways
            if len(way.clients) == 1
        }
        controls = {client.nickname: stack.enter_context(client.control()) for client in clients}

        def strike() -> float:
            used = [_used_circuits(way, witnesses) for way in ways]
            if event == KILLED:
                victims.append(_victim(network, used))
            for way, circuits in zip(ways, used, strict=True):
                hits[way.name] = _share_hit(circuits, victims)
            struck_at = time.monotonic()
            if event == KILLED:
                victims[0].kill()
            else:
                for nickname, circuit_id, _ in (circuits[0] for circuits in used if circuits):
                    controls[nickname].ask(f"CLOSECIRCUIT {circuit_id}")
            return struck_at

        struck_at, reports = asyncio.run(_load_around(ways, target, strike))
        rebuilt = {name: rebuilt_ms(watch.seen, struck_at) for name, watch in watches.items()}
    for victim in victims:
        victim.start()
    time.sleep(RECOVERY_SECONDS)
    return {
        way.name: _aftermath(report, struck_at, hits[way.name], rebuilt.get(way.name, math.nan))
        for way, report in zip(ways, reports, strict=True)
    }


async def _load_around(
    ways: Sequence[Way], target: int, strike: Callable[[], float]
) -> tuple[float, list[LoadReport]]:
    loads = [
        Load(
            [SocksProxy(way.socks_port, timeout_seconds=STREAM_SECONDS)],
            (LOOPBACK, target),
            streams_per_second=PER_SECOND,
            shape=StreamShape(hold_seconds=HOLD_SECONDS),
        )
        for way in ways
    ]
    running = [
        asyncio.create_task(load.run(BEFORE_SECONDS + AFTER_SECONDS + STREAM_SECONDS)) for load in loads
    ]
    await asyncio.sleep(BEFORE_SECONDS)
    struck_at = await asyncio.to_thread(strike)
    await asyncio.sleep(AFTER_SECONDS)
    for load in loads:
        load.stop()
    return struck_at, list(await asyncio.gather(*running))


Used = tuple[str, str, tuple[str, ...]]
"""The client's nickname, the circuit's id, and its relays' fingerprints."""


def _used_circuits(way: Way, witnesses: Mapping[str, StreamWitness]) -> list[Used]:
    """The circuits that carried streams and are still there, the one that was used most first."""
    found: list[tuple[int, Used]] = []
    for client in way.clients:
        streams = witnesses[client.nickname].streams
        found += [
            (streams[circuit_id], (client.nickname, circuit_id, path))
            for circuit_id, path in _paths(client).items()
            if streams[circuit_id]
        ]
    return [used for _, used in sorted(found, reverse=True)]


def _paths(client: TorClient) -> dict[str, tuple[str, ...]]:
    with client.control() as port:
        lines = parse_circuits(port.ask_value("circuit-status"))
    return {line.circuit_id: tuple(hop.fingerprint for hop in line.path) for line in lines}


def _victim(network: PrivateNetwork, ways: Sequence[Sequence[Used]]) -> TorRelay:
    """A relay in use by as many ways as can be, and the first hop of none if that can be."""

    def rank(relay: TorRelay) -> tuple[int, int]:
        hit = sum(any(relay.fingerprint in path for _, _, path in circuits) for circuits in ways)
        guarded = sum(relay.fingerprint == path[0] for circuits in ways for _, _, path in circuits)
        return hit, -guarded

    return max((relay for relay in network.relays if relay.is_running()), key=rank)


def _share_hit(circuits: Sequence[Used], victims: Sequence[TorRelay]) -> float:
    """Of the circuits in use, how many go through the victims; without any it is one that is closed."""
    if not circuits:
        return 0.0
    hit = sum(any(relay.fingerprint in path for relay in victims) for _, _, path in circuits)
    return (hit if victims else 1) / len(circuits)


def _aftermath(report: LoadReport, struck_at: float, hit: float, rebuilt_ms: float) -> Aftermath:
    before = [result for result in report.results if result.started_at < struck_at <= result.ended_at]
    after = [result for result in report.results if result.started_at >= struck_at]
    failed = [result for result in after if result.outcome is not Outcome.SUCCEEDED]
    connects = [result.connect_seconds for result in after if result.connect_seconds is not None]
    return Aftermath(
        hit=hit,
        cut=sum(result.outcome is not Outcome.SUCCEEDED for result in before),
        failed=len(failed),
        hurt_ms=max((result.started_at - struck_at for result in failed), default=0.0) * 1e3,
        slowest_ms=max(connects, default=0.0) * 1e3,
        rebuilt_ms=rebuilt_ms,
    )


def make_part(ways: Sequence[Way], ends: Ends) -> Part:
    """The report's part from all rounds."""
    rounds = len(next(iter(ends[KILLED].values())))
    times = "once" if rounds == 1 else f"{rounds} times"
    count = PER_SECOND * AFTER_SECONDS
    text = f"""\
{PER_SECOND:.0f} new streams a second over each of these ways at once, each held for {HOLD_SECONDS * 1e3:.0f}
ms; then a circuit that carries streams is closed in each of them, or one relay that all of them use is killed
(SIGKILL), {times} each. Streams on it are cut, as Tor has no way to move them; what counts is
what is started afterwards, {count:.0f} streams in {AFTER_SECONDS:.0f} s.

![new streams that failed](tor-failover.svg)

{_table(ways, ends)}
"""
    chart = bars(
        "New streams that fail after a relay in use was killed",
        [Bar(way.name, Spread.of(one.failed for one in ends[KILLED][way.name]), way.is_ours) for way in ways],
        lambda value: f"{value:.0f}",
        subtitle=f"of {count:.0f} started in the {AFTER_SECONDS:.0f} s after it; fewer is better",
    )
    return Part("ends", "When circuits and relays end", text, (), {"tor-failover.svg": chart})


def _told(spread: Spread) -> str:
    return "" if math.isnan(spread.median) else f"{spread:.0f}"


def _table(ways: Sequence[Way], ends: Ends) -> str:
    header = (
        "",
        "circuits hit",
        "cut",
        "failed afterwards",
        "the last of them after ms",
        "slowest connect ms",
        "a new circuit built after ms",
    )
    return table(
        header,
        [
            (
                f"{event}: {way.name}",
                f"{Spread.of(one.hit for one in found):.0%}",
                f"{Spread.of(one.cut for one in found):.0f}",
                f"{Spread.of(one.failed for one in found):.0f}",
                f"{Spread.of(one.hurt_ms for one in found):.0f}",
                f"{Spread.of(one.slowest_ms for one in found):.0f}",
                _told(Spread.of(one.rebuilt_ms for one in found if not math.isnan(one.rebuilt_ms))),
            )
            for event, by_way in ends.items()
            for way, found in ((way, by_way[way.name]) for way in ways)
        ],
    )
