"""The ledger of rounds: what was to be run is on the disk before it is, what came of it after."""

from __future__ import annotations

from circuitloom.ledger.file import Ledger
from circuitloom.ledger.rows import FILE_NAME, copy_of, page, read_rows

__all__ = ["FILE_NAME", "Ledger", "copy_of", "page", "read_rows"]
