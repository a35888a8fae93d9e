"""Every chooser on any history: streams come and end, candidates come, go, fill and empty.

The history treats the chooser as the pool does: a candidate that is full or away is not in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitloom.balancing import CHOOSERS, Chooser, ConnectTime, RoundRobin, Sticky
from circuitloom.balancing.ring import Ring

USERS = [f"user {number}" for number in range(200)]

# A busy machine is slow to draw; that is no fault of a test.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=100)


def dice(seed: int) -> Callable[[], float]:
    return Random(seed).random  # noqa: S311 - nothing secret hangs on it


@dataclass
class Candidate:
    """One circuit as the history knows it; ``since`` counts the choices before it could be chosen last."""

    name: str
    weight: int
    max_streams: int
    order: int
    connect_time: ConnectTime
    streams: int = 0
    is_there: bool = True
    is_in: bool = False
    since: int = 0

    @property
    def may_serve(self) -> bool:
        return self.is_there and self.streams < self.max_streams


@dataclass
class Field:
    """A chooser, its candidates, and the choices so far."""

    chooser: Chooser
    candidates: dict[str, Candidate]
    living: list[str] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for candidate in self.candidates.values():
            self.offer(candidate)

    @property
    def serving(self) -> list[Candidate]:
        return [candidate for candidate in self.candidates.values() if candidate.may_serve]

    def offer(self, candidate: Candidate) -> None:
        if candidate.may_serve and not candidate.is_in:
            self.chooser.add(
                candidate.name,
                weight=candidate.weight,
                streams=candidate.streams,
                order=candidate.order,
                connect_time=candidate.connect_time,
            )
            candidate.since = len(self.choices)
        elif candidate.is_in and not candidate.may_serve:
            self.chooser.remove(candidate.name)
        candidate.is_in = candidate.may_serve

    def count(self, name: str, change: int) -> None:
        candidate = self.candidates[name]
        candidate.streams += change
        if candidate.is_in and candidate.may_serve:
            self.chooser.count_streams(name, candidate.streams)
        else:
            self.offer(candidate)

    def arrive(self, sticky: str | None = None) -> Candidate | None:
        """One stream; returns the candidate as it was before it took the stream, if there was one."""
        name = self.chooser.choose(now=0.0, sticky=sticky)
        assert (name is None) == (not self.serving), "a stream waits although there is room"
        if name is None:
            return None
        candidate = self.candidates[name]
        assert candidate.may_serve, "a full or absent candidate was chosen"
        self.living.append(name)
        return candidate

    def take(self, candidate: Candidate) -> None:
        self.choices.append(candidate.name)
        self.count(candidate.name, +1)

    def end(self, place: int) -> None:
        if self.living:
            self.count(self.living.pop(place % len(self.living)), -1)

    def come_or_go(self, place: int) -> None:
        """A circuit closes with all its streams, or another one is there in its place."""
        candidate = list(self.candidates.values())[place % len(self.candidates)]
        candidate.is_there = not candidate.is_there
        if not candidate.is_there:
            self.living = [name for name in self.living if name != candidate.name]
            self.offer(candidate)
            candidate.streams = 0
        self.offer(candidate)


@st.composite
def candidates(draw: st.DrawFn, *, most: int = 8) -> dict[str, Candidate]:
    sizes = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 12)), min_size=1, max_size=most))
    made = {}
    for order, (weight, max_streams) in enumerate(sizes):
        connect_time = ConnectTime()
        connect_time.observe(0.1 * (1 + order % 4), 0.0)
        made[f"c{order}"] = Candidate(f"c{order}", weight, max_streams, order, connect_time)
    return made


steps = st.lists(
    st.tuples(st.sampled_from(["come", "come", "come", "end", "end", "turn"]), st.integers(0, 99))
)


def play(ground: Field, history: list[tuple[str, int]], check: Callable[[Field, Candidate], None]) -> None:
    for what, place in history:
        match what:
            case "come":
                chosen = ground.arrive()
                if chosen is not None:
                    check(ground, chosen)
                    ground.take(chosen)
            case "end":
                ground.end(place)
            case _:
                ground.come_or_go(place)
        assert all(one.streams <= one.max_streams for one in ground.candidates.values())


@pytest.mark.parametrize("name", sorted(CHOOSERS))
@patient
@given(candidates(), steps, st.integers(0, 9))
def test_no_limit_is_broken_and_nobody_waits_while_there_is_room(
    name: str, made: dict[str, Candidate], history: list[tuple[str, int]], seed: int
) -> None:
    play(Field(CHOOSERS[name](dice(seed)), made), history, lambda _field, _chosen: None)


@patient
@given(candidates(), steps)
def test_round_robin_lets_everybody_have_a_turn_between_two_of_one(
    made: dict[str, Candidate], history: list[tuple[str, int]]
) -> None:
    def check(ground: Field, chosen: Candidate) -> None:
        before = [number for number, name in enumerate(ground.choices) if name == chosen.name]
        if not before:
            return
        last = before[-1]
        between = set(ground.choices[last + 1 :])
        for other in ground.serving:
            if other is not chosen and max(other.since, chosen.since) <= last:
                assert other.name in between

    play(Field(RoundRobin(), made), history, check)


@patient
@given(candidates(), steps, st.integers(1, 4))
def test_weighted_round_robin_pays_what_a_change_left_owing_and_is_exact_then(
    made: dict[str, Candidate], history: list[tuple[str, int]], windows: int
) -> None:
    ground = Field(CHOOSERS["weighted-round-robin"](dice(0)), made)
    play(ground, history, lambda _field, _chosen: None)
    here = {one.name: one.weight for one in ground.serving}
    total = sum(here.values())
    for _ in range(total * (1 + len(set(here.values())))):
        ground.chooser.choose()

    chosen = Counter(ground.chooser.choose() for _ in range(total * windows))
    assert chosen == {name: weight * windows for name, weight in here.items()}


@patient
@given(candidates(), steps)
def test_least_streams_takes_one_with_the_least_for_its_weight(
    made: dict[str, Candidate], history: list[tuple[str, int]]
) -> None:
    def check(ground: Field, chosen: Candidate) -> None:
        assert load(chosen) == min(map(load, ground.serving))

    def load(one: Candidate) -> float:
        return (one.streams + 1) / one.weight

    play(Field(CHOOSERS["least-streams"](dice(0)), made), history, check)


@patient
@given(candidates(), steps, st.integers(0, 9))
def test_power_of_two_never_takes_the_one_that_costs_most(
    made: dict[str, Candidate], history: list[tuple[str, int]], seed: int
) -> None:
    def check(ground: Field, chosen: Candidate) -> None:
        others = [cost(one) for one in ground.serving if one is not chosen]
        assert not others or cost(chosen) <= max(others)

    def cost(one: Candidate) -> float:
        seconds = one.connect_time.estimate(0.0)
        assert seconds is not None
        return seconds * (one.streams + 1) / one.weight

    play(Field(CHOOSERS["power-of-two"](dice(seed)), made), history, check)


@patient
@given(candidates(), steps)
def test_first_takes_the_first_with_room(made: dict[str, Candidate], history: list[tuple[str, int]]) -> None:
    """So a circuit is used only while all before it are full, and as few as the load allows."""

    def check(ground: Field, chosen: Candidate) -> None:
        assert chosen.order == min(one.order for one in ground.serving)
        before = [one for one in ground.candidates.values() if one.is_there and one.order < chosen.order]
        assert all(one.streams == one.max_streams for one in before)

    play(Field(CHOOSERS["first"](dice(0)), made), history, check)


@patient
@given(candidates(most=5), steps, st.integers(0, 99))
def test_random_draws_by_weight_after_any_history(
    made: dict[str, Candidate], history: list[tuple[str, int]], seed: int
) -> None:
    ground = Field(CHOOSERS["random"](dice(seed)), made)
    play(ground, history, lambda _field, _chosen: None)
    here = {one.name: one.weight for one in ground.serving}
    total = sum(here.values())
    chosen = Counter(ground.chooser.choose() for _ in range(1000)) if here else Counter()

    for name, weight in here.items():
        part = weight / total
        # Six standard deviations of a binomial share.
        assert abs(chosen[name] / 1000 - part) <= 6 * (part * (1 - part) / 1000) ** 0.5


# --- sticky ------------------------------------------------------------------------------------------------

sticky_steps = st.lists(
    st.tuples(st.sampled_from(["come", "come", "come", "end", "turn"]), st.integers(0, 99))
)


@patient
@given(candidates(), sticky_steps, st.sampled_from([None, 1.25, 2.0]))
def test_sticky_goes_to_the_first_on_its_way_that_has_room_and_is_below_the_bound(
    made: dict[str, Candidate], history: list[tuple[str, int]], max_load: float | None
) -> None:
    ground = Field(Sticky(RoundRobin(), max_load), made)
    ring = Ring()
    for one in made.values():
        ring.add(one.name, one.weight)

    def is_below(one: Candidate) -> bool:
        if max_load is None:
            return True
        streams = sum(other.streams for other in ground.serving)
        weight = sum(other.weight for other in ground.serving)
        return one.streams < ceil(max_load * (streams + 1) * one.weight / weight)

    for what, place in history:
        if what == "come":
            user = USERS[place % 7]
            chosen = ground.arrive(user)
            way = [made[name] for name in ring.walk(user)]
            assert chosen == next((one for one in way if one.may_serve and is_below(one)), None)
            if chosen is not None:
                ground.take(chosen)
        elif what == "end":
            ground.end(place)
        else:
            ground.come_or_go(place)
        assert all(one.streams <= one.max_streams for one in made.values())


@patient
@given(st.integers(1, 16), st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=20))
def test_a_candidate_that_comes_or_goes_moves_its_own_part_of_the_keys_and_no_other(
    count: int, turns: list[tuple[bool, int]]
) -> None:
    """Reshuffled are at most 1/n of the keys, and what 64 points on a ring make that differ by."""
    chooser = Sticky(RoundRobin())
    there = [f"c{number}" for number in range(count)]
    for name in there:
        chooser.add(name, weight=1, streams=0)
    named = count
    homes = {user: chooser.choose(sticky=user) for user in USERS}
    for comes, place in turns:
        if comes or len(there) < 2:
            moving = f"c{named}"
            named += 1
            there.append(moving)
            chooser.add(moving, weight=1, streams=0)
        else:
            moving = there.pop(place % len(there))
            chooser.remove(moving)
        was, homes = homes, {user: chooser.choose(sticky=user) for user in USERS}
        moved = [user for user in USERS if was[user] != homes[user]]
        assert all(moving in (was[user], homes[user]) for user in moved)
        most = len(there) if moving in there else len(there) + 1
        assert len(moved) <= len(USERS) / most * 1.5 + 12


@patient
@given(st.integers(2, 12), st.lists(st.integers(0, 199), max_size=60))
def test_streams_of_one_key_stay_together_whatever_others_do(count: int, others: list[int]) -> None:
    chooser = Sticky(RoundRobin())
    for number in range(count):
        chooser.add(f"c{number}", weight=1, streams=0)
    home = chooser.choose(sticky="alice")
    for number in others:
        name = chooser.choose(sticky=USERS[number])
        assert name is not None
        chooser.count_streams(name, number)
        assert chooser.choose(sticky="alice") == home
