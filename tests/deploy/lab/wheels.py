"""The wheels the fleet installs: this repository's, a newer one, and one that is broken on purpose."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from deploy.lab.shell import run

REPOSITORY = Path(__file__).parents[3]
BUILD_SECONDS = 180.0  # pip may have to fetch the build backend first
PARTS = ("agent", "schemas", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Wheels:
    """Paths of wheels.

    Attributes:
        current: Of this repository as it is.
        newer: The same code under the next version.
        broken: A version after that, which starts, but ends as soon as it is to serve.
    """

    current: Path
    newer: Path
    broken: Path


def build_wheels(folder: Path) -> Wheels:
    """Build the three wheels from copies of this repository."""
    return Wheels(
        current=_build(folder / "current"),
        newer=_build(folder / "newer", version_step=1),
        broken=_build(
            folder / "broken",
            version_step=2,
            main='import sys\n\nif "run" in sys.argv:\n    sys.exit("this release is broken on purpose")\n',
        ),
    )


def _build(folder: Path, *, version_step: int = 0, main: str = "") -> Path:
    source = folder / "source"
    source.mkdir(parents=True)
    for part in PARTS:
        if (REPOSITORY / part).is_dir():
            shutil.copytree(REPOSITORY / part, source / part, symlinks=True)
        else:
            shutil.copy(REPOSITORY / part, source / part)
    project = source / "pyproject.toml"
    project.write_text(
        re.sub(
            r'(?m)^version = "(\d+\.\d+)\.(\d+)"',
            lambda match: f'version = "{match[1]}.{int(match[2]) + version_step}"',
            project.read_text(),
        )
    )
    entry = source / "agent/circuitloom/__main__.py"
    entry.write_text(entry.read_text().replace("from circuitloom.cli", f"{main}\nfrom circuitloom.cli", 1))
    run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source],
        timeout=BUILD_SECONDS,
    )
    (wheel,) = folder.glob("circuitloom-*.whl")
    return wheel
