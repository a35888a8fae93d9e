"""Too many circuits of a key are ejected (``health.panic``): all serve again, or Tor, or streams wait."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.traffic import EchoServer
from tor.agent import circuit_ids
from tor.test_eject import eject_silent, ejecting
from tor.test_redispatch import echo_early, make_agent, paused
from tor.witness import Witness

EJECTED_SECONDS = 12
STREAMS = 10


@pytest.mark.parametrize("action", ["all", "tor", "hold"])
def test_in_a_panic_streams_go_where_the_policy_says(
    network: PrivateNetwork, client: TorClient, echo: EchoServer, tmp_path: Path, action: str
) -> None:
    """One of two circuits is out, which is below the threshold; no stream is lost whatever is done then."""
    failover = ejecting(EJECTED_SECONDS, f", panic: {{threshold: 51%, action: {action}}}")
    with (
        make_agent(network, tmp_path, balance="purpose: controller", failover=failover) as agent,
        Witness(client) as witness,
    ):
        ids = circuit_ids(agent.wait_balancing(2))
        with paused(network.relays[2]):
            eject_silent(agent, client, echo)
        # The exit is well again; its circuit is ejected still.
        before = witness.first_circuits()
        waits = asyncio.run(echo_early(client, echo.port, STREAMS))
        taken = witness.first_circuits() - before
        shown = agent.status()

        assert "panic" in agent.log()
        if action == "tor":
            assert not taken.keys() & set(ids.values())
            assert shown["streams"]["released_total"] >= STREAMS
        else:
            half = STREAMS // 2
            assert taken == Counter({ids["silent"]: half, ids["other"]: half})
        # Held ones went on when the ejection was over, and not before.
        assert (min(waits) > 1.0) == (action == "hold")
        assert agent.stop() == 0
