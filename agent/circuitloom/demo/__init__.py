"""``circuitloom demo``: a private Tor network, the real agent, load, and a failover, in about a minute."""

from circuitloom.demo.scenario import run_demo

__all__ = ["run_demo"]
