"""The role as text: what can be judged without a host."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy import role_readme
from deploy.lab.fleet import Fleet, balanced
from deploy.lab.playbook import REPOSITORY
from deploy.lab.shell import run

ROLE = REPOSITORY / "roles/circuitloom"
README_LINES = 15  # what a new user is asked to copy, at most


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
    run([*alone, program, *command[1:]], timeout=180, cwd=REPOSITORY)


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
        "RuntimeDirectory=circuitloom-%i": "RuntimeDirectory=circuitloom",
    }

    for special, general in names.items():
        instance = [line.replace(special, general) for line in instance]
    assert instance == single


def install_block() -> str:
    section = role_readme.README.read_text().partition("## Install on two hosts")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_new_user_copies_at_most_fifteen_lines() -> None:
    assert len(install_block().splitlines()) <= README_LINES


def test_the_lines_of_the_readme_install_on_two_hosts(fleet: Fleet, tmp_path: Path) -> None:
    """Copied as they are, but for the names of the hosts, and the environment: the one this test runs in."""
    for part in ("agent", "schemas", "roles", "pyproject.toml", "README.md", "LICENSE"):
        source = REPOSITORY / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / part)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/bin").symlink_to(Path(sys.executable).parent)
    first, *lines = install_block().splitlines()
    assert first == "python3 -m venv .venv && .venv/bin/pip install '.[deploy]'"
    hosts = [fleet.hosts["a"], fleet.hosts["c"]]
    script = "\n".join(lines)
    for name, host in zip(("first.example.net", "second.example.net"), hosts, strict=True):
        script = script.replace(name, host.address)
    settings = {
        "ANSIBLE_REMOTE_USER": "root",
        "ANSIBLE_PRIVATE_KEY_FILE": str(fleet.lab.directory / "key"),
        "ANSIBLE_SSH_COMMON_ARGS": f"-o UserKnownHostsFile={fleet.lab.directory / 'known_hosts'}",
        "ANSIBLE_HOME": str(tmp_path / "home"),
        "ANSIBLE_PIPELINING": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    environment = [f"{name}={value}" for name, value in settings.items()]

    fleet.changed |= {host.name for host in hosts}
    run(
        fleet.lab.inside("ctl", ["env", "--chdir", tmp_path, *environment, "sh", "-euc", script]),
        timeout=600,
    )

    for host in hosts:
        balanced(host)
        assert "primary" in host.run("circuitloom status")
