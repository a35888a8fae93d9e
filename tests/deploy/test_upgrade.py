"""Releases: upgrade, rollback, and a canary that fails."""

from __future__ import annotations

from deploy.lab.fleet import ROLLING, Fleet, HeldStream, balanced, hold, main_pid, status
from deploy.lab.host import Host


def release_of(host: Host) -> str:
    return host.run("basename $(readlink /opt/circuitloom/current)").strip()


def circuits_beside(stream: HeldStream) -> set[str]:
    """The ids of all circuits of the isolation key whose stream this is, its own among them."""
    circuits = status(stream.host)["circuits"]
    (key,) = {circuit["key"] for circuit in circuits if circuit["circuit_id"] == stream.circuit}
    return {circuit["circuit_id"] for circuit in circuits if circuit["key"] == key}


def assert_lives_where_it_was(stream: HeldStream, circuit: str) -> None:
    """It echoes, and the circuit it was opened on is still there with it."""
    assert stream.lives()
    assert stream.circuit == circuit
    assert circuit in stream.host.guest("circuits")["built"]


def test_an_upgrade_cuts_no_stream_and_closes_no_circuit_and_can_be_taken_back(fleet: Fleet) -> None:
    fleet.normal()
    held = [hold(host, fleet.network) for host in fleet.everyone]
    under = {stream.host.name: stream.circuit for stream in held}
    before = {host.name: (release_of(host), main_pid(host)) for host in fleet.everyone}
    ours = {stream.host.name: circuits_beside(stream) for stream in held}

    upgraded = fleet.play(playbook=ROLLING, circuitloom_wheel=str(fleet.wheels.newer))

    assert upgraded.code == 0, upgraded.output[-6000:]
    for stream in held:
        name = stream.host.name
        assert release_of(stream.host) != before[name][0]
        assert release_of(stream.host).startswith(fleet.wheels.newer.name.split("-")[1])
        assert main_pid(stream.host) != before[name][1]
        assert_lives_where_it_was(stream, under[name])
        assert ours[name] <= set(stream.host.guest("circuits")["built"])
        fleet.assert_spread_as_the_policy_says(stream.host, 40)

    # Back again: the older release is still there, so this is a link and a restart.
    back = fleet.converge()

    assert {host.name: release_of(host) for host in fleet.everyone} == {
        name: release for name, (release, _) in before.items()
    }
    assert {change.partition(" : ")[2] for change in back.changes()} == {
        *("Switch to the release", "Restart circuitloom", "Keep this state"),
    }
    for stream in held:
        assert_lives_where_it_was(stream, under[stream.host.name])
        stream.end()
        fleet.assert_spread_as_the_policy_says(stream.host, 40)


def test_a_canary_that_fails_goes_back_and_leaves_the_others_on_the_old_release(fleet: Fleet) -> None:
    fleet.normal()
    canary = fleet.hosts["a"]
    held = [hold(host, fleet.network) for host in fleet.everyone]
    before = {host.name: release_of(host) for host in fleet.everyone}
    pids = {host.name: main_pid(host) for host in fleet.everyone}
    files = canary.guest("tree")

    rolled = fleet.play(
        playbook=ROLLING,
        circuitloom_wheel=str(fleet.wheels.broken),
        circuitloom_verify_seconds=5,
        leaves_as_before=True,
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
    # Of the broken release nothing is left but its directory.
    left = canary.guest("tree")
    version = fleet.wheels.broken.name.split("-")[1]
    assert {path for path in left.keys() | files.keys() if left.get(path) != files.get(path)} == {
        path for path in left if path.startswith(f"/opt/circuitloom/releases/{version}-")
    }


def test_a_wheel_with_another_hash_is_refused(fleet: Fleet) -> None:
    before = release_of(fleet.hosts["a"])

    rolled = fleet.play(playbook=ROLLING, circuitloom_wheel_sha256="0" * 64, leaves_as_before=True)

    assert rolled.code != 0
    assert "its SHA-256 is" in rolled.output
    assert rolled.changes() == []
    assert release_of(fleet.hosts["a"]) == before
