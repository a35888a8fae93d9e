"""Tor's settings: bad ones never arrive. How good ones do: test_variants.py."""

from __future__ import annotations

from typing import Any

from deploy.lab.fleet import Fleet, balanced, main_pid
from deploy.lab.host import Host

# Unknown, of a wrong value, and wrong only as a whole: each goes to a host of its own.
BAD: dict[str, dict[str, Any]] = {
    "a": {"MaxCircuitDirtyness": 600},
    "b": {"SocksPort": "10.98.0.77.1:99"},
    "c": {"HiddenServicePort": "80 127.0.0.1:80"},
}


def tor_files(host: Host) -> str:
    return host.run(
        "cat /etc/tor/torrc /etc/tor/torrc.d/*; stat --format='%a %U %G' /etc/tor/torrc /etc/tor/torrc.d/*"
    )


def test_a_bad_option_never_reaches_a_running_tor(fleet: Fleet) -> None:
    """The role refuses it with Tor's own words, puts the files back, and Tor is not even signalled."""
    fleet.normal()
    before = {host.name: (tor_files(host), main_pid(host, "tor@default")) for host in fleet.everyone}
    since = {host.name: host.now() for host in fleet.everyone}

    rolled = fleet.play(
        host_variables={name: {"circuitloom_tor_settings": settings} for name, settings in BAD.items()},
        leaves_as_before=True,
    )

    assert rolled.code != 0
    for host in fleet.everyone:
        (verdict,) = [
            line for line in rolled.output.splitlines() if f"fatal: [{host.name}]: FAILED!" in line
        ][-1:]
        said = rolled.output.partition(verdict)[2].partition("fatal:")[0] + verdict
        assert "Tor refuses this configuration" in said
        assert next(iter(BAD[host.name])) in said
        assert (tor_files(host), main_pid(host, "tor@default")) == before[host.name]
        assert "Received reload signal" not in host.journal("tor@default", since[host.name])
        host.run("systemctl reload tor@default")  # and nothing bad lies in wait for the next one
        assert main_pid(host, "tor@default") == before[host.name][1]
        balanced(host)
