"""Tor's settings: good ones arrive by reload or restart, bad ones never."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.lab.fleet import Fleet, balanced, main_pid
from deploy.lab.host import Host


def tor_files(host: Host) -> str:
    return host.run(
        "cat /etc/tor/torrc /etc/tor/torrc.d/*; stat --format='%a %U %G' /etc/tor/torrc /etc/tor/torrc.d/*"
    )


@pytest.mark.parametrize(
    "settings",
    [
        {"MaxCircuitDirtyness": 600},
        {"SocksPort": "10.98.0.77.1:99"},
        {"HiddenServicePort": "80 127.0.0.1:80"},
    ],
    ids=["unknown", "wrong-value", "wrong-as-a-whole"],
)
def test_a_bad_option_never_reaches_a_running_tor(fleet: Fleet, settings: dict[str, Any]) -> None:
    """The role refuses it with Tor's own words, puts the files back, and Tor is not even signalled."""
    host = fleet.hosts["b"]
    fleet.normal(host)
    before, pid, since = tor_files(host), main_pid(host, "tor@default"), host.now()

    rolled = fleet.play(hosts=[host], circuitloom_tor_settings=settings)

    assert rolled.code != 0
    assert "Tor refuses this configuration" in rolled.output
    assert next(iter(settings)) in rolled.output
    assert tor_files(host) == before
    assert main_pid(host, "tor@default") == pid
    assert "Received reload signal" not in host.journal("tor@default", since)
    host.run("systemctl reload tor@default")  # and nothing bad lies in wait for the next one
    assert main_pid(host, "tor@default") == pid
    balanced(host)


def test_a_changed_option_is_a_reload_of_tor_and_the_agent_takes_its_option_back(fleet: Fleet) -> None:
    host = fleet.hosts["b"]
    fleet.normal(host)
    pid, agent = main_pid(host, "tor@default"), main_pid(host)

    changed = fleet.converge(hosts=[host], circuitloom_tor_settings={"MaxCircuitDirtiness": 900})

    assert "b: circuitloom : Apply the settings of Tor" in changed.changes()
    assert main_pid(host, "tor@default") == pid
    assert main_pid(host) == agent
    balanced(host)
    assert host.guest("option")["value"] == "1"
    again = fleet.converge(hosts=[host], circuitloom_tor_settings={"MaxCircuitDirtiness": 900})
    assert again.changes() == []


def test_an_option_that_tor_cannot_change_while_it_runs_is_a_restart(fleet: Fleet) -> None:
    """With `Sandbox 1` a reload would end Tor; the agent connects again by itself."""
    host = fleet.hosts["b"]
    fleet.normal(host)
    pid, agent = main_pid(host, "tor@default"), main_pid(host)

    fleet.converge(hosts=[host], circuitloom_tor_settings={"DisableDebuggerAttachment": False})

    assert main_pid(host, "tor@default") != pid
    assert main_pid(host) == agent
    balanced(host)


def test_no_settings_means_that_tor_is_left_alone(fleet: Fleet) -> None:
    """What the role no longer declares is gone from Tor's configuration."""
    host = fleet.hosts["b"]
    fleet.normal(host)

    fleet.converge(hosts=[host], circuitloom_tor_settings={})

    assert host.run("grep -v '^#' /etc/tor/torrc.d/50-circuitloom.conf", check=False) == ""
    balanced(host)
