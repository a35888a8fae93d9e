"""The alert rules and the dashboard of the role: sound, firing, and of metrics that there are."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from circuitloom.metrics.catalogue import METRICS
from unit.pool_driver import balancing
from unit.test_metrics import text

ROOT = Path(__file__).parents[2]
RULES = ROOT / "roles/circuitloom/files/circuitloom.rules.yml"
RULE_TESTS = Path(__file__).with_name("circuitloom.rules.test.yml")
DASHBOARD = ROOT / "roles/circuitloom/files/circuitloom.dashboard.json"


def promtool(*arguments: str | Path, stdin: str = "") -> str:
    """Run Prometheus' own judge; whatever it has against its input fails the test."""
    program = shutil.which("promtool", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no promtool here: ./dev test takes it out of Debian's package prometheus")
    done = subprocess.run(
        [program, *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    return list(group["rules"])


def panels() -> list[dict[str, Any]]:
    return list(json.loads(DASHBOARD.read_text())["panels"])


def queries() -> Iterator[tuple[str, str]]:
    """Each query of the dashboard, with its panel's title."""
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


def metrics_in(expression: str) -> set[str]:
    """The metrics of an expression, without what Prometheus adds to the name of a histogram."""
    names = set(re.findall(r"circuitloom_\w+", expression))
    return {name if name in METRICS else re.sub("_(bucket|sum|count)$", "", name) for name in names}


def test_promtool_has_nothing_against_what_the_agent_tells() -> None:
    assert promtool("check", "metrics", stdin=text(balancing())).strip() == ""


def test_promtool_accepts_the_rules() -> None:
    assert f"SUCCESS: {len(rules())} rules found" in promtool("check", "rules", RULES)


def test_every_alert_fires_for_its_cause_and_none_for_a_healthy_agent() -> None:
    assert "SUCCESS" in promtool("test", "rules", RULE_TESTS)

    tested = RULE_TESTS.read_text()
    assert [rule["alert"] for rule in rules() if rule["alert"] not in tested] == []


def test_every_alert_says_where_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


def test_rules_and_dashboard_use_metrics_and_labels_that_there_are() -> None:
    expressions = [rule["expr"] for rule in rules()] + [expression for _, expression in queries()]

    for expression in expressions:
        used = metrics_in(expression)
        assert used
        assert used <= METRICS.keys()
        own = {label for name in used for label in METRICS[name].labels}
        by_label = re.findall(r'[{,](\w+)(?:=|!=|=~|!~)"', expression)
        grouped = re.findall(r"(?:by|without) \(([^)]*)\)", expression)
        named = {*by_label, *(label.strip() for labels in grouped for label in labels.split(","))}
        assert named <= own | {"instance", "le"}


def test_every_metric_is_on_the_dashboard() -> None:
    assert METRICS.keys() - {name for _, query in queries() for name in metrics_in(query)} == set()


def test_prometheus_understands_every_query_of_the_dashboard(tmp_path: Path) -> None:
    made = [
        {
            "record": f"panel:{number}",
            "expr": query.replace("$__rate_interval", "5m").replace("$instance", ".*"),
        }
        for number, (_, query) in enumerate(queries())
    ]
    file = tmp_path / "dashboard.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": made}]}))

    assert f"SUCCESS: {len(made)} rules found" in promtool("check", "rules", file)


def test_the_panels_do_not_overlap_and_stay_in_the_grid() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())
