"""The numbers in Prometheus' text format, a slice at a time.

prometheus_client takes 5 us for a line, and a thousand circuits have 28,000: in one go that would hold every
stream up for a tenth of a second. So what has many circuits is made and written in slices, and whoever asks
for the text lets the loop turn between them.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family

from circuitloom.metrics.catalogue import CIRCUIT_STATES, METRICS
from circuitloom.metrics.reading import Reading
from circuitloom.pool import Attachment, Histogram
from circuitloom.rounds.types import Outcome

__all__ = ["text_slices"]

_KINDS = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}

SLICE_CIRCUITS = 8
"""A histogram has 20 lines for each circuit: a slice of it takes about a millisecond."""

Value = float | Histogram
Values = Iterable[tuple[tuple[str, ...], Value]]


def text_slices(reading: Reading, *, agent: str | None) -> Iterator[bytes]:
    """The text, in pieces each of which took about a millisecond at most.

    Args:
        reading: What to tell.
        agent: Value of the label ``agent`` that every line gets; None: no such label.
    """
    collector = _Collector(reading, {} if agent is None else {"agent": agent})
    for name in METRICS:
        is_first = True
        for family in collector.families(name):
            text = generate_latest(_One(family))
            # HELP and TYPE stand once, before the first line of a metric.
            yield text if is_first else text.split(b"\n", 2)[2]
            is_first = False


class _One:
    """One family, as prometheus_client wants to be given it."""

    def __init__(self, family: Family) -> None:
        self._family = family

    def collect(self) -> Iterable[Family]:
        return (self._family,)


class _Collector:
    """Makes families from a reading.

    Args:
        reading: What to tell.
        common: Labels of every line.
    """

    def __init__(self, reading: Reading, common: Mapping[str, str]) -> None:
        self._common = common
        self._values = _plain_values(reading) | _values_by_circuit(reading)

    def families(self, name: str) -> Iterator[Family]:
        """A metric, in one family or several."""
        values = list(self._values[name])
        for start in range(0, max(1, len(values)), SLICE_CIRCUITS):
            metric = METRICS[name]
            family = _KINDS[metric.kind](name, metric.help, labels=[*self._common, *metric.labels])
            for labels, value in values[start : start + SLICE_CIRCUITS]:
                labelled = [*self._common.values(), *labels]
                if isinstance(value, Histogram):
                    family.add_metric(labelled, _buckets(value), value.sum_seconds)
                else:
                    family.add_metric(labelled, value)
            yield family


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """The classes as Prometheus wants them: each with all below it."""
    buckets: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*map(str, histogram.bounds), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def _plain_values(reading: Reading) -> dict[str, Values]:
    """Whatever is not told for each circuit."""
    snapshot, tally, counts, rounds = reading.snapshot, reading.tally, reading.counts, reading.rounds
    states = Counter(circuit.state for circuit in snapshot.circuits)
    plain: dict[str, Value] = {
        "exported_timestamp_seconds": time.time(),
        "policy_last_reload_successful": counts.is_policy_current,
        "tor_connections_total": counts.connections,
        "takeovers_total": counts.takeovers,
        "give_backs_total": counts.give_backs,
        "build_seconds": tally.builds,
        "guards": len(reading.guards),
        "guard_circuits_max": max(reading.guards, default=0),
        "keys": len({circuit.key for circuit in snapshot.circuits}),
        "streams_released_total": snapshot.released_total,
        "streams_closed_total": tally.closed,
        "retries_total": tally.retries,
        "redispatches_total": tally.redispatches,
        "streams": snapshot.streams_active,
        "streams_waiting": snapshot.streams_waiting,
        "streams_queued": snapshot.streams_queued,
        "wait_seconds": tally.waits,
        "decision_seconds": counts.decisions,
        "rounds_running": rounds.running,
        "rounds_waiting": rounds.waiting,
        "rounds_stopped": rounds.is_stopped,
    }
    values: dict[str, Values] = {name: [((), value)] for name, value in (plain | _process()).items()}
    values["info"] = [((reading.version, reading.tor_version, snapshot.algorithm), 1)]
    values["state"] = [((state.value,), state == snapshot.state) for state in Attachment]
    values["circuits"] = [((state,), states[state]) for state in sorted({*CIRCUIT_STATES, *states})]
    values["reloads_total"] = [
        (("applied",), counts.reloads_applied),
        (("refused",), counts.reloads_refused),
    ]
    values["rounds_total"] = [((outcome,), rounds.over.get(outcome, 0)) for outcome in Outcome]
    return {f"circuitloom_{name}": value for name, value in values.items()}


def _values_by_circuit(reading: Reading) -> dict[str, Values]:
    """Each counted only when its turn comes: for a thousand circuits one takes a millisecond or two."""
    built: Counter[str] = Counter()
    streams: Counter[str] = Counter()
    weights: dict[str, int] = {}
    for circuit in reading.snapshot.circuits:
        built[circuit.name] += circuit.age_seconds is not None and circuit.state != "draining"
        streams[circuit.name] += circuit.streams
        weights[circuit.name] = 0 if circuit.role == "backup" else circuit.weight
    circuits = reading.tally.circuits
    values: dict[str, Values] = {
        "circuit_built": (((name,), built[name]) for name in circuits),
        "circuit_streams": (((name,), streams[name]) for name in circuits),
        "circuit_weight": (((name,), weights.get(name, 0)) for name in circuits),
        "attachments_total": (((name,), circuit.attached) for name, circuit in circuits.items()),
        "connect_seconds": (((name,), circuit.connects) for name, circuit in circuits.items()),
        "ejections_total": (((name,), circuit.ejections) for name, circuit in circuits.items()),
        "rotations_total": (((name,), circuit.rotations) for name, circuit in circuits.items()),
        "probes_total": (
            ((name, outcome), count)
            for name, circuit in circuits.items()
            for outcome, count in (("passed", circuit.checks_passed), ("failed", circuit.checks_failed))
        ),
        "streams_total": (
            ((name, outcome), count)
            for name, circuit in circuits.items()
            for outcome, count in (
                ("connected", circuit.connects.count),
                ("detached", circuit.detached),
                ("failed", circuit.failed),
            )
        ),
        "builds_total": (
            ((name, outcome), count)
            for name, circuit in circuits.items()
            for outcome, count in (("built", circuit.built), ("failed", circuit.build_failures))
        ),
    }
    return {f"circuitloom_{name}": value for name, value in values.items()}


def _process() -> dict[str, float]:
    """What the agent takes of the machine.

    prometheus_client has the same, without the label ``agent``: the files of two agents in node_exporter's
    folder would then contradict each other, and neither be read.
    """
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - a Path is no clearer here
        pages = int(file.read().split()[1])
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return {
        "cpu_seconds_total": time.process_time(),
        "resident_memory_bytes": pages * resource.getpagesize(),
        "open_fds": sum(1 for _ in os.scandir("/proc/self/fd")),
        "max_fds": float("inf") if most == resource.RLIM_INFINITY else most,
    }
