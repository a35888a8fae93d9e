"""Turns what the core asks for into Tor's commands, and Tor's refusals into events.

It judges nothing. Replies come in the order of the commands, so an answer needs no number to be known by.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from circuitloom import logs, wire
from circuitloom.kinds import Kind
from circuitloom.link import Link
from circuitloom.metrics import AgentCounts
from circuitloom.model import (
    LEAVE_UNATTACHED,
    TOR_CHOOSES,
    AskWaiting,
    AttachProbe,
    AttachRefused,
    AttachStream,
    BuildAccepted,
    BuildCircuit,
    BuildRefused,
    CircuitId,
    CloseCircuit,
    CloseStream,
    Event,
    GiveBack,
    Purpose,
    ReleaseStream,
    StillWaiting,
    StreamId,
    TakeOver,
    TakeOverRefused,
)
from circuitloom.pool import Pool
from circuitloom.session import ignore_reply
from circuitloom.wire import Reply

_log = logging.getLogger(__name__)

Send = Callable[[bytes, Callable[[Reply], None]], None]
"""Sends a command, and calls with its reply; does nothing without a connection."""


class TorActions:
    """Carries the core's actions out at Tor.

    Args:
        send: See ``Send``.
        give: Takes an event that a reply is.
        link: Told before streams may wait for us, and when Tor has undone that; not at a stop, where that is
            not yet all.
        pool: Tells the log the policy's algorithm and, as far as the policy lets it, where a stream goes.
        counts: Take-overs and give-backs are counted there.

    Attributes:
        carry_out: What carries out each kind of action.
    """

    def __init__(
        self,
        *,
        send: Send,
        give: Callable[[Event], None],
        link: Link,
        pool: Pool,
        counts: AgentCounts,
    ) -> None:
        self._send = send
        self._give = give
        self._link = link
        self._pool = pool
        self._counts = counts
        self.carry_out: dict[type[Any], Callable[[Any], None]] = {
            TakeOver: self._take_over,
            GiveBack: self._give_back,
            AskWaiting: self._ask_waiting,
            AttachStream: self._attach,
            ReleaseStream: self._release,
            CloseStream: self._close_stream,
            BuildCircuit: self._build,
            CloseCircuit: self._close_circuit,
            AttachProbe: self._attach_probe,
        }

    def _take_over(self, _action: TakeOver) -> None:
        def check(reply: Reply) -> None:
            if not reply.is_ok:
                self._give(TakeOverRefused(reply.text))

        self._counts.takeovers += 1
        self._link.beat()
        self._send(wire.command("SETCONF", f"{LEAVE_UNATTACHED}=1"), check)

    def _give_back(self, _action: GiveBack) -> None:
        def check(reply: Reply) -> None:
            if reply.is_ok and not self._pool.is_stopping:
                self._link.handle_given_back()
            elif not reply.is_ok:
                _log.error("Tor refused to reset %s: %s", LEAVE_UNATTACHED, reply.text)

        self._counts.give_backs += 1
        self._send(wire.command("RESETCONF", LEAVE_UNATTACHED), check)

    def _ask_waiting(self, _action: AskWaiting) -> None:
        def take(reply: Reply) -> None:
            if reply.is_ok:
                self._give(StillWaiting(frozenset(wire.waiting_streams(reply))))

        self._send(wire.command("GETINFO", "stream-status"), take)

    def _attach(self, action: AttachStream) -> None:
        stream_id, circuit_id, name = action
        if _log.isEnabledFor(logging.DEBUG):
            algorithm = self._pool.policy.balance.algorithm.value
            about = logs.about(Kind.STREAM_ATTACHED, circuit=name, circuit_id=circuit_id, stream_id=stream_id)
            what = "stream %s%s -> circuit %s (%s), %s"
            to = self._pool.shown_target(stream_id)
            _log.debug(what, stream_id, to, name, circuit_id, algorithm, extra=about)
        self._send(
            wire.attach_stream(stream_id, circuit_id), partial(self._on_attach_reply, stream_id, circuit_id)
        )

    def _release(self, action: ReleaseStream) -> None:
        self._tell_stream("stream %s%s -> Tor, %s", Kind.STREAM_RELEASED, action)
        self._send(
            wire.attach_stream(action.stream_id, TOR_CHOOSES),
            partial(self._on_attach_reply, action.stream_id, TOR_CHOOSES),
        )

    def _on_attach_reply(self, stream_id: StreamId, circuit_id: CircuitId, reply: Reply) -> None:
        if not reply.is_ok:
            self._give(AttachRefused(stream_id, circuit_id, reply.code, reply.text))

    def _attach_probe(self, action: AttachProbe) -> None:
        self._send(wire.attach_stream(*action), partial(self._on_attach_reply, *action))

    def _close_stream(self, action: CloseStream) -> None:
        self._tell_stream("stream %s%s closed, %s", Kind.STREAM_CLOSED, action)
        # 1 is REASON_MISC (tor-spec 6.3): the application sees a general failure at once.
        self._send(wire.command("CLOSESTREAM", action.stream_id, "1"), ignore_reply)

    def _tell_stream(self, what: str, kind: Kind, action: ReleaseStream | CloseStream) -> None:
        if _log.isEnabledFor(logging.DEBUG):
            to = self._pool.shown_target(action.stream_id)
            about = logs.about(kind, stream_id=action.stream_id)
            _log.debug(what, action.stream_id, to, action.why, extra=about)

    def _build(self, action: BuildCircuit) -> None:
        def take(reply: Reply) -> None:
            if reply.is_ok:
                circuit_id = wire.extended_circuit_id(reply)
                if action.purpose is not Purpose.GENERAL:
                    # Refused only for a circuit that is gone already; events tell both.
                    self._send(wire.set_circuit_purpose(circuit_id, action.purpose), ignore_reply)
                self._give(BuildAccepted(action.build, circuit_id))
            else:
                self._give(BuildRefused(action.build, reply.text))

        self._send(wire.extend_circuit(action.path), take)

    def _close_circuit(self, action: CloseCircuit) -> None:
        flags = () if action.is_forced else ("IfUnused",)
        self._send(wire.command("CLOSECIRCUIT", action.circuit_id, *flags), ignore_reply)
