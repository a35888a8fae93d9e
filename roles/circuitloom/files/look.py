#!/usr/bin/env python3
"""Says in one go what the role has to know about a host before it touches it. Reads only.

Run on the host with Debian's own Python, standard library only. A module call over SSH costs a quarter of a
second and more; this answers for twenty of them. The paths are those of vars/main.yml. One JSON object:

    os              {"id": "debian", "version": "12"}
    systemd         whether systemd runs the host
    tor             whether Debian's Tor is there
    tor_started     which of its units run, and come back with the host
    torrc, fragment their text, or null
    torrc_directory whether there is one, whoever made it
    instances       the instances of Tor that have a torrc
    packages        what is installed
    files           path -> [SHA-1, mode, owner, group] of the files the role writes
    units           our units and their directories of drop-ins
    state           the directories of what our agents remember
    directories     those the role makes that are as it makes them
    by_hand         whether an agent is there that this role did not install
    current         what the link to the release says; `last_good` the same of the release that was last good
    releases        [{"name": ..., "complete": ..., "at": seconds since the epoch}]
    agents          unit -> whether it runs and comes back with the host, of every agent that does either
    kept            those whose files were kept when they last passed the gate
    kept_fragment   the text of that one then; empty for none then, null where nothing was kept
    unsettled       those that come back, but may not have read what their files say: it is not what was kept,
                    or a reload failed
    record          name -> text of what the role noted about itself
    textfiles       path -> target of the links to metrics that it noted
"""

from __future__ import annotations

import grp
import hashlib
import json
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ETC = Path("/etc")
SYSTEM = ETC / "systemd/system"
STARTED = SYSTEM / "multi-user.target.wants"
PREFIX = Path("/opt/circuitloom")
FRAGMENT = ETC / "tor/torrc.d/50-circuitloom.conf"
KEPT = PREFIX / "last-good"
UNITS = ("circuitloom.service", "circuitloom@*.service")
PLAIN = stat.S_IFDIR | 0o755


def ours(*patterns: str, within: Path = SYSTEM) -> Iterable[Path]:
    """The paths under systemd's directory that match one of our two units."""
    for unit in UNITS:
        for pattern in patterns:
            yield from within.glob(f"{unit}{pattern}")


