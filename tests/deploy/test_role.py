"""The role as text: what can be judged without a host."""

from __future__ import annotations

import json
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from deploy import role_readme
from deploy.lab.playbook import REPOSITORY
from deploy.lab.shell import run

ROLE = REPOSITORY / "roles/circuitloom"


def linter(command: Sequence[str]) -> None:
    program = Path(sys.executable).with_name(command[0])
    if not program.exists():
        pytest.skip(f"no {command[0]} beside this Python: pip install '.[deploy]'")
    # Without a network where that is possible: a linter that fetches rules would judge otherwise tomorrow.
    alone = (
        ["unshare", "--net"]
        if run(["unshare", "--net", "true"], timeout=10, check=False).returncode == 0
        else []
    )
    run([*alone, program, *command[1:]], timeout=100, cwd=REPOSITORY)


def test_ansible_lint_finds_nothing_at_its_strictest_profile_without_exemptions() -> None:
    linter(
        ["ansible-lint", "--offline", "--strict", "--profile", "production", "roles", "tests/deploy/plays"]
    )
    assert not list(REPOSITORY.glob("**/.ansible-lint*"))
    assert "noqa" not in "".join(file.read_text() for file in ROLE.glob("**/*.yml"))


def test_yamllint_finds_nothing_in_strict_mode() -> None:
    linter(["yamllint", "--strict", "--config-file", str(ROLE / ".yamllint"), "roles", "tests/deploy"])


def test_the_specification_names_exactly_the_defaults() -> None:
    specs = role_readme.read_yaml("meta/argument_specs.yml")["argument_specs"]
    defaults = role_readme.read_yaml("defaults/main.yml")

    assert {name: option["default"] for name, option in specs["main"]["options"].items()} == defaults
    assert specs["verify"]["options"] == specs["rollback"]["options"] == specs["main"]["options"]


def test_the_table_in_the_readme_is_made_from_the_specification() -> None:
    readme = role_readme.README.read_text()

    assert role_readme.with_table(readme) == readme, "run: python tests/deploy/role_readme.py"


def test_the_two_units_differ_in_the_instance_only() -> None:
    """One is the other with the names of an instance put in; comments aside."""
    single, instance = (
        [
            line
            for line in (ROLE / "files" / name).read_text().splitlines()
            if line and not line.startswith("#")
        ]
        for name in ("circuitloom.service", "circuitloom@.service")
    )
    names = {
        "Tor instance %i": "Tor",
        "tor@%i": "tor@default",
        "/etc/circuitloom/%i.yml": "/etc/circuitloom/policy.yml",
        "_tor-%i": "debian-tor",
        "Directory=circuitloom-%i": "Directory=circuitloom",
    }

    for special, general in names.items():
        instance = [line.replace(special, general) for line in instance]
    assert instance == single


def play(file: str, variables: dict[str, Any], folder: Path) -> str:
    """Run one of our plays that need no host, and return what it prints."""
    (folder / "asked.json").write_text(json.dumps(variables))
    program = Path(sys.executable).with_name("ansible-playbook")
    if not program.exists():
        pytest.skip("no ansible-playbook beside this Python: pip install '.[deploy]'")
    return run(
        [program, "-e", f"@{folder}/asked.json", REPOSITORY / "tests/deploy/plays" / file],
        timeout=60,
        env={
            **os.environ,
            "ANSIBLE_HOME": str(folder),
            "ANSIBLE_ROLES_PATH": str(REPOSITORY / "roles"),
            "LC_ALL": "C.UTF-8",
        },
    ).stdout


