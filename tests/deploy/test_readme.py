"""The lines a new user copies: of the role's README, and of the project's, for one host without Ansible."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from deploy import role_readme
from deploy.lab.fleet import Fleet, balanced, spread
from deploy.lab.playbook import REPOSITORY
from deploy.lab.shell import run

PROJECT_README = REPOSITORY / "README.md"
LINES = 15  # what a new user is asked to copy, at most
PARTS = ("agent", "schemas", "roles", "pyproject.toml", "README.md", "LICENSE")


def block(readme: Path, heading: str) -> str:
    section = readme.read_text().partition(f"## {heading}\n")[2]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found[1]


def install_block() -> str:
    return block(role_readme.README, "Install on two hosts")


def check_out(folder: Path) -> None:
    """Copy what the lines need of this repository."""
    for part in PARTS:
        source = REPOSITORY / part
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / part)


def test_a_new_user_copies_at_most_fifteen_lines() -> None:
    assert len(install_block().splitlines()) <= LINES


def test_the_lines_of_the_readme_install_on_two_hosts(fleet: Fleet, tmp_path: Path) -> None:
    """Copied as they are, but for the names of the hosts, and the environment: the one this test runs in."""
    check_out(tmp_path)
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


def test_the_lines_of_the_project_s_readme_install_on_one_host(fleet: Fleet) -> None:
    """Copied as they are; pip finds in a folder what it would download, and apt takes yes for an answer."""
    host = fleet.hosts["b"]
    fleet.changed.add(host.name)
    assert fleet.play(hosts=[host], circuitloom_state="absent").code == 0
    checkout, wheels = host.root / "root/checkout", host.root / "root/wheels"
    checkout.mkdir()
    check_out(checkout)
    run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--wheel-dir",
            wheels,
            f"{checkout}[demo]",
            "hatchling",
        ],
        timeout=180,
    )
    host.run("echo 'APT::Get::Assume-Yes \"true\";' > /root/apt.conf")
    surroundings = "APT_CONFIG=/root/apt.conf PIP_NO_INDEX=1 PIP_FIND_LINKS=/root/wheels"

    lines = block(PROJECT_README, "Install on one host")
    said = host.run(f"cd /root/checkout && export {surroundings} && set -eu\n{lines}", timeout=180)

    assert "secondary" in said
    balanced(host)
    host.run("circuitloom check --online /etc/circuitloom/policy.yml")
    assert spread(host, fleet.network, 20) == {"primary": 10, "secondary": 10}
    host.run("systemctl disable --now circuitloom")
    assert host.guest("option") == {"value": "0", "waiting": 0}
    assert host.guest("until", fleet.network.echo, "10")["seconds"] is not None
