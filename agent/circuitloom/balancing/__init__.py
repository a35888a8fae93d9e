"""Choosers: which candidate takes the next stream.

Rules of this package:

* A chooser knows names, weights, how many streams each candidate has and how long it takes to connect one; it
  knows no circuits, reads no clock and throws no dice of its own.
* Only candidates that may take a stream are in it: the pool adds and removes, the chooser never asks. A full
  candidate is none, so no chooser can break a limit.
* A choice costs no more than the logarithm of the number of candidates, or the number of distinct weights.
* Words are HAProxy's, nginx's and Envoy's: weight, round robin (roundrobin), least streams (leastconn),
  first, random, power of two choices, consistent hashing with bounded load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from circuitloom.balancing.chooser import NOTHING, WHOLE_WEIGHT, Chooser
from circuitloom.balancing.connect_time import ConnectTime
from circuitloom.balancing.first import First
from circuitloom.balancing.least_streams import LeastStreams
from circuitloom.balancing.power_of_two import PowerOfTwo
from circuitloom.balancing.round_robin import RoundRobin, WeightedRoundRobin
from circuitloom.balancing.sticky import Sticky
from circuitloom.balancing.weighted_random import WeightedRandom

__all__ = [
    "CHOOSERS",
    "NOTHING",
    "WHOLE_WEIGHT",
    "Chooser",
    "ConnectTime",
    "First",
    "LeastStreams",
    "PowerOfTwo",
    "RoundRobin",
    "Sticky",
    "WeightedRandom",
    "WeightedRoundRobin",
]

Uniform = Callable[[], float]

CHOOSERS: Mapping[str, Callable[[Uniform], Chooser]] = {
    "round-robin": lambda _uniform: RoundRobin(),
    "weighted-round-robin": lambda _uniform: WeightedRoundRobin(),
    "least-streams": lambda _uniform: LeastStreams(),
    "power-of-two": PowerOfTwo,
    "first": lambda _uniform: First(),
    "random": WeightedRandom,
}
"""By the name that ``balance.algorithm`` has in a policy; each is made with a source of random numbers."""
