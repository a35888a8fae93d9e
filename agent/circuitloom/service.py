"""The one place that joins the session, the pool and the clock.

Rules of this file:

* It carries out what the pool says and tells the pool what happened; it decides nothing about streams.
* Error policy by stage. Start: a bad policy or admin socket is fatal, an absent Tor is not. Reload: a faulty
  policy changes nothing. Running: a lost connection is tried again for ever. Stop: always gives back, within
  ``release.STOP_SECONDS``.
* The watchdog is fed when the link has a pulse: the loop has turned and, when connected, Tor has answered.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import random
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from circuitloom import __version__, logs
from circuitloom.admin import AdminServer
from circuitloom.adopting import adopt_circuit
from circuitloom.conductor import Conductor, ConductorEvents, ask_circuits, served_circuits
from circuitloom.countries import Countries
from circuitloom.directory import Directory
from circuitloom.errors import PolicyError
from circuitloom.kinds import Kind
from circuitloom.link import RESERVED_OPTIONS, Link, LinkEvents
from circuitloom.metrics import AgentCounts, Exporter, Reading
from circuitloom.model import (
    Action,
    Announce,
    CircuitAdopted,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    ConfChanged,
    Connected,
    DeadlinePassed,
    Disconnected,
    Event,
    ProbeCircuit,
    ProbeFinished,
    StopProbe,
    StopRequested,
    StreamEvent,
)
from circuitloom.operation import CHANGING, Agent, commands
from circuitloom.paths import Relays
from circuitloom.policy import Policy, read_policy
from circuitloom.pool import Pool
from circuitloom.probe import Prober
from circuitloom.recording.recorder import Recorder
from circuitloom.release import give_back_at_stop
from circuitloom.state import StateFile
from circuitloom.status import event_document, status_document, status_line
from circuitloom.systemd import Notifier, watchdog_seconds
from circuitloom.tor_actions import TorActions
from circuitloom.wire import ControlEvent, Reply

_log = logging.getLogger(__name__)


class Service:
    """``circuitloom run``: serves one Tor until it is told to stop.

    Args:
        policy_path: The policy, read again at each reload.
        policy: What it says now.
        state: Where circuits are written down for the next agent, and rounds; None: nowhere.
        record: Where what happens is written down for a simulation; None: nowhere.
    """

    def __init__(
        self, policy_path: str, policy: Policy, *, state: Path | None = None, record: Path | None = None
    ) -> None:
        self._policy_path = policy_path
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        # Jitter only has to differ between hosts; nothing secret hangs on it.
        self._random = random.Random()  # noqa: S311
        self._pool = Pool(policy, uniform=self._random.random, now=self._loop.time())
        self._state = StateFile(state)
        self._record = record
        self._recorder: Recorder | None = None
        self._is_state_loaded = False
        self._claims = self._pool.claims
        self._stop = asyncio.Event()
        self._failure: BaseException | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._status_timer: asyncio.TimerHandle | None = None
        self._status_text = ""
        self._notifier = Notifier()
        self._counts = AgentCounts()
        self._counted = 0
        self._exporter = Exporter(self._read_numbers)
        self._countries = Countries(self._send)
        self._directory = Directory(policy.tor, ask=self._send, take=self._renew_relays)
        self._directory.apply(policy)
        self._link = Link(
            policy.tor,
            LinkEvents(
                connected=self._on_connected,
                event=self._on_event,
                turn=self._on_read,
                lost=self._on_lost,
                directory=self._directory.handle_news,
                reserved=self._handle,
                pulse=self._notifier.watchdog,
                news=self._tell_status,
                is_in_charge=lambda: self._pool.is_in_charge,
            ),
            uniform=self._random.random,
            watchdog_seconds=watchdog_seconds(),
        )
        self._conductor = Conductor(
            state,
            ConductorEvents(
                circuits=lambda: served_circuits(self._pool, now=self._loop.time()),
                is_ready=lambda: self._pool.is_ready,
                ask_tor=partial(ask_circuits, self._send),
                replace=self._replace_circuit,
            ),
        )
        self._prober = Prober(started=self._handle, finished=self._on_probe_finished)
        agent = Agent(
            policy=lambda: self._pool.policy,
            status=self._status_document,
            give=self._handle,
            read=self._read_policy,
            apply=self._apply,
            explain=lambda stream_id: self._pool.explain(stream_id, now=self._loop.time()),
            adopt=lambda name, circuit_id: adopt_circuit(
                self._link.session, name, circuit_id, self._take_adopted
            ),
        )
        self._admin = AdminServer(
            policy.admin.socket, commands(agent) | {"rounds": self._conductor.answer}, changing=CHANGING
        )
        actions = TorActions(
            send=self._send,
            give=self._handle,
            link=self._link,
            pool=self._pool,
            counts=self._counts,
        )
        self._carry_out: dict[type[Any], Callable[[Any], None]] = actions.carry_out | {
            ProbeCircuit: self._probe,
            StopProbe: lambda action: self._prober.stop(action.probe),
            Announce: self._announce,
        }

    async def run(self) -> int:
        """Serve until SIGTERM or SIGINT.

        Returns:
            The exit code: 0, or 70 after a fault of our own.

        Raises:
            CannotCreate: The admin socket, or the recording, cannot be made.
        """
        self._loop.set_exception_handler(self._on_fault)
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._stop.set)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        if self._record is not None:
            self._recorder = Recorder(self._record)
        await self._admin.start()
        self._link.start_guard()
        self._link.count_bytes(is_wanted=self._policy.rotation.max_bytes is not None)
        self._conductor.apply(self._policy)
        self._exporter.apply(self._policy.metrics)
        connecting = self._loop.create_task(self._link.stay_connected())
        tasks = (
            connecting,
            self._loop.create_task(self._link.keep_pulse()),
            self._loop.create_task(self._link.keep_beat()),
            self._loop.create_task(self._directory.keep_current()),
        )
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        self._status_text = self._status_line()
        self._notifier.ready(self._status_text)
        _log.info(
            "started with %s: %d circuits",
            self._policy_path,
            len(self._policy.slots),
            extra=logs.about(Kind.STARTED),
        )
        is_given_back = False
        try:
            await self._stop.wait()
            self._notifier.stopping()
            connecting.cancel()
            self._link.is_stopping = True
            self._save_state()
            self._handle(StopRequested())
            is_given_back, _ = await asyncio.gather(
                give_back_at_stop(self._link.session, self._policy.tor), self._conductor.stop()
            )
        finally:
            await self._prober.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._link.close(is_given_back=is_given_back)
            await self._exporter.close()
            await self._admin.close()
            if self._recorder is not None:
                self._recorder.close()
        _log.info("stopped", extra=logs.about(Kind.STOPPED))
        return 70 if self._failure else 0

    # --- what the link tells -------------------------------------------------------------------------------

    def _on_connected(self, event: Connected) -> None:
        if not self._is_state_loaded:
            self._is_state_loaded = True
            event = dataclasses.replace(event, records=self._state.load())
        self._counts.connections += 1
        self._countries.forget()
        self._handle(event)
        self._directory.handle_connected()

    def _on_event(self, event: ControlEvent) -> None:
        actions = self._pool.handle(event, now=self._loop.time())
        if self._recorder is not None and not self._pool.is_of_probe:
            self._recorder.take(event, actions)
        for action in actions:
            self._carry_out[type(action)](action)
        if not isinstance(event, StreamEvent):
            self._tell_status()
            self._conductor.look()
            if isinstance(event, CircuitEvent) and event.status is CircuitStatus.FAILED:
                self._directory.ask_guards()
            if isinstance(event, ConfChanged) and not event.values.keys().isdisjoint(RESERVED_OPTIONS):
                self._link.ask_reserved()

    def _on_lost(self) -> None:
        self._directory.handle_disconnected()
        if not self._stop.is_set():
            self._handle(Disconnected())

    def _on_read(self) -> None:
        """All that one read brought is handled, and leaves now: what it decided took as long as this."""
        attached = self._pool.attached_total
        if attached != self._counted:
            session = self._link.session
            if session is not None:
                seconds = self._loop.time() - session.read_at
                self._counts.decisions.observe(seconds, attached - self._counted)
            self._counted = attached
        self._on_turn()

    def _on_turn(self) -> None:
        """All that one read brought is handled: write down and arm the timer once for all of it."""
        if self._pool.claims != self._claims:
            # Before Tor hears of it: an agent that takes over after a kill must not give them to another key.
            self._save_state()
        deadline = self._pool.next_deadline()
        if self._timer is not None:
            if self._timer.when() == deadline and not self._timer.cancelled():
                return
            self._timer.cancel()
            self._timer = None
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        self._handle(DeadlinePassed())

    def _handle(self, event: Event) -> None:
        actions = self._pool.handle(event, now=self._loop.time())
        if self._recorder is not None:
            self._recorder.take(event, actions)
        self._perform(actions)
        if isinstance(event, Connected | Disconnected):
            self._conductor.look()

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            self._carry_out[type(action)](action)
        # What a deadline or an order attached has not been read a moment ago.
        self._counted = self._pool.attached_total
        self._on_turn()
        self._tell_status()

    def _renew_relays(self, relays: Relays) -> None:
        self._perform(self._pool.renew_relays(relays, now=self._loop.time()))

    def _send(self, command: bytes, on_reply: Callable[[Reply], None]) -> None:
        if self._link.session is not None:
            self._link.session.send(command, on_reply)

    # --- probes --------------------------------------------------------------------------------------------

    def _probe(self, action: ProbeCircuit) -> None:
        if self._policy.health.probe is not None:
            self._prober.start(action, self._policy.health.probe)

    def _on_probe_finished(self, event: ProbeFinished) -> None:
        self._handle(event)
        # A round may wait for this circuit to pass.
        self._conductor.look()

    # --- what the rounds ask for ---------------------------------------------------------------------------

    def _replace_circuit(self, circuit_id: CircuitId) -> None:
        self._perform(self._pool.replace_circuit(circuit_id, now=self._loop.time()))

    def _announce(self, action: Announce) -> None:
        logs.announce(_log, action)
        self._admin.publish(event_document(action, at=time.time()))

    def _take_adopted(self, event: CircuitAdopted) -> str | None:
        fault = self._pool.why_not_adopted(event)
        if fault is None:
            self._handle(event)
            self._save_state()
            self._conductor.look()
        return fault

    # --- status --------------------------------------------------------------------------------------------

    def _status_line(self) -> str:
        snapshot = self._pool.snapshot(now=self._loop.time())
        self._countries.want({c.exit_fingerprint for c in snapshot.circuits if c.exit_fingerprint})
        return status_line(snapshot, self._policy, self._link.disconnected_reason)

    def _tell_status(self) -> None:
        """Tell systemd, at most once a second."""
        if self._status_timer is None and not self._stop.is_set():
            self._status_timer = self._loop.call_later(1.0, self._send_status)

    def _save_state(self) -> None:
        self._claims = self._pool.claims
        if self._is_state_loaded:
            self._state.save(self._pool.records())

    def _send_status(self) -> None:
        self._status_timer = None
        logs.tell_suppressed()
        self._save_state()
        text = self._status_line()
        if text != self._status_text:
            self._status_text = text
            self._notifier.status(text)

    def _status_document(self) -> Mapping[str, Any]:
        snapshot = self._pool.snapshot(now=self._loop.time())
        document = status_document(
            snapshot,
            self._policy,
            reason=self._status_line(),
            tor_version=self._link.tor_version,
            guard_pid=self._link.guard_pid,
            country_of=self._countries.of,
        )
        return document | {"rounds": self._conductor.summary()}

    def _read_numbers(self) -> Reading:
        return Reading(
            snapshot=self._pool.snapshot(now=self._loop.time()),
            tally=self._pool.tally,
            counts=self._counts,
            guards=self._pool.guards(),
            version=__version__,
            tor_version=self._link.tor_version,
            rounds=self._conductor.counts(),
        )

    # --- reload and stop -----------------------------------------------------------------------------------

    def _read_policy(self) -> Policy:
        try:
            return read_policy(self._policy_path)
        except PolicyError:
            self._counts.reloads_refused += 1
            self._counts.is_policy_current = False
            raise

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            policy = self._read_policy()
        except PolicyError as error:
            for fault in error.faults:
                _log.error("%s", fault, extra=logs.about(Kind.RELOAD_REFUSED))
            count = len(error.faults)
            faults = "1 fault" if count == 1 else f"{count} faults"
            what = "reload refused: the policy has %s, the old one stays"
            _log.error(what, faults, extra=logs.about(Kind.RELOAD_REFUSED))
            self._status_text = f"reload refused: {error.faults[0]}"
        else:
            self._apply(policy)
            self._status_text = self._status_line()
        self._notifier.ready(self._status_text)

    def _apply(self, policy: Policy) -> None:
        old = self._policy
        if (policy.tor, policy.admin) != (old.tor, old.admin):
            _log.warning("tor and admin are read at start only: restart the agent to apply their change")
        # What was started with stays, so that a later reconnect does not go elsewhere half-way.
        self._policy = dataclasses.replace(policy, tor=old.tor, admin=old.admin)
        logs.configure(policy.log)
        self._perform(self._pool.replace_policy(self._policy, now=self._loop.time()))
        self._link.count_bytes(is_wanted=policy.rotation.max_bytes is not None)
        self._conductor.apply(self._policy)
        self._exporter.apply(self._policy.metrics)
        self._counts.reloads_applied += 1
        self._counts.is_policy_current = True
        self._directory.apply(self._policy)
        about = logs.about(Kind.RELOADED)
        _log.info("reloaded %s: %d circuits", self._policy_path, len(policy.slots), extra=about)

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._on_fault(self._loop, {"exception": task.exception()})

    def _on_fault(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """A fault of our own: one line, give back, end with 70, and let systemd start us anew."""
        error = context.get("exception")
        what = "internal fault (%s): giving back and stopping"
        _log.critical(what, _describe(error, context), extra=logs.about(Kind.FAULT))
        self._failure = error if isinstance(error, BaseException) else RuntimeError("unknown")
        self._stop.set()


def _describe(error: object, context: Mapping[str, Any]) -> str:
    if not isinstance(error, BaseException):
        return str(context.get("message", "unknown"))
    # The text of an exception may hold a destination; its type and place do not.
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    place = f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_lineno}" if traceback else "unknown place"
    return f"{type(error).__name__} at {place}"
