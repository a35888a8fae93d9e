"""The role's README: the lines a new user copies."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from deploy import role_readme
from deploy.lab.fleet import Fleet, balanced
from deploy.lab.playbook import REPOSITORY
from deploy.lab.shell import run

LINES = 15  # what a new user is asked to copy, at most


def install_block() -> str:
    section = role_readme.README.read_text().partition("## Install on two hosts")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_new_user_copies_at_most_fifteen_lines() -> None:
    assert len(install_block().splitlines()) <= LINES


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