def documents(
    algorithm: str,
    *circuits: tuple[int, str, int, float, int, int],
    factors: tuple[float, float] = (1.0, 1.0),
    guards: tuple[int, int] = (7, 7),
) -> dict[str, Any]:
    """Return two status documents of the same circuits.

    Args:
        algorithm: As the policy says.
        circuits: (key, name, weight, share, streams then, now).
        factors: What counted of their weights, then and now.
        guards: The process of the agent's guard, then and now.
    """

    def document(place: int) -> dict[str, Any]:
        return {
            "algorithm": algorithm,
            "state": "balancing",
            "guard_pid": guards[place - 4],
            "circuits": [
                {
                    "key": circuit[0],
                    "name": circuit[1],
                    "weight": circuit[2],
                    "weight_share": circuit[3],
                    "role": "active",
                    "state": "built",
                    "weight_factor": factors[place - 4],
                    "circuit_id": f"{circuit[0]}{circuit[1]}",
                    "attached_total": circuit[place],
                }
                for circuit in circuits
            ],
        }

    return {"before": document(4), "after": document(5)}


SHARES = {
    "as the weights say": documents(
        "weighted-round-robin", (0, "x", 3, 0.75, 10, 85), (0, "y", 1, 0.25, 90, 115)
    ),
    "far off": documents("weighted-round-robin", (0, "x", 3, 0.75, 10, 60), (0, "y", 1, 0.25, 90, 140)),
    "too few": documents("weighted-round-robin", (0, "x", 3, 0.75, 0, 9), (0, "y", 1, 0.25, 0, 0)),
    # Sixty clients with one stream each: all on the first circuit of their own, as they should be.
    "many keys": documents(
        "weighted-round-robin",
        *[(key, name, 1, 0.5, 0, int(name == "x")) for key in range(60) for name in "xy"],
    ),
    "one key of two is off": documents(
        "round-robin",
        *((0, "x", 1, 0.5, 0, 50), (0, "y", 1, 0.5, 0, 50), (1, "x", 1, 0.5, 0, 80), (1, "y", 1, 0.5, 0, 20)),
    ),
    # While a fresh circuit gains weight, no one share is the right one.
    "slow start": documents(
        "round-robin", (0, "x", 1, 0.5, 0, 80), (0, "y", 1, 0.5, 0, 20), factors=(0.1, 0.6)
    ),
    # Its totals begin anew with the agent.
    "crash": documents("round-robin", (0, "x", 1, 0.5, 90, 3), (0, "y", 1, 0.5, 90, 2), guards=(7, 8)),
    "no promise": documents("least-streams", (0, "x", 1, 0.5, 0, 100), (0, "y", 1, 0.5, 0, 0)),
}


def test_the_gate_judges_shares_within_each_isolation_key(tmp_path: Path) -> None:
    asked = {
        "cases": [{"name": name, **pair} for name, pair in SHARES.items()],
        "template": str(ROLE / "templates/shares.json.j2"),
        "circuitloom_verify_min_streams": 50,
        "circuitloom_verify_share_tolerance": 0.1,
    }
    done = play("shares.yml", asked, tmp_path)

    verdicts = {
        name: json.loads(json.loads(f'"{found}"'))
        for name, found in re.findall(r'"msg": "([a-z ]+): (.*)"', done)
    }
    off = {
        name: [(far["key"], far["circuit"]) for far in verdict["far"]] for name, verdict in verdicts.items()
    }
    assert off == {
        "as the weights say": [],
        "far off": [(0, "x"), (0, "y")],
        "too few": [],
        "many keys": [],
        "one key of two is off": [(1, "x"), (1, "y")],
        "slow start": [],
        "crash": [],
        "no promise": [],
    }
    assert [name for name, verdict in verdicts.items() if not verdict["is_steady"]] == ["crash"]
    assert verdicts["as the weights say"]["verdict"] == '100 streams, shares {"x": 0.75, "y": 0.25}'


INCLUDES = {
    "%include /etc/tor/torrc.d/*.conf": True,
    '  %Include "/etc/tor/torrc.d/*.conf"  # ours': True,
    "%include /etc/tor/torrc.d": True,
    "%include /etc/tor/torrc.d/": True,
    "%include /etc/tor/torrc.d/*": True,
    "#%include /etc/tor/torrc.d/*.conf": False,
    "%include /etc/tor/torrc.d/bridges.conf": False,
    "%include /etc/tor/torrc.d/*.torrc": False,
    "%include /etc/tor/torrc.dir/*.conf": False,
}


