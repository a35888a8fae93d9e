"""Health: who takes no streams for a while, and what happens when those are too many.

Rules of this package:

* It knows members, numbers and the time it is given; what a member is, and whose fault a failure was, others
  know.
* Words are Envoy's: outlier ejection, panic threshold.
"""

from __future__ import annotations

from circuitloom.health.ejection import HELD, MAX_STEPS, Ejector
from circuitloom.health.panic import Alarm

__all__ = ["HELD", "MAX_STEPS", "Alarm", "Ejector"]
