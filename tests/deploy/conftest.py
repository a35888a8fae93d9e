"""The fleet of the deployment tests: made once for all of them, and only where a lab can run."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from deploy.lab.fleet import Fleet
from deploy.lab.lab import Lab
from deploy.lab.requirements import missing
from deploy.lab.tornet import TorNetwork
from deploy.lab.wheels import build_wheels

# The first test of a session waits for debootstrap, three boots and three plays.
TEST_SECONDS = 1800

_MISSING = missing()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the fleet tests, with the reason, where a lab cannot run."""
    here = Path(__file__).parent
    for item in items:
        if here not in item.path.parents:
            continue
        item.add_marker(pytest.mark.timeout(TEST_SECONDS))
        if _MISSING and "fleet" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.skip(reason="no fleet here: " + "; ".join(_MISSING)))


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """An empty lab; removed at the end, on Ctrl-C, on SIGTERM, and when pytest is killed."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    made = Lab.create()
    try:
        yield made
    finally:
        made.close()
        signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def fleet(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Fleet:
    """Three hosts, brought from nothing to balancing."""
    network = TorNetwork(lab)
    network.start()
    made = Fleet(lab, network, build_wheels(tmp_path_factory.mktemp("wheels")))
    made.add("a", "bookworm", 11, with_tor=False)
    made.add("b", "bookworm", 12, with_tor=True)
    made.add("c", "trixie", 13, with_tor=False)
    made.first_contact()
    return made
