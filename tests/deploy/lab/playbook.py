"""ansible-playbook, run in the controller's namespace, and its recap as numbers."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.lab.host import Host
from deploy.lab.lab import Lab
from deploy.lab.shell import run

REPOSITORY = Path(__file__).parents[3]
PLAY_SECONDS = 600.0  # the first install on three hosts takes about two minutes on two busy cores
_RECAP = re.compile(r"^(?P<host>\S+)\s*: (?P<counts>ok=\d+.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """What a run of ansible-playbook did.

    Attributes:
        code: Its exit code.
        output: All it printed.
        recap: Host -> counter -> number (`ok`, `changed`, `failed`, `unreachable`, `rescued`, ...).
    """

    code: int
    output: str
    recap: dict[str, dict[str, int]]

    def changed(self) -> dict[str, int]:
        """Return host -> how many tasks changed something."""
        return {host: counts["changed"] for host, counts in self.recap.items()}

    def changes(self) -> list[str]:
        """Return the tasks that reported a change, each as `host: task`."""
        found, task = [], ""
        for line in self.output.splitlines():
            if match := re.match(r"(?:TASK|RUNNING HANDLER) \[(.*?)\] \*", line):
                task = match[1]
            elif match := re.match(r"changed: \[([^\]]+)\]", line):
                found.append(f"{match[1]}: {task}")
        return found


def play(
    lab: Lab,
    playbook: Path,
    hosts: Sequence[Host],
    *options: str,
    variables: Mapping[str, Any] | None = None,
    host_variables: Mapping[str, Mapping[str, Any]] | None = None,
) -> Result:
    """Run a playbook against `hosts`, in this order.

    Args:
        lab: The controller's lab.
        playbook: The file.
        hosts: The group `tor_clients` of the inventory.
        options: More words for ansible-playbook (`--check`, `--diff`, `--tags`, ...).
        variables: Variables of the group.
        host_variables: Host name -> variables of that host, which outrank those of the group.
    """
    folder = lab.directory / "ansible"
    folder.mkdir(exist_ok=True)
    inventory = {
        "tor_clients": {
            "hosts": {
                host.name: {
                    "ansible_host": host.address,
                    "ansible_python_interpreter": "/usr/bin/python3",
                    **(host_variables or {}).get(host.name, {}),
                }
                for host in hosts
            },
            "vars": {
                **(variables or {}),
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(lab.directory / "key"),
                "ansible_ssh_common_args": f"-F none -o UserKnownHostsFile={lab.directory / 'known_hosts'}"
                " -o StrictHostKeyChecking=accept-new -o LogLevel=ERROR",
            },
        }
    }
    # JSON is YAML: no dumper needed.
    (folder / "inventory.yml").write_text(json.dumps(inventory, indent=1))
    (folder / "ansible.cfg").write_text("[defaults]\n")
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(folder / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(REPOSITORY / "roles"),
        "ANSIBLE_HOME": str(folder / "home"),
        "ANSIBLE_LOCAL_TEMP": str(folder / "tmp"),
        "ANSIBLE_SSH_CONTROL_PATH_DIR": str(lab.directory),
        "ANSIBLE_SSH_CONTROL_PATH": "%(directory)s/a-%%h",
        "ANSIBLE_PIPELINING": "1",
        "ANSIBLE_SSH_TRANSFER_METHOD": "piped",
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_DEPRECATION_WARNINGS": "1",
        "ANSIBLE_RETRY_FILES_ENABLED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LC_ALL": "C.UTF-8",
    }
    done = run(
        lab.inside(
            "ctl",
            [
                *("ansible-playbook", "-i", str(folder / "inventory.yml")),
                *options,
                str(playbook),
            ],
        ),
        timeout=PLAY_SECONDS,
        check=False,
        env=environment,
    )
    recap = {
        match["host"]: {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", match["counts"])}
        for match in _RECAP.finditer(done.stdout)
    }
    return Result(done.returncode, done.stdout, recap)
