"""Every metric by name: its kind, its labels, what it says. The README's table is made from this."""

from __future__ import annotations

from dataclasses import dataclass

CIRCUIT_STATES = ("backoff", "building", "built", "down", "drained", "draining", "ejected", "idle")
"""Told also while no circuit is in them; another state is told as it comes."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: As in a query; of a histogram without ``_bucket``, ``_sum`` and ``_count``.
        kind: ``counter``, ``gauge`` or ``histogram``.
        help: What it says.
        labels: Besides ``agent``, which every metric has where the policy gives the agent a name.
    """

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = ()


_METRICS = (
    Metric("info", "gauge", "Always 1: what runs", ("version", "tor_version", "algorithm")),
    Metric("exported_timestamp_seconds", "gauge", "When these numbers were read (Unix time)"),
    Metric("state", "gauge", "1 for the state the agent is in, 0 for the others", ("state",)),
    Metric("policy_last_reload_successful", "gauge", "0 while the policy on the disk was refused, else 1"),
    Metric("reloads_total", "counter", "Reloads of the policy: applied, refused", ("outcome",)),
    Metric("tor_connections_total", "counter", "Control connections made to Tor: one, and each reconnect"),
    Metric("takeovers_total", "counter", "How often stream attachment was taken over from Tor"),
    Metric("give_backs_total", "counter", "How often it was given back"),
    Metric(
        "circuits", "gauge", "Circuits of the policy, of all keys, by the state shown in status", ("state",)
    ),
    Metric("circuit_built", "gauge", "How many circuits of this name are built, over all keys", ("circuit",)),
    Metric("circuit_streams", "gauge", "Streams on them now", ("circuit",)),
    Metric("circuit_weight", "gauge", "Its weight, 0 for a backup", ("circuit",)),
    Metric("builds_total", "counter", "Builds that ended: built, failed", ("circuit", "outcome")),
    Metric("build_seconds", "histogram", "From asking Tor for a circuit to BUILT"),
    Metric("ejections_total", "counter", "How often a circuit took no streams for a while", ("circuit",)),
    Metric(
        "rotations_total", "counter", "How often a circuit was replaced for its age or its use", ("circuit",)
    ),
    Metric("probes_total", "counter", "Checks of a circuit: passed, failed", ("circuit", "outcome")),
    Metric("guards", "gauge", "Different first relays of the built circuits"),
    Metric("guard_circuits_max", "gauge", "How many built circuits share the most used one of them"),
    Metric("keys", "gauge", "Isolation keys that have circuits"),
    Metric("attachments_total", "counter", "Streams attached to a circuit, each time anew", ("circuit",)),
    Metric(
        "streams_total",
        "counter",
        "What became of attachments: connected, detached (tried elsewhere), failed",
        ("circuit", "outcome"),
    ),
    Metric("connect_seconds", "histogram", "From the attachment to SUCCEEDED", ("circuit",)),
    Metric("streams_released_total", "counter", "Streams handed to Tor's own choice"),
    Metric("streams_closed_total", "counter", "Streams closed because the policy says so"),
    Metric("retries_total", "counter", "Attachments of streams that another circuit did not connect"),
    Metric("redispatches_total", "counter", "Streams moved because their circuit did not answer in time"),
    Metric("streams", "gauge", "Streams of users that Tor has now, wherever they are"),
    Metric("streams_waiting", "gauge", "Streams that wait for circuits, or for room on one"),
    Metric("streams_queued", "gauge", "Those of them that wait for room"),
    Metric("wait_seconds", "histogram", "How long streams that had to wait waited for their circuit"),
    Metric(
        "decision_seconds", "histogram", "From reading that a stream waits to the command that attaches it"
    ),
    Metric(
        "rounds_total",
        "counter",
        "Rounds of circuits that are over: done, failed, unknown, missed",
        ("outcome",),
    ),
    Metric("rounds_running", "gauge", "Hooks that run now"),
    Metric("rounds_waiting", "gauge", "Rounds that wait for a circuit, or to be tried again"),
    Metric("rounds_stopped", "gauge", "1 while something keeps all rounds from going on, else 0"),
    Metric("cpu_seconds_total", "counter", "CPU time of the agent"),
    Metric("resident_memory_bytes", "gauge", "Memory of the agent"),
    Metric("open_fds", "gauge", "File descriptors it has open"),
    Metric("max_fds", "gauge", "File descriptors it may have open"),
)

METRICS = {f"circuitloom_{metric.name}": metric for metric in _METRICS}


def table() -> str:
    """All of them, as Markdown."""
    lines = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for name, metric in METRICS.items():
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(f"| `{name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join(lines) + "\n"
