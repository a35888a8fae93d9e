"""The files of ``schemas/``: every example is accepted, every invalid policy gives exactly its faults.

Run as a script, this writes the expected faults anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from circuitloom.errors import PolicyError
from circuitloom.policy import check_policy, parse_policy, read_policy
from circuitloom.policy.schema import schema_validator

SCHEMAS = Path(__file__).parents[2] / "schemas"
EXAMPLES = sorted(SCHEMAS.joinpath("examples").glob("*.yaml"))
INVALID = sorted(SCHEMAS.joinpath("invalid").glob("*.yaml"))


def faults_of(path: Path) -> str:
    """What ``circuitloom check`` prints for a policy, with the name as it is in its own folder."""
    with pytest.raises(PolicyError) as caught:
        parse_policy(path.read_bytes(), name=path.name)
    return f"{caught.value}\n"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_accepted(path: Path) -> None:
    read_policy(path)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_accepted_by_an_editor(path: Path) -> None:
    # An editor has the schema and a YAML parser with all of YAML's types, and nothing of ours.
    assert list(schema_validator().iter_errors(yaml.safe_load(path.read_text()))) == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_names_its_schema(path: Path) -> None:
    first_line = path.read_text().splitlines()[0]

    assert first_line == "# yaml-language-server: $schema=../policy.schema.json"


def test_only_examples_that_say_what_they_give_up_have_warnings() -> None:
    warned = {path.stem for path in EXAMPLES if check_policy(path.read_bytes(), name=path.name)[1]}

    assert {"adopted", "measurement", "pinned-paths", "rounds"} == warned


def test_examples_are_listed_in_the_readme() -> None:
    readme = SCHEMAS.joinpath("README.md").read_text()

    assert [path.name for path in EXAMPLES if f"| `{path.name}` |" not in readme] == []


@pytest.mark.timeout(20)
@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_invalid_gives_exactly_its_faults(path: Path) -> None:
    assert path.with_suffix(".faults").read_text(encoding="utf-8") == faults_of(path)


def test_every_expectation_has_its_policy() -> None:
    expected = {path.stem for path in SCHEMAS.joinpath("invalid").iterdir()}

    assert {path.stem for path in INVALID} == expected
    assert len(INVALID) > 100


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_faults_are_sorted_printable_lines_in_our_words(path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(path.read_bytes(), name=path.name)

    faults = caught.value.faults
    assert sorted(set(faults)) == list(faults)
    for fault in faults:
        assert str(fault).isprintable()
        # Longer than any line we mean to write; two shown values of 64 characters fit in.
        assert len(str(fault)) < 300
        # jsonschema's and PyYAML's ways to say it.
        for foreign in ("is not of type", "does not match", "is not one of", "block mapping", "JSON"):
            assert foreign not in fault.message


if __name__ == "__main__":
    for policy in INVALID:
        policy.with_suffix(".faults").write_text(faults_of(policy), encoding="utf-8")
