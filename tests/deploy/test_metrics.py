"""What an operator reads of a sandboxed agent: metrics by a link or on loopback, and the journal's fields."""

from __future__ import annotations

import json
from typing import Any

from circuitloom.kinds import Kind
from deploy.lab.fleet import PLAYS, Fleet, balanced, spread
from deploy.lab.host import Host

FOLDER = "/var/lib/prometheus/node-exporter"
LINK = f"{FOLDER}/circuitloom.prom"
FILE = "/run/circuitloom/metrics.prom"
PORT = 9955


def value(host: Host, command: str, sample: str) -> float:
    """One number of what the command prints."""
    lines = host.run(command).splitlines()
    (line,) = [line for line in lines if line.rpartition(" ")[0] == f"circuitloom_{sample}"]
    return float(line.rpartition(" ")[2])


def test_a_textfile_needs_no_opening_of_the_sandbox_and_any_user_may_read_it(fleet: Fleet) -> None:
    host = fleet.hosts["c"]
    fleet.normal(host)
    host.run(f"mkdir -p {FOLDER}")
    metrics = {"textfile": FILE, "interval": "1s"}
    variables: dict[str, Any] = {
        "circuitloom_policy": {**fleet.policy, "metrics": metrics},
        "circuitloom_textfile_directory": FOLDER,
    }
    before = host.run("systemctl show --property=RestrictAddressFamilies,ReadWritePaths circuitloom")

    first = fleet.play(hosts=[host], **variables)
    assert first.code == 0, first.output[-6000:]
    second = fleet.play(hosts=[host], **variables)

    assert second.changes() == []
    balanced(host)
    spread(host, fleet.network, 20)
    host.run("sleep 2")
    as_nobody = f"runuser -u nobody -- cat {LINK}"
    assert value(host, as_nobody, 'state{state="balancing"}') == 1
    assert value(host, as_nobody, 'attachments_total{circuit="alpha"}') >= 10
    assert host.run("systemctl show --property=RestrictAddressFamilies,ReadWritePaths circuitloom") == before
    assert host.run(f"stat --format=%a {FILE}").strip() == "644"

    fleet.normal(host)
    assert host.ssh(f"test -L {LINK}", check=False).returncode != 0
    host.run(f"rmdir -p {FOLDER} 2>/dev/null", check=False)


def test_a_port_opens_the_sandbox_for_loopback_only(fleet: Fleet) -> None:
    host = fleet.hosts["a"]
    fleet.normal(host)

    policy = {**fleet.policy, "metrics": {"listen": f"127.0.0.1:{PORT}"}}
    done = fleet.play(hosts=[host], circuitloom_policy=policy)

    assert done.code == 0, done.output[-6000:]
    balanced(host)
    read = (
        "python3 -c 'import urllib.request as u; "
        f'print(u.urlopen("http://127.0.0.1:{PORT}/metrics").read().decode())\''
    )
    assert value(host, read, 'state{state="balancing"}') == 1
    listening = host.run(f"ss --listening --tcp --numeric --no-header sport = :{PORT}")
    assert [line.split()[3] for line in listening.splitlines()] == [f"127.0.0.1:{PORT}"]
    assert "AF_INET6" not in host.run("systemctl show --property=RestrictAddressFamilies circuitloom")
    fleet.normal(host)
    assert (
        host.run("systemctl show --value --property=RestrictAddressFamilies circuitloom").strip() == "AF_UNIX"
    )


def test_rules_and_dashboard_are_put_where_they_are_wanted(fleet: Fleet) -> None:
    host = fleet.hosts["a"]
    host.run("mkdir -p /srv/rules /srv/dashboards")

    done = fleet.play(
        playbook=PLAYS / "monitoring.yml",
        hosts=[host],
        circuitloom_rules_directory="/srv/rules",
        circuitloom_dashboards_directory="/srv/dashboards",
    )

    assert done.code == 0, done.output[-6000:]
    assert "CircuitloomGone" in host.run("cat /srv/rules/circuitloom.rules.yml")
    assert json.loads(host.run("cat /srv/dashboards/circuitloom.json"))["uid"] == "circuitloom"
    host.run("rm -r /srv/rules /srv/dashboards")


def test_the_journal_finds_lines_by_what_they_are_about(fleet: Fleet) -> None:
    host = fleet.hosts["a"]
    fleet.normal(host)

    lines = host.run("journalctl --unit=circuitloom --output=json CIRCUIT=alpha").splitlines()
    kind = f"MESSAGE_ID={Kind.TAKEN_OVER.message_id}"
    taken_over = host.run(f"journalctl --unit=circuitloom --output=cat {kind}").splitlines()

    built = [line for line in map(json.loads, lines) if line["CIRCUITLOOM_EVENT"] == "circuit-built"]
    assert built[0]["MESSAGE"].startswith("circuit alpha (")
    assert built[0]["MESSAGE_ID"] == Kind.CIRCUIT_BUILT.message_id
    assert (built[0]["PRIORITY"], built[0]["_TRANSPORT"]) == ("6", "journal")
    assert "taking stream attachment over from Tor" in taken_over
    # Also after a reload of Tor, in other words.
    assert all("taking stream attachment over" in line for line in taken_over)
