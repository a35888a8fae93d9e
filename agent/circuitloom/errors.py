"""Every error that circuitloom raises on purpose.

* ``CircuitloomError``: base; its text is the one line a person reads, ``exit_code`` what a command ends with
    * ``PolicyError``: the policy has faults (78, EX_CONFIG)
    * ``ControlError``: the control connection cannot be used
        * ``ControlUnreachable``: nothing answers at the control address (69, EX_UNAVAILABLE)
        * ``ControlRefused``: Tor answers and does not let us in (77, EX_NOPERM)
        * ``ControlProtocolError``: what arrived is not the control protocol (76, EX_PROTOCOL)
        * ``ControlClosed``: the connection ended while a command was waiting (69)
        * ``OutOfDescriptors``: this process or the machine has no file descriptor left for it (71, EX_OSERR)
    * ``AdminError``: the agent's admin socket cannot be used (69)
        * ``AdminRefused``: the file system does not let us use it (77)
    * ``CannotCreate``: a file or socket we own cannot be made (73, EX_CANTCREAT)
    * ``UnknownCircuit``: a command names a circuit that the policy does not (64, EX_USAGE)
    * ``RecordingError``: a recording of streams cannot be used (65, EX_DATAERR)
    * ``LedgerError``: the ledger of rounds cannot be used (74, EX_IOERR)
        * ``LedgerBusy``: another process serves it
    * ``LabError``: the private Tor network cannot be started or used (69)

The numbers are those of BSD's sysexits.h.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = [
    "AdminError",
    "AdminRefused",
    "CannotCreate",
    "CircuitloomError",
    "ControlClosed",
    "ControlError",
    "ControlProtocolError",
    "ControlRefused",
    "ControlUnreachable",
    "Fault",
    "LabError",
    "LedgerBusy",
    "LedgerError",
    "OutOfDescriptors",
    "PolicyError",
    "RecordingError",
    "UnknownCircuit",
    "is_out_of_descriptors",
    "reason_of",
]


class CircuitloomError(Exception):
    """Base of all errors raised on purpose; its text is one line that says what to do."""

    exit_code = 70


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One fault of a policy, with its place.

    Attributes:
        file: The policy's name, as the user gave it.
        line: From 1.
        column: From 1.
        path: Where in the document, such as ``circuits[1].weight``; empty for the document itself.
        message: What is wrong and what to do.
    """

    file: str
    line: int
    column: int
    path: str
    message: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}"
        return f"{place}: {self.path}: {self.message}" if self.path else f"{place}: {self.message}"


class PolicyError(CircuitloomError):
    """The policy has faults; all of them, sorted by place, are in ``faults``."""

    exit_code = 78

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(sorted(faults))
        super().__init__("\n".join(map(str, self.faults)))


class ControlError(CircuitloomError):
    """The control connection cannot be used."""

    exit_code = 69


class ControlUnreachable(ControlError):
    """Nothing answers at the control address."""


class ControlRefused(ControlError):
    """Tor answers and does not let us in."""

    exit_code = 77


class ControlProtocolError(ControlError):
    """What arrived on the control connection is not the control protocol."""

    exit_code = 76


class ControlClosed(ControlError):
    """The control connection ended while a command was waiting for its reply."""


class OutOfDescriptors(ControlError):
    """There is no file descriptor left for a control connection; whether Tor is there is not known."""

    exit_code = 71


class AdminError(CircuitloomError):
    """The agent's admin socket cannot be used."""

    exit_code = 69


class AdminRefused(AdminError):
    """The file system does not let us use the agent's admin socket."""

    exit_code = 77


class CannotCreate(CircuitloomError):
    """A file or socket that circuitloom owns cannot be made."""

    exit_code = 73


class UnknownCircuit(CircuitloomError):
    """A command names a circuit that the policy does not."""

    exit_code = 64


class RecordingError(CircuitloomError):
    """A recording of streams cannot be used; its text begins with file and line."""

    exit_code = 65


class LedgerError(CircuitloomError):
    """The ledger of rounds cannot be used."""

    exit_code = 74


class LedgerBusy(LedgerError):
    """Another process serves the ledger."""


class LabError(CircuitloomError):
    """The private Tor network cannot be started or used."""

    exit_code = 69


def is_out_of_descriptors(error: BaseException | None) -> bool:
    """Whether the process (EMFILE) or the machine (ENFILE) has no file descriptor left."""
    return isinstance(error, OSError) and error.errno in {errno.EMFILE, errno.ENFILE}


def reason_of(error: OSError) -> str:
    """What the system says, and what to do where its words do not tell."""
    if error.errno == errno.EMFILE:
        return "no file descriptor is left: raise LimitNOFILE= of circuitloom's unit, or ulimit -n"
    if error.errno == errno.ENFILE:
        return "the machine has no file descriptor left: raise fs.file-max (sysctl)"
    return error.strerror or str(error)
