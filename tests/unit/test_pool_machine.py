"""The pool beside a simulated Tor, in any order of events: nobody is stranded, nothing is miscounted."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from circuitloom.model import (
    Action,
    AttachStream,
    CircuitBandwidth,
    CircuitOrdered,
    DeadlinePassed,
    Disconnected,
    Event,
    GiveBack,
    NetworkReady,
    Order,
    ProbeCircuit,
    ProbeFinished,
    ProbeOutcome,
    ProbeStarted,
    Purpose,
    ReleaseStream,
    StopProbe,
    StopRequested,
    StreamId,
)
from circuitloom.paths import Relays
from circuitloom.policy.health import Degrade, Panic, PanicAction
from circuitloom.policy.path_types import Diversity, PathRules
from circuitloom.policy.probing import Probe
from circuitloom.policy.rotation import Rotation
from circuitloom.policy.types import (
    Adopt,
    Algorithm,
    Balance,
    ColdStart,
    Eject,
    Failover,
    Health,
    Isolation,
    Keys,
    Match,
    Overflow,
    Policy,
    Queue,
    Rebuild,
    Retry,
    Role,
    Rule,
    RuleAction,
    Slot,
    StickyBy,
    TcpAddress,
    UnixAddress,
    WhenExceeded,
    WhenExhausted,
    WhenFull,
    WhenNone,
)
from circuitloom.pool import Attachment, Pool
from unit.consensus import Made, snapshot
from unit.simulated_tor import SimulatedTor

SECRET = b"a cookie"
TARGET = "203.0.113.7:80"
PROBES = [
    Probe(TcpAddress("127.0.0.1", 9050), (TARGET,), interval_seconds=20.0, rise=1, fall=1),
    Probe(UnixAddress("/s"), (TARGET, "x:1"), interval_seconds=30.0, fall=2, quorum=2, unused=True),
]
TARGETS = ["example.com:80", "203.0.113.7:443", "abcdefghij.onion:80", "x.relay.exit:80", "[2001:db8::1]:80"]

# Exits enough for every circuit to have one of its own, of which some refuse the ports of the targets.
PORTS = ["accept 1-65535", "accept 80", "reject 80", "accept 25"]
RELAYS = snapshot(*(Made(f"{number:02X}", ports=PORTS[number % 4]) for number in range(16, 240)))
OTHER_RELAYS = RELAYS.with_guards(tuple(f"{number:02X}" * 20 for number in (20, 24, 28)))
PARTS = ["slots", "balance", "failover", "health", "rotation", "rules", "diversity"]
MAX_WAKES = 5
PATHS = [
    None,
    None,
    ("A" * 40, "B" * 40),
    PathRules(),
    PathRules(ports=((80, 80),)),
    PathRules(not_exit_of=frozenset("abcdef")),
]


def rules(names: list[str]) -> st.SearchStrategy[Rule]:
    """Rules for one of the two users, or for both."""
    matches = st.sampled_from([Match(), Match(socks_user="alice"), Match(socks_user="b*")])
    some = st.sets(st.sampled_from(names), min_size=1).map(frozenset)
    return st.one_of(
        st.builds(lambda match, circuits: Rule(match, circuits=circuits), matches, some),
        st.builds(lambda match, action: Rule(match, action=action), matches, st.sampled_from(RuleAction)),
    )


def healths() -> st.SearchStrategy[Health]:
    """Each part on or off."""
    return st.builds(
        Health,
        st.sampled_from([None, Eject(1, 1.0, 50), Eject(2, 3.0, 100)]),
        st.one_of(st.none(), st.builds(Panic, st.sampled_from([0.5, 1.0]), st.sampled_from(PanicAction))),
        st.sampled_from([None, 4.0]),
        st.sampled_from([None, Degrade(1.1, 0.5)]),
        st.sampled_from([None, *PROBES]),
    )


def rotations() -> st.SearchStrategy[Rotation]:
    """Mostly none; else short lives, by any bound."""
    ages, drains = st.sampled_from([None, 2.0, 30.0]), st.sampled_from([None, 1.0, 20.0])
    counts, sizes = st.sampled_from([None, 1, 3]), st.sampled_from([None, 5])
    return st.one_of(st.just(Rotation()), st.builds(Rotation, ages, counts, sizes, drains, st.just(0.2)))


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    purpose = draw(st.sampled_from(Purpose))
    names = draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=4, unique=True))
    adopts = [draw(st.sampled_from([None, None, None, Adopt(), Adopt(rebuild=True)])) for _ in names]
    slots = [
        Slot(
            name,
            weight=draw(st.integers(1, 4)),
            role=Role.BACKUP if index and draw(st.booleans()) else Role.ACTIVE,
            path=draw(st.sampled_from(PATHS)) if adopt is None else None,
            max_streams=draw(st.sampled_from([1, 2, 100])),
            purpose=purpose,
            adopt=adopt,
        )
        for index, (name, adopt) in enumerate(zip(names, adopts, strict=True))
    ]
    active = sum(1 for slot in slots if slot.role is Role.ACTIVE)
    ruled = tuple(draw(st.one_of(st.just([]), st.lists(rules(names), max_size=2))))
    # ``check`` refuses both together: not every key would have what a rule names.
    slots_per_key = None if any(rule.circuits for rule in ruled) else draw(st.sampled_from([None, 1, 2]))
    return Policy(
        tuple(slots),
        balance=Balance(
            draw(st.sampled_from(Algorithm)),
            isolation=draw(st.sampled_from(Isolation)),
            keys=Keys(
                max_circuits=draw(st.sampled_from([len(slots), 2 * len(slots) + 1, 1000])),
                slots_per_key=slots_per_key,
                idle_seconds=draw(st.sampled_from([1.0, 50.0])),
                cold_start=draw(st.sampled_from(ColdStart)),
                wait_seconds=5.0,
                when_exceeded=draw(st.sampled_from(WhenExceeded)),
            ),
            purpose=purpose,
            sticky=draw(st.sampled_from(StickyBy)),
            sticky_load=draw(st.sampled_from([None, 1.25])),
            when_full=draw(st.sampled_from(WhenFull)),
            queue=Queue(draw(st.sampled_from([1, 2, 100])), 7.0, draw(st.sampled_from(Overflow))),
        ),
        failover=Failover(
            when_none=draw(st.sampled_from(WhenNone)),
            min_active=draw(st.integers(1, active)),
            rebuild=Rebuild(initial_seconds=1.0, max_seconds=8.0, jitter=0.2),
            retry=Retry(draw(st.integers(0, 2)), 0.2, draw(st.sampled_from(WhenExhausted))),
            redispatch_seconds=draw(st.sampled_from([None, 0.5, 3.0]))
            if purpose is Purpose.CONTROLLER
            else None,
        ),
        health=draw(healths()),
        rotation=draw(rotations()),
        rules=ruled,
        diversity=Diversity(exit=draw(st.booleans())),
    )


class PoolMachine(RuleBasedStateMachine):
    """Tor does what it likes, messages are late, the connection breaks; then everything settles."""

    @initialize(policy=policies(), is_settled=st.sampled_from([True, True, True, False]))
    def start(self, policy: Policy, is_settled: bool) -> None:
        self.policy = policy
        self.now = 1000.0
        self.tor = SimulatedTor(isolates=policy.balance.isolation is Isolation.TOR)
        self.pool = Pool(policy, uniform=lambda: 0.5, now=self.now)
        self.is_connected = False
        self.probes: dict[int, StreamId | None] = {}
        # Waiting although the option is not set: left by somebody, which the pool cannot know at once.
        self.forgotten: set[StreamId] = set()
        self.draining: set[str | None] = set()
        if is_settled:
            # What takes circuits that serve would else be reached by few examples only.
            self.connect(is_overtaken=False)
            self.settle_to_balance()

    def give(self, event: Event) -> None:
        self.perform(self.pool.handle(event, now=self.now))

    def perform(self, actions: list[Action]) -> None:
        draining = self.draining
        assert not any(isinstance(action, AttachStream) and action[1] in draining for action in actions)
        self.draining = {
            c.circuit_id for c in self.pool.snapshot(now=self.now).circuits if c.state == "draining"
        }
        if self.is_connected:
            replies = self.tor.perform(actions)
            for reply in replies:
                self.give(reply)
        for action in actions:
            if isinstance(action, ProbeCircuit):
                self.run_probe(action)
            elif isinstance(action, StopProbe):
                self.probes.pop(action.probe, None)
                self.tor.hang_up(action.probe)

    def run_probe(self, action: ProbeCircuit) -> None:
        """The edge: a connection to the SOCKS port, whose request Tor takes at once."""
        rule = self.policy.health.probe
        if rule is None:
            return
        is_unix = isinstance(rule.socks, UnixAddress)
        source = f"127.0.0.1:{10000 + action.probe}"
        self.probes[action.probe] = None
        self.give(ProbeStarted(action.probe, None if is_unix else source))
        if action.probe in self.probes:
            self.probes[action.probe] = self.tor.open_stream(
                action.target, user=action.user, source="/s:0" if is_unix else source, probe=action.probe
            )

    @precondition(lambda self: self.probes)
    @rule(data=st.data(), outcome=st.sampled_from([*ProbeOutcome, ProbeOutcome.ANSWERED]))
    def end_probe(self, data: st.DataObject, outcome: ProbeOutcome) -> None:
        """A probe ends: answered if Tor can be brought to it, else as its connection likes."""
        self.finish_probe(data.draw(st.sampled_from(sorted(self.probes))), outcome)

    @precondition(lambda self: self.is_connected and self.policy.health.probe is not None)
    @rule(outcome=st.sampled_from([ProbeOutcome.ANSWERED, ProbeOutcome.FAILED]), user=st.sampled_from("ab"))
    def check_circuits(self, outcome: ProbeOutcome, user: str) -> None:
        """Circuits that have carried a stream are probed for a while, with one outcome."""
        self.drain()
        self.tor.open_stream(user=user)
        for _ in range(6):
            self.drain()
            self.now += 15.0
            self.give(DeadlinePassed())
            self.drain()
            while self.probes:
                self.finish_probe(min(self.probes), outcome)
                self.drain()

    def finish_probe(self, number: int, outcome: ProbeOutcome) -> None:
        stream_id = self.probes.pop(number)
        stream = None if stream_id is None else self.tor.streams.get(stream_id)
        if outcome is ProbeOutcome.ANSWERED and (
            stream is None or stream.state not in {"connecting", "open"}
        ):
            outcome = ProbeOutcome.FAILED
        if stream is not None and outcome is ProbeOutcome.ANSWERED:
            self.tor.answer(stream.stream_id, "ok")
        self.give(ProbeFinished(number, outcome, "no port"))
        self.tor.hang_up(number)

    @precondition(lambda self: not self.is_connected)
    @rule(is_overtaken=st.booleans())
    def connect(self, is_overtaken: bool) -> None:
        self.is_connected = True
        connected = replace(self.tor.connected(), secret=SECRET, max_dirtiness_seconds=60.0)
        self.forgotten = self.left_behind()
        if not self.tor.leave_unattached:
            # What it told as waiting is on its way by the time it reads our first command.
            for stream_id in list(self.tor.streams) if is_overtaken else ():
                self.tor.choose_for(stream_id)
        self.give(connected)

    def left_behind(self) -> set[StreamId]:
        return set() if self.tor.leave_unattached else set(self.tor.waiting())

    @precondition(lambda self: self.is_connected)
    @rule(restarts=st.booleans())
    def lose_connection(self, restarts: bool) -> None:
        self.is_connected = False
        if restarts:
            self.tor.restart()
        self.tor.events.clear()
        self.give(Disconnected())

    @rule(is_killed=st.booleans())
    def restart_the_agent(self, is_killed: bool) -> None:
        """The next agent knows what this one wrote down; somebody gave the streams back between the two."""
        if not is_killed:
            self.give(StopRequested())
        records = self.pool.records()
        for number in list(self.probes):
            self.tor.hang_up(number)
        self.probes.clear()
        if self.is_connected:
            self.tor.perform([GiveBack(), *(ReleaseStream(stream, "test") for stream in self.tor.waiting())])
            for stream_id in list(self.tor.streams):
                self.tor.choose_for(stream_id)
        self.pool = Pool(self.policy, uniform=lambda: 0.5, now=self.now)
        self.draining = set()
        self.is_connected = True
        self.forgotten = self.left_behind()
        self.give(replace(self.tor.connected(), records=records, secret=SECRET, max_dirtiness_seconds=None))

    @precondition(lambda self: self.is_connected)
    @rule(count=st.integers(1, 8))
    def deliver(self, count: int) -> None:
        for _ in range(min(count, len(self.tor.events))):
            self.give(self.tor.events.popleft())

    @rule(
        address=st.sampled_from(TARGETS),
        purpose=st.sampled_from(["USER", "USER", "DNS_REQUEST", "DIR_FETCH"]),
        user=st.sampled_from(["alice", "bob", "carol"]),
    )
    def open_stream(self, address: str, purpose: str, user: str) -> None:
        self.tor.open_stream(address, purpose, user)

    @precondition(lambda self: self.tor.streams)
    @rule(data=st.data(), outcome=st.sampled_from(["ok", "ok", "detach", "fail", "choose", "end"]))
    def move_stream(self, data: st.DataObject, outcome: str) -> None:
        stream_id = data.draw(st.sampled_from(sorted(self.tor.streams)))
        if outcome == "choose":
            self.tor.choose_for(stream_id)
        elif outcome == "end":
            self.tor.end_stream(stream_id)
        else:
            self.tor.answer(stream_id, outcome)

    @precondition(lambda self: self.tor.circuits)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["built", "built", "built", "failed", "closed"]),
        reached=st.integers(0, 2),
    )
    def move_circuit(self, data: st.DataObject, outcome: str, reached: int) -> None:
        circuit_id = data.draw(st.sampled_from(sorted(self.tor.circuits)))
        if outcome == "closed":
            self.tor.end_circuit(circuit_id)
        else:
            self.tor.finish_build(circuit_id, is_success=outcome == "built", reached=reached)

    @precondition(lambda self: self.is_connected)
    @rule(reached=st.integers(0, 2))
    def fail_all_builds(self, reached: int) -> None:
        """A relay, or the network, is away: what is being built gets to some hop only, time after time."""
        for _ in range(4):
            self.drain()
            for circuit_id in sorted(self.tor.circuits):
                self.tor.finish_build(circuit_id, is_success=False, reached=reached)
            self.drain()
            self.now += 2.0
            self.give(DeadlinePassed())

    @precondition(lambda self: self.is_connected and self.tor.circuits)
    @rule(data=st.data())
    def replace_circuit(self, data: st.DataObject) -> None:
        """A round asks for another circuit in the place of one that it was not served on."""
        circuit_id = data.draw(st.sampled_from(sorted(self.tor.circuits)))
        self.perform(self.pool.replace_circuit(circuit_id, now=self.now))

    @precondition(lambda self: self.tor.circuits)
    @rule(data=st.data(), count=st.integers(0, 3))
    def carry_bytes(self, data: st.DataObject, count: int) -> None:
        """Tor tells what a circuit has carried."""
        circuit_id = data.draw(st.sampled_from(sorted(self.tor.circuits)))
        self.tor.events.append(CircuitBandwidth(circuit_id, count, count))

    @rule(what=st.sampled_from(["reload", "reset_option", "new_identity"]))
    def disturb(self, what: str) -> None:
        """SIGHUP, another controller, or NEWNYM."""
        getattr(self.tor, what)()

    @rule(refuses=st.booleans())
    def refuse_builds(self, refuses: bool) -> None:
        self.tor.refuses_builds = refuses
        if not refuses and self.is_connected:
            self.give(NetworkReady())

    @rule(seconds=st.sampled_from([0.01, 0.5, 2.0, 100.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for _ in range(MAX_WAKES):
            deadline = self.pool.next_deadline()
            if deadline is None or deadline > self.now:
                return
            self.give(DeadlinePassed())
        raise AssertionError("a deadline that stays in the past")

    @precondition(lambda self: self.is_connected)
    @rule(relays=st.sampled_from([RELAYS, OTHER_RELAYS]))
    def learn_relays(self, relays: Relays) -> None:
        self.perform(self.pool.renew_relays(relays, now=self.now))

    @rule(policy=policies(), parts=st.sets(st.sampled_from(PARTS), min_size=1))
    def reload_parts(self, policy: Policy, parts: set[str]) -> None:
        """Only some of the policy changes, so that the rest meets what it left behind."""
        if "slots" in parts or "rules" in parts or "balance" in parts:
            # Purposes, names and limits belong together.
            parts |= {"slots", "rules", "balance", "failover"}
        changed = {part: getattr(policy, part) for part in parts}
        if "slots" not in parts and "failover" in parts:
            failover = policy.failover
            active = sum(1 for slot in self.policy.slots if slot.role is Role.ACTIVE)
            is_movable = self.policy.balance.purpose is Purpose.CONTROLLER
            changed["failover"] = replace(
                failover,
                min_active=min(failover.min_active, active),
                redispatch_seconds=failover.redispatch_seconds if is_movable else None,
            )
        self.reload(replace(self.policy, **changed))

    @rule(policy=policies())
    def reload(self, policy: Policy) -> None:
        if policy.balance.isolation is not self.policy.balance.isolation:
            # From now on only; what shared a circuit before is known to have.
            self.tor.isolates = False
        self.policy = policy
        self.perform(self.pool.replace_policy(policy, now=self.now))

    @rule(purpose=st.sampled_from(Purpose))
    def build_elsewhere(self, purpose: Purpose) -> None:
        self.tor.build_for_another(purpose)

    @precondition(lambda self: self.is_connected and self.tor.circuits)
    @rule(data=st.data(), name=st.sampled_from("abcdef"))
    def adopt(self, data: st.DataObject, name: str) -> None:
        """The operator names a circuit: another controller's, the agent's own, or one that is not BUILT."""
        circuit_id = data.draw(st.sampled_from(sorted(self.tor.circuits)))
        is_in_use = any(stream.circuit_id == circuit_id for stream in self.tor.streams.values())
        # Of streams that have ended Tor tells nothing: for these whoever adopts the circuit answers.
        if is_in_use or not self.tor.circuits[circuit_id].users:
            self.give(self.tor.adopted(name, circuit_id))

    @rule(order=st.sampled_from(Order), name=st.sampled_from("abcdef"), weight=st.integers(1, 9))
    def order(self, order: Order, name: str, weight: int) -> None:
        """The operator drains, readies, weighs, rotates or closes a circuit, known or not."""
        self.give(CircuitOrdered(order, name, weight))

    @precondition(lambda self: self.is_connected)
    @rule()
    def settle_to_balance(self) -> None:
        """When Tor builds what is asked and messages arrive, all that can be balanced is."""
        self.tor.refuses_builds = False
        self.learn_relays(RELAYS)
        for name in "abcdef":
            self.give(CircuitOrdered(Order.READY, name))
        for _ in range(200):
            self.drain()
            for circuit_id in sorted(self.tor.circuits):
                self.tor.finish_build(circuit_id, is_success=True)
            if self.tor.events:
                continue
            deadline = self.pool.next_deadline()
            if deadline is None:
                break
            self.now = max(self.now, deadline)
            self.give(DeadlinePassed())
        # Short lives and probes leave something to do at any time.
        self.build_all()
        snapshot = self.pool.snapshot(now=self.now)
        empty = {slot.name for slot in self.policy.slots if slot.adopt is not None}
        for circuit in snapshot.circuits:
            is_waiting_for_another = circuit.state == "idle" and circuit.name in empty
            assert circuit.state in {"built", "draining"} or is_waiting_for_another
        if not any(circuit.state == "built" for circuit in snapshot.circuits):
            # Only another controller could build one, and then Tor has the streams.
            assert len(empty) == len(self.policy.slots)
            return
        assert snapshot.state == Attachment.BALANCING
        assert self.tor.leave_unattached
        assert not self.forgotten.intersection(self.tor.waiting())
        self.only_those_wait_who_may()
        stream_id = self.tor.open_stream()
        self.drain()
        self.only_those_wait_who_may()
        assert stream_id in self.tor.streams or self.may_reject()

    def may_reject(self) -> bool:
        """Whether the policy ever has a new stream fail."""
        balance = self.policy.balance
        return (
            balance.keys.when_exceeded is WhenExceeded.REJECT
            or balance.when_full is WhenFull.REJECT
            or balance.queue.overflow is Overflow.REJECT
            or self.policy.failover.when_none is WhenNone.REJECT
            or any(rule.action is RuleAction.REJECT for rule in self.policy.rules)
            # A circuit whose exit is known may refuse the port, and to hold the stream for it is of no use.
            or (
                self.policy.failover.when_none is WhenNone.HOLD
                and any(slot.path is not None for slot in self.policy.slots)
            )
        )

    @precondition(lambda self: self.is_connected)
    @rule()
    def deliver_all(self) -> None:
        self.drain()

    @precondition(lambda self: self.is_connected)
    @rule(
        outcome=st.sampled_from(["ok", "detach", "fail"]),
        count=st.integers(1, 5),
        user=st.sampled_from(["alice", "bob"]),
    )
    def serve_a_burst(self, outcome: str, count: int, user: str) -> None:
        """Several streams at once, answered alike: fills circuits and tries others."""
        opened = [self.tor.open_stream(user=user) for _ in range(count)]
        for _ in range(4):
            self.drain()
            for stream_id in opened:
                if stream_id in self.tor.streams:
                    self.tor.answer(stream_id, outcome)

    @precondition(lambda self: self.is_connected)
    @rule(count=st.integers(2, 12), user=st.sampled_from(["alice", "bob"]), data=st.data())
    def fill_up(self, count: int, user: str, data: st.DataObject) -> None:
        """So many streams that last, until circuits are full; then some end, and others get their places."""
        self.build_all()
        opened = [self.tor.open_stream(user=user) for _ in range(count)]
        # Another key than the first gets its circuits now.
        self.build_all()
        for stream_id in opened:
            if stream_id in self.tor.streams:
                self.tor.answer(stream_id, "ok")
        self.drain()
        for stream_id in data.draw(st.lists(st.sampled_from(opened), max_size=3)):
            self.tor.end_stream(stream_id)
            self.drain()

    @precondition(lambda self: self.is_connected)
    @rule(count=st.integers(1, 6), first=st.integers(0, 4), outcome=st.sampled_from(["detach", "fail"]))
    def fail_on_circuits(self, count: int, first: int, outcome: str) -> None:
        """Streams to one destination after the other fail, which makes it the circuits' fault."""
        self.build_all()
        for number in range(first, first + count):
            stream_id = self.tor.open_stream(f"host{number}.example:80")
            self.drain()
            if stream_id in self.tor.streams:
                self.tor.answer(stream_id, outcome)
            self.drain()

    @precondition(lambda self: self.is_connected)
    @rule(user=st.sampled_from(["alice", "bob"]))
    def serve_while_tor_chooses(self, user: str) -> None:
        """Tor puts streams of its own on circuits, and we hear of it after we have attached to them."""
        self.drain()
        self.tor.open_stream(user=user)
        for stream in list(self.tor.streams.values()):
            self.tor.choose_for(stream.stream_id)
        self.drain()
        self.tor.open_stream(user=user)
        self.drain()

    def teardown(self) -> None:
        """Whatever went before, a stop gives everything back."""
        if not hasattr(self, "pool"):
            return
        self.give(StopRequested())
        if self.is_connected:
            self.drain()
            assert not self.tor.leave_unattached
            # Whoever stops asks twice for those, as ``release`` does.
            assert self.forgotten.issuperset(self.tor.waiting())
            self.pool.check_invariants()
            late = self.tor.open_stream()
            self.drain()
            assert self.tor.streams[late].state == "choosing"

    def build_all(self) -> None:
        """Tor builds at once what it is asked for."""
        for _ in range(6):
            self.drain()
            for circuit_id in sorted(self.tor.circuits):
                self.tor.finish_build(circuit_id, is_success=True)
        self.drain()

    def drain(self) -> None:
        while self.tor.events:
            self.give(self.tor.events.popleft())

    @invariant()
    def pool_is_consistent(self) -> None:
        self.pool.check_invariants()

    @invariant()
    def nobody_waits_without_a_reason(self) -> None:
        """With every message delivered, a stream waits only where the policy says so."""
        if not self.is_connected or self.tor.events:
            return
        self.only_those_wait_who_may()

    def only_those_wait_who_may(self) -> None:
        """Those that wait are those the pool holds, and ``check_invariants`` says why it may."""
        snapshot = self.pool.snapshot(now=self.now)
        assert len(set(self.tor.waiting()) - self.forgotten) == snapshot.streams_waiting
        self.pool.check_invariants()
        is_unbounded = self.policy.failover.when_none is WhenNone.HOLD
        assert not snapshot.streams_waiting or is_unbounded or self.pool.next_deadline() is not None


PoolMachine.TestCase.settings = settings(max_examples=250, stateful_step_count=50, deadline=None)
# Half a minute on an idle machine; a busy one must not make it a failure.
TestPoolMachine = pytest.mark.timeout(600)(PoolMachine.TestCase)
