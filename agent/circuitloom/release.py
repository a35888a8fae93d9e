"""Gives every stream back to Tor: the undo of the takeover, for a stop and after a crash.

Resetting the option alone leaves the streams that wait waiting (tor-facts 4). So Tor is asked which wait,
told to reset the option, and given each of them, to choose for itself.

Asked and told in one write, which Tor reads as one: no stream comes in between that Tor chooses for by itself
already. Caught on the way to its circuit, it would be torn off and lose bytes (tor-facts 0). For the same
reason, what is found waiting while the option is *not* set is asked for twice: it may be Tor's.
"""

from __future__ import annotations

import asyncio
import logging

from circuitloom import logs, wire
from circuitloom.errors import CircuitloomError, ControlRefused, ControlUnreachable
from circuitloom.kinds import Kind
from circuitloom.model import DOUBT_SECONDS, LEAVE_UNATTACHED, TOR_CHOOSES
from circuitloom.policy.types import TorControl
from circuitloom.session import Session, connect_once, get_info
from circuitloom.wire import Reply

STOP_SECONDS = 4.0
"""For giving back at the end; with the rest of a stop this stays below the 5 s that are promised."""

_log = logging.getLogger(__name__)


async def give_back(session: Session) -> int:
    """Reset the option and hand every waiting stream to Tor.

    Args:
        session: An authenticated connection; nobody need have set anything on it.

    Returns:
        How many streams waited and are Tor's now.

    Raises:
        ControlClosed: Tor went away meanwhile, and with it all that waited.
        ControlRefused: Tor does not reset the option.
    """
    option: list[Reply] = []
    status: list[Reply] = []
    session.send(wire.command("GETCONF", LEAVE_UNATTACHED), option.append)
    session.send(wire.command("GETINFO", "stream-status"), status.append)
    reset = await session.request(wire.command("RESETCONF", LEAVE_UNATTACHED))
    if not reset.is_ok:
        raise ControlRefused(f"Tor refused to reset {LEAVE_UNATTACHED}: {reset.text}")
    waiting = wire.waiting_streams(status[0])
    if waiting and option[0].values().get(LEAVE_UNATTACHED) != "1":
        await asyncio.sleep(DOUBT_SECONDS)
        waiting &= wire.waiting_streams(await session.request(wire.command("GETINFO", "stream-status")))
    handed = 0

    def count(reply: Reply) -> None:
        nonlocal handed
        handed += reply.is_ok

    for stream_id in sorted(waiting):
        session.send(wire.attach_stream(stream_id, TOR_CHOOSES), count)
    # Replies come in order, so the answer to one more command comes after all of them.
    await get_info(session, "version")
    return handed


async def give_back_at_stop(session: Session | None, tor: TorControl) -> bool:
    """Give back over the connection there is, or over a new one when it was lost a moment ago.

    Args:
        session: That connection; None, or closed after a fault of our own: there is none.
        tor: Where Tor is.

    Returns:
        Whether it was done within ``STOP_SECONDS``; else it is the guard's task.
    """
    try:
        async with asyncio.timeout(STOP_SECONDS):
            if session is None or not session.is_open:
                session = await connect_once(tor)
            try:
                handed = await give_back(session)
            finally:
                session.close()
    except ControlUnreachable:
        _log.info("Tor is not there: nothing to give back")
    except (CircuitloomError, TimeoutError) as error:
        _log.error(
            "could not give everything back (%s); run: circuitloom release",
            error if str(error) else "time is up",
        )
    else:
        about = logs.about(Kind.GIVEN_BACK)
        _log.info("Tor assigns all streams again, %d waited", handed, extra=about)
        return True
    return False
