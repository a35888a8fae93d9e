"""A run that ends half-way, by a fault or a lost connection: the next one finishes it, or goes back."""

from __future__ import annotations

import pytest

from deploy.lab.fleet import POLICIES, ROLLING, SETTINGS, Fleet, balanced, main_pid, status
from deploy.lab.host import Host

FAULTY = {"circuits": [{"name": "alpha", "weigth": 3}]}
FRAGMENT = "/etc/tor/torrc.d/50-circuitloom.conf"
OTHER = "third"


def tor_files(host: Host) -> str:
    return host.run(f"cat {FRAGMENT} /etc/tor/torrc; stat --format='%a %U %G' {FRAGMENT} /etc/tor/torrc")


def reloads(host: Host, since: str) -> int:
    return host.journal("tor@default", since).count("Received reload signal")


@pytest.fixture
def host(fleet: Fleet) -> Host:
    """The host that the runs below leave unfinished; in its normal state before each test."""
    fleet.normal(fleet.hosts["b"])
    return fleet.hosts["b"]


def test_settings_that_were_written_but_not_told_to_tor_are_told_by_the_next_run(
    fleet: Fleet, host: Host
) -> None:
    since = host.now()
    settings = {**SETTINGS, "MaxCircuitDirtiness": 777}

    broken = fleet.play(
        hosts=[host],
        circuitloom_tor_settings=settings,
        circuitloom_policy=FAULTY,
        circuitloom_check_on_controller=False,
    )
    assert broken.code != 0
    assert reloads(host, since) == 0
    fleet.converge(hosts=[host], circuitloom_tor_settings=settings)

    assert reloads(host, since) == 1
    again = fleet.converge(hosts=[host], circuitloom_tor_settings=settings)
    assert again.changes() == []


def test_bad_settings_that_an_interrupted_run_left_do_not_lie_in_wait(fleet: Fleet, host: Host) -> None:
    """The connection was lost before Tor checked them. They are checked now, and the good ones come back."""
    before, pid = tor_files(host), main_pid(host, "tor@default")
    bad = {**SETTINGS, "MaxCircuitDirtyness": 600}
    # As the role writes them.
    host.run(f"sed -i 's/^MaxCircuitDirtiness.*/&\\nMaxCircuitDirtyness 600/' {FRAGMENT}")

    refused = fleet.play(hosts=[host], circuitloom_tor_settings=bad)

    assert refused.code != 0
    assert "Tor refuses this configuration" in refused.output
    assert tor_files(host) == before
    assert main_pid(host, "tor@default") == pid


def test_a_rollout_that_tor_refuses_ends_with_the_agent_as_it_was(fleet: Fleet, host: Host) -> None:
    before, pid, since = tor_files(host), main_pid(host), host.now()

    rolled = fleet.play(
        playbook=ROLLING,
        hosts=[host],
        circuitloom_tor_settings={"MaxCircuitDirtyness": 600},
        leaves_as_before=True,
    )

    assert rolled.code != 0
    assert "Rollout ended at b, which is as it was before." in rolled.output
    assert (tor_files(host), main_pid(host)) == (before, pid)
    assert reloads(host, since) == 0


@pytest.mark.thorough
def test_settings_that_leave_tor_without_circuits_are_taken_back_by_the_rollout(
    fleet: Fleet, host: Host
) -> None:
    """Tor takes them; only the gate finds that nothing can be built."""
    before = tor_files(host)

    rolled = fleet.play(
        playbook=ROLLING,
        hosts=[host],
        circuitloom_tor_settings={**SETTINGS, "DisableNetwork": True},
        circuitloom_verify_seconds=10,
        leaves_as_before=True,
    )

    assert rolled.code != 0
    assert "Rollout ended at b, which is as it was before." in rolled.output
    assert tor_files(host) == before
    balanced(host)


def test_the_diff_of_the_include_line_shows_nothing_of_the_hosts_own_torrc(fleet: Fleet, host: Host) -> None:
    secret = "16:0011223344556677608899AABBCCDDEEFF00112233445566778899AABB"  # noqa: S105  # exists in a lab only
    host.run(
        "cp -p /etc/tor/torrc /run/torrc.good; sed -i '/^%include/d' /etc/tor/torrc;"
        f" echo 'HashedControlPassword {secret}' >> /etc/tor/torrc"
    )
    fleet.changed.add(host.name)
    try:
        included = fleet.converge(hosts=[host], circuitloom_tor_settings={"MaxCircuitDirtiness": 1200})

        assert any("Include the settings" in change for change in included.changes())
        assert secret not in included.output
    finally:
        host.run("cp -p /run/torrc.good /etc/tor/torrc")


