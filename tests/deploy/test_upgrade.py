"""Releases: upgrade, rollback, a canary that fails, and the second way to install."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from deploy.lab.fleet import ROLLING, Fleet, balanced, hold, main_pid, spread, status
from deploy.lab.host import Host
from deploy.lab.shell import run


def release_of(host: Host) -> str:
    return host.run("basename $(readlink /opt/circuitloom/current)").strip()


def circuits_of(host: Host) -> dict[str, str]:
    return {circuit["name"]: circuit["circuit_id"] for circuit in status(host)["circuits"]}


def test_an_upgrade_cuts_no_stream_and_closes_no_circuit_and_can_be_taken_back(fleet: Fleet) -> None:
    fleet.normal()
    held = [hold(host, fleet.network) for host in fleet.everyone]
    before = {host.name: (release_of(host), main_pid(host)) for host in fleet.everyone}
    circuits = {host.name: set(host.guest("circuits")["built"]) for host in fleet.everyone}
    ours = {host.name: set(circuits_of(host).values()) for host in fleet.everyone}

    upgraded = fleet.play(playbook=ROLLING, circuitloom_wheel=str(fleet.wheels.newer))

    assert upgraded.code == 0, upgraded.output[-6000:]
    for host in fleet.everyone:
        assert release_of(host) != before[host.name][0]
        assert release_of(host).startswith(fleet.wheels.newer.name.split("-")[1])
        assert main_pid(host) != before[host.name][1]
        assert ours[host.name] <= circuits[host.name]
        assert ours[host.name] <= set(host.guest("circuits")["built"])
    assert all(stream.lives() for stream in held)

    # Back again: the older release is still there, so this is a link and a restart.
    back = fleet.play(playbook=ROLLING)

    assert back.code == 0, back.output[-6000:]
    assert {host.name: release_of(host) for host in fleet.everyone} == {
        name: release for name, (release, _) in before.items()
    }
    assert "Unpack the wheel" not in "".join(back.changes())
    assert all(stream.lives() for stream in held)
    for stream in held:
        stream.end()
    for host in fleet.everyone:
        assert set(spread(host, fleet.network, 40)) == {"alpha", "beta"}


def test_a_canary_that_fails_goes_back_and_leaves_the_others_on_the_old_release(fleet: Fleet) -> None:
    fleet.normal()
    held = [hold(host, fleet.network) for host in fleet.everyone]
    before = {host.name: release_of(host) for host in fleet.everyone}
    pids = {host.name: main_pid(host) for host in fleet.everyone}

    rolled = fleet.play(
        playbook=ROLLING, circuitloom_wheel=str(fleet.wheels.broken), circuitloom_verify_seconds=8
    )

    assert rolled.code != 0
    assert "this release is broken on purpose" in rolled.output  # the journal's words, in Ansible's output
    assert "Rollout ended at a, which is as it was before." in rolled.output
    assert set(rolled.recap) == {"a"}
    assert {host.name: release_of(host) for host in fleet.everyone} == before
    assert {name: main_pid(fleet.hosts[name]) for name in "bc"} == {name: pids[name] for name in "bc"}
    for host in fleet.everyone:
        balanced(host)
    assert all(stream.lives() for stream in held)
    for stream in held:
        stream.end()
    # Of the broken release nothing is left but its directory, which the next run may clear away.
    cleared = {"a: circuitloom : Remove the releases nobody needs any more"}
    assert set(fleet.converge(hosts=[fleet.hosts["a"]]).changes()) <= cleared


def test_a_wheel_with_another_hash_is_refused(fleet: Fleet) -> None:
    before = release_of(fleet.hosts["a"])

    rolled = fleet.play(playbook=ROLLING, circuitloom_wheel_sha256="0" * 64)

    assert rolled.code != 0
    assert rolled.changes() == []
    assert release_of(fleet.hosts["a"]) == before


def test_a_wheelhouse_installs_with_pinned_hashes_and_no_network(fleet: Fleet, tmp_path: Path) -> None:
    """On Debian 12 only: its Python is the one that the wheelhouse is made with."""
    assert sys.version_info[:2] == (3, 11), "the wheels of PyYAML are made per version of Python"
    host = fleet.hosts["a"]
    fleet.normal(host)
    house = tmp_path / "wheelhouse"
    # Lowest bounds and the wheel itself; what it needs comes with it.
    run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", house, fleet.wheels.current],
        timeout=300,
    )
    lines = []
    for wheel in sorted(house.iterdir()):
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    (house / "requirements.txt").write_text("".join(lines))

    fleet.converge(hosts=[host], circuitloom_install_method="wheelhouse", circuitloom_wheelhouse=str(house))

    assert "wheelhouse" in release_of(host)
    python = "/opt/circuitloom/current/venv/bin/python"
    assert host.run(f"{python} -Ic 'import yaml; print(yaml.__file__)'").startswith(
        "/opt/circuitloom/current/venv/"
    )
    balanced(host)
    fleet.converge(hosts=[host])
    assert "wheelhouse" not in release_of(host)
