"""What one choice costs, by algorithm and number of circuits: ``python tests/benchmarks/choosing.py``.

Prints a table; nothing is asserted. Each choice also counts the stream in, as the pool does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from time import perf_counter

from circuitloom.balancing import CHOOSERS, Chooser, ConnectTime, RoundRobin, Sticky

SIZES = (10, 100, 1000)
CHOICES = 20_000


def microseconds(chooser: Chooser, size: int, *, is_sticky: bool) -> float:
    """The cost of one choice among ``size`` candidates."""
    for number in range(size):
        connect_time = ConnectTime()
        connect_time.observe(0.05 + number % 7 / 100, 0.0)
        weight = 1 + number % 4
        chooser.add(f"c{number}", weight=weight, streams=0, order=number, connect_time=connect_time)
    streams = {f"c{number}": 0 for number in range(size)}
    chooser.choose(sticky="warm" if is_sticky else None)
    start = perf_counter()
    for number in range(CHOICES):
        name = chooser.choose(now=1.0, sticky=f"user {number % 997}" if is_sticky else None)
        assert name is not None
        streams[name] += 1
        chooser.count_streams(name, streams[name])
    return (perf_counter() - start) / CHOICES * 1e6


def main() -> None:
    """Print the table."""
    uniform = Random(1).random  # noqa: S311 - nothing secret hangs on it
    rows: dict[str, Callable[[], Chooser]] = {name: partial(make, uniform) for name, make in CHOOSERS.items()}
    rows["sticky"] = lambda: Sticky(RoundRobin())
    rows["sticky, 200%"] = lambda: Sticky(RoundRobin(), 2.0)
    print(f"{'us a choice':22}" + "".join(f"{size:>9,}" for size in SIZES) + "   1,000 / 10")
    for name, make in rows.items():
        is_sticky = name.startswith("sticky")
        best = [min(microseconds(make(), size, is_sticky=is_sticky) for _ in range(3)) for size in SIZES]
        print(f"{name:22}" + "".join(f"{cost:9.2f}" for cost in best) + f"{best[-1] / best[0]:13.1f}")


if __name__ == "__main__":
    main()
