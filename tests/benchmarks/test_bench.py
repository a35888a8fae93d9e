"""The benchmark measures what it says; how fast that is, no test judges."""

from __future__ import annotations

import pytest

from benchmarks.attach import SUBJECTS, Row, Spread, Subject, run_once
from benchmarks.report import chart, report_text


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: f"{subject.name} {subject.window}")
def test_each_subject_attaches_every_stream_of_the_flood(subject: Subject) -> None:
    flooded = run_once(subject, 0.3)

    assert flooded.streams > 0
    assert flooded.refused == 0
    assert flooded.cpu_seconds > 0
    assert 0 < flooded.p50_ms <= flooded.p99_ms <= flooded.max_ms


def test_the_report_names_each_subject_with_its_median_and_spread() -> None:
    spread = Spread(1000.0, 2000.0, 3000.0)
    row = Row("the agent", 64, spread, spread, spread, spread, spread)

    text = report_text([row], machine="2 cores", date="2026-01-02", rounds=3)

    assert "| the agent | 64 | 2,000 (1,000..3,000) |" in text
    assert "Measured 2026-01-02 on 2 cores" in text
    assert "the agent, 64 in flight" in chart([row])
