"""The role as text: what can be judged without a host."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

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
