"""The state directory: what an agent writes down for the next one.

Rules of this file:

* Losing the file costs a few circuits being built again, so nothing here ever stops the agent: what cannot be
  read or written is said once, in one line.
* It is replaced whole, by renaming; a reader sees the old one or the new one.
* No destination, SOCKS name or password is in it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from circuitloom.errors import reason_of
from circuitloom.model import CircuitId, RecordedCircuit

FILE_NAME = "circuits.json"
MAX_BYTES = 16 << 20
"""Ten thousand circuits are about 4 MB."""

_VERSION = 1
_log = logging.getLogger(__name__)


class StateFile:
    """Circuits that outlive the agent.

    Args:
        directory: Where; None: nowhere, nothing is kept.
    """

    def __init__(self, directory: Path | None) -> None:
        self._path = None if directory is None else directory / FILE_NAME
        self._saved: Sequence[RecordedCircuit] | None = None
        self._is_broken = False

    def load(self) -> tuple[RecordedCircuit, ...]:
        """What the agent before us wrote down; nothing, with a line in the log, when it cannot be used."""
        if self._path is None:
            return ()
        try:
            with self._path.open("rb") as file:
                # Cut short where it is larger than any agent's, it is no JSON either.
                return _read(json.loads(file.read(MAX_BYTES)))
        except FileNotFoundError:
            return ()
        except OSError as error:
            self._complain(f"cannot be read ({reason_of(error)})")
        except (ValueError, TypeError, KeyError, RecursionError):
            self._complain("is not what an agent wrote")
        return ()

    def save(self, records: Sequence[RecordedCircuit]) -> None:
        """Write the circuits down, unless that is what stands there already."""
        if self._path is None or records == self._saved:
            return
        document = {"version": _VERSION, "circuits": [asdict(record) for record in records]}
        new = self._path.with_suffix(".new")
        try:
            descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor has no path
                json.dump(document, file)
            new.replace(self._path)
        except OSError as error:
            with contextlib.suppress(OSError):
                new.unlink(missing_ok=True)
            self._complain(f"cannot be written ({reason_of(error)})")
            return
        self._saved = records
        self._is_broken = False

    def _complain(self, what: str) -> None:
        if not self._is_broken:
            self._is_broken = True
            _log.warning("%s %s: after a restart all circuits are built anew", self._path, what)


def state_directory(argument: str | None) -> Path | None:
    """Where state is kept: the argument of ``run``, or what systemd's StateDirectory= gave us."""
    given = argument or os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else None


def _read(document: Any) -> tuple[RecordedCircuit, ...]:  # noqa: ANN401 - whatever JSON holds
    """The records of a document.

    Raises:
        ValueError: It is of another version, or a value has the wrong type.
        TypeError: The same.
        KeyError: The same.
    """
    if document["version"] != _VERSION:
        raise ValueError("another version")
    return tuple(_read_circuit(item) for item in document["circuits"])


def _read_circuit(item: Any) -> RecordedCircuit:  # noqa: ANN401 - the same
    name, circuit_id, created, key = item["name"], item["circuit_id"], item["created"], item["key"]
    path, is_used, number = item["path"], item["is_used"], item["number"]
    # An agent that knew no adopted circuits wrote nothing of them.
    is_adopted = item.get("is_adopted", False)
    is_text = all(isinstance(value, str) for value in (name, circuit_id, created, *path))
    is_key = key is None or isinstance(key, str)
    are_flags = isinstance(is_used, bool) and isinstance(is_adopted, bool)
    if not (is_text and is_key and are_flags and isinstance(number, int)):
        raise ValueError("a value of the wrong type")
    if not (isinstance(path, list) and 0 <= number < 1 << 53):
        raise ValueError("a value out of range")
    return RecordedCircuit(
        name, CircuitId(circuit_id), created, tuple(path), is_used, number, key, is_adopted
    )
