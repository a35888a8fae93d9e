"""Opens SOCKS streams on a host, and asks Tor itself (not the agent) which circuits they went to.

Runs on the hosts with Debian's own Python and nothing else: one file, standard library only. Commands:

    spread TARGET N      open N streams at once, count them per circuit as Tor reports them, close them
    load TARGET SECONDS USERS
                         open streams one after the other, for as many SOCKS users, and count them
    hold TARGET FILE     keep one stream open until FILE.stop exists; every 0.1 s an echo, told in FILE
    until TARGET SECONDS try new streams until one works: how long until streams work again
    option               __LeaveStreamsUnattached by Tor's word, and how many streams wait
    connected TARGET     stream id -> circuit id, of every stream to it that is connected
    circuits             the circuits that Tor has BUILT, by id
    tree                 every file of the host that is not state: path -> kind, mode, owner, content

Each prints one JSON object.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CONTROL = os.environ.get("GUEST_CONTROL", "/run/tor/control")
COOKIE = os.environ.get("GUEST_COOKIE", "/run/tor/control.authcookie")
SOCKS = os.environ.get("GUEST_SOCKS", "/run/tor/socks")
# What a running system writes by itself, or a package manager about packages.
STATE = {
    f"/{path}"
    for path in (
        *("dev", "proc", "root/.ansible", "run", "srv", "sys", "tmp"),
        *("var/backups", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/lib/systemd", "var/lib/tor"),
        *("var/log", "var/tmp"),
    )
}
STREAM_SECONDS = 20.0  # a stream of the private network takes under 0.1 s; more means that nobody attached it


class Control:
    """A blocking control connection: one command, one reply."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(CONTROL)
        self._lines = self._socket.makefile("r", encoding="utf-8", newline="\r\n")
        self.ask(f"AUTHENTICATE {Path(COOKIE).read_bytes().hex()}")

    def ask(self, command: str) -> list[str]:
        """Send a command and return the lines of its reply, without codes."""
        self._socket.sendall(f"{command}\r\n".encode())
        lines: list[str] = []
        data = False
        while True:
            line = self._lines.readline().rstrip("\r\n")
            if data:
                data = line != "."
                if data:
                    lines.append(line)
                continue
            if not line.startswith("250"):
                raise SystemExit(f"{command.split(maxsplit=1)[0]}: {line}")
            if line[3:4] == " ":
                return [*lines, line[4:]]
            data = line[3:4] == "+"
            lines.append(line[4:])

    def streams(self) -> list[tuple[str, str, str, str]]:
        """Return (id, status, circuit id, target) of every stream Tor has."""
        found = []
        for line in self.ask("GETINFO stream-status"):
            words = line.removeprefix("stream-status=").split()
            if len(words) >= 4:
                found.append((words[0], words[1], words[2], words[3]))
        return found

    def circuits(self) -> list[str]:
        """Return the ids of the circuits that are BUILT."""
        lines = (line.removeprefix("circuit-status=") for line in self.ask("GETINFO circuit-status"))
        return [line.partition(" ")[0] for line in lines if " BUILT " in line]


def stream(target: str, user: str = "") -> socket.socket:
    """Open one SOCKS5 stream to HOST:PORT and prove that it echoes; raises OSError when it does not."""
    host, _, port = target.rpartition(":")
    link = begin(host, int(port), user)
    finish(link)
    return link


def begin(host: str, port: int, user: str = "") -> socket.socket:
    """Send a SOCKS5 request without waiting for its reply; `user` also serves as the password."""
    where, _, number = SOCKS.partition(":")
    link = socket.socket(socket.AF_INET if number else socket.AF_UNIX)
    link.settimeout(STREAM_SECONDS)
    link.connect((where, int(number)) if number else SOCKS)
    method = b"\x02" if user else b"\x00"
    link.sendall(b"\x05\x01" + method)
    if receive(link, 2) != b"\x05" + method:
        raise OSError("SOCKS refused")
    if user:
        word = len(user).to_bytes(1, "big") + user.encode()
        link.sendall(b"\x01" + word + word)
        if receive(link, 2) != b"\x01\x00":
            raise OSError("SOCKS refused the user")
    link.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + port.to_bytes(2, "big"))
    return link


def finish(link: socket.socket) -> None:
    """Wait for the SOCKS reply and one echo."""
    reply = receive(link, 4)
    if reply[1] != 0:
        raise OSError(f"SOCKS code {reply[1]}")
    # On a Unix socket Tor fills in an empty IPv6 address: 16 bytes and the port, not 4.
    receive(link, 2 + (16 if reply[3] == 4 else 4))
    echo(link)


