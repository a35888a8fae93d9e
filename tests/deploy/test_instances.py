"""More than one Tor on a host: an agent for each, apart from the other."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from deploy.lab.fleet import POLICY, Fleet, balanced, main_pid, spread
from deploy.lab.host import Host

NAME = "second"
INSTANCE = {"name": NAME, "policy": {"circuits": [{"name": "gamma"}, {"name": "delta"}]}}
CONTROL = f"/run/tor-instances/{NAME}/control"


@pytest.fixture
def host(fleet: Fleet) -> Iterator[Host]:
    """A host with a second instance of Tor, made as Debian makes them."""
    chosen = fleet.hosts["a"]
    chosen.run(f"test -d /etc/tor/instances/{NAME} || tor-instance-create {NAME}")
    torrc = fleet.network.client_torrc + "SocksPort 9150\n"
    chosen.run(f"cat > /etc/tor/instances/{NAME}/torrc; systemctl start tor@{NAME}", stdin=torrc)
    yield chosen
    chosen.run(f"systemctl stop tor@{NAME}")


def agent_status(host: Host, socket: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(host.run(f"circuitloom status --json --socket {socket}"))
    return document


def test_each_instance_has_its_agent_and_forgetting_one_leaves_the_other(fleet: Fleet, host: Host) -> None:
    fleet.normal(host)
    before = main_pid(host)

    fleet.converge(hosts=[host], circuitloom_instances=[INSTANCE])

    assert main_pid(host) == before
    second = agent_status(host, f"/run/circuitloom-{NAME}/admin.sock")
    assert second["state"] == "balancing"
    assert CONTROL in json.dumps(second["tor"])
    assert host.run(f"systemctl is-enabled circuitloom@{NAME}").strip() == "enabled"
    assert (
        float(host.run(f"systemd-analyze security --threshold=10 circuitloom@{NAME} | tail -n 1").split()[-3])
        <= 1
    )
    balanced(host)
    assert set(spread(host, fleet.network, 40)) == {circuit["name"] for circuit in POLICY["circuits"]}
    assert fleet.converge(hosts=[host], circuitloom_instances=[INSTANCE]).changes() == []

    fleet.converge(hosts=[host])

    assert host.run(f"systemctl is-active circuitloom@{NAME}", check=False).strip() == "inactive"
    assert host.ssh(f"ls /etc/circuitloom/{NAME}.yml", check=False).returncode != 0
    assert main_pid(host) == before
    balanced(host)
