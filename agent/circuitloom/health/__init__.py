"""Health: who takes no streams for a while, what happens when those are too many, and who takes fewer.

Rules of this package:

* It knows members, numbers and the time it is given; what a member is, and whose fault a failure was, others
  know.
* Words are Envoy's: outlier ejection, panic threshold, slow start, degraded.
"""

from __future__ import annotations

from circuitloom.health.ejection import HELD, MAX_STEPS, Ejector
from circuitloom.health.fitness import LEAST, WHOLE, Fitness
from circuitloom.health.panic import Alarm

__all__ = ["HELD", "LEAST", "MAX_STEPS", "WHOLE", "Alarm", "Ejector", "Fitness"]
