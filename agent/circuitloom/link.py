"""Keeps a control connection to one Tor for as long as the agent runs.

Rules of this file:

* A lost connection is tried again for ever; the same reason is logged once.
* Each connection begins with one pipelined exchange: subscribe, then ask what there is. Events count from
  that answer on; earlier ones are older than it.
* Nothing is asked of a Tor that another agent serves: this one waits until that one ends.
* Whoever loses the connection while in charge falls silent until it is back: Tor may still be there, and
  then the guard has to give back what waits.
* Tor has to answer a question every few seconds, and the loop has to turn: a connection on which either
  failed is of unknown age and is made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from circuitloom import logs, wire
from circuitloom.authentication import open_control, read_cookie
from circuitloom.errors import ControlError, ControlRefused, ControlUnreachable, OutOfDescriptors, reason_of
from circuitloom.guard import BEAT_SECONDS, SILENCE_SECONDS, Guard
from circuitloom.kinds import Kind
from circuitloom.lock import TorLock
from circuitloom.model import (
    LEAVE_UNATTACHED,
    MAX_CIRCUIT_DIRTINESS,
    Connected,
    Reserved,
    dirtiness_seconds,
)
from circuitloom.policy.types import TorControl
from circuitloom.session import Session, connect
from circuitloom.wire import AnyEvent, ControlEvent, DirectoryNews, Reply, TorWarning

BANDWIDTH_EVENT = "CIRC_BW"
"""One line a second and busy circuit: subscribed to while the policy counts bytes."""

EVENTS = (
    "CIRC",
    "CIRC_MINOR",
    "STREAM",
    "CONF_CHANGED",
    "SIGNAL",
    "STATUS_CLIENT",
    "STATUS_GENERAL",
    "GUARD",
)
RESERVED_OPTIONS = ("VirtualAddrNetworkIPv4", "VirtualAddrNetworkIPv6", "MapAddress")

RECONNECT_INITIAL_SECONDS = 0.1
RECONNECT_MAX_SECONDS = 2.0
"""Short: streams wait while we are away, and connecting to a local socket costs next to nothing."""
RECONNECT_JITTER = 0.2

GUARD_RETRY_SECONDS = 5.0
"""Between attempts to give the guard what it lacks; opening its connection keeps the loop from turning."""

PING_SECONDS = 5.0
PING_TIMEOUT_SECONDS = 10.0
"""A Tor that does not answer for this long is taken for hung; the connection is made anew."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What a link calls.

    Attributes:
        connected: With what Tor says there is; events follow.
        event: With each event.
        turn: After all that one read brought.
        lost: The connection ended; what is asked for now goes nowhere.
        directory: Tor knows other relays, or thinks otherwise of its guards.
        reserved: With what Tor maps from now on.
        pulse: The loop has turned and, when connected, Tor has answered.
        news: Something changed that the status shows.
        is_in_charge: Asked whether new streams wait for us.
    """

    connected: Callable[[Connected], None]
    event: Callable[[ControlEvent], None]
    turn: Callable[[], None]
    lost: Callable[[], None]
    directory: Callable[[DirectoryNews], None]
    reserved: Callable[[Reserved], None]
    pulse: Callable[[], None]
    news: Callable[[], None]
    is_in_charge: Callable[[], bool]


class Link:
    """A control connection that comes back.

    Args:
        tor: Where Tor is.
        events: What to call.
        uniform: Gives a random number in [0, 1).
        watchdog_seconds: How often ``pulse`` is due at the latest, if anybody waits for it.

    Attributes:
        session: The connection, from the moment it is authenticated until it ends.
        tor_version: As Tor told it last; empty before.
        disconnected_reason: Why there is no connection, in words.
        is_stopping: Set when the end of the connection is no news any more.
        counts_bytes: Whether Tor tells how much each circuit carries.
    """

    def __init__(
        self,
        tor: TorControl,
        events: LinkEvents,
        *,
        uniform: Callable[[], float],
        watchdog_seconds: float | None,
    ) -> None:
        self._tor = tor
        self._events = events
        self._uniform = uniform
        self._loop = asyncio.get_running_loop()
        self._ping_seconds = PING_SECONDS
        self._ping_timeout_seconds = PING_TIMEOUT_SECONDS
        if watchdog_seconds is not None:
            self._ping_seconds = min(PING_SECONDS, watchdog_seconds / 3)
            self._ping_timeout_seconds = min(PING_TIMEOUT_SECONDS, watchdog_seconds / 2)
        self._ping_sent_at: float | None = None
        self._turned_at = self._loop.time()
        self._ended = asyncio.Event()
        self._is_synchronised = False
        self._is_silent = False
        # Whether Tor may let streams wait for us.
        self._may_hold = False
        self._guard = Guard()
        self._guard_lack = ""
        self._equip_guard_at: float | None = None
        self._lock = TorLock()
        self.session: Session | None = None
        self.tor_version = ""
        self.disconnected_reason = "connecting"
        self.is_stopping = False
        self.counts_bytes = False

    @property
    def guard_pid(self) -> int | None:
        """The process that gives back when this one cannot."""
        return self._guard.pid

    # --- tasks of the service ------------------------------------------------------------------------------

    async def stay_connected(self) -> None:
        """Connect, serve until the connection ends, and again; never returns."""
        delay_seconds = RECONNECT_INITIAL_SECONDS
        while True:
            self._ended.clear()
            try:
                self.session = await connect(
                    self._tor, on_event=self._on_event, on_turn=self._on_turn, on_closed=self._on_closed
                )
            except ControlError as error:
                self._tell(str(error))
            else:
                self._turned_at = self._loop.time()
                self._synchronise(self.session)
                await self._ended.wait()
                if self._is_synchronised:
                    delay_seconds = RECONNECT_INITIAL_SECONDS
                self._is_synchronised = False
            await asyncio.sleep(delay_seconds * (1 + RECONNECT_JITTER * (2 * self._uniform() - 1)))
            delay_seconds = min(RECONNECT_MAX_SECONDS, delay_seconds * 2)

    async def keep_pulse(self) -> None:
        """Ask Tor every few seconds whether it is there; never returns."""
        while True:
            session = self.session
            if session is None:
                self._events.pulse()
            elif self._ping_sent_at is None:
                self._ping_sent_at = self._loop.time()
                session.send(wire.command("GETINFO", "version"), self._on_pong)
            elif self._loop.time() - self._ping_sent_at > self._ping_timeout_seconds:
                session.close(ControlUnreachable(f"no answer for {self._ping_timeout_seconds:g} s"))
            self._events.news()
            await asyncio.sleep(self._ping_seconds)

    async def keep_beat(self) -> None:
        """Tell the guard that the loop turns; never returns."""
        while True:
            if self._loop.time() - self._turned_at > BEAT_SECONDS + SILENCE_SECONDS:
                self._end_standstill()
            self._turned_at = self._loop.time()
            if self._guard.is_missing:
                self.start_guard()
                self._equip_guard_at = self._turned_at
            if self._equip_guard_at is not None and self._equip_guard_at <= self._turned_at:
                self._equip_guard()
            self.beat()
            await asyncio.sleep(BEAT_SECONDS)

    def beat(self) -> None:
        """Tell the guard now whether streams may wait for us; before a takeover is sent."""
        self._may_hold = self._may_hold or self._events.is_in_charge()
        if not self._is_silent:
            self._guard.beat(is_in_charge=self._may_hold)

    def handle_given_back(self) -> None:
        """Tor has reset the option: from here on nothing waits for us, if we are not in charge again.

        Told any sooner, the guard would do nothing for an agent that ends before Tor reads its command. The
        next beat tells it: by then what came before has been handed to Tor as well.
        """
        self._may_hold = self._events.is_in_charge()

    def close(self, *, is_given_back: bool) -> None:
        """End the guard and leave Tor to another agent.

        Args:
            is_given_back: Whether Tor assigns all streams; else the guard sees to it before it ends.
        """
        self._guard.close(gives_back=not is_given_back)
        self._lock.release()

    # --- the connection ------------------------------------------------------------------------------------

    def _synchronise(self, session: Session) -> None:
        options: list[Reply] = []
        cookie: list[str] = []
        # The exchange counts as a ping: it has to be answered as soon.
        self._ping_sent_at = self._loop.time()
        session.send(
            wire.command("PROTOCOLINFO", "1"), lambda reply: cookie.extend(wire.parse_cookie_path(reply))
        )
        self._subscribe(session)
        session.send(
            wire.command("GETCONF", LEAVE_UNATTACHED, MAX_CIRCUIT_DIRTINESS, *RESERVED_OPTIONS),
            options.append,
        )

        def take(reply: Reply) -> None:
            self._require(reply)
            if not (reply.is_ok and options):
                return
            try:
                is_ours = self._lock.acquire(cookie[0] if cookie else None)
            except OSError as error:
                session.close(OutOfDescriptors(f"Tor's cookie cannot be locked: {reason_of(error)}"))
                return
            if not is_ours:
                session.close(ControlRefused("another circuitloom serves this Tor; it has to end first"))
                return
            values = reply.values()
            self.tor_version = values.get("version", "")
            self._is_synchronised = True
            self._is_silent = False
            self._equip_guard()
            self._ping_sent_at = None
            self.disconnected_reason = ""
            about = logs.about(Kind.CONNECTED)
            _log.info("connected to Tor %s at %s", self.tor_version, self._tor.control, extra=about)
            option = options[0].values()
            is_waited_for = option.get(LEAVE_UNATTACHED) == "1"
            # Somebody left streams waiting: from here on the guard answers for them, whatever we do next.
            self._may_hold = is_waited_for
            if is_waited_for:
                self.beat()
            self._events.connected(
                Connected(
                    circuits=wire.parse_circuits(values.get("circuit-status", "")),
                    streams=wire.parse_streams(values.get("stream-status", "")),
                    leave_unattached=is_waited_for,
                    reserved=wire.parse_reserved(options[0]),
                    secret=read_cookie(cookie[0]) if cookie else None,
                    max_dirtiness_seconds=dirtiness_seconds(option.get(MAX_CIRCUIT_DIRTINESS, "")),
                )
            )

        session.send(wire.command("GETINFO", "version", "circuit-status", "stream-status"), take)

    def count_bytes(self, *, is_wanted: bool) -> None:
        """Have Tor tell, from now on and over reconnects, how much each circuit carries; or not."""
        if is_wanted != self.counts_bytes:
            self.counts_bytes = is_wanted
            if self.session is not None:
                self._subscribe(self.session)

    def _subscribe(self, session: Session) -> None:
        events = (*EVENTS, BANDWIDTH_EVENT) if self.counts_bytes else EVENTS
        session.send(wire.command("SETEVENTS", *events), self._require)

    def ask_reserved(self) -> None:
        """Ask anew what Tor maps, after its options changed."""
        if self.session is not None:
            self.session.send(
                wire.command("GETCONF", *RESERVED_OPTIONS),
                lambda reply: self._events.reserved(wire.parse_reserved(reply)) if reply.is_ok else None,
            )

    def _require(self, reply: Reply) -> None:
        if not reply.is_ok and self.session is not None:
            self.session.close(ControlUnreachable(f"Tor refused ({reply.text})"))

    def _on_event(self, event: AnyEvent) -> None:
        if not self._is_synchronised:
            return
        if self._loop.time() - self._turned_at > SILENCE_SECONDS:
            self._end_standstill()
        elif isinstance(event, TorWarning):
            _tell_warning(event)
        elif isinstance(event, DirectoryNews):
            self._events.directory(event)
        else:
            self._events.event(event)

    def _end_standstill(self) -> None:
        """Start anew after a standstill: the guard may have given back meanwhile.

        What waits to be read is a backlog, and acting on its first line could undo what its last line tells.
        """
        seconds = self._loop.time() - self._turned_at
        self._turned_at = self._loop.time()
        if self._is_synchronised and self.session is not None:
            self._is_synchronised = False
            self.session.close(ControlUnreachable(f"the agent stood still for {seconds:.1f} s"))

    def _on_turn(self) -> None:
        self._events.turn()

    def _on_pong(self, _reply: Reply) -> None:
        self._ping_sent_at = None
        self._events.pulse()

    def _on_closed(self, error: Exception | None) -> None:
        self.session = None
        self._ping_sent_at = None
        self._is_silent = self._is_silent or self._may_hold or self._events.is_in_charge()
        self._ended.set()
        if error is None:
            self._tell("Tor closed the control connection")
        else:
            # The text of a fault of our own may hold a destination.
            is_told = isinstance(error, (ControlError, OSError))
            self._tell(f"the control connection ended ({error if is_told else type(error).__name__})")
        self._events.lost()

    def _tell(self, reason: str) -> None:
        """Say once why there is no connection; the same reason again is not news."""
        if reason != self.disconnected_reason and not self.is_stopping:
            about = logs.about(Kind.DISCONNECTED)
            _log.warning("%s; trying again until it works", reason, extra=about)
            self.disconnected_reason = reason
        self._events.news()

    # --- the guard -----------------------------------------------------------------------------------------

    def start_guard(self) -> None:
        """Start the guard; before anything can be taken over, there has to be one."""
        try:
            self._guard.start()
        except OSError as error:
            self._tell_lack(f"no guard process ({reason_of(error)})")

    def _equip_guard(self) -> None:
        """Hand the guard a connection of its own, now or as soon as one can be had."""
        self._equip_guard_at = None
        if not self._is_synchronised or self._guard.pid is None:
            # Whoever changes that calls again.
            return
        try:
            self._guard.hand_over(open_control(self._tor))
        except ControlError as error:
            self._equip_guard_at = self._loop.time() + GUARD_RETRY_SECONDS
            self._tell_lack(f"no control connection for the guard ({error})")
        else:
            if self._guard_lack:
                _log.info("the guard is ready again")
            self._guard_lack = ""

    def _tell_lack(self, lack: str) -> None:
        """Say once what the guard lacks; it is tried again."""
        if lack != self._guard_lack:
            self._guard_lack = lack
            _log.warning("%s; until then only systemd gives back after a kill", lack)


def _tell_warning(warning: TorWarning) -> None:
    """Say what ails Tor, where that concerns the streams; Tor itself repeats none of these soon."""
    if warning.action == "TOO_MANY_CONNECTIONS":
        _log.warning(
            "Tor has no file descriptor left and takes no new stream: raise LimitNOFILE= of Tor's unit"
        )
    elif warning.action == "CLOCK_JUMPED":
        _log.warning("Tor's clock jumped: it gives up circuits, which are built again")
