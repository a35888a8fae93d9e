"""The program of `rounds` inside the unit's sandbox: it reaches what a role variable opens, and no more.

a (Debian 12): `circuitloom_rounds_group`, for a Unix socket of that group.
b (Debian 12): nothing opened.
c (Debian 13): `circuitloom_network: loopback`, for a port of the host.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from deploy.lab.fleet import Fleet, balanced
from deploy.lab.host import Host

HOOK = "/usr/libexec/circuitloom/reach"
# Groups that every Debian has: making one would change files that the tests of `state: absent` compare.
GROUP, OTHER_GROUP = "games", "news"
PORT = 7411
ROUND_SECONDS = 30.0

# Tries everything once, and answers what it could do, or why not. Runs with Debian's own Python.
REACH = """#!/usr/bin/python3 -I
import errno, json, os, socket, sys
away = sys.argv[1]

def unix(path):
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(path)

def tcp(family, address, port):
    with socket.socket(family) as link:
        link.settimeout(3)
        link.connect((address, port))

def raw():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()

def read(path):
    with open(path, "rb") as file:
        file.read(1)

def write(folder):
    name = os.path.join(folder, "reached")
    open(name, "w").close()
    os.unlink(name)

trials = {
    "socket": lambda: unix("/run/reach/%(group)s"),
    "other_socket": lambda: unix("/run/reach/%(other)s"),
    "loopback": lambda: tcp(socket.AF_INET, "127.0.0.1", %(port)d),
    "network": lambda: tcp(socket.AF_INET, away, 22),
    "raw": raw,
    "shadow": lambda: read("/etc/shadow"),
    "home": lambda: write("/root"),
    "etc": lambda: write("/etc/circuitloom"),
    "usr": lambda: write("/usr/libexec"),
    "state": lambda: write("/var/lib/circuitloom"),
}
found = {}
for name, trial in trials.items():
    try:
        trial()
    except OSError as error:
        found[name] = errno.errorcode.get(error.errno, "timeout")
    else:
        found[name] = "reached"
found["groups"] = os.getgroups()
print(json.dumps(found))
"""

# What there is to reach: two Unix sockets, each for one group, and a port.
SERVERS = """
import grp, os, socket, time
os.makedirs("/run/reach", exist_ok=True)
kept = []
for name in ("%(group)s", "%(other)s"):
    link = socket.socket(socket.AF_UNIX)
    path = "/run/reach/" + name
    link.bind(path)
    os.chown(path, 0, grp.getgrnam(name).gr_gid)
    os.chmod(path, 0o660)
    kept.append(link)
port = socket.socket()
port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
port.bind(("127.0.0.1", %(port)d))
for link in (*kept, port):
    link.listen(64)
time.sleep(3600)
"""
NAMES = {"group": GROUP, "other": OTHER_GROUP, "port": PORT}


def prepare(host: Host) -> None:
    """Put the program there, and what it may or may not reach."""
    host.run(f"mkdir -p {HOOK.rpartition('/')[0]}; cat > {HOOK}; chmod 755 {HOOK}", stdin=REACH % NAMES)
    host.run("cat > /run/servers.py", stdin=SERVERS % NAMES)
    host.run("systemd-run --quiet --collect --unit=guest-servers python3 /run/servers.py")
    host.wait_until(f"test -S /run/reach/{OTHER_GROUP}", seconds=10)


def rows(host: Host) -> list[dict[str, Any]]:
    """The ledger, as its operator lists it."""
    listed: list[dict[str, Any]] = json.loads(host.run("circuitloom rounds --json"))
    return listed


def reached(host: Host) -> dict[str, Any]:
    """What the program of the last round that is done could do."""
    done = [row for row in rows(host) if row["outcome"] == "done"]
    assert done, host.journal("circuitloom")[-3000:]
    answer: dict[str, Any] = done[-1]["answer"]
    return answer


def everything_reached(answer: dict[str, Any]) -> set[str]:
    return {name for name, what in answer.items() if what == "reached"}


@pytest.fixture(scope="module")
def rounds(fleet: Fleet) -> Iterator[Fleet]:
    """The fleet with rounds on every host, and something else opened on each."""
    fleet.normal()
    hosts = fleet.hosts
    away = {"a": hosts["b"].address, "b": hosts["a"].address, "c": hosts["a"].address}
    opened: dict[str, dict[str, Any]] = {
        "a": {"circuitloom_rounds_group": GROUP},
        "b": {},
        "c": {"circuitloom_network": "loopback"},
    }
    for host in fleet.everyone:
        prepare(host)
    fleet.converge(
        host_variables={
            name: {
                **variables,
                "circuitloom_policy": {
                    **fleet.policy,
                    "rounds": {
                        "command": [HOOK, away[name]],
                        "interval": "5s",
                        "timeout": "4s",
                        "first_after": "1s",
                        "require_probe": False,
                    },
                },
            }
            for name, variables in opened.items()
        }
    )
    is_done = shlex.quote(
        "import json, sys; sys.exit(all(row['outcome'] != 'done' for row in json.load(sys.stdin)))"
    )
    for host in fleet.everyone:
        balanced(host)
        host.wait_until(f"circuitloom rounds --json | python3 -c {is_done}", seconds=ROUND_SECONDS)
    yield fleet
    fleet.normal()
    for host in fleet.everyone:
        host.run(f"systemctl stop guest-servers; rm -rf /run/reach /run/servers.py {HOOK.rpartition('/')[0]}")


def test_outside_of_the_sandbox_everything_is_there_to_be_reached(rounds: Fleet) -> None:
    host, other = rounds.hosts["a"], rounds.hosts["b"]
    found = json.loads(host.run(f"{HOOK} {other.address}"))

    assert everything_reached(found) == found.keys() - {"groups"}


def test_without_a_variable_the_program_reaches_the_state_directory_only(rounds: Fleet) -> None:
    found = reached(rounds.hosts["b"])

    assert everything_reached(found) == {"state"}, found


def test_a_group_opens_its_unix_socket_and_nothing_else(rounds: Fleet) -> None:
    host = rounds.hosts["a"]
    found = reached(host)

    assert everything_reached(found) == {"state", "socket"}, found
    # PrivateUsers= shows a group as nobody's; it counts all the same.
    assert found["loopback"] == found["network"] == "EAFNOSUPPORT"
    host.run("systemd-analyze security --threshold=10 --no-pager circuitloom")


def test_loopback_opens_the_ports_of_the_host_and_nothing_else(rounds: Fleet) -> None:
    host = rounds.hosts["c"]
    found = reached(host)

    assert everything_reached(found) == {"state", "loopback"}, found
    host.run("systemd-analyze security --threshold=20 --no-pager circuitloom")


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_the_operator_lists_the_ledger_with_the_agent_and_without_it(rounds: Fleet, name: str) -> None:
    host = rounds.hosts[name]
    listed = rows(host)

    assert {row["outcome"] for row in listed} <= {"done", None}
    assert [row["round"] for row in listed] == list(range(1, len(listed) + 1))
    # Alternating, as without a sandbox.
    assert [row["circuit"] for row in listed[:2]] == ["alpha", "beta"][: len(listed)]
    assert "alpha" in host.run("circuitloom rounds")
    assert host.run("circuitloom rounds --export csv").startswith("round,")
    read = json.loads(host.run("circuitloom rounds --state /var/lib/circuitloom --json"))
    assert [row["key"] for row in read[: len(listed)]] == [row["key"] for row in listed]
