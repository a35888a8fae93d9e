"""What the demo shows while it runs."""

from __future__ import annotations

import pytest

from circuitloom.demo.findings import WEIGHTS, Failover, Findings
from circuitloom.demo.views import PlainView


def test_a_line_of_shares_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    findings = Findings(60.0)
    for name, weight in WEIGHTS.items():
        findings.carried[name] = 999 * weight
    findings.failover = Failover("16", 1.0, 41)
    PlainView().show(findings)
    line = capsys.readouterr().out

    assert line == "  0.0 s  heavy 40% middle 30% light 20% feather 10%  9990 streams 0 cut 0 lost\n"
    assert len(line) <= 80
