"""`circuitloom_state: absent`: the host is as it was before, and Tor serves."""

from __future__ import annotations

from deploy.lab.fleet import Fleet, hold, main_pid


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
    now = host.guest("tree")
    changed = sorted(
        path for path in now.keys() | fleet.tree_before.keys() if now.get(path) != fleet.tree_before.get(path)
    )
    assert changed == []
    assert host.run("systemctl list-units --all --plain --no-legend 'circuitloom*'") == ""

    again = fleet.play(hosts=[host], circuitloom_state="absent")
    assert again.code == 0, again.output[-6000:]
    assert again.changes() == []
    fleet.normal(host)


def test_absent_in_check_mode_changes_nothing(fleet: Fleet) -> None:
    host = fleet.hosts["c"]
    fleet.normal(host)

    check = fleet.play("--check", "--diff", hosts=[host], circuitloom_state="absent")

    assert check.code == 0, check.output[-6000:]
    assert fleet.converge(hosts=[host]).changes() == []


def test_absent_on_a_host_that_never_had_it_changes_nothing(fleet: Fleet) -> None:
    """Also where the policy is not given: it is not needed to take something away."""
    host = fleet.hosts["b"]
    fleet.play(hosts=[host], circuitloom_state="absent")

    again = fleet.play(hosts=[host], circuitloom_state="absent", circuitloom_policy={})

    assert again.code == 0, again.output[-6000:]
    assert again.changes() == []
