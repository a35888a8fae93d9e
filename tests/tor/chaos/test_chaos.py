"""Every row of the chaos table as a test: about three minutes, one network for all.

The whole table runs, not a part of it: each row is a promise of its own, and the floods and the standstill
are those that no other test has.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.traffic import EchoServer
from tor.chaos.row import run_row
from tor.chaos.scenarios import SCENARIOS, Scenario
from tor.chaos.table import HEADER, format_row


def told(log: Path) -> list[str]:
    """What the agent said last, without a line for each stream."""
    return [line for line in log.read_text().splitlines() if " DEBUG " not in line][-60:]


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
def test_nothing_is_stranded_or_lost(
    scenario: Scenario, network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path
) -> None:
    row = run_row(scenario, network, echo, tmp_path / "agent")

    assert not row.problems, "\n".join(("", HEADER, format_row(row), *told(tmp_path / "agent" / "agent.log")))
    assert client.is_running()
