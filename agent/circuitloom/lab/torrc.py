"""Every torrc of the private network, and the one door to a started tor.

Rule of this file: ``write_torrc`` is the only way from options to a file that tor reads, and it refuses
whatever could reach past loopback. A tor without ``DirAuthority`` lines uses the public network's; that must
never happen.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from circuitloom.errors import LabError

LOOPBACK = "127.0.0.1"

QUIET_INTERVAL_SECONDS = 1800
"""Between votes until the relays have uploaded their descriptors: the longest that tor allows."""

FIRST_INTERVAL_SECONDS = 5
"""Between votes on the first consensus, from then on: the shortest that tor allows."""

FIRST_CONSENSUS_DELAY_SECONDS = 2
"""From such a vote to its consensus: tor cuts both delays to a quarter of the interval, in whole seconds."""

ADDING_OPTIONS = frozenset(
    {"socksport", "dnsport", "transport", "natdport", "httptunnelport", "controlport", "log"}
)
"""Options that tor takes more than once; an extra line adds to ours. Any other extra line replaces ours."""

FORBIDDEN_OPTIONS = frozenset(
    {
        # Other ways into a network than our authorities.
        "alternatebridgeauthority",
        "alternatedirauthority",
        "bridge",
        "clienttransportplugin",
        "fallbackdir",
        "usebridges",
        "%include",
        # Where traffic goes instead of straight to a loopback address.
        "httpsproxy",
        "socks4proxy",
        "socks5proxy",
        "tcpproxy",
        # A process that leaves the one we watch.
        "runasdaemon",
    },
)

REQUIRED_LINES = (
    "TestingTorNetwork 1",
    "UseDefaultFallbackDirs 0",
    # A socket bound to a loopback address cannot reach any other: the kernel answers EINVAL.
    f"OutboundBindAddress {LOOPBACK}",
)


@dataclass(frozen=True, slots=True)
class Authority:
    """A directory authority as every node has to know it; fingerprints are 40 hex digits."""

    nickname: str
    or_port: int
    dir_port: int
    v3_identity: str
    fingerprint: str

    def dir_authority_line(self) -> str:
        """The torrc line that makes a node trust this authority instead of the public ones."""
        return (
            f"DirAuthority {self.nickname} orport={self.or_port} no-v2 v3ident={self.v3_identity} "
            f"{LOOPBACK}:{self.dir_port} {self.fingerprint}"
        )


KEY_MAKING_AUTHORITY = Authority("placeholder", 1, 1, "0" * 40, "0" * 40)
"""What a tor that only prints its new fingerprint is told; the real lines need those fingerprints first."""


def common_lines(*, owner_pid: int, empty_file: Path) -> list[str]:
    """What every node gets.

    Args:
        owner_pid: The process without which no node may go on.
        empty_file: A file without content, instead of the address-to-country databases.
    """
    return [
        *REQUIRED_LINES,
        f"__OwningControllerProcess {owner_pid}",
        f"Address {LOOPBACK}",
        "ShutdownWaitLength 0",
        # Every control connection is a notice of its own; the tests open many.
        "Log [~control]notice stdout",
        "CookieAuthentication 1",
        "AvoidDiskWrites 1",
        # Worker threads and country tables are most of a small node's memory.
        "NumCPUs 1",
        f"GeoIPFile {empty_file}",
        f"GeoIPv6File {empty_file}",
    ]


def quiet_voting(now: float) -> list[str]:
    """What keeps a new authority from voting for a while; ``now`` is in Unix time.

    Votes come at multiples of the interval. A first vote too early makes a consensus without relays, and the
    next one is 20 s away.
    """
    next_vote_is_near = -now % QUIET_INTERVAL_SECONDS < 34
    return [
        f"TestingV3AuthInitialVotingInterval {QUIET_INTERVAL_SECONDS}",
        # The most that tor allows is less than one V3AuthVotingInterval.
        f"TestingV3AuthVotingStartOffset {19 if next_vote_is_near else 0}",
    ]


def first_vote(vote_at: float) -> list[str]:
    """What makes the authorities vote at a moment (Unix time) or within a second after it."""
    offset_seconds = (math.ceil(vote_at) + FIRST_CONSENSUS_DELAY_SECONDS) % FIRST_INTERVAL_SECONDS
    return [
        f"TestingV3AuthInitialVotingInterval {FIRST_INTERVAL_SECONDS}",
        f"TestingV3AuthVotingStartOffset {offset_seconds}",
    ]


def authority_lines(*, or_port: int, dir_port: int) -> list[str]:
    """What a directory authority gets, but for its first vote; later ones are 20 s apart."""
    return [
        "AuthoritativeDirectory 1",
        "V3AuthoritativeDirectory 1",
        f"ORPort {LOOPBACK}:{or_port} IPv4Only",
        f"DirPort {LOOPBACK}:{dir_port} IPv4Only",
        "SocksPort 0",
        "ContactInfo lab@example.invalid",
        "ExitPolicy reject *:*",
        "AssumeReachable 1",
        "TestingV3AuthInitialVoteDelay 2",
        "TestingV3AuthInitialDistDelay 2",
        # Often enough for a relay that comes later; more often costs CPU for as long as the network runs.
        "V3AuthVotingInterval 20",
        "V3AuthVoteDelay 4",
        "V3AuthDistDelay 4",
        "TestingDirAuthVoteExit *",
        "TestingDirAuthVoteGuard *",
        "TestingDirAuthVoteHSDir *",
        "TestingMinExitFlagThreshold 0",
    ]


def relay_lines(*, or_port: int, resolv_conf: Path) -> list[str]:
    """What an exit relay gets; its traffic and its DNS stay on loopback."""
    return [
        f"ORPort {LOOPBACK}:{or_port} IPv4Only",
        "SocksPort 0",
        "AssumeReachable 1",
        "ExtendAllowPrivateAddresses 1",
        "ExitRelay 1",
        "ExitPolicyRejectPrivate 0",
        # The summary in the consensus ignores private ranges: "accept 127.0.0.0/8:*" alone is "no exits".
        "ExitPolicy accept *:*",
        f"ServerDNSResolvConfFile {resolv_conf}",
        "ServerDNSDetectHijacking 0",
    ]


def client_lines(*, socks_port: int, dns_port: int) -> list[str]:
    """What a client gets."""
    return [
        "ClientOnly 1",
        f"SocksPort {LOOPBACK}:{socks_port}",
        f"DNSPort {LOOPBACK}:{dns_port}",
        "ClientRejectInternalAddresses 0",
        "ClientDNSRejectInternalAddresses 0",
        "PathsNeededToBuildCircuits 0.25",
        # Tor learns a timeout that fails one build in five by design; here every build should end well.
        "LearnCircuitBuildTimeout 0",
        "CircuitBuildTimeout 30",
    ]


def merge(ours: Sequence[str], extra: Iterable[str]) -> list[str]:
    """Our lines with a user's extra ones, which add to or replace ours, as ``ADDING_OPTIONS`` says."""
    extra = list(extra)
    replaced = {_option(line) for line in extra} - ADDING_OPTIONS
    return [line for line in ours if _option(line) not in replaced] + extra


