"""Directory documents as Tor tells them, and snapshots made of them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from circuitloom.paths import Relays, join_relay, read_consensus, read_microdescriptors, read_weights

ALL_FLAGS = "Exit Fast Guard Running Stable Valid"


@dataclass(frozen=True)
class Made:
    """A relay to be; ``letter`` (one or two hex digits) makes its fingerprint."""

    letter: str
    nickname: str = ""
    address: str = ""
    flags: str = ALL_FLAGS
    bandwidth: int | None = 10
    family: str = ""
    ports: str = "accept 1-65535"
    more: str = ""
    ipv6: str = ""
    family_ids: str = ""

    @property
    def fingerprint(self) -> str:
        return (self.letter * 40)[:40]

    @property
    def microdescriptor(self) -> str:
        family = f"family {self.family}\n" if self.family else ""
        ids = f"family-ids {self.family_ids}\n" if self.family_ids else ""
        ports = f"p {self.ports}\n" if self.ports else ""
        return (
            "onion-key\n"
            "-----BEGIN RSA PUBLIC KEY-----\n"
            "MIGJAoGBAOg6lOZR3BdYKU\n"
            "-----END RSA PUBLIC KEY-----\n"
            f"ntor-onion-key {self.letter * 43}\n"
            f"{family}{ids}{ports}"
            f"id ed25519 {self.letter * 43}\n"
        )

    @property
    def status(self) -> str:
        identity = base64.b64encode(bytes.fromhex(self.fingerprint)).decode().rstrip("=")
        digest = base64.b64encode(hashlib.sha256(self.microdescriptor.encode()).digest()).decode().rstrip("=")
        address = self.address or f"10.{int(self.letter, 16)}.0.1"
        ipv6 = f"a [{self.ipv6}]:9001\n" if self.ipv6 else ""
        bandwidth = "" if self.bandwidth is None else f"w Bandwidth={self.bandwidth}\n"
        return (
            f"r {self.nickname or 'relay' + self.letter} {identity} 2038-01-01 00:00:00 {address} 9001 0\n"
            f"{ipv6}"
            f"m {digest}\n"
            f"s {self.flags}\n"
            "v Tor 0.4.9.11\n"
            "pr Cons=1-2 Desc=1-2\n"
            f"{bandwidth}"
        )


def consensus(relays: Iterable[Made], weights: str = "bandwidth-weights Wed=10000 Wee=10000\n") -> str:
    head = "network-status-version 3 microdesc\nvote-status consensus\nvalid-after 2026-11-25 12:00:00\n"
    foot = f"directory-footer\n{weights}directory-signature sha256 AA BB\n-----BEGIN SIGNATURE-----\n"
    return head + "".join(relay.status for relay in relays) + foot


def microdescriptors(relays: Iterable[Made]) -> str:
    """As ``GETINFO md/all`` arrives: without the end of the last line."""
    return "".join(relay.microdescriptor for relay in relays).removesuffix("\n")


def snapshot(
    *relays: Made,
    guards: str = "",
    countries: Mapping[str, str] | None = None,
    weights: str = "",
    keeps_subnets_apart: bool = True,
    has_countries: bool = True,
) -> Relays:
    """Relays with these; the first of them are Tor's guards, by letter (all if none is given)."""
    text = consensus(relays, weights)
    known = dict(read_microdescriptors(microdescriptors(relays)))
    joined = {status.fingerprint: join_relay(status, known[status.digest]) for status in read_consensus(text)}
    by_letter = {relay.letter: relay for relay in relays}
    return Relays(
        joined,
        read_weights(text),
        tuple(by_letter[letter].fingerprint for letter in guards or by_letter),
        {
            relay.address: countries[fingerprint[0]]
            for fingerprint, relay in joined.items()
            if countries and fingerprint[0] in countries
        },
        has_countries=has_countries,
        keeps_subnets_apart=keeps_subnets_apart,
    )
