"""Everything that is not the default, at once: one host each, there and back again.

a (Debian 12): a second Tor with an agent of its own; a changed setting of Tor, and no secret among them.
b (Debian 12): installed from a wheelhouse; no settings of Tor at all, and no password.
c (Debian 13): Tor's control port over TCP with a password; a setting that Tor cannot change while it runs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.lab.fleet import HASHED_PASSWORD, SETTINGS, Fleet, balanced, main_pid, spread, status
from deploy.lab.host import Host
from deploy.lab.playbook import Result
from deploy.lab.shell import run
from deploy.lab.wheels import Wheels

INSTANCE = "second"
CONTROL = f"/run/tor-instances/{INSTANCE}/control"
TCP = {"control": "tcp:127.0.0.1:9051", "password_file": "/etc/circuitloom/control.password"}
SANDBOX = "RestrictAddressFamilies,PrivateNetwork,IPAddressAllow,IPAddressDeny"


@dataclass
class Variants:
    """What the hosts were before, and what two runs with variants did.

    Attributes:
        before: Host -> the process ids of its agent and of its Tor.
        first: The run that changes them.
        second: The same once more.
    """

    before: dict[str, tuple[int, int]]
    first: Result
    second: Result


def pids(host: Host) -> tuple[int, int]:
    return main_pid(host), main_pid(host, "tor@default")


def wheelhouse(folder: Path, wheels: Wheels) -> Path:
    """Make a directory of wheels with their hashes, for the Python of Debian 12: it is the controller's."""
    assert sys.version_info[:2] == (3, 11), "the wheels of PyYAML are made per version of Python"
    house = folder / "wheelhouse"
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", house, wheels.current], timeout=120)
    lines = []
    for wheel in sorted(house.iterdir()):
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (house / "requirements.txt").write_text("".join(lines))
    return house


@pytest.fixture(scope="module")
def varied(fleet: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Variants]:
    """The fleet with its variants."""
    fleet.normal()
    a = fleet.hosts["a"]
    a.run(f"tor-instance-create {INSTANCE}")
    torrc = fleet.network.client_torrc + "SocksPort 9150\n"
    a.run(f"cat > /etc/tor/instances/{INSTANCE}/torrc; systemctl start tor@{INSTANCE}", stdin=torrc)
    variants: dict[str, dict[str, Any]] = {
        "a": {
            "circuitloom_instances": [
                {"name": INSTANCE, "policy": {"circuits": [{"name": "gamma"}, {"name": "delta"}]}}
            ],
            "circuitloom_tor_settings": {"MaxCircuitDirtiness": 900},
        },
        "b": {
            "circuitloom_install_method": "wheelhouse",
            "circuitloom_wheelhouse": str(wheelhouse(tmp_path_factory.mktemp("variants"), fleet.wheels)),
            "circuitloom_tor_settings": {},
            "circuitloom_control_password": "",
        },
        "c": {
            "circuitloom_policy": {**fleet.policy, "tor": TCP},
            "circuitloom_tor_settings": {**SETTINGS, "ControlPort": 9051, "DisableDebuggerAttachment": False},
        },
    }
    before = {host.name: pids(host) for host in fleet.everyone}
    yield Variants(
        before,
        fleet.converge(host_variables=variants),
        fleet.converge(host_variables=variants),
    )
    a.run(f"systemctl stop tor@{INSTANCE}")


@pytest.fixture(scope="module")
def restored(fleet: Fleet, varied: Variants) -> Variants:
    """The fleet after that, in its normal state again."""
    fleet.normal()
    return varied


def sandbox(host: Host) -> dict[str, str]:
    lines = host.run(f"systemctl show --property={SANDBOX} circuitloom").splitlines()
    return dict(line.split("=", 1) for line in lines)


def python_of_yaml(host: Host) -> str:
    return host.run("/opt/circuitloom/current/venv/bin/python -Ic 'import yaml; print(yaml.__file__)'")


def test_a_second_run_changes_nothing_and_the_differences_are_reported(varied: Variants) -> None:
    assert varied.second.changes() == []
    assert "Drift: release differs: " in varied.second.output
    assert "Drift: Tor's MaxCircuitDirtiness differs: " in varied.second.output


def test_a_changed_option_is_a_reload_of_tor_and_the_agent_takes_its_option_back(
    fleet: Fleet, varied: Variants
) -> None:
    host = fleet.hosts["a"]

    assert "a: circuitloom : Apply the settings of Tor" in varied.first.changes()
    assert pids(host) == varied.before["a"]
    balanced(host)
    assert host.guest("option")["value"] == "1"


