"""Which circuits of a key a stream is not offered to, because their exits refuse its port.

Rule of this file: only what is known counts. An exit that nobody knows takes any port, and Tor tells when it
does not.
"""

from __future__ import annotations

from collections.abc import Iterable

from circuitloom.balancing import NOTHING
from circuitloom.pool.slots import Circuit, CircuitState

_MAX_PORTS = 1024
"""A client that asks for every port there is must not fill the memory."""


class Refusals:
    """The circuits of one key whose exits are known to refuse some port."""

    def __init__(self) -> None:
        self._choosy: tuple[Circuit, ...] = ()
        self._is_forgotten = True
        self._by_port: dict[int, frozenset[str]] = {}

    def forget(self) -> None:
        """Other circuits serve than before, or other exits are known."""
        self._is_forgotten = True
        self._by_port = {}

    def to(self, target: str, circuits: Iterable[Circuit]) -> frozenset[str]:
        """Names of the circuits whose exits refuse the port of a target.

        Args:
            target: ``host:port``; a name to resolve has port 0, which no exit refuses.
            circuits: All of the key, looked at only after ``forget``.
        """
        if not self.are_there(circuits):
            return NOTHING
        port = port_of(target)
        if port == 0:
            return NOTHING
        refusing = self._by_port.get(port)
        if refusing is None:
            if len(self._by_port) >= _MAX_PORTS:
                self._by_port = {}
            refusing = self._by_port[port] = frozenset(
                circuit.slot.slot.name for circuit in self._choosy if circuit.refuses(port)
            )
        return refusing

    def are_there(self, circuits: Iterable[Circuit]) -> bool:
        """Whether any exit is known to refuse any port."""
        if self._is_forgotten:
            self._is_forgotten = False
            self._choosy = tuple(circuit for circuit in circuits if _is_choosy(circuit))
        return bool(self._choosy)


def port_of(target: str) -> int:
    """The port that an exit's policy is asked about; 0: none, or one of IPv6, which it does not cover."""
    host, _, port = target.rpartition(":")
    return int(port) if port.isdecimal() and ":" not in host else 0


def _is_choosy(circuit: Circuit) -> bool:
    ports = circuit.exit_ports
    return circuit.state is CircuitState.BUILT and ports is not None and not ports.accepts_all
