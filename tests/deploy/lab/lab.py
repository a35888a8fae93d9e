"""One lab: its names, network namespaces, control groups and state directory; and how all of it goes away.

Everything a lab makes carries the lab's name (`clab-<six hex digits>`), so that `remove` finds it without
any record but the name. A second process, the reaper, holds the reading end of a pipe from pytest and calls
`remove` when the pipe closes: at the end of a run, on Ctrl-C, and when pytest is killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from deploy.lab.shell import LabError, run

# One subnet inside the lab's own namespaces; it exists nowhere else on the machine.
SUBNET = "10.98.0"
ADDRESSES = {"ctl": f"{SUBNET}.1", "tor": f"{SUBNET}.2"}
ECHO_ADDRESS = (
    f"{SUBNET}.3"  # a second address of the Tor namespace: an exit refuses to reach a relay's own address
)
KILL_SECONDS = 10.0  # from SIGKILL to an empty control group; milliseconds in practice
NSPAWN_STATE = Path("/run/systemd/nspawn")


def cache_directory() -> Path:
    """Return the directory under which everything that outlives a test run is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "circuitloom"


def _hierarchies() -> list[Path]:
    """Return the trees a host needs a group in: that of cgroup2, or the named and the unified of a hybrid."""
    base = Path("/sys/fs/cgroup")
    if (base / "cgroup.controllers").exists():
        return [base]
    return [tree for tree in (base / "systemd", base / "unified") if tree.is_dir()]


@dataclass
class Lab:
    """The namespaces and groups that hosts and relays are put into.

    Attributes:
        name: `clab-<six hex digits>`, the prefix of everything it makes.
        directory: Its state on disk: overlays, keys, logs.
    """

    name: str
    directory: Path
    _reaper: subprocess.Popen[bytes] = field(repr=False)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)

    @classmethod
    def create(cls) -> Lab:
        """Make an empty lab: bridge and controller; the reaper comes first, so nothing is left behind."""
        name = f"clab-{secrets.token_hex(3)}"
        directory = cache_directory() / "labs" / name
        directory.mkdir(parents=True)
        reaper = subprocess.Popen(
            [sys.executable, "-m", "deploy.lab.reaper", name, str(directory)],
            stdin=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
            start_new_session=True,  # Ctrl-C reaches the whole foreground group; the reaper must outlive it
        )
        lab = cls(name, directory, reaper)
        run(["ip", "netns", "add", f"{name}-sw"], timeout=30)
        lab._ip("sw", "link", "add", "br0", "type", "bridge")
        lab._ip("sw", "link", "set", "br0", "up")
        lab.add_namespace("ctl", ADDRESSES["ctl"])
        return lab

    def close(self) -> None:
        """Remove the lab and wait until it is gone."""
        if self._reaper.stdin is not None:
            self._reaper.stdin.close()
        self._reaper.wait(timeout=60)
        for process in self._started:
            process.wait(timeout=KILL_SECONDS)  # dead already; this only collects them

    def _ip(self, member: str, *words: str) -> None:
        run(["ip", "-n", f"{self.name}-{member}", *words], timeout=30)

    def namespace(self, member: str) -> Path:
        """Return the path of a member's network namespace."""
        return Path("/run/netns") / f"{self.name}-{member}"

    def add_namespace(self, member: str, *addresses: str) -> None:
        """Give a member its network namespace, joined to the bridge; no route leads out of the subnet."""
        run(["ip", "netns", "add", f"{self.name}-{member}"], timeout=30)
        self._ip(member, "link", "set", "lo", "up")
        run(
            [
                *("ip", "link", "add", "host0", "netns", f"{self.name}-{member}"),
                *("type", "veth", "peer", "name", f"p-{member}", "netns", f"{self.name}-sw"),
            ],
            timeout=30,
        )
        self._ip("sw", "link", "set", f"p-{member}", "master", "br0", "up")
        for address in addresses:
            self._ip(member, "addr", "add", f"{address}/24", "dev", "host0")
        self._ip(member, "link", "set", "host0", "up")

    def remove_namespace(self, member: str) -> None:
        """Take a member off the bridge again."""
        run(["ip", "netns", "del", f"{self.name}-{member}"], timeout=30)

    def inside(self, member: str, command: Sequence[str | Path], *, network: bool = True) -> list[str]:
        """Return the command line that runs `command` in a member's control group (and network namespace).

        The group is what makes cleaning certain: whatever a command starts stays in it.
        """
        groups = [tree / self.name / member for tree in _hierarchies()]
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
        enter = "".join(f"echo $$ > {group}/cgroup.procs; " for group in groups)
        into = f"nsenter --net={self.namespace(member)} " if network else ""
        return ["sh", "-ec", f'{enter}exec {into}"$@"', "sh", *map(str, command)]

    def start(
        self, member: str, command: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a program that runs until the lab is closed.

        Args:
            member: In whose control group; also in whose namespace, unless `env` is given.
            command: Program and arguments.
            log: Where its output goes.
            env: More environment, for systemd-nspawn, which enters the namespace itself.
        """
        with log.open("wb") as out:
            process = subprocess.Popen(
                self.inside(member, command, network=env is None),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,  # Ctrl-C is for pytest, which takes the lab down in order
            )
        self._started.append(process)
        return process


def _processes(name: str) -> Iterator[int]:
    for tree in _hierarchies():
        for listing in (tree / name).glob("**/cgroup.procs"):
            with contextlib.suppress(OSError):
                yield from (int(pid) for pid in listing.read_text().split() if pid != "0")


def _kill_all(name: str) -> None:
    """Kill every process in the lab's control groups, until none is left."""
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        alive = set(_processes(name))
        if not alive:
            return
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def remove(name: str, directory: Path) -> None:
    """Remove everything a lab made; safe to repeat, and on a lab that was never finished."""
    _kill_all(name)
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        target = line.split()[1]
        if target.startswith((f"{directory}/", f"{NSPAWN_STATE}/unix-export/{name}-")):
            run(["umount", "--lazy", target], timeout=30, check=False)
    for namespace in Path("/run/netns").glob(f"{name}-*"):
        run(["ip", "netns", "del", namespace.name], timeout=30, check=False)
    for tree in _hierarchies():
        groups = sorted((tree / name).glob("**/"), key=lambda path: len(path.parts), reverse=True)
        for group in groups:
            with contextlib.suppress(OSError):
                group.rmdir()
    for leftover in NSPAWN_STATE.glob(f"*/*{name}-*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def leftovers(name: str, directory: Path) -> list[str]:
    """Say what of a lab still exists; an empty list after `remove`."""
    found = [str(path) for path in Path("/run/netns").glob(f"{name}-*")]
    found += [str(tree / name) for tree in _hierarchies() if (tree / name).exists()]
    found += [f"process {pid}" for pid in _processes(name)]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if name in line]
    found += [str(path) for path in NSPAWN_STATE.glob(f"*/*{name}-*")]
    return found + ([str(directory)] if directory.exists() else [])


__all__ = ["ADDRESSES", "ECHO_ADDRESS", "SUBNET", "Lab", "LabError", "cache_directory", "leftovers", "remove"]
