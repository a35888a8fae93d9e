"""The golden roots: one Debian root file system per release, the lower layer of every host.

They live in a cache directory (`$XDG_CACHE_HOME/circuitloom/roots`, `~/.cache/...` without it), keyed by
the release and a hash of the script that builds them; building one takes about a minute.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
from pathlib import Path

from deploy.lab.lab import Lab, cache_directory
from deploy.lab.shell import LabError, run

SCRIPT = Path(__file__).with_name("golden-root.sh")
RELEASES = ("bookworm", "trixie")
BUILD_SECONDS = 480.0  # one minute on a quiet machine; a slow mirror is no fault of the tests


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


def golden_root(release: str, lab: Lab) -> Path:
    """Return the root of `release`, building it first when the cache has none of this script.

    It is built in the lab's directory and control group, so that an interrupted build goes with the lab.

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
                shutil.rmtree(stale, ignore_errors=True)
        mirror, security = _mirrors()
        building = lab.directory / f"building-{release}"
        build = lab.inside(
            f"building-{release}", [SCRIPT, release, building, mirror, security], network=False
        )
        run(build, timeout=BUILD_SECONDS)
        building.rename(root)
    return root
