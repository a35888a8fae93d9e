"""Selecting the relays of one circuit, and judging those of a circuit that is there.

Rules of this file:

* The exit comes first, then the guard that Tor prefers of those that may share a path with it, then what is
  between them: Tor's own order (path-spec 2.2). Another guard is taken only where nothing can be between.
* When nothing fits, the answer says for which position, and what left none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from circuitloom.model import Hop
from circuitloom.paths.relays import Position, Relay, Relays
from circuitloom.policy.path_types import Diversity, PathRules

_ATTEMPTS = 64
"""Exits that are tried before giving up: only where all relays are of few families it takes more than one."""


@dataclass(frozen=True, slots=True)
class NoPath:
    """No path fits; ``why`` says for which position, and what left none."""

    why: str


@dataclass(frozen=True, slots=True)
class Beside:
    """What else there is when a path is selected: the other circuits of its key, and relays that failed.

    Attributes:
        exits: Their fingerprints; one that is no relay of the snapshot is compared by fingerprint only.
        barred: Of these, those that the path must not end at by its own rules.
        resting: Fingerprints of relays that are middle relay or exit only where no other fits.
    """

    exits: frozenset[str] = frozenset()
    barred: frozenset[str] = frozenset()
    resting: Collection[str] = frozenset()


def select_path(
    relays: Relays,
    rules: PathRules,
    *,
    diversity: Diversity,
    beside: Beside,
    uniform: Callable[[], float],
) -> tuple[Relay, ...] | NoPath:
    """Select guard, middle relay and exit.

    Args:
        relays: All there are.
        rules: What the policy asks of this circuit.
        diversity: What it asks of the exits of all.
        beside: The exits of the others, and relays that rest.
        uniform: Gives a random number in [0, 1).

    Returns:
        The relays, first hop first, or why there is no path.
    """
    exits = relays.candidates(Position.EXIT, rules)
    middles = relays.candidates(Position.MIDDLE, rules)
    for where, candidates in (("exit", exits), ("middle relay", middles)):
        if not candidates.relays:
            return NoPath(f"no relay fits as {where}: {candidates.why_none}")
    guards = _guards(relays, rules)
    if isinstance(guards, NoPath):
        return guards
    tests = [*_exit_tests(relays, diversity, beside)]
    tests.append(
        (
            "every guard of Tor is the exit itself, or of its family or subnet,",
            lambda relay: any(relays.may_share_path(relay, guard) for guard in guards),
        )
    )
    dead_ends: set[Relay] = set()

    def fits(relay: Relay) -> bool:
        return relay not in dead_ends and all(test(relay) for _, test in tests)

    def draw_middle(fits: Callable[[Relay], bool]) -> Relay | None:
        return middles.prefer(fits, beside.resting, uniform)

    for _ in range(_ATTEMPTS):
        exit_relay = exits.prefer(fits, beside.resting, uniform)
        if exit_relay is None:
            break
        path = _complete(relays, guards, draw_middle, exit_relay)
        if path is not None:
            return path
        dead_ends.add(exit_relay)
    if dead_ends:
        return NoPath("no relay fits as middle relay: all are of the family or subnet of guard or exit")
    return NoPath(f"no relay fits as exit: {_what_left_none(exits.relays, tests)}")


def breaks(
    relays: Relays, rules: PathRules, path: Sequence[Hop], *, diversity: Diversity, beside: Beside
) -> bool:
    """Whether a circuit that is there is not what its rules ask for now.

    Only what the policy says is judged, of relays that are known: a relay that lost a flag, or is not in the
    consensus for an hour, goes on serving.

    Args:
        relays: All there are.
        rules: What the policy asks of this circuit.
        path: Its relays.
        diversity: What the policy asks of the exits of all.
        beside: The exits of the others.
    """
    exit_fingerprint = path[-1].fingerprint
    if exit_fingerprint in beside.barred or (diversity and exit_fingerprint in beside.exits):
        return True
    hops = [relays.by_fingerprint.get(hop.fingerprint) for hop in path]
    if any(hop is not None and relays.is_avoided(hop, rules.avoid) for hop in hops):
        return True
    middles = [hop for hop in hops[1:-1] if hop is not None]
    if not all(relays.fits(middle, rules.middle) for middle in middles):
        return True
    last = hops[-1]
    return last is not None and not (
        relays.fits(last, rules.exit)
        and all(last.ports.accepts(*ports) for ports in rules.ports)
        and all(test(last) for _, test in _exit_tests(relays, diversity, beside))
    )


def _complete(
    relays: Relays,
    guards: Iterable[Relay],
    draw_middle: Callable[[Callable[[Relay], bool]], Relay | None],
    exit_relay: Relay,
) -> tuple[Relay, ...] | None:
    """The path to an exit over the first of the guards that leaves a middle relay."""
    for guard in guards:
        if relays.may_share_path(guard, exit_relay):
            middle = draw_middle(partial(_may_be_between, relays, (guard, exit_relay)))
            if middle is not None:
                return guard, middle, exit_relay
    return None


def _may_be_between(relays: Relays, ends: tuple[Relay, Relay], relay: Relay) -> bool:
    return all(relays.may_share_path(relay, end) for end in ends)


def _guards(relays: Relays, rules: PathRules) -> Sequence[Relay] | NoPath:
    """Tor's own guards that may be the first hop, in Tor's order."""
    if not relays.guards:
        return NoPath("Tor has no guard that is up: wait until it has connected to the network")
    listed = [relay for guard in relays.guards if (relay := relays.by_fingerprint.get(guard)) is not None]
    if not listed:
        return NoPath("none of Tor's guards is in the consensus (with bridges only `path: auto` works)")
    fitting = [
        relay
        for relay in listed
        if not relays.is_avoided(relay, rules.avoid) and not relays.is_excluded(relay, relays.excluded)
    ]
    return fitting or NoPath(
        f"no relay fits as first hop: avoid and ExcludeNodes leave none of Tor's {len(listed)} guards"
    )


def _exit_tests(
    relays: Relays, diversity: Diversity, beside: Beside
) -> Iterator[tuple[str, Callable[[Relay], bool]]]:
    if beside.barred:
        yield "avoid.same_exit_as", lambda relay: relay.fingerprint not in beside.barred
    if diversity:
        yield "paths.diversity", lambda relay: relay.fingerprint not in beside.exits
    others = [relay for exit_ in beside.exits if (relay := relays.by_fingerprint.get(exit_)) is not None]
    if diversity.family:
        yield "paths.diversity.family", lambda relay: not any(map(relay.is_family_of, others))
    if diversity.subnet:
        yield "paths.diversity.subnet", lambda relay: not any(map(relay.is_near, others))


def _what_left_none(left: Sequence[Relay], tests: Iterable[tuple[str, Callable[[Relay], bool]]]) -> str:
    """The first of the tests that none passes of those that passed the earlier ones; there is one."""
    whys = []
    for why, test in tests:
        kept = [relay for relay in left if test(relay)]
        if not kept:
            whys.append(f"{why} leaves none of {len(left)}")
        left = kept or left
    return whys[0]
