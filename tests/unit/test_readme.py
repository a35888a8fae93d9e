"""What the READMEs name is there: files, headings, exit codes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from circuitloom import errors
from circuitloom.arguments import parser
from circuitloom.cli import EX_IOERR, EX_OSERR

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / name
    for name in (
        "README.md",
        "CHANGELOG.md",
        "roles/circuitloom/README.md",
        "schemas/README.md",
        "tests/deploy/README.md",
        "tests/benchmarks/README.md",
    )
]


def anchors(page: Path) -> set[str]:
    """The headings of a page, as GitHub names them in links."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def exit_codes() -> Iterator[int]:
    for name in errors.__all__:
        yield getattr(getattr(errors, name), "exit_code", EX_OSERR)
    yield EX_IOERR


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)

    assert lost == []


def test_the_contents_name_each_section() -> None:
    readme = (ROOT / "README.md").read_text()
    contents = readme.partition("**Contents**")[2].partition("\n\n")[0]

    assert re.findall(r"\[([^]]+)\]", contents) == re.findall(r"^## (.*)$", readme, re.MULTILINE)


def test_the_installation_uses_files_that_are_there() -> None:
    section = (ROOT / "README.md").read_text().partition("## Install on one host\n")[2].partition("\n## ")[0]
    named = re.findall(r"\b(?:roles|schemas)/[\w./-]+\w", section)

    assert len(named) >= 3
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_exit_code_is_in_the_readme_and_in_the_help() -> None:
    readme, told = (ROOT / "README.md").read_text(), parser().format_help()
    codes = set(exit_codes())

    assert [code for code in sorted(codes) if f"\n| {code} | " not in readme] == []
    assert [code for code in sorted(codes) if not re.search(rf"\b{code} ", told)] == []
