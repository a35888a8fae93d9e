"""The README's policy guide shows what ``circuitloom simulate`` prints, word by word.

Run as a script, this writes what is printed into the README anew.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from pathlib import Path

from circuitloom.cli import main

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SHOWN = re.compile(r"(```console\n\$ circuitloom (simulate [^\n]+)\n)(.*?)(```\n)", re.DOTALL)


def printed(arguments: str) -> str:
    """What the command prints in the project's folder."""
    out = io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out):
        assert main(shlex.split(arguments)) == 0
    return out.getvalue()


def with_what_is_printed(readme: str) -> str:
    return SHOWN.sub(lambda found: f"{found[1]}{printed(found[2])}{found[4]}", readme)


def test_what_the_guide_shows_is_what_is_printed() -> None:
    readme = README.read_text()

    assert readme == with_what_is_printed(readme), "python tests/unit/test_policy_guide.py writes it anew"


def test_the_guide_names_every_example() -> None:
    guide = README.read_text().partition("## Policy guide")[2].partition("\n## ")[0]
    examples = {path.name for path in (ROOT / "schemas/examples").glob("*.yaml")}

    assert len(SHOWN.findall(guide)) >= 4
    assert [name for name in sorted(examples) if f"schemas/examples/{name})" not in guide] == []


if __name__ == "__main__":
    README.write_text(with_what_is_printed(README.read_text()))
