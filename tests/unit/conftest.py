"""What several test modules of this folder start from."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.fake_control_port import FakeControlPort


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for Unix sockets, whose paths must fit 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="loom-") as folder:
        yield Path(folder)


@pytest.fixture
def fake(short_path: Path) -> Iterator[FakeControlPort]:
    """A control port that answers everything well until it is told otherwise."""
    with FakeControlPort(short_path / "control") as port:
        yield port


@pytest.fixture
def agent_log() -> Iterator[logging.Logger]:
    """The agent's logger; its settings are as before afterwards."""
    logger = logging.getLogger("circuitloom")
    before = (list(logger.handlers), logger.level, logger.propagate)
    yield logger
    logger.handlers[:], level, logger.propagate = before
    logger.setLevel(level)
