"""What monitoring reads: numbers in Prometheus' words, as a file or on a loopback port.

Rules of this package:

* Nothing here counts: the pool and the service keep plain numbers, which are read when somebody asks.
* Labels are names of the policy and words of ours, so there are as many as the policy makes: no isolation
  key, no user, no destination.
* It is never a required component: what keeps it from telling is said once, and tried again.
* prometheus_client is loaded only where the policy asks for metrics.
"""

from circuitloom.metrics.exporter import Exporter
from circuitloom.metrics.reading import AgentCounts, Reading

__all__ = ["AgentCounts", "Exporter", "Reading"]
