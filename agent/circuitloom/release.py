"""Gives every stream back to Tor: the undo of the takeover, for a stop and after a crash.

Three steps, because resetting the option alone leaves the streams that wait waiting (tor-facts 4): reset it,
ask which streams wait, hand each to Tor's own selection. A stream that Tor serves already refuses the last
step with 555, harmlessly. Doing it twice does no harm either.
"""

from __future__ import annotations

from circuitloom import wire
from circuitloom.errors import ControlRefused
from circuitloom.model import LEAVE_UNATTACHED, TOR_CHOOSES, waits_for_controller
from circuitloom.session import Session, get_info
from circuitloom.wire import Reply


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
    reset = await session.request(wire.command("RESETCONF", LEAVE_UNATTACHED))
    if not reset.is_ok:
        raise ControlRefused(f"Tor refused to reset {LEAVE_UNATTACHED}: {reset.text}")
    status = (await get_info(session, "stream-status"))["stream-status"]
    handed = 0

    def count(reply: Reply) -> None:
        nonlocal handed
        handed += reply.is_ok

    for stream in wire.parse_streams(status):
        if waits_for_controller(stream):
            session.send(wire.attach_stream(stream.stream_id, TOR_CHOOSES), count)
    # Replies come in order, so the answer to one more command comes after all of them.
    await get_info(session, "version")
    return handed
