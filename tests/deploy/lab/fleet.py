"""Three hosts with a Tor client each, the wheels to install on them, and the play that does it."""

from __future__ import annotations

import copy
import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.lab.host import Host
from deploy.lab.lab import SUBNET, Lab
from deploy.lab.playbook import REPOSITORY, Result, play
from deploy.lab.tornet import TorNetwork
from deploy.lab.wheels import Wheels

PLAYS = Path(__file__).parents[1] / "plays"
ROLLING = REPOSITORY / "roles/circuitloom/examples/rolling.yml"
VERIFY = REPOSITORY / "roles/circuitloom/examples/verify.yml"

# What the hosts run is one of these; a test that rolls the other one out need not take it back.
POLICIES: list[dict[str, Any]] = [
    {"circuits": [{"name": "alpha", "weight": 3}, {"name": "beta", "weight": 1}]},
    {"circuits": [{"name": "alpha", "weight": 1}, {"name": "beta", "weight": 1}]},
]
# A secret that must never be seen in Ansible's output, and the hash that Tor's torrc would have of it.
PASSWORD = "blue-heron-42"  # noqa: S105  # exists in a lab only
HASHED_PASSWORD = "16:D7EF7C87BFABC84A602BD540095704A04669A9AED46F50A50BD1BAFFE3"  # noqa: S105  # made for this test

SETTINGS = {"MaxCircuitDirtiness": 1200, "SafeLogging": 1, "HashedControlPassword": HASHED_PASSWORD}

STATUS = "/usr/local/bin/circuitloom status --json"


