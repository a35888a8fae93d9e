"""The decision core: circuits, streams and who attaches them, as one pure state machine."""

from circuitloom.pool.core import Pool
from circuitloom.pool.decisions import Explanation, shows_destinations
from circuitloom.pool.snapshot import CircuitSnapshot, PoolSnapshot
from circuitloom.pool.tally import Histogram, Tally
from circuitloom.pool.told import Attachment

__all__ = [
    "Attachment",
    "CircuitSnapshot",
    "Explanation",
    "Histogram",
    "Pool",
    "PoolSnapshot",
    "Tally",
    "shows_destinations",
]
