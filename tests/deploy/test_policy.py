"""Changes of the policy: a good one is a reload, a bad one reaches nobody."""

from __future__ import annotations

from deploy.lab.fleet import POLICIES, ROLLING, Fleet, balanced, hold, main_pid, status
from deploy.lab.host import Host

FAULTY = {"circuits": [{"name": "alpha", "weigth": 3}, {"name": "beta", "weight": 1}]}


def policy_of(host: Host) -> str:
    return host.run("sha256sum /etc/circuitloom/policy.yml")


def test_a_changed_weight_rolls_out_as_a_reload(fleet: Fleet) -> None:
    """The same process, and no stream is cut."""
    fleet.normal()
    before = {host.name: main_pid(host) for host in fleet.everyone}
    held = [hold(host, fleet.network) for host in fleet.everyone]

    circuits = [stream.circuit for stream in held]
    fleet.policy = next(policy for policy in POLICIES if policy != fleet.policy)

    rolled = fleet.play(playbook=ROLLING)

    assert rolled.code == 0, rolled.output[-6000:]
    assert {change.partition(": ")[2] for change in rolled.changes()} == {
        "circuitloom : Write the policies",
        "circuitloom : Reload circuitloom",
        "circuitloom : Keep this state",
    }
    assert {host.name: main_pid(host) for host in fleet.everyone} == before
    assert all(stream.lives() for stream in held)
    assert [stream.circuit for stream in held] == circuits
    for stream in held:
        stream.end()
    for host in fleet.everyone:
        fleet.assert_spread_as_the_policy_says(host, 100)


def test_a_faulty_policy_stops_at_the_first_host_with_the_fault_and_its_place(fleet: Fleet) -> None:
    fleet.normal()
    before = {host.name: (policy_of(host), main_pid(host)) for host in fleet.everyone}

    rolled = fleet.play(playbook=ROLLING, circuitloom_policy=FAULTY, leaves_as_before=True)

    assert rolled.code != 0
    # Written from a mapping: the header, `version`, `circuits:`, the entry, its faulty key.
    assert "a-default.yml:5:3: circuits[0]" in rolled.output
    assert "weigth" in rolled.output
    assert set(rolled.recap) == {"a"}  # b and c were never touched
    assert rolled.changes() == []
    assert {host.name: (policy_of(host), main_pid(host)) for host in fleet.everyone} == before
    for host in fleet.everyone:
        balanced(host)


def test_a_faulty_policy_file_is_named_with_line_and_column(fleet: Fleet) -> None:
    """A policy given as a file keeps its own name in the fault."""
    file = fleet.lab.directory / "fleet-policy.yml"
    file.write_text("version: 1\ncircuits:\n  - name: alpha\n    weight: -3\n")

    rolled = fleet.play(
        playbook=ROLLING, circuitloom_policy={}, circuitloom_policy_file=str(file), leaves_as_before=True
    )

    assert rolled.code != 0
    assert f"{file}:4:13: circuits[0].weight" in rolled.output
    assert rolled.changes() == []


def test_the_host_refuses_a_faulty_policy_where_the_controller_did_not_look(fleet: Fleet) -> None:
    """The second net: `validate:` on the host, by the release that would have to run it."""
    host = fleet.hosts["a"]
    fleet.normal(host)
    before = policy_of(host), main_pid(host)

    rolled = fleet.play(
        hosts=[host],
        circuitloom_policy=FAULTY,
        circuitloom_check_on_controller=False,
        leaves_as_before=True,
    )

    assert rolled.code != 0
    assert "failed to validate" in rolled.output
    assert "weigth" in rolled.output
    assert (policy_of(host), main_pid(host)) == before
    balanced(host)


def test_systemctl_reload_with_a_faulty_policy_fails_and_the_agent_keeps_the_old_one(fleet: Fleet) -> None:
    """Written by hand on the host, behind everybody's back."""
    host = fleet.hosts["c"]
    fleet.normal(host)
    pid, since = main_pid(host), host.now()
    host.run(
        "cp /etc/circuitloom/policy.yml /run/policy.good; sed -i s/weight/weigth/ /etc/circuitloom/policy.yml"
    )
    try:
        reload = host.ssh("systemctl reload circuitloom", check=False)
        journal = host.journal("circuitloom", since)
        assert reload.returncode != 0
        assert "/etc/circuitloom/policy.yml:5:3: circuits[0]" in journal
        assert main_pid(host) == pid
        fleet.assert_spread_as_the_policy_says(host, 40)

        # Nor does a start with it: it fails once, says why, and is not tried again and again.
        since = host.now()
        host.ssh("systemctl restart circuitloom", check=False)
        host.wait_until("systemctl is-failed circuitloom", seconds=10)
        host.run("sleep 3")
        shown = host.run("systemctl show --property=NRestarts,ExecMainStatus,ActiveState circuitloom").split()
        assert set(shown) == {"NRestarts=0", "ExecMainStatus=78", "ActiveState=failed"}
        assert "/etc/circuitloom/policy.yml:5:3: circuits[0]" in host.journal("circuitloom", since)
        assert host.guest("option") == {"value": "0", "waiting": 0}
        assert host.guest("until", fleet.network.echo, "10")["seconds"] is not None
    finally:
        host.run("cat /run/policy.good > /etc/circuitloom/policy.yml; systemctl restart circuitloom")
    balanced(host)
    assert status(host)["state"] == "balancing"