@dataclass
class Fleet:
    """The hosts and what is deployed to them.

    Attributes:
        lab: Where they live.
        network: Their Tor network.
        wheels: What can be installed.
        hosts: By name: `a` (Debian 12, virgin), `b` (Debian 12, with Tor running), `c` (Debian 13, virgin).
        policy: What all of them normally run.
        history: Results of the first contacts, by what was done.
        tree_before: The files of host `b` before it saw the role.
        traces_of_check: What check mode left on host `a`, which should be nothing.
        changed: Hosts that may be in another state than the normal one.
    """

    lab: Lab
    network: TorNetwork
    wheels: Wheels
    hosts: dict[str, Host] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=lambda: POLICIES[0])
    history: dict[str, Result] = field(default_factory=dict)
    tree_before: dict[str, Any] = field(default_factory=dict)
    traces_of_check: str = ""
    changed: set[str] = field(default_factory=set)

    def add(self, name: str, release: str, number: int, *, with_tor: bool) -> Host:
        """Boot one more host; its own torrc knows the private network only, before any tor is installed."""
        host = Host(self.lab, name, release, f"{SUBNET}.{number}")
        host.create()
        (host.root / "etc/tor").mkdir()
        (host.root / "etc/tor/torrc").write_text(self.network.client_torrc)
        host.boot()
        if with_tor:
            host.run(
                "apt-get -q update && DEBIAN_FRONTEND=noninteractive apt-get -qy"
                " -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold"
                " install --no-install-recommends tor && systemctl start tor@default",
                timeout=120,
            )
        self.hosts[name] = host
        return host

    def first_contact(self) -> None:
        """Bring the virgin hosts to balancing, and keep what each step said."""
        self.tree_before = self.hosts["b"].guest("tree")
        self.history["check"] = self.play("--check")
        self.traces_of_check = self.hosts["a"].run(
            "ls -d /opt/circuitloom /etc/circuitloom /etc/systemd/system/*circuitloom*"
            " /etc/systemd/system/tor* /usr/bin/tor /etc/tor/torrc.d 2>/dev/null",
            check=False,
        )
        self.history["first"] = self.play()
        self.history["second"] = self.play()
        # One host of each release says as much as three.
        self.history["check again"] = self.play("--check", hosts=[self.hosts["a"], self.hosts["c"]])

    @property
    def everyone(self) -> list[Host]:
        """All hosts, in the inventory's order."""
        return list(self.hosts.values())

    def variables(self, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  # whatever YAML can hold
        """Return the role's variables: those of a normal rollout, with `changes`."""
        return {
            "circuitloom_policy": copy.deepcopy(self.policy),
            "circuitloom_wheel": str(self.wheels.current),
            # Short, so that a test of the watchdog need not wait for half a minute.
            "circuitloom_watchdog_seconds": 4,
            "circuitloom_verify_window_seconds": 1,
            # Secrets are part of the normal state, so that no run of any test may show them.
            "circuitloom_control_password": PASSWORD,
            "circuitloom_tor_settings": dict(SETTINGS),
            **changes,
        }

    def play(
        self,
        *options: str,
        playbook: Path = PLAYS / "converge.yml",
        hosts: Sequence[Host] | None = None,
        host_variables: Mapping[str, Mapping[str, Any]] | None = None,
        leaves_as_before: bool = False,
        **changes: Any,  # noqa: ANN401  # whatever YAML can hold
    ) -> Result:
        """Run a playbook with the role's variables and `changes` of them; none may show a secret.

        Args:
            options: More words for ansible-playbook; `--diff` is always there.
            playbook: The file.
            hosts: All without it.
            host_variables: Host name -> variables of that host only.
            leaves_as_before: The test that asks for it asserts that the hosts are as they were.
            changes: Variables of all hosts.
        """
        targets = hosts if hosts is not None else self.everyone
        if (changes or host_variables) and not leaves_as_before and "--check" not in options:
            self.changed |= {host.name for host in targets}
        result = play(
            self.lab,
            playbook,
            targets,
            "--diff",
            *options,
            variables=self.variables(**changes),
            host_variables=host_variables,
        )
        assert PASSWORD not in result.output
        assert HASHED_PASSWORD not in result.output
        return result

    def converge(
        self,
        *options: str,
        hosts: Sequence[Host] | None = None,
        host_variables: Mapping[str, Mapping[str, Any]] | None = None,
        **changes: Any,  # noqa: ANN401  # as above
    ) -> Result:
        """Bring the hosts to the normal state, or to it with changes; fails the test when that fails."""
        result = self.play(*options, hosts=hosts, host_variables=host_variables, **changes)
        assert result.code == 0, result.output[-6000:]
        if not changes and not host_variables:
            self.changed -= {host.name for host in (hosts if hosts is not None else self.everyone)}
        return result

    def normal(self, *hosts: Host) -> None:
        """Make sure that hosts (all without arguments) are as the first contact left them."""
        astray = [host for host in hosts or self.everyone if host.name in self.changed]
        if astray:
            self.converge(hosts=astray)
        for host in hosts or self.everyone:
            balanced(host, 60)

    def assert_spread_as_the_policy_says(self, host: Host, count: int) -> None:
        """Open `count` streams at once and compare what Tor says of them with the weights, to one stream."""
        circuits = self.policy["circuits"]
        whole = sum(circuit["weight"] for circuit in circuits)
        counts = spread(host, self.network, count)
        assert set(counts) == {circuit["name"] for circuit in circuits}
        for circuit in circuits:
            assert abs(counts[circuit["name"]] - count * circuit["weight"] / whole) <= 1


def status(host: Host) -> dict[str, Any]:
    """Ask the agent of a host."""
    document: dict[str, Any] = json.loads(host.run(STATUS))
    return document


def main_pid(host: Host, unit: str = "circuitloom") -> int:
    """Return the main process of a unit."""
    return int(host.run(f"systemctl show --property=MainPID --value {unit}"))


def balanced(host: Host, seconds: float = 30.0) -> float:
    """Wait until a host's agent balances over all circuits of its policy; return how long that took."""
    wanted = shlex.quote(
        "import json, sys; d = json.load(sys.stdin);"
        "sys.exit(not (d['state'] == 'balancing' and all(c['state'] == 'built' for c in d['circuits'])))"
    )
    return host.wait_until(f"set -o pipefail; {STATUS} | python3 -c {wanted}", seconds=seconds)


def spread(host: Host, network: TorNetwork, count: int) -> dict[str, int]:
    """Open `count` streams at once and return circuit name -> how many Tor itself says are on it."""
    names = {circuit["circuit_id"]: circuit["name"] for circuit in status(host)["circuits"]}
    seen = host.guest("spread", network.echo, str(count))
    assert seen["failures"] == []
    return {
        names.get(circuit, f"Tor's own {circuit}"): number for circuit, number in seen["per_circuit"].items()
    }


@dataclass
class HeldStream:
    """One stream that stays open on a host while something happens to it."""

    host: Host
    target: str
    file: str

    def progress(self) -> dict[str, Any]:
        """Return {"stream": its id, "echoes": ..., "fault": ...}; the fault is empty as long as it lives."""
        answer: dict[str, Any] = json.loads(self.host.run(f"cat {self.file}"))
        return answer

    @property
    def circuit(self) -> str:
        """The id of the circuit it is on, by Tor's word at this moment; empty for a stream that is gone."""
        return str(self.host.guest("connected", self.target).get(self.progress()["stream"], ""))

    def lives(self) -> bool:
        """Say whether bytes go both ways at this moment."""
        before = self.progress()["echoes"]
        self.host.run("sleep 1")
        now = self.progress()
        return not now["fault"] and int(now["echoes"]) > int(before)

    def end(self) -> None:
        """Close it."""
        self.host.run(f"touch {self.file}.stop; sleep 0.3; rm -f {self.file}*")


def hold(host: Host, network: TorNetwork) -> HeldStream:
    """Open a stream that echoes ten times a second until it is ended."""
    name = f"held-{secrets.token_hex(3)}"
    stream = HeldStream(host, network.echo, f"/run/{name}.json")
    host.put_guest()
    host.run(
        f"systemd-run --quiet --collect --unit=guest-{name} "
        f"python3 /run/guest.py hold {network.echo} {stream.file}"
    )
    host.wait_until(f"test -e {stream.file}", seconds=15)
    return stream
