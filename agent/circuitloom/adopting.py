"""Asking Tor for a circuit that the operator gives to the pool.

Rule of this file: the pool hears of the circuit in the call that reads Tor's answer, before anything that Tor
says after it; only whoever asked waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from circuitloom import wire
from circuitloom.errors import AdminError
from circuitloom.model import CircuitAdopted, CircuitId
from circuitloom.session import Session
from circuitloom.wire import Reply

ANSWER_SECONDS = 3.0
"""Below the 5 s that a client of the admin socket waits."""


async def adopt_circuit(
    session: Session | None, name: str, circuit_id: CircuitId, take: Callable[[CircuitAdopted], str | None]
) -> None:
    """Read what Tor says of the circuit and hand it to the pool.

    Args:
        session: The control connection; None: there is none.
        name: The policy's name of the slot.
        circuit_id: Tor's id of the circuit.
        take: Hands it to the pool; returns why that cannot take it, or None.

    Raises:
        AdminError: It was not adopted, with the reason.
    """
    if session is None or not session.is_open:
        raise AdminError("not connected to Tor: adopt the circuit when status says so")
    outcome: asyncio.Future[str | None] = asyncio.get_running_loop().create_future()

    def read(reply: Reply) -> None:
        # Nobody is told any more after ANSWER_SECONDS, so nothing may happen then either.
        if not outcome.done():
            outcome.set_result(_hand_on(reply, name, circuit_id, take))

    session.send(wire.command("GETINFO", "circuit-status", "stream-status"), read)
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            fault = await outcome
    except TimeoutError:
        raise AdminError("Tor did not answer: nothing is adopted") from None
    if fault is not None:
        raise AdminError(f"circuit {circuit_id} is not adopted as {name}: {fault}")


def _hand_on(
    reply: Reply, name: str, circuit_id: CircuitId, take: Callable[[CircuitAdopted], str | None]
) -> str | None:
    if not reply.is_ok:
        return f"Tor refused to tell its circuits ({reply.text})"
    values = reply.values()
    lines = wire.parse_circuits(values.get("circuit-status", ""))
    line = next((line for line in lines if line.circuit_id == circuit_id), None)
    if line is None:
        return "Tor has no such circuit"
    return take(CircuitAdopted(name, line, wire.parse_streams(values.get("stream-status", ""))))