def test_no_settings_means_that_tor_is_left_alone(fleet: Fleet, varied: Variants) -> None:
    """What the role no longer declares is gone from Tor's configuration."""
    host = fleet.hosts["b"]

    assert host.run("grep -v '^#' /etc/tor/torrc.d/50-circuitloom.conf", check=False) == ""
    assert host.ssh("test -e /etc/circuitloom/control.password", check=False).returncode != 0
    assert pids(host)[1] == varied.before["b"][1]
    balanced(host)


def test_an_option_that_tor_cannot_change_while_it_runs_is_a_restart(fleet: Fleet, varied: Variants) -> None:
    """A reload would end Tor; the agent connects again by itself."""
    host = fleet.hosts["c"]

    assert pids(host)[1] != varied.before["c"][1]
    balanced(host)


@pytest.mark.usefixtures("varied")
def test_an_instance_of_tor_has_an_agent_of_its_own(fleet: Fleet) -> None:
    host = fleet.hosts["a"]

    second = json.loads(
        host.run(f"circuitloom status --json --socket /run/circuitloom-{INSTANCE}/admin.sock")
    )

    assert second["state"] == "balancing"
    assert CONTROL in json.dumps(second["tor"])
    assert host.run(f"systemctl is-enabled circuitloom@{INSTANCE}").strip() == "enabled"
    exposure = host.run(f"systemd-analyze security --threshold=10 circuitloom@{INSTANCE} | tail -n 1")
    assert float(exposure.split()[-3]) <= 1
    balanced(host)
    fleet.assert_spread_as_the_policy_says(host, 40)
    # Streams of the instance's own SOCKS port are its agent's.
    own = host.guest("spread", fleet.network.echo, "20", control=CONTROL, socks="127.0.0.1:9150")
    names = {circuit["circuit_id"]: circuit["name"] for circuit in second["circuits"]}
    assert {names[circuit]: count for circuit, count in own["per_circuit"].items()} == {
        "gamma": 10,
        "delta": 10,
    }


@pytest.mark.usefixtures("varied")
def test_a_wheelhouse_installs_with_pinned_hashes_and_no_network(fleet: Fleet) -> None:
    host = fleet.hosts["b"]

    assert "wheelhouse" in host.run("readlink /opt/circuitloom/current")
    assert python_of_yaml(host).startswith("/opt/circuitloom/current/venv/")
    balanced(host)
    fleet.assert_spread_as_the_policy_says(host, 40)


def test_a_control_port_with_a_password_opens_loopback_and_nothing_else(
    fleet: Fleet, varied: Variants
) -> None:
    host = fleet.hosts["c"]

    balanced(host)
    assert pids(host)[0] != varied.before["c"][0]  # `tor` is read at start only, so this change is a restart
    assert status(host)["tor"]["control"] == "tcp:127.0.0.1:9051"
    assert set(spread(host, fleet.network, 20)) == {"alpha", "beta"}
    opened = sandbox(host)
    assert set(opened["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET"}
    assert opened["PrivateNetwork"] == "no"
    assert opened["IPAddressAllow"] == "127.0.0.0/8"
    assert set(opened["IPAddressDeny"].split()) == {"0.0.0.0/0", "::/0"}
    assert host.run("stat --format='%a %U %G' /etc/circuitloom/control.password").split() == [
        *("640", "root", "debian-tor"),
    ]
    host.run("systemd-analyze security --threshold=20 --no-pager circuitloom")


def test_an_instance_that_is_no_longer_declared_is_forgotten_and_the_other_agent_does_not_notice(
    fleet: Fleet, restored: Variants
) -> None:
    host = fleet.hosts["a"]

    assert host.run(f"systemctl is-active circuitloom@{INSTANCE}", check=False).strip() == "inactive"
    for trace in ("/etc/circuitloom/{}.yml", "/var/lib/circuitloom-{}", "/var/lib/private/circuitloom-{}"):
        assert host.ssh(f"ls -d {trace.format(INSTANCE)}", check=False).returncode != 0
    assert pids(host) == restored.before["a"]
    assert HASHED_PASSWORD in host.run("cat /etc/tor/torrc.d/50-circuitloom.conf")


@pytest.mark.usefixtures("restored")
def test_back_from_a_wheelhouse_the_packages_of_debian_serve(fleet: Fleet) -> None:
    host = fleet.hosts["b"]

    assert "wheelhouse" not in host.run("readlink /opt/circuitloom/current")
    assert not python_of_yaml(host).startswith("/opt")


@pytest.mark.usefixtures("restored")
def test_back_from_tcp_the_sandbox_is_closed_again(fleet: Fleet) -> None:
    closed = sandbox(fleet.hosts["c"])

    assert closed["RestrictAddressFamilies"] == "AF_UNIX"
    assert closed["PrivateNetwork"] == "yes"
    assert closed["IPAddressAllow"] == ""
