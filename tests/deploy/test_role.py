"""The role as text: what can be judged without a host."""

from __future__ import annotations

import json
import os
import re
import sys
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


def documents(algorithm: str, *circuits: tuple[int, str, int, float, int, int]) -> dict[str, Any]:
    """Return two status documents of the same circuits: (key, name, weight, share, streams then, now)."""

    def document(place: int) -> dict[str, Any]:
        return {
            "algorithm": algorithm,
            "circuits": [
                {
                    "key": circuit[0],
                    "name": circuit[1],
                    "weight": circuit[2],
                    "weight_share": circuit[3],
                    "role": "active",
                    "state": "built",
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
    "no promise": documents("least-streams", (0, "x", 1, 0.5, 0, 100), (0, "y", 1, 0.5, 0, 0)),
}


def test_the_gate_judges_shares_within_each_isolation_key(tmp_path: Path) -> None:
    asked = {
        "cases": [{"name": name, **pair} for name, pair in SHARES.items()],
        "template": str(ROLE / "templates/shares.json.j2"),
        "circuitloom_verify_min_streams": 50,
        "circuitloom_verify_share_tolerance": 0.1,
    }
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    play = REPOSITORY / "tests/deploy/plays/shares.yml"

    done = run(
        [Path(sys.executable).with_name("ansible-playbook"), "-e", f"@{tmp_path}/asked.json", play],
        timeout=60,
        env={**os.environ, "ANSIBLE_HOME": str(tmp_path), "LC_ALL": "C.UTF-8"},
    ).stdout

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
        "no promise": [],
    }
    assert verdicts["as the weights say"]["verdict"] == '100 streams, shares {"x": 0.75, "y": 0.25}'
