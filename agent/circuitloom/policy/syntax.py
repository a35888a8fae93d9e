"""YAML's syntax errors in an operator's words.

A table: PyYAML's problem, which of its two places is nearer to the cause, our sentence. What the table does
not know is passed on in PyYAML's words.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from yaml.error import Mark, MarkedYAMLError

from circuitloom.policy.wording import escaped

__all__ = ["syntax_fault"]


class _Rule(NamedTuple):
    """How one problem is reported; ``is_at_start``: where the faulty thing starts, not where it shows."""

    problem: re.Pattern[str]
    is_at_start: bool
    message: str


_RULES = tuple(
    _Rule(re.compile(problem), is_at_start, message)
    for problem, is_at_start, message in (
        (
            r"found character '\\t' that cannot start any token",
            False,
            "a tab: YAML indents and separates with spaces, so replace it",
        ),
        (
            r"found character (['\"].+['\"]) that cannot start any token",
            False,
            r"a value cannot start with \1: put it in quotes",
        ),
        (
            r"mapping values are not allowed here",
            False,
            "no `key: value` can stand here: check the indentation and the line before, or quote the value",
        ),
        (
            r"sequence entries are not allowed here",
            False,
            "no list item can start here: begin the list on the next line, or check the indentation",
        ),
        (
            r"expected <block end>, but found '(<block \w+ start>|-|\?)'",
            False,
            "this is not lined up: keys of one mapping, and items of one list, have the same indentation",
        ),
        (
            r"expected <block end>, but found ':'",
            False,
            "a key is missing before this `:`",
        ),
        (
            r"expected <block end>, but found",
            False,
            "the value ends before this: put all of it in quotes, or remove this",
        ),
        (
            r"expected ',' or '(.)', but got '<stream end>'",
            True,
            r"this is never closed: its `\1` is missing",
        ),
        (
            r"expected ',' or '(.)', but got",
            False,
            r"a comma or a closing `\1` is missing before this",
        ),
        (
            r"could not find expected ':'",
            True,
            "this is neither `key: value` nor a list item `- value`",
        ),
        (
            r"found unexpected (end of stream|document separator)",
            True,
            "the quote that opens here is never closed",
        ),
        (
            r"found unknown escape character (['\"].+['\"])",
            False,
            r"in double quotes no backslash can stand before \1: double it, or use single quotes",
        ),
        (
            r"found undefined tag handle",
            False,
            "a `!` at its start makes this a tag: put it in quotes, or remove the tag",
        ),
        (
            r"expected '<document start>', but found",
            False,
            "this stands behind the end of the policy: remove it, or check the indentation",
        ),
        (
            r"expected the node content, but found",
            False,
            "a value is missing before this",
        ),
    )
)


def syntax_fault(error: MarkedYAMLError) -> tuple[Mark, str]:
    """Where a syntax error is to be shown, and as what."""
    problem = str(error.problem)
    for rule in _RULES:
        found = rule.problem.match(problem)
        if found is not None:
            return _mark(error, is_at_start=rule.is_at_start), found.expand(rule.message)
    context = f"{error.context}: " if error.context else ""
    # PyYAML ends every text with a NUL of its own.
    words = escaped(f"{context}{problem}").replace(r"'\x00'", "the end of the text")
    return _mark(error, is_at_start=False), f"not valid YAML: {words}"


def _mark(error: MarkedYAMLError, *, is_at_start: bool) -> Mark:
    mark = error.context_mark if is_at_start else error.problem_mark
    assert mark is not None  # noqa: S101 - the problems of the table have both, every other has its own
    return mark
