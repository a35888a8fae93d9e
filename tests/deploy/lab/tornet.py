"""The private Tor network of a lab: authorities and exit relays in one namespace, and an echo server.

Every node and every client carries the lab's own `DirAuthority` lines, which replace the public ones, and the
namespace has no route out: no tor of a lab can speak to the public network.
"""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab.lab import ADDRESSES, ECHO_ADDRESS, Lab
from deploy.lab.shell import LabError, run

ADDRESS = ADDRESSES["tor"]
AUTHORITIES = 3  # the smallest number that is a majority with one missing
RELAYS = 5  # three hops, and a choice for every hop
CONSENSUS_SECONDS = 120.0  # 15 s on a quiet machine
ECHO_PORT = 7000
ECHO_SERVER = Path(__file__).with_name("echo_server.py")

# `PORT` numbers: an authority has its own namespace's ports from 5001 on, a relay from 5101 on.
_COMMON = f"""\
TestingTorNetwork 1
Address {ADDRESS}
SocksPort 0
ShutdownWaitLength 0
AssumeReachable 1
ContactInfo nobody
# One namespace, one address: nothing here is an attack by many.
DoSCircuitCreationEnabled 0
DoSConnectionEnabled 0
"""
_AUTHORITY = """\
AuthoritativeDirectory 1
V3AuthoritativeDirectory 1
ExitPolicy reject *:*
TestingV3AuthInitialVotingInterval 5
TestingV3AuthInitialVoteDelay 2
TestingV3AuthInitialDistDelay 2
V3AuthVotingInterval 20
V3AuthVoteDelay 4
V3AuthDistDelay 4
TestingDirAuthVoteExit *
TestingDirAuthVoteGuard *
TestingDirAuthVoteHSDir *
TestingMinExitFlagThreshold 0
"""
_RELAY = """\
ExitRelay 1
ExtendAllowPrivateAddresses 1
ExitPolicyRejectPrivate 0
# A policy of private ranges alone summarises to "no exit" in the consensus, so it says everything.
ExitPolicy accept *:*
"""
_CLIENT = """\
TestingTorNetwork 1
ShutdownWaitLength 0
ClientRejectInternalAddresses 0
ClientDNSRejectInternalAddresses 0
PathsNeededToBuildCircuits 0.25
# Learned timeouts abandon one circuit in five by design: noise in a test of something else.
LearnCircuitBuildTimeout 0
CircuitBuildTimeout 30
"""


@dataclass
class TorNetwork:
    """A running network.

    Attributes:
        lab: Where it lives.
        echo: HOST:PORT of the echo server, reachable through the exits only.
    """

    lab: Lab
    echo: str = f"{ECHO_ADDRESS}:{ECHO_PORT}"
    _authority_lines: str = field(default="", repr=False)

    @property
    def client_torrc(self) -> str:
        """What a host's own torrc must say, so that its tor knows this network and no other."""
        return self._authority_lines + _CLIENT

    def start(self) -> None:
        """Start all nodes and wait until the consensus lists every relay as an exit.

        Raises:
            LabError: It did not within `CONSENSUS_SECONDS`.
        """
        self.lab.add_namespace("tor", ADDRESS, ECHO_ADDRESS)
        authorities = [self._authority(number) for number in range(1, AUTHORITIES + 1)]
        self._authority_lines = "".join(line for line, _ in authorities)
        for number, (_, directory) in enumerate(authorities, 1):
            self._start(directory, 5000 + number, _AUTHORITY + f"DirPort {5050 + number}\n")
        for number in range(1, RELAYS + 1):
            directory = self._directory(f"relay{number}")
            self._start(directory, 5100 + number, _RELAY)
        self._spawn([sys.executable, "-I", ECHO_SERVER, ECHO_ADDRESS, str(ECHO_PORT)], "echo.log")
        self._wait(authorities[0][1])

    def _directory(self, name: str) -> Path:
        directory = self.lab.directory / "tor" / name
        directory.mkdir(parents=True, mode=0o700)
        return directory

    def _authority(self, number: int) -> tuple[str, Path]:
        """Make an authority's keys; return its DirAuthority line and its directory."""
        directory = self._directory(f"authority{number}")
        keys = directory / "keys"
        keys.mkdir(mode=0o700)
        run(
            [
                *("tor-gencert", "--create-identity-key", "--passphrase-fd", "0", "-m", "12"),
                *("-a", f"{ADDRESS}:{5050 + number}", "-i", keys / "authority_identity_key"),
                *("-s", keys / "authority_signing_key", "-c", keys / "authority_certificate"),
            ],
            timeout=60,
            stdin="x\n",
        )
        certificate = (keys / "authority_certificate").read_text()
        identity = next(
            line.split()[1] for line in certificate.splitlines() if line.startswith("fingerprint ")
        )
        # A throw-away torrc: --list-fingerprint makes the relay key, and must not contact anybody to do so.
        (directory / "torrc").write_text(
            f"{_COMMON}DataDirectory {directory}\nORPort {ADDRESS}:{5000 + number}\n"
            f"DirAuthority none orport=1 v3ident={identity} {ADDRESS}:1 {identity}\n"
        )
        listing = run(
            self.lab.inside(
                "tor",
                ["tor", "--list-fingerprint", "-f", directory / "torrc", "--Nickname", f"authority{number}"],
            ),
            timeout=60,
        ).stdout
        found = re.search(rf"^authority{number} ([0-9A-F ]{{40,}})$", listing, re.MULTILINE)
        if found is None:
            raise LabError(f"tor --list-fingerprint printed no fingerprint:\n{listing}")
        fingerprint = found[1].replace(" ", "")
        line = (
            f"DirAuthority authority{number} orport={5000 + number} v3ident={identity} "
            f"{ADDRESS}:{5050 + number} {fingerprint}\n"
        )
        return line, directory

    def _start(self, directory: Path, port: int, options: str) -> None:
        (directory / "torrc").write_text(
            f"{_COMMON}{self._authority_lines}{options}Nickname {directory.name}\n"
            f"DataDirectory {directory}\nORPort {ADDRESS}:{port}\nLog notice file {directory}/log\n"
        )
        self._spawn(["tor", "-f", directory / "torrc", "--quiet"], f"{directory.name}.out")

    def _spawn(self, command: list[str | Path], log: str) -> None:
        self.lab.start("tor", command, self.lab.directory / "tor" / log)

    def _wait(self, authority: Path) -> None:
        deadline = time.monotonic() + CONSENSUS_SECONDS
        exits = 0
        while time.monotonic() < deadline:
            for file in authority.glob("cached-*consensus"):
                flags = [line.split() for line in file.read_text().splitlines() if line.startswith("s ")]
                exits = sum({"Exit", "Guard", "Running"} <= set(words) for words in flags)
                if exits >= RELAYS:
                    return
            time.sleep(0.5)
        log = (authority / "log").read_text(errors="replace")[-3000:]
        raise LabError(
            f"the private Tor network has {exits} of {RELAYS} exits after {CONSENSUS_SECONDS:g} s\n{log}"
        )
