"""What ``circuitloom simulate`` prints: tables and bars in plain text, within 80 columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap

from circuitloom.simulation.findings import CircuitFindings, Findings, WaitFindings
from circuitloom.simulation.trial import Trial

WIDTH = 80
MAX_NAME = 20
"""A longer name is cut short in a table."""

MAX_ROWS = 40
"""Of one table; the document of ``--json`` has all."""

MIN_BAR = 10

Row = tuple[str, ...]


def report(title: Sequence[str], trial: Trial, *, outage_seconds: float) -> str:
    """The whole text.

    Args:
        title: Lines that say what was simulated.
        trial: What it showed.
        outage_seconds: For how long a lost circuit could not be built again.
    """
    findings = trial.findings
    parts = [[*title], _circuits(findings), _rest(findings)]
    if not findings.is_served:
        parts.insert(1, ["The agent did not take over before the streams came: too few circuits were built."])
    if findings.rules:
        parts.append(_rules(findings))
    if trial.losses:
        at = _seconds(trial.losses[0].at_seconds)
        outage = f"cannot be built again for {_seconds(outage_seconds)}"
        parts.append([f"If one circuit is lost after {at}, and {outage}:", "", *_losses(trial)])
    elif trial.untried:
        parts.append([f"No circuit is lost in so large a simulation: --lose NAME, of {trial.untried:,}."])
    return "\n\n".join("\n".join(part) for part in parts)


# --- circuits ----------------------------------------------------------------------------------------------


def _circuits(findings: Findings) -> list[str]:
    """Where the streams went; the mark in a bar is where the circuit's weight is."""
    shown = findings.circuits[:MAX_ROWS]
    rows: list[Row] = [("CIRCUIT", "STREAMS", "SHARE", "WEIGHT", "PEAK", "MAX")]
    rows += [
        (
            _short(circuit.name, " (backup)" if circuit.role == "backup" else ""),
            f"{circuit.streams:,}",
            f"{circuit.share:.1%}",
            f"{circuit.weight_share:.1%}",
            str(circuit.most_streams),
            str(circuit.max_streams),
        )
        for circuit in shown
    ]
    lines = _columns(rows)
    room = max(MIN_BAR, WIDTH - max(map(len, lines)) - 2)
    longest = max(max(c.share, c.weight_share) for c in shown) or 1.0
    width = max(map(len, lines))
    drawn = [lines[0]]
    for line, circuit in zip(lines[1:], shown, strict=True):
        drawn.append(f"{line.ljust(width)}  {_bar(circuit, room, longest)}".rstrip())
    return drawn + _more(len(findings.circuits), "circuits")


def _bar(circuit: CircuitFindings, room: int, longest: float) -> str:
    bar = "#" * round(circuit.share / longest * (room - 1))
    if circuit.role == "backup":
        return bar
    mark = round(circuit.weight_share / longest * (room - 1))
    return f"{bar[:mark].ljust(mark)}|{bar[mark + 1 :]}"


# --- everything else ---------------------------------------------------------------------------------------


def _rest(findings: Findings) -> list[str]:
    counts: tuple[tuple[str, int, Mapping[str, int]], ...] = (
        ("carried by circuits", findings.carried, {}),
        ("left to Tor", sum(findings.tor.values()), findings.tor),
        ("rejected", sum(findings.rejected.values()), findings.rejected),
    )
    lines = [f"{what.ljust(20)} {count:>7,}{_because(reasons)}" for what, count, reasons in counts]
    lines.insert(0, f"{'at once, at most':20} {findings.most_open:>7,}")
    waited = findings.waited
    lines.append(f"{'waited first':20} {waited.streams:>7,}{_how_long(waited)}")
    if findings.cut:
        lines.append(f"{'cut with a circuit':20} {findings.cut:>7,}")
    return lines


def _because(reasons: Mapping[str, int]) -> str:
    if len(reasons) == 1:
        return f"  {next(iter(reasons))}"
    return "".join(f"\n{'':20} {count:>7,}  {why}" for why, count in reasons.items())


def _how_long(waited: WaitFindings) -> str:
    if not waited.streams:
        return ""
    return f"  {_seconds(waited.mean_seconds)} on average, {_seconds(waited.longest_seconds)} at most"


def _rules(findings: Findings) -> list[str]:
    shown = findings.rules[:MAX_ROWS]
    rows: list[Row] = [("RULE", "STREAMS", "CARRIED", "TO TOR", "REJECTED")]
    rows += [
        (
            "-" if rule.number is None else str(rule.number),
            f"{rule.streams:,}",
            f"{rule.carried:,}",
            f"{rule.tor:,}",
            f"{rule.rejected:,}",
        )
        for rule in shown
    ]
    head, *counts = _columns(rows)
    margin = len(head) + 2
    lines = [f"{head}  MATCHES"]
    for count, rule in zip(counts, shown, strict=True):
        words = wrap(f"{rule.matches} -> {rule.does}", WIDTH - margin) or [""]
        lines += [f"{count}  {words[0]}", *(f"{'':{margin}}{word}" for word in words[1:])]
    return lines + _more(len(findings.rules), "rules")


def _losses(trial: Trial) -> list[str]:
    losses = trial.losses[:MAX_ROWS]
    rows: list[Row] = [("CIRCUIT", "CUT", "GONE", "MISSES", "WAIT", "TO TOR", "REJECTED")]
    rows += [
        (
            _short(loss.name),
            f"{loss.cut:,}",
            "to the end" if loss.gone_seconds is None else _seconds(loss.gone_seconds),
            f"{loss.missed:,}",
            f"{loss.waited.streams:,}",
            f"{loss.tor:,}",
            f"{loss.rejected:,}",
        )
        for loss in losses
    ]
    lines = _columns(rows)
    room = WIDTH - len(lines[0]) - 2
    taken = ["TAKEN BY", *(_taken(loss.taken_by, room) for loss in losses)]
    lines = [f"{line}  {cell}" for line, cell in zip(lines, taken, strict=True)]
    if trial.untried:
        lines.append(f"... and {trial.untried:,} circuits more: --lose NAME")
    return lines + _more(len(trial.losses), "circuits")


def _taken(taken_by: Mapping[str, int], room: int) -> str:
    """The names of those that gained most, as many as there is room for."""
    total = sum(taken_by.values())
    parts = [f"{_short(name)} {count / total:.0%}" for name, count in taken_by.items()]
    for count in range(len(parts), 0, -1):
        rest = len(parts) - count
        text = ", ".join(parts[:count]) + (f", {rest} more" if rest else "")
        if len(text) <= room:
            return text
    return f"{len(parts)} others" if parts else "nobody"


# --- columns -----------------------------------------------------------------------------------------------


def _columns(rows: Sequence[Row]) -> list[str]:
    """Align: words to the left, numbers to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if heading == "CIRCUIT" else cell.rjust(width)
            for heading, cell, width in zip(rows[0], row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def _short(name: str, suffix: str = "") -> str:
    # What tells the circuits of one `count` apart is at their ends.
    half = MAX_NAME // 2
    return (name if len(name) <= MAX_NAME else f"{name[: half - 1]}~{name[-half:]}") + suffix


def _more(count: int, what: str) -> list[str]:
    return [f"... and {count - MAX_ROWS:,} {what} more: --json has all"] if count > MAX_ROWS else []


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
