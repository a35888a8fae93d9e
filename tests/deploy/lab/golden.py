"""The golden roots: one Debian root file system per release, the lower layer of every host.

They live in a cache directory (`$XDG_CACHE_HOME/circuitloom/roots`, `~/.cache/...` without it), keyed by
the release and a hash of the script that builds them; building one takes one to two minutes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from pathlib import Path

from deploy.lab.shell import LabError, run

SCRIPT = Path(__file__).with_name("golden-root.sh")
RELEASES = ("bookworm", "trixie")
BUILD_SECONDS = 900.0  # two minutes on a quiet machine; a slow mirror is no fault of the tests


def cache_directory() -> Path:
    """Return the directory under which everything that outlives a test run is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "circuitloom"


def _mirrors() -> tuple[str, str]:
    """Return Debian's mirror and its security mirror ('' when there is none), from this machine's apt."""
    listing = run(
        ["apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)|$(COMPONENT)", "Created-By: Packages"],
        timeout=60,
    ).stdout
    found: dict[str, str] = {}
    for line in listing.splitlines():
        label, _, rest = line.partition("|")
        address, _, component = rest.partition("|")
        if component == "main":
            found.setdefault(label, address)
    if "Debian" not in found:
        raise LabError(
            "this machine's apt sources name no Debian mirror (or apt-get update never ran): no golden root"
        )
    return found["Debian"], found.get("Debian-Security", "")


def golden_root(release: str) -> Path:
    """Return the root of `release`, building it first when the cache has none of this script.

    Raises:
        LabError: It could not be built.
    """
    key = hashlib.sha256(SCRIPT.read_bytes()).hexdigest()[:12]
    roots = cache_directory() / "roots"
    roots.mkdir(parents=True, exist_ok=True)
    root = roots / f"{release}-{key}"
    # Two test runs on one machine must not build the same root at once: the second waits and finds it done.
    with (roots / f"{release}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if root.is_dir():
            return root
        mounts = Path("/proc/self/mounts").read_text()
        for stale in roots.glob(f"{release}-*"):
            if str(stale) not in mounts:  # else another checkout's hosts run on it at this moment
                _discard(stale)
        mirror, security = _mirrors()
        building = roots / f"{release}-building"
        try:
            run(["nice", SCRIPT, release, building, mirror, security], timeout=BUILD_SECONDS)
        except LabError:
            _discard(building)
            raise
        building.rename(root)
    return root


def _discard(root: Path) -> None:
    """Remove a half-built root; debootstrap may have left mounts in it."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        target = line.split()[1]
        if target.startswith(f"{root}/"):
            run(["umount", "--lazy", target], timeout=30, check=False)
    shutil.rmtree(root, ignore_errors=True)
