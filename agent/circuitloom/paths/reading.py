"""The lines of Tor's directory documents that a path depends on; everything else in them is passed over.

Rules of this file:

* A document is read relay by relay, by generators: a public consensus has 10,000 relays, and whoever reads it
  stops in between for other work.
* A relay whose lines are malformed is left out: a path without it is as good.
* Families, policies and flags that many relays share are kept once.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from circuitloom.paths.ports import REJECTS_ALL, PortPolicy, read_policy

_FINGERPRINT = re.compile(r"\$?([0-9A-Fa-f]{40})(?:[=~].*)?")
_GUARD = re.compile(r"\$([0-9A-Fa-f]{40})(?:[=~]\S+)? (up|never-connected)\b")
_BANDWIDTH = re.compile(r"^w Bandwidth=([0-9]{1,10})\b", re.MULTILINE)
_WEIGHT = re.compile(r"\b(W[a-z]{2})=([0-9]{1,9})\b")
_RELAY = "\nr "
_FIRST_KEY = "onion-key\n"


@dataclass(frozen=True, slots=True)
class Status:
    """A relay in a consensus of the microdescriptor flavour (dir-spec 3.9).

    Attributes:
        fingerprint: 40 upper-case hex digits.
        nickname: As written.
        address: IPv4.
        subnets: Networks that no other relay of a path may be in.
        digest: Of its microdescriptor, base64 of SHA-256 without padding.
        flags: Such as ``Exit``.
        bandwidth: In the consensus's unit.
    """

    fingerprint: str
    nickname: str
    address: str
    subnets: tuple[str, ...]
    digest: str
    flags: frozenset[str]
    bandwidth: int


@dataclass(frozen=True, slots=True)
class Microdescriptor:
    """What a relay says of itself.

    Attributes:
        family: Fingerprints (and lower-case nicknames) of relays that it says are run by the same people.
        family_ids: Keys that all relays of a family share.
        ports: What it accepts as an exit.
    """

    family: frozenset[str]
    family_ids: frozenset[str]
    ports: PortPolicy


def read_consensus(text: str) -> Iterator[Status]:
    """The relays of a consensus; those that are not Running and Valid are passed over."""
    end = text.find("\ndirectory-footer")
    end = len(text) if end < 0 else end
    start = text.find(_RELAY, 0, end)
    while start >= 0:
        next_start = text.find(_RELAY, start + 1, end)
        status = _read_status(text[start + 1 : end if next_start < 0 else next_start])
        if status is not None:
            yield status
        start = next_start


def read_weights(text: str) -> Mapping[str, int]:
    """The bandwidth weights in a consensus's footer, such as ``Wed``; empty when it has none."""
    start = text.rfind("\nbandwidth-weights ")
    if start < 0:
        return {}
    line = text[start + 1 :].partition("\n")[0]
    return {key: int(value) for key, value in _WEIGHT.findall(line)}


def read_microdescriptors(text: str) -> Iterator[tuple[str, Microdescriptor]]:
    """The microdescriptors in ``GETINFO md/all``, each with its digest as ``Status`` has it."""
    start = text.find(_FIRST_KEY)
    while start >= 0:
        next_start = text.find("\n" + _FIRST_KEY, start)
        body = text[start:] if next_start < 0 else text[start : next_start + 1]
        if not body.endswith("\n"):
            # The control connection's data block has no end of its last line.
            body += "\n"
        digest = hashlib.sha256(body.encode("latin-1")).digest()
        yield base64.b64encode(digest).decode("ascii").rstrip("="), _read_microdescriptor(body)
        start = -1 if next_start < 0 else next_start + 1


def read_guards(text: str) -> tuple[str, ...]:
    """The guards of ``GETINFO entry-guards`` that Tor would use, in Tor's order of preference.

    Tor lists its sample in the order in which it would use it (guard-spec 4). One that Tor has connected to
    comes before one that it has not; those that are down, unlisted or excluded by torrc are left out.
    """
    found = [(match[2] != "up", match[1].upper()) for match in _GUARD.finditer(text)]
    return tuple(fingerprint for _, fingerprint in sorted(found, key=lambda guard: guard[0]))


def _read_status(entry: str) -> Status | None:
    lines = entry.split("\n")
    words = lines[0].split(" ")
    digest, flags = "", frozenset[str]()
    subnets: list[str] = []
    for line in lines[1:]:
        match line[:2]:
            case "a ":
                subnets += _subnet_of(line[2:].rpartition(":")[0].strip("[]"))
            case "m ":
                digest = line[2:]
            case "s ":
                flags = _flags(line[2:])
            case _:
                pass
    if len(words) < 7 or not flags >= {"Running", "Valid"}:
        return None
    try:
        identity = base64.b64decode(words[2] + "=" * (-len(words[2]) % 4), validate=True)
    except ValueError:
        return None
    own = _subnet_of(words[5])
    if len(identity) != 20 or not own:
        return None
    bandwidth = _BANDWIDTH.search(entry)
    return Status(
        fingerprint=identity.hex().upper(),
        nickname=words[1],
        address=words[5],
        subnets=(*own, *subnets),
        digest=digest,
        flags=flags,
        bandwidth=int(bandwidth[1]) if bandwidth else 0,
    )


def _read_microdescriptor(body: str) -> Microdescriptor:
    family, family_ids, ports = frozenset[str](), frozenset[str](), REJECTS_ALL
    for line in body.split("\n"):
        if line.startswith("family "):
            family = _family(line[7:])
        elif line.startswith("family-ids "):
            family_ids = frozenset(line[11:].split())
        elif line.startswith("p "):
            ports = read_policy(line[2:])
    return Microdescriptor(family, family_ids, ports)


@lru_cache(maxsize=1024)
def _flags(text: str) -> frozenset[str]:
    return frozenset(text.split())


@lru_cache(maxsize=256)
def _family(text: str) -> frozenset[str]:
    return frozenset(
        found[1].upper() if (found := _FINGERPRINT.fullmatch(word)) else word.lower() for word in text.split()
    )


def _subnet_of(address: str) -> tuple[str, ...]:
    """The network that path-spec 2.2 keeps apart: IPv4 /16, IPv6 /32; empty for what is no address."""
    try:
        if ":" in address:
            return (f"{int(IPv6Address(address)) >> 96:x}::/32",)
        return (f"{int(IPv4Address(address)) >> 16:x}/16",)
    except AddressValueError:
        return ()