@pytest.mark.parametrize("line", INCLUDES)
def test_only_an_include_line_that_covers_the_fragment_counts_as_one(line: str) -> None:
    """A host's own `%include` of one other file in that directory would leave our settings unread."""
    pattern = role_readme.read_yaml("vars/main.yml")["__circuitloom_torrc_included"]

    assert bool(re.search(pattern, f"SocksPort 9050\n{line}\nLog notice syslog\n")) is INCLUDES[line]


def agents_of(folder: Path, **variables: Any) -> list[dict[str, Any]]:  # noqa: ANN401  # whatever YAML can hold
    """Return what the role makes of the policies in its variables."""
    printed = play(
        "agents.yml",
        {
            "template": str(ROLE / "templates/agents.json.j2"),
            "__circuitloom_etc": "/etc/circuitloom",
            "circuitloom_policy": {},
            "circuitloom_policy_file": "",
            "circuitloom_instances": [],
            "circuitloom_network": "auto",
            **variables,
        },
        folder,
    )
    (found,) = re.findall(r'"msg": "agents: (.*)"', printed)
    agents: list[dict[str, Any]] = json.loads(json.loads(f'"{found}"'))
    return agents


def test_a_policy_file_that_is_missing_is_named_and_a_relative_one_is_found_beside_the_playbook(
    tmp_path: Path,
) -> None:
    """One and the same file is checked and deployed, wherever ansible-playbook was started."""
    found, missing = agents_of(
        tmp_path,
        circuitloom_policy_file="shares.yml",
        circuitloom_instances=[{"name": "second", "policy_file": "/nowhere/policy.yml"}],
    )

    beside = REPOSITORY / "tests/deploy/plays/shares.yml"
    assert (found["file"], found["missing"]) == (str(beside), "")
    assert found["text"] == beside.read_text()
    assert (missing["file"], missing["missing"]) == ("", "/nowhere/policy.yml")


def test_a_comment_in_a_policy_opens_no_network(tmp_path: Path) -> None:
    file = tmp_path / "policy.yml"
    file.write_text("version: 1\n# metrics: {listen: 127.0.0.1:9955}\ncircuits: [{name: one}]\n")
    (closed,) = agents_of(tmp_path, circuitloom_policy_file=str(file))
    file.write_text(file.read_text().replace("# ", ""))
    (opened,) = agents_of(tmp_path, circuitloom_policy_file=str(file))

    assert closed["loopback"] == []
    assert opened["loopback"] == ["127.0.0.0/8"]


def test_no_variable_of_an_inventory_makes_the_controller_become_root() -> None:
    """`ansible_become` outranks `become: false`; only a variable of the task outranks it in turn."""
    for task in role_readme.read_yaml("tasks/policies.yml"):
        if "delegate_to" in task:
            assert task["vars"]["ansible_become"] is False, task["name"]


def test_a_wheelhouse_with_a_newer_dependency_is_another_release(tmp_path: Path) -> None:
    """Else a security update of a dependency would never reach a host that has this version of the agent."""
    house = tmp_path / "wheelhouse"
    house.mkdir()
    with zipfile.ZipFile(house / "circuitloom-1.0-py3-none-any.whl", "w"):
        pass
    asked = {"circuitloom_install_method": "wheelhouse", "circuitloom_wheelhouse": str(house)}
    names = []

    for version in ("6.0.1", "6.0.2"):
        (house / "requirements.txt").write_text(f"pyyaml=={version} --hash=sha256:{'0' * 64}\n")
        names += re.findall(r'"msg": "release: (.*)"', play("release.yml", asked, tmp_path))

    first, second = names
    assert re.fullmatch(r"1\.0-[0-9a-f]{8}-wheelhouse-debian12", first)
    assert first != second
