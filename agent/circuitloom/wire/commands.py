"""What is sent to Tor: one line each, whatever the arguments are."""

from __future__ import annotations

from collections.abc import Iterable

from circuitloom.model import TOR_CHOOSES, CircuitId, Purpose, StreamId


def command(keyword: str, *arguments: str) -> bytes:
    """Build one command line.

    Raises:
        ValueError: An argument holds a line break or NUL: it would be read as a second command.
    """
    line = " ".join((keyword, *arguments))
    _refuse_breaks(line)
    return line.encode("latin-1") + b"\r\n"


def attach_stream(stream_id: StreamId, circuit_id: CircuitId) -> bytes:
    """ATTACHSTREAM; the ids come from Tor through this codec, so they are alphanumeric."""
    return f"ATTACHSTREAM {stream_id} {circuit_id}\r\n".encode("ascii")


def extend_circuit(path: Iterable[str] | None) -> bytes:
    """EXTENDCIRCUIT 0: a new circuit through these fingerprints, or (None) where Tor chooses."""
    if path is None:
        return command("EXTENDCIRCUIT", TOR_CHOOSES)
    return command("EXTENDCIRCUIT", TOR_CHOOSES, ",".join(f"${fingerprint}" for fingerprint in path))


def set_circuit_purpose(circuit_id: CircuitId, purpose: Purpose) -> bytes:
    """SETCIRCUITPURPOSE; EXTENDCIRCUIT's own purpose works only where the path is given (measured)."""
    return command("SETCIRCUITPURPOSE", circuit_id, f"purpose={purpose}")


def _refuse_breaks(text: str) -> None:
    if any(character in text for character in "\r\n\0"):
        raise ValueError("a control command cannot carry a line break or NUL")
