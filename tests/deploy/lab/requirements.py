"""Whether this machine can run a lab, and what is missing, in words a person can act on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from deploy.lab.shell import run

# Program -> the Debian package that has it.
PROGRAMS = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "tor": "tor",
    "tor-gencert": "tor",
    "ansible-playbook": "pip: circuitloom[deploy]",
}

# debootstrap and nspawn want device nodes, mounts and namespaces; a root without these is root in name only.
CAP_SYS_ADMIN, CAP_NET_ADMIN, CAP_MKNOD = 21, 12, 27


def _capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def must_run() -> bool:
    """Say whether a missing lab is a failure and no reason to skip: on continuous integration."""
    return os.environ.get("CI", "").lower() in {"true", "1"}


def missing() -> list[str]:
    """Say what keeps this machine from running a lab; an empty list when nothing does."""
    faults = []
    if os.geteuid() != 0:
        faults.append("not root: namespaces, mounts and systemd-nspawn need it")
    else:
        have = _capabilities()
        faults += [
            f"root without {name}"
            for name, bit in (
                ("CAP_SYS_ADMIN", CAP_SYS_ADMIN),
                ("CAP_NET_ADMIN", CAP_NET_ADMIN),
                ("CAP_MKNOD", CAP_MKNOD),
            )
            if not have >> bit & 1
        ]
    search = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    faults += [
        f"no {program} (package {package})"
        for program, package in PROGRAMS.items()
        if shutil.which(program, path=search) is None
    ]
    if not any(line.split()[-1] == "overlay" for line in Path("/proc/filesystems").read_text().splitlines()):
        faults.append("the kernel has no overlay file system (modprobe overlay)")
    if (
        not faults
        and run(
            ["unshare", "--net", "--mount", "--pid", "--fork", "true"], timeout=10, check=False
        ).returncode
    ):
        faults.append("the kernel refuses new namespaces")
    return faults