def echo(link: socket.socket) -> None:
    """Send eight random bytes and expect them back."""
    sent = os.urandom(8)
    link.sendall(sent)
    if receive(link, 8) != sent:
        raise OSError("other bytes came back")


def receive(link: socket.socket, count: int) -> bytes:
    """Read exactly `count` bytes."""
    got = b""
    while len(got) < count:
        part = link.recv(count - len(got))
        if not part:
            raise OSError("end of stream")
        got += part
    return got


def connected(target: str) -> dict[str, Any]:
    """Return stream id -> circuit id of the streams to `target` that Tor has connected."""
    return {
        identity: circuit
        for identity, status, circuit, where in Control().streams()
        if status == "SUCCEEDED" and where == target
    }


def spread(target: str, count: str) -> dict[str, Any]:
    host, _, port = target.rpartition(":")
    failures = []
    # Whatever a test holds open besides is not counted.
    before = connected(target)
    links = [begin(host, int(port)) for _ in range(int(count))]
    for link in links:
        try:
            finish(link)
        except OSError as error:
            failures.append(str(error))
    after = connected(target)
    for link in links:
        link.close()
    per_circuit: dict[str, int] = {}
    for circuit in (after[identity] for identity in after.keys() - before.keys()):
        per_circuit[circuit] = per_circuit.get(circuit, 0) + 1
    return {"opened": int(count) - len(failures), "failures": failures, "per_circuit": per_circuit}


def load(target: str, seconds: str, users: str) -> dict[str, Any]:
    ends, opened, failures = time.monotonic() + float(seconds), 0, []
    while time.monotonic() < ends:
        try:
            stream(target, f"user{opened % int(users)}").close()
        except OSError as error:
            failures.append(str(error) or type(error).__name__)
        opened += 1
    return {"opened": opened, "failures": failures}


def hold(target: str, file: str) -> dict[str, Any]:
    before = connected(target)
    link = stream(target)
    (identity,) = connected(target).keys() - before.keys()
    echoes, fault = 0, ""

    def tell() -> None:
        # Renamed into place, so that a reader never sees half of it.
        Path(f"{file}.new").write_text(json.dumps({"stream": identity, "echoes": echoes, "fault": fault}))
        Path(f"{file}.new").rename(file)

    while not Path(f"{file}.stop").exists():
        try:
            echo(link)
        except OSError as error:
            fault = str(error) or type(error).__name__
            break
        echoes += 1
        tell()
        time.sleep(0.1)
    tell()
    return {"echoes": echoes, "fault": fault}


def until(target: str, seconds: str) -> dict[str, Any]:
    global STREAM_SECONDS  # noqa: PLW0603  # a waiting stream must not eat the whole time of the trial
    STREAM_SECONDS = min(STREAM_SECONDS, float(seconds))
    begun, tries, faults = time.monotonic(), 0, []
    while time.monotonic() - begun < float(seconds):
        tries += 1
        try:
            stream(target).close()
        except OSError as error:
            faults.append(str(error) or type(error).__name__)
            time.sleep(0.1)
        else:
            return {"seconds": round(time.monotonic() - begun, 2), "tries": tries, "faults": faults}
    return {"seconds": None, "tries": tries, "faults": faults}


def option() -> dict[str, Any]:
    control = Control()
    value = control.ask("GETCONF __LeaveStreamsUnattached")[0].partition("=")[2]
    waiting = sum(
        status in {"NEW", "NEWRESOLVE"} and circuit == "0" for _, status, circuit, _ in control.streams()
    )
    return {"value": value, "waiting": waiting}


def circuits() -> dict[str, Any]:
    return {"built": Control().circuits()}


def tree() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if str(Path(folder) / name) not in STATE]
        for path in [Path(folder) / name for name in folders + files]:
            about = path.lstat()
            content = ""
            if stat.S_ISLNK(about.st_mode):
                content = str(path.readlink())
            elif stat.S_ISREG(about.st_mode):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            found[str(path)] = [oct(about.st_mode), about.st_uid, about.st_gid, content]
    return found


if __name__ == "__main__":
    commands: dict[str, Callable[..., dict[str, Any]]] = {
        "spread": spread,
        "load": load,
        "hold": hold,
        "until": until,
        "option": option,
        "connected": connected,
        "circuits": circuits,
        "tree": tree,
    }
    sys.stdout.write(json.dumps(commands[sys.argv[1]](*sys.argv[2:])) + "\n")
