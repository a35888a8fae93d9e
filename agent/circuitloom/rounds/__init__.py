"""When which circuit gets its round: the schedule as a pure state machine, and its vocabulary."""

from __future__ import annotations

from circuitloom.rounds.timetable import Timetable

__all__ = ["Timetable"]
