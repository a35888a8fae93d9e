"""The fleet of the deployment tests: made once for all of them, and only where a lab can run."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

from deploy.lab.fleet import Fleet
from deploy.lab.golden import RELEASES, golden_root
from deploy.lab.lab import Lab
from deploy.lab.requirements import missing, must_run
from deploy.lab.tornet import TorNetwork
from deploy.lab.wheels import build_wheels

TEST_SECONDS = 240  # the longest test takes a quarter of that
# The first test waits for debootstrap, three boots and four plays.
FIRST_TEST_SECONDS = 900
# All of them together: whatever hangs, and however often, ends in time for its report to be read.
ALL_SECONDS = 1500

# What is quick to fail comes first; what leaves hosts in another state than it found them comes last. Within
# half a minute of a reload Tor closes every used circuit without a stream: so the upgrade comes before those.
ORDER = (
    *("test_role", "test_lab", "test_converge", "test_failures", "test_policy", "test_upgrade"),
    *("test_record", "test_tor_settings", "test_unfinished", "test_rounds", "test_variants"),
    *("test_metrics", "test_uninstall", "test_readme"),
)

_MISSING = missing()
_DEADLINE = pytest.StashKey[float]()


def _uses(item: pytest.Item, fixture: str) -> bool:
    return fixture in getattr(item, "fixturenames", ())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests of this folder, bound their time, and skip them where no lab can run.

    After `-k` has chosen: the first one that runs has to wait for the fleet.
    """
    here = Path(__file__).parent
    places = [place for place, item in enumerate(items) if here in item.path.parents]
    ours = sorted((items[place] for place in places), key=lambda item: ORDER.index(item.path.stem))
    first = next((item for item in ours if _uses(item, "fleet")), None)
    for place, item in zip(places, ours, strict=True):
        items[place] = item
        item.add_marker(pytest.mark.timeout(FIRST_TEST_SECONDS if item is first else TEST_SECONDS))
        if _MISSING and _uses(item, "possible") and not must_run():
            item.add_marker(pytest.mark.skip(reason="no fleet here: " + "; ".join(_MISSING)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let no fault of the lab eat more time than all tests together may take."""
    if not _uses(item, "fleet"):
        return
    deadline = item.session.stash.setdefault(_DEADLINE, time.monotonic() + ALL_SECONDS)
    if time.monotonic() > deadline:
        pytest.fail(f"the fleet's {ALL_SECONDS} s are used up", pytrace=False)


@pytest.fixture(scope="session")
def possible() -> None:
    """A machine on which a lab can run; on continuous integration anything else is a failure."""
    if _MISSING:
        pytest.fail("CI is set, and no fleet can run here: " + "; ".join(_MISSING), pytrace=False)


@pytest.fixture(scope="session")
def lab(possible: None) -> Iterator[Lab]:  # noqa: ARG001  # what it needs
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
    # These three wait for a network, a consensus and pip: at the same time.
    with ThreadPoolExecutor() as waiting:
        wheels = waiting.submit(build_wheels, tmp_path_factory.mktemp("wheels"))
        roots = [waiting.submit(golden_root, release, lab) for release in RELEASES]
        network.start()
        for root in roots:
            root.result()
        made = Fleet(lab, network, wheels.result())
    made.add("a", "bookworm", 11, with_tor=False)
    made.add("b", "bookworm", 12, with_tor=True)
    made.add("c", "trixie", 13, with_tor=False)
    made.first_contact()
    return made
