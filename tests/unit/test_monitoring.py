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

from circuitloom.metrics.catalogue import CIRCUIT_STATES, METRICS
from circuitloom.pool import Attachment
from unit.pool_driver import balancing
from unit.test_metrics import text

ROOT = Path(__file__).parents[2]
RULES = ROOT / "roles/circuitloom/files/circuitloom.rules.yml"
RULE_TESTS = Path(__file__).with_name("circuitloom.rules.test.yml")
DASHBOARD = ROOT / "roles/circuitloom/files/circuitloom.dashboard.json"
OWN_ALERTS = 'ALERTS{alertname=~"Circuitloom.+",'


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


def panels_of(kind: str) -> list[dict[str, Any]]:
    return [panel for panel in panels() if panel["type"] == kind]


def defaults(panel: dict[str, Any]) -> dict[str, Any]:
    return dict(panel["fieldConfig"]["defaults"])


def coloured(title: str) -> set[str]:
    """The series of a panel that have a colour of their own."""
    (panel,) = [panel for panel in panels() if panel["title"] == title]
    return {
        rule["matcher"]["options"]
        for rule in panel["fieldConfig"]["overrides"]
        if any(prop["id"] == "color" for prop in rule["properties"])
    }


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
        assert used or OWN_ALERTS in expression
        assert used <= METRICS.keys()
        if not used:
            continue
        own = {label for name in used for label in METRICS[name].labels}
        by_label = re.findall(r'[{,](\w+)(?:=|!=|=~|!~)"', expression)
        grouped = re.findall(r"(?:by|without) \(([^)]*)\)", expression)
        named = {*by_label, *(label.strip() for labels in grouped for label in labels.split(","))}
        assert named <= own | {"instance", "agent", "le"}


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


def test_an_agent_whose_numbers_stand_still_is_told_as_silent_and_as_nothing_else(tmp_path: Path) -> None:
    """Its last file lies where node_exporter reads it, and says that it balances."""
    told = {
        'state{instance="a",agent="one",state="balancing"}': "1x10",
        'state{instance="a",agent="two",state="released"}': "1x10",
        'state{instance="b",state="balancing"}': "1x10",
        'exported_timestamp_seconds{instance="a",agent="one"}': "0+60x10",
        'exported_timestamp_seconds{instance="a",agent="two"}': "0+60x10",
        'exported_timestamp_seconds{instance="b"}': "0x10",
    }
    (panel,) = [panel for panel in panels() if panel["title"] == "Agents by state"]
    by_state, silent = (target["expr"].replace("$instance", ".*") for target in panel["targets"])
    expected = {by_state: {'{state="balancing"}': 1, '{state="released"}': 1}, silent: {"{}": 1}}
    case = {
        "interval": "1m",
        "input_series": [
            {"series": f"circuitloom_{name}", "values": values} for name, values in told.items()
        ],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": "10m",
                "exp_samples": [{"labels": labels, "value": value} for labels, value in samples.items()],
            }
            for query, samples in expected.items()
        ],
    }
    file = tmp_path / "states.yml"
    file.write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))

    assert "SUCCESS" in promtool("test", "rules", file)


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


def test_every_panel_says_what_it_shows_and_in_what_unit() -> None:
    for panel in panels():
        if panel["type"] == "row":
            continue
        assert panel["description"].endswith("."), panel["title"]
        assert defaults(panel)["unit"], panel["title"]
        assert [
            target["legendFormat"] for target in panel["targets"] if "(s)" in target["legendFormat"]
        ] == []
    assert len({panel["title"] for panel in panels()}) == len(panels())


def test_what_is_shown_as_it_is_now_is_never_an_older_value() -> None:
    """Over a range Grafana shows the last value there was: of an agent that has gone, hours ago."""
    for panel in panels_of("stat") + panels_of("table"):
        assert {target["instant"] for target in panel["targets"]} == {True}, panel["title"]
        assert defaults(panel)["noValue"], panel["title"]


def test_a_number_is_red_for_a_reason_of_ours_and_none_at_all_is_not() -> None:
    """Without thresholds of a panel's own Grafana makes every number from 80 on red."""
    for panel in panels_of("stat"):
        first, *others = defaults(panel)["thresholds"]["steps"]
        assert first == {"color": "text", "value": None}, panel["title"]
        assert [step["value"] for step in others] == sorted(step["value"] for step in others)


def test_no_axis_has_words_for_numbers() -> None:
    """Between whole numbers Grafana writes ``noValue`` beside the axis."""
    for panel in panels_of("timeseries"):
        assert not {"noValue", "decimals"} <= defaults(panel).keys(), panel["title"]


def test_a_series_of_zeros_does_not_outline_what_it_is_stacked_upon() -> None:
    """Else a stack of circuits that were built has the colour of those that failed for its edge."""
    for panel in panels_of("timeseries"):
        custom = defaults(panel)["custom"]
        is_stacked = custom["stacking"]["mode"] != "none"
        assert (custom["lineWidth"] == 0) == is_stacked == (custom["fillOpacity"] > 0), panel["title"]


def test_tables_have_words_for_columns() -> None:
    for panel in panels_of("table"):
        (organize,) = [each["options"] for each in panel["transformations"] if each["id"] == "organize"]
        known = organize["renameByName"].keys() | organize["excludeByName"].keys()
        several = len(panel["targets"]) > 1
        columns = {"Time"} | {
            f"Value #{target['refId']}" if several else "Value" for target in panel["targets"]
        }
        for target in panel["targets"]:
            (labels,) = re.findall(r"by \(([^)]*)\)", target["expr"])
            columns |= {label.strip() for label in labels.split(",")}
        assert columns <= known, panel["title"]
        assert {rule["matcher"]["options"] for rule in panel["fieldConfig"]["overrides"]} <= set(
            organize["renameByName"].values()
        )


def test_every_state_has_its_colour() -> None:
    assert coloured("Circuits by state") == set(CIRCUIT_STATES)
    for title in ("Agents by state", "Agents by state, over time"):
        assert coloured(title) == {*(state.value for state in Attachment), "silent"}