def text_of(path: Path) -> str | None:
    """The text of a file, or None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def link_of(path: Path) -> str:
    """What a link says, or an empty string."""
    return str(path.readlink()) if path.is_symlink() else ""


def name_of(find: Callable[[int], tuple[object, ...]], number: int) -> str:
    """The name of a user or a group; the number itself for one without."""
    try:
        return str(find(number)[0])
    except KeyError:
        return str(number)


def facts_of(path: Path) -> list[str]:
    """SHA-1 (as Ansible's own modules compare), mode, owner and group of a file."""
    about = path.lstat()
    return [
        hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest(),
        f"{stat.S_IMODE(about.st_mode):04o}",
        name_of(pwd.getpwuid, about.st_uid),
        name_of(grp.getgrgid, about.st_gid),
    ]


def is_plain(path: Path) -> bool:
    """Whether it is a directory of root's with 0755."""
    try:
        about = path.lstat()
    except OSError:
        return False
    return about.st_mode == PLAIN and about.st_uid == about.st_gid == 0


def ask(*command: str) -> str:
    """What a program prints; its exit code says nothing here."""
    return subprocess.run(  # noqa: S603  # fixed commands
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False
    ).stdout


def running(units: Iterable[str]) -> list[str]:
    """Which units run."""
    return [unit for unit in units if ask("systemctl", "is-active", unit).strip() == "active"]


def loaded() -> list[str]:
    """Our units that run or failed, whether they are enabled or not."""
    listing = ask("systemctl", "list-units", "--all", "--plain", "--no-legend", "--full", *UNITS)
    rows = [line.split() for line in listing.splitlines()]
    return [unit for unit, load, active, *_ in rows if load == "loaded" and active != "inactive"]


def is_settled(unit: str) -> bool:
    """Whether an agent passed the gate with what its files say, and no reload failed since."""
    name = unit.removesuffix(".service").partition("@")[2]
    shared = f"circuitloom{'@' if name else ''}.service"
    policy = f"{name or 'policy'}.yml"
    files = [
        (SYSTEM / shared, KEPT / "units" / shared),
        (SYSTEM / f"{unit}.d/50-ansible.conf", KEPT / f"units/{unit}.conf"),
        (ETC / "circuitloom" / policy, KEPT / "policies" / policy),
    ]
    return (
        all(text_of(file) == text_of(kept) for file, kept in files)
        and f"../{link_of(PREFIX / 'current')}" == link_of(KEPT / "current")
        and set(ask("systemctl", "show", "--property=NeedDaemonReload,ReloadResult", unit).split())
        == {"NeedDaemonReload=no", "ReloadResult=success"}
    )


def main() -> None:
    """Look, and print."""
    release = dict(
        line.split("=", 1) for line in (text_of(ETC / "os-release") or "").splitlines() if "=" in line
    )
    comes_back = ["tor@default.service"] + ["tor.service"] * (STARTED / "tor.service").is_symlink()
    agents = [path.name for path in ours("", within=STARTED) if path.is_symlink()]
    files = [*ours("", ".d/50-ansible.conf"), *(ETC / "circuitloom").glob("*"), FRAGMENT]
    directories = [
        *(PREFIX / "record", ETC / "circuitloom", FRAGMENT.parent),
        *ours(".d"),
        *PREFIX.glob("releases/*"),
    ]
    found = {
        "os": {name.lower(): release.get(name, "").strip('"') for name in ("ID", "VERSION_ID")},
        "systemd": Path("/run/systemd/system").is_dir(),
        "tor": Path("/usr/bin/tor").exists(),
        "tor_started": [
            unit
            for unit in running(comes_back)
            if link_of(SYSTEM / unit) != "/dev/null"  # masked
        ],
        "torrc": text_of(ETC / "tor/torrc"),
        "fragment": text_of(FRAGMENT),
        "torrc_directory": FRAGMENT.parent.is_dir(),
        "instances": [path.parent.name for path in ETC.glob("tor/instances/*/torrc")],
        "packages": [
            line[3:]
            for line in ask(
                "dpkg-query", "--show", "--showformat=${db:Status-Abbrev}${Package}\n"
            ).splitlines()
            if line[1:3] == "i "  # also one that somebody holds: "hi"
        ],
        "files": {
            str(path): facts_of(path)
            for path in [*files, Path("/usr/local/bin/circuitloom")]
            if path.is_file() and not path.is_symlink()
        },
        "units": [str(path) for path in ours("", ".d")],
        "state": [
            str(path)
            for folder in ("/var/lib", "/var/lib/private")
            for pattern in ("circuitloom", "circuitloom-*")
            for path in Path(folder).glob(pattern)
        ],
        "directories": [str(path) for path in directories if is_plain(path)],
        "by_hand": (PREFIX / "current").is_dir() and not (PREFIX / "current").is_symlink(),
        "current": link_of(PREFIX / "current"),
        "last_good": link_of(PREFIX / "last-good/current"),
        "releases": [
            {"name": path.name, "complete": (path / "complete").exists(), "at": path.stat().st_mtime}
            for path in PREFIX.glob("releases/*")
            if path.is_dir()
        ],
        "agents": dict.fromkeys([*loaded(), *agents], False) | dict.fromkeys(running(agents), True),
        "kept": [path.name.removesuffix(".conf") for path in KEPT.glob("units/*.conf")],
        "kept_fragment": text_of(KEPT / "torrc.conf"),
        "unsettled": [unit for unit in agents if not is_settled(unit)],
        "textfiles": {
            path: link_of(Path(path)) for path in (text_of(PREFIX / "record/textfiles") or "").split()
        },
        "record": {path.name: text_of(path) for path in PREFIX.glob("record/*")},
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
