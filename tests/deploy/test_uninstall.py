"""`circuitloom_state: absent`: the host is as it was before, and Tor serves."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.lab.fleet import Fleet, hold, main_pid


def differing(now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    return sorted(path for path in now.keys() | then.keys() if now.get(path) != then.get(path))


def test_absent_in_check_mode_changes_nothing(fleet: Fleet) -> None:
    host = fleet.hosts["c"]
    fleet.normal(host)
    before, pid = host.guest("tree"), main_pid(host)

    check = fleet.play("--check", hosts=[host], circuitloom_state="absent")

    assert check.code == 0, check.output[-6000:]
    assert check.changed()["c"] > 0
    assert differing(host.guest("tree"), before) == []
    assert main_pid(host) == pid


def test_absent_leaves_the_file_tree_as_before_and_tor_serving(fleet: Fleet) -> None:
    host = fleet.hosts["b"]
    fleet.normal(host)
    held, tor = hold(host, fleet.network), main_pid(host, "tor@default")

    absent = fleet.play(hosts=[host], circuitloom_state="absent")

    assert absent.code == 0, absent.output[-6000:]
    assert held.lives()
    held.end()
    assert main_pid(host, "tor@default") == tor
    assert host.guest("option") == {"value": "0", "waiting": 0}
    assert host.guest("until", fleet.network.echo, "10")["seconds"] is not None
    assert differing(host.guest("tree"), fleet.tree_before) == []
    assert (
        host.run("ls -d /var/lib/circuitloom* /var/lib/private/circuitloom*", check=False).count("cannot")
        == 2
    )
    assert host.run("systemctl list-units --all --plain --no-legend 'circuitloom*'") == ""


@pytest.mark.thorough
@pytest.mark.parametrize("how", ["disabled but running", "failed"])
def test_absent_leaves_no_agent_running_and_no_failure_behind(fleet: Fleet, how: str) -> None:
    host = fleet.hosts["b"]
    fleet.changed.add(host.name)
    fleet.normal(host)
    pid = main_pid(host)
    if how == "failed":
        host.run(
            "echo nonsense >> /etc/circuitloom/policy.yml; systemctl restart circuitloom;"
            " rm /etc/circuitloom/policy.yml",
            check=False,
        )
        host.wait_until("systemctl is-failed circuitloom", seconds=10)
    host.run("systemctl disable circuitloom")

    absent = fleet.play(hosts=[host], circuitloom_state="absent")

    assert absent.code == 0, absent.output[-6000:]
    assert host.ssh(f"test -e /proc/{pid}", check=False).returncode != 0
    assert host.guest("option") == {"value": "0", "waiting": 0}
    assert host.run("systemctl list-units --all --plain --no-legend 'circuitloom*'") == ""


@pytest.mark.thorough
def test_absent_does_not_start_a_tor_that_was_stopped(fleet: Fleet) -> None:
    host = fleet.hosts["b"]
    fleet.changed.add(host.name)
    fleet.normal(host)
    host.run("systemctl stop tor@default")
    try:
        absent = fleet.play(hosts=[host], circuitloom_state="absent")

        assert absent.code == 0, absent.output[-6000:]
        assert host.run("systemctl is-active tor@default", check=False).strip() == "inactive"
    finally:
        host.run("systemctl start tor@default")


def test_absent_on_a_host_that_never_had_it_changes_nothing(fleet: Fleet) -> None:
    """Also where the policy is not given: it is not needed to take something away."""
    host = fleet.hosts["b"]
    if host.run("ls /opt/circuitloom", check=False).count("cannot") == 0:
        fleet.play(hosts=[host], circuitloom_state="absent")

    again = fleet.play(hosts=[host], circuitloom_state="absent", circuitloom_policy={})

    assert again.code == 0, again.output[-6000:]
    assert again.changes() == []
