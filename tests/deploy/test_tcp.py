"""Tor's control port over TCP, with a password: the sandbox opens loopback, and nothing else."""

from __future__ import annotations

from deploy.lab.fleet import HASHED_PASSWORD, PASSWORD, POLICY, Fleet, balanced, main_pid, spread, status
from deploy.lab.host import Host

TCP = {
    **POLICY,
    "tor": {"control": "tcp:127.0.0.1:9051", "password_file": "/etc/circuitloom/control.password"},
}
PROPERTIES = "RestrictAddressFamilies,PrivateNetwork,IPAddressAllow,IPAddressDeny"


def sandbox(host: Host) -> dict[str, str]:
    lines = host.run(f"systemctl show --property={PROPERTIES} circuitloom").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_a_control_port_with_a_password_opens_loopback_and_nothing_else(fleet: Fleet) -> None:
    host = fleet.hosts["c"]
    fleet.normal(host)
    before = main_pid(host)
    assert sandbox(host)["RestrictAddressFamilies"] == "AF_UNIX"
    assert sandbox(host)["PrivateNetwork"] == "yes"

    result = fleet.converge(
        hosts=[host],
        circuitloom_policy=TCP,
        circuitloom_control_password=PASSWORD,
        circuitloom_tor_settings={"ControlPort": 9051, "HashedControlPassword": HASHED_PASSWORD},
    )

    assert PASSWORD not in result.output
    balanced(host)
    assert main_pid(host) != before  # `tor` is read at start only, so this change is a restart
    assert status(host)["tor"]["control"] == "tcp:127.0.0.1:9051"
    assert set(spread(host, fleet.network, 20)) == {"alpha", "beta"}
    opened = sandbox(host)
    assert set(opened["RestrictAddressFamilies"].split()) == {"AF_UNIX", "AF_INET", "AF_INET6"}
    assert opened["PrivateNetwork"] == "no"
    assert set(opened["IPAddressAllow"].split()) == {"127.0.0.0/8", "::1/128"}
    assert set(opened["IPAddressDeny"].split()) == {"0.0.0.0/0", "::/0"}
    assert host.run("stat --format='%a %U %G' /etc/circuitloom/control.password").split() == [
        *("640", "root", "debian-tor"),
    ]
    host.run("systemd-analyze security --threshold=20 --no-pager circuitloom")

    fleet.normal(host)

    assert sandbox(host)["PrivateNetwork"] == "yes"
    assert host.ssh("test -e /etc/circuitloom/control.password", check=False).returncode != 0