def write_torrc(path: Path, lines: Sequence[str]) -> None:
    """Write the file that a tor is started with, after making sure that it keeps tor on loopback.

    Args:
        path: Replaced when it exists.
        lines: Options without line ends.

    Raises:
        LabError: A line could let this tor reach past loopback, or a line that prevents it is missing.
    """
    authorities = [line for line in lines if _option(line) == "dirauthority"]
    if not authorities:
        raise LabError(
            f"refused to write {path}: without DirAuthority lines tor would use the public network"
        )
    for line in authorities:
        if f" {LOOPBACK}:" not in line:
            raise LabError(f"refused to write {path}: a DirAuthority is not on {LOOPBACK}: {line}")
    for required in REQUIRED_LINES:
        if [line for line in lines if _option(line) == _option(required)] != [required]:
            raise LabError(f"refused to write {path}: it needs exactly one line {required!r}")
    for line in lines:
        if _option(line) in FORBIDDEN_OPTIONS or line != line.strip() or "\n" in line or line.endswith("\\"):
            raise LabError(f"refused to write {path}: the private network does not take the option {line!r}")
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    path.chmod(0o600)


def _option(line: str) -> str:
    """The lower-case option name; tor accepts ``+`` (add) and ``/`` (reset) in front of it."""
    word = line.split(maxsplit=1)[0] if line.strip() else ""
    return word.lstrip("+/").lower()
