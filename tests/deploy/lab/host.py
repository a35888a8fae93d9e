"""One systemd-nspawn host: an overlay on a golden root, its own control group and network namespace, SSH."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.lab.golden import golden_root
from deploy.lab.lab import Lab
from deploy.lab.shell import LabError, run

BOOT_SECONDS = 60.0  # about one second alone, ten beside a busy machine
POWER_OFF_SECONDS = 30.0  # three seconds in practice
GUEST = Path(__file__).with_name("guest.py")


@dataclass
class Host:
    """A booted host.

    Attributes:
        lab: Where it lives.
        name: Its short name, the one in the inventory.
        release: Debian's code name.
        address: Where it answers SSH.
    """

    lab: Lab
    name: str
    release: str
    address: str

    @property
    def directory(self) -> Path:
        """Its overlay, log and mount point."""
        return self.lab.directory / self.name

    @property
    def root(self) -> Path:
        """Its root file system, as this machine sees it."""
        return self.directory / "root"

    @property
    def ssh_options(self) -> list[str]:
        """Options every ssh to the host needs: the throw-away key, and no trace in our own known hosts."""
        return [
            *("-i", str(self.lab.directory / "key"), "-l", "root", "-F", "none"),
            *("-o", "StrictHostKeyChecking=accept-new", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10"),
            *("-o", f"UserKnownHostsFile={self.lab.directory / 'known_hosts'}", "-o", "LogLevel=ERROR"),
        ]

    def create(self) -> None:
        """Mount the overlay; the host is not booted yet, so `root` can still be prepared."""
        golden = golden_root(self.release, self.lab)
        for part in ("upper", "work", "root"):
            (self.directory / part).mkdir(parents=True)
        layers = f"lowerdir={golden},upperdir={self.directory}/upper,workdir={self.directory}/work"
        run(["mount", "-t", "overlay", self.lab.name, "-o", layers, self.root], timeout=30)
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        key = self.lab.directory / "key"
        if not key.exists():
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.lab.name, "-f", key], timeout=30)
        shutil.copy(f"{key}.pub", self.root / "root/.ssh/authorized_keys")

    def boot(self) -> None:
        """Start systemd and wait until it answers SSH and says that it is running."""
        self.lab.add_namespace(self.name, self.address)
        command: list[str | Path] = [
            *(
                "systemd-nspawn",
                "--quiet",
                "--directory",
                self.root,
                f"--machine={self.lab.name}-{self.name}",
            ),
            *(f"--hostname={self.name}", "--boot"),
            f"--network-namespace-path={self.lab.namespace(self.name)}",
            # A real host has these, and systemd needs them for PrivateNetwork= and IPAddressDeny=; namespace
            # and control group are the host's own.
            *("--capability=CAP_NET_ADMIN,CAP_BPF", "--system-call-filter=bpf"),
            *("--register=no", "--keep-unit", "--console=pipe", "--resolv-conf=off", "--timezone=off"),
        ]
        # Where this machine has the old cgroup trees, a host still gets the one a real Debian has.
        unified = {"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        self._supervisor = self.lab.start(self.name, command, self.directory / "console.log", env=unified)
        deadline = time.monotonic() + BOOT_SECONDS
        while time.monotonic() < deadline:
            state = self.run("systemctl is-system-running --wait", check=False).strip()
            if state in {"running", "degraded"}:
                return
            if self._supervisor.poll() is not None:
                break
            time.sleep(0.2)
        log = (self.directory / "console.log").read_text(errors="replace")
        raise LabError(f"host {self.name} did not boot in {BOOT_SECONDS:g} s\n{log[-4000:]}")

    def power_off(self) -> None:
        """Shut the host down as its operator would, and take its namespace away."""
        self._supervisor.send_signal(signal.SIGTERM)
        try:
            self._supervisor.wait(POWER_OFF_SECONDS)
        except subprocess.TimeoutExpired:
            self._supervisor.kill()
            self._supervisor.wait(POWER_OFF_SECONDS)
        self.lab.remove_namespace(self.name)
        run(["umount", "--lazy", self.root], timeout=30)

    def ssh(
        self, command: str, *, timeout: float = 60.0, check: bool = True, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell command on the host, through a connection that is kept for the next one."""
        words = [
            *("ssh", *self.ssh_options, "-o", "ControlMaster=auto", "-o", "ControlPersist=60"),
            *("-o", f"ControlPath={self.lab.directory}/%h", self.address, command),
        ]
        return run(self.lab.inside("ctl", words), timeout=timeout, check=check, stdin=stdin)

    def run(
        self, command: str, *, timeout: float = 60.0, check: bool = True, stdin: str | None = None
    ) -> str:
        """Run a shell command on the host and return what it printed."""
        return self.ssh(command, timeout=timeout, check=check, stdin=stdin).stdout

    def guest(
        self, *words: str, timeout: float = 120.0, control: str = "", socks: str = ""
    ) -> dict[str, Any]:
        """Run the stream script on the host (see `guest.py`) and return the object it prints.

        Args:
            words: Its command and the arguments of that.
            timeout: Seconds it may take.
            control: Another Tor's control socket, beside its cookie; empty for that of the default service.
            socks: Another Tor's HOST:PORT or socket.
        """
        other = [f"GUEST_CONTROL={control}", f"GUEST_COOKIE={control}.authcookie"] if control else []
        other += [f"GUEST_SOCKS={socks}"] if socks else []
        command = shlex.join(["env", *other, "python3", "-", *words])
        printed = self.run(command, timeout=timeout, stdin=GUEST.read_text())
        answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
        return answer

    def hang_up(self) -> None:
        """End the kept connections, so that the next command is a new session."""
        for path in self.lab.directory.glob(f"*{self.address}"):
            if path.is_socket():
                run(
                    ["ssh", "-F", "none", "-o", f"ControlPath={path}", "-O", "exit", self.address],
                    timeout=30,
                    check=False,
                )

    def put_guest(self) -> None:
        """Leave the stream script at /run/guest.py, for a stream that outlives one ssh command."""
        self.run("cat > /run/guest.py", stdin=GUEST.read_text())

    def journal(self, unit: str, since: str = "") -> str:
        """Return a unit's journal, messages only, from a cursor or time on."""
        after = f"--since={shlex.quote(since)}" if since else ""
        return self.run(f"journalctl --unit={unit} --output=cat --no-pager {after}")

    def now(self) -> str:
        """Return the host's clock in the form `journal` takes."""
        return self.run("date '+%F %T.%6N'").strip()

    def wait_until(self, command: str, *, seconds: float, every: float = 0.3) -> float:
        """Repeat a shell command until it exits 0; return how long that took.

        Raises:
            LabError: It did not within `seconds`; the message holds what it printed last.
        """
        begin = time.monotonic()
        while True:
            done = self.ssh(command, check=False)
            spent = time.monotonic() - begin
            if done.returncode == 0:
                return spent
            if spent > seconds:
                raise LabError(f"{self.name}: not within {seconds:g} s: {command}\n{done.stdout[-3000:]}")
            time.sleep(every)
