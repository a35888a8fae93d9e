"""In which country each circuit leaves Tor, as Tor's own GeoIP file knows it.

Rules of this file:

* Nobody waits for it: what is not known yet is shown as not known, and asked for meanwhile.
* Tor is asked once for each relay (GETINFO ns/id/..., then ip-to-country/...), and only for relays in use.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from circuitloom import wire
from circuitloom.wire import Reply

UNKNOWN = "??"
"""As Tor says it: no country is known for the address, or it has no GeoIP file."""


class Countries:
    """Countries by relay.

    Args:
        send: Sends a command to Tor; without a connection nothing happens.
    """

    def __init__(self, send: Callable[[bytes, Callable[[Reply], None]], None]) -> None:
        self._send = send
        self._known: dict[str, str] = {}

    def of(self, fingerprint: str) -> str:
        """The relay's country, two letters, or ``??``."""
        return self._known.get(fingerprint, UNKNOWN)

    def want(self, fingerprints: Collection[str]) -> None:
        """Ask for those of these that were not asked for yet, and forget all others."""
        for fingerprint in self._known.keys() - fingerprints:
            del self._known[fingerprint]
        for fingerprint in fingerprints:
            if fingerprint not in self._known:
                self._known[fingerprint] = UNKNOWN
                self._ask(fingerprint)

    def forget(self) -> None:
        """Another Tor may know more."""
        self._known.clear()

    def _ask(self, fingerprint: str) -> None:
        def take_address(reply: Reply) -> None:
            address = _address_of(reply.values().get(f"ns/id/{fingerprint}", "")) if reply.is_ok else None
            if address is not None:
                key = f"ip-to-country/{address}"
                self._send(wire.command("GETINFO", key), lambda reply: take_country(reply, key))

        def take_country(reply: Reply, key: str) -> None:
            if reply.is_ok and fingerprint in self._known:
                self._known[fingerprint] = reply.values().get(key, UNKNOWN)

        self._send(wire.command("GETINFO", f"ns/id/{fingerprint}"), take_address)


def _address_of(entry: str) -> str | None:
    """The address in a router status entry (dir-spec 3.4.1: r nickname identity [digest] date time IP ...).

    A consensus of microdescriptors, which is what a client has, leaves the digest out.
    """
    line = next((line.split() for line in entry.splitlines() if line.startswith("r ")), [])
    return line[-3] if len(line) >= 8 else None