def test_a_policy_that_was_written_but_not_read_is_read_with_the_next_run(fleet: Fleet, host: Host) -> None:
    now = next(policy for policy in POLICIES if policy != fleet.policy)
    old, new = (policy["circuits"][0]["weight"] for policy in (fleet.policy, now))
    host.run(f"sed -i '0,/weight: {old}/s//weight: {new}/' /etc/circuitloom/policy.yml")
    fleet.changed.add(host.name)

    finished = fleet.converge(hosts=[host], circuitloom_policy=now)

    assert not any("Write the policies" in change for change in finished.changes())
    assert status(host)["circuits"][0]["weight"] == new
    assert fleet.converge(hosts=[host], circuitloom_policy=now).changes() == []


@pytest.mark.thorough
def test_a_reload_that_failed_behind_everybodys_back_is_made_good(fleet: Fleet, host: Host) -> None:
    host.run(
        "cp -p /etc/circuitloom/policy.yml /run/policy.good; echo nonsense >> /etc/circuitloom/policy.yml;"
        " systemctl reload circuitloom; cp -p /run/policy.good /etc/circuitloom/policy.yml",
        check=False,
    )
    assert "ReloadResult=exit-code" in host.run("systemctl show --property=ReloadResult circuitloom")

    fleet.converge(hosts=[host])

    assert "ReloadResult=success" in host.run("systemctl show --property=ReloadResult circuitloom")


@pytest.mark.thorough
def test_a_rollout_that_adds_an_instance_and_fails_goes_back_whole(fleet: Fleet) -> None:
    """There is nothing of the new agent to put back; the others are put back all the same."""
    host = fleet.hosts["a"]
    fleet.normal(host)
    before = host.run("readlink /opt/circuitloom/current")
    torrc = f"/etc/tor/instances/{OTHER}/torrc"
    host.run(f"tor-instance-create {OTHER}; cat > {torrc}", stdin=fleet.network.client_torrc)

    try:
        rolled = fleet.play(
            playbook=ROLLING,
            hosts=[host],
            circuitloom_wheel=str(fleet.wheels.broken),
            circuitloom_verify_seconds=5,
            circuitloom_instances=[{"name": OTHER, "policy": fleet.policy}],
            leaves_as_before=True,
        )
    finally:
        host.run(f"systemctl stop tor@{OTHER}")

    assert rolled.code != 0
    assert f"Rollout ended at {host.name}, which is as it was before." in rolled.output
    assert host.run("readlink /opt/circuitloom/current") == before
    traces = f"/etc/systemd/system/circuitloom@{OTHER}.service.d /etc/circuitloom/{OTHER}.yml"
    assert host.run(f"ls -d {traces}", check=False).count("cannot access") == 2
    assert host.run("systemctl list-units --plain --no-legend --all --state=failed 'circuitloom*'") == ""
    balanced(host)


def test_a_run_that_installs_nothing_removes_no_release(fleet: Fleet, host: Host) -> None:
    """With the tag circuitloom_configure alone, another release may run than the one that the wheel names."""
    before = host.run("readlink -e /opt/circuitloom/current")

    fleet.converge(
        "--tags=circuitloom_configure",
        hosts=[host],
        circuitloom_wheel=str(fleet.wheels.newer),
        circuitloom_keep_releases=1,
    )

    assert host.run("readlink -e /opt/circuitloom/current") == before


@pytest.mark.thorough
def test_a_host_where_root_writes_for_itself_only_runs_the_agent_as_well(fleet: Fleet, host: Host) -> None:
    """Root's umask is 077 on a hardened host, and the agent is nobody."""
    umask = "session required pam_umask.so umask=0077"
    host.run(f"cp -p /etc/pam.d/sshd /run/pam.good; echo '{umask}' >> /etc/pam.d/sshd")
    host.hang_up()
    try:
        assert host.run("umask").strip() == "0077"
        fleet.converge(hosts=[host], circuitloom_wheel=str(fleet.wheels.newer))
        balanced(host)
    finally:
        host.run("cp -p /run/pam.good /etc/pam.d/sshd")
        host.hang_up()


def test_an_agent_that_was_installed_by_hand_is_named_before_anything_changes(
    fleet: Fleet, host: Host
) -> None:
    """The role's `current` is a link, that of the README's lines without the role is a directory."""
    host.run("cd /opt/circuitloom; mv current link; mkdir -p current/venv")
    try:
        refused = fleet.play(hosts=[host], leaves_as_before=True)
    finally:
        host.run("cd /opt/circuitloom; rmdir -p current/venv; mv link current", check=False)

    assert refused.code != 0
    assert "installed by hand" in refused.output
    assert refused.changes() == []
    balanced(host)


@pytest.mark.thorough
def test_a_package_that_somebody_holds_is_there(fleet: Fleet, host: Host) -> None:
    """Else every run would ask apt for it, also where there is no mirror."""
    host.run("apt-mark hold python3-yaml")
    try:
        held = fleet.converge(hosts=[host])
    finally:
        host.run("apt-mark unhold python3-yaml")

    assert "Install the release" in held.output
    assert "Install the agent's dependencies" not in held.output
