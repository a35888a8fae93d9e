"""What the JSON Schema finds, in an operator's words.

Rules of this file:

* jsonschema says where and by which keyword; its own sentences are never shown.
* One fault for one value, whichever of its keywords it breaks.
* The schema's ``errorMessage`` is the sentence for a value: editors that use the schema show the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from circuitloom.errors import Fault
from circuitloom.policy.nodes import Document, Listing, Mapping, Node, Scalar
from circuitloom.policy.schema import load_schema, schema_validator
from circuitloom.policy.wording import Path, any_of, path_text, quoted

__all__ = ["find_schema_faults", "to_data"]

# difflib's cost grows with the square of the length, and no key or enum value is longer than 20.
_MAX_GUESSED = 64

# How alike a key must be to one of the keys here to be meant, though there is a key of its name elsewhere.
_SURE_RATIO = 0.85

# Numbers as YAML 1.1 or YAML 1.2 know them, and a policy does not: octal, hexadecimal, 1_000, base 60.
_ODD_NUMBER = re.compile(r"[-+]?(0[0-9_]+|0[box][0-9A-Fa-f_]+|[0-9]+(_[0-9]+)+|[0-9]+(:[0-9]+)+)")

# The text of these is judged where it is parsed, which can say which part of it is wrong.
_EXPLAINED_BY_PARSER: frozenset[Path] = frozenset([("tor", "control"), ("metrics", "listen")])


# 1.5s, 0.5h: a policy's durations are whole numbers of a unit.
_FRACTION_OF_UNIT = re.compile(r"([0-9]{1,6}\.[0-9]{1,3})(s|m|h|d)")
_SMALLER_UNIT = {"s": (1000, "ms"), "m": (60, "s"), "h": (60, "m"), "d": (24, "h")}

# 0s, 0kB: right in form, and nothing.
_NOTHING = re.compile(r"0+[A-Za-z]+")

# 30 seconds, 1 min, 2 hours without their space.
_LONG_UNIT = re.compile(r"([0-9]+)(s|m|h|d)(ecs?|econds?|ins?|inutes?|rs?|ours?|ays?)")

_FRACTION = re.compile(r"(0?\.[0-9]{1,2}|1\.0)")

# Somebody may have written the password itself; a variable of the hook's environment may be one. A target is
# a destination, and the faults of a reload are logged.
_NEVER_SHOWN: frozenset[Path] = frozenset(
    [("tor", "password_file"), ("rounds", "env"), ("health", "probe", "targets")]
)


def to_data(node: Node) -> Any:  # noqa: ANN401 - what jsonschema takes: any JSON value
    """A node as plain data. A bad node is None: the type fault this brings is dropped again."""
    match node:
        case Scalar(value=value):
            return value
        case Listing(items=items):
            return [to_data(item) for item in items]
        case Mapping(entries=entries):
            return {key: to_data(entry.node) for key, entry in entries.items()}
        case _:
            return None


def find_schema_faults(document: Document) -> tuple[set[Fault], frozenset[Path]]:
    """Judges a document by the schema.

    Returns:
        The faults, and the paths of the values that have one. Mappings that only miss a key, or have one too
        many, are not among these: their other keys can be judged further.
    """
    faults: set[Fault] = set()
    faulty: set[Path] = set()
    for error in schema_validator().iter_errors(to_data(document.root)):
        path: Path = tuple(error.absolute_path)
        node = document.node_at(path)
        sub: Any = error.schema
        match node:
            case Mapping() if error.validator == "additionalProperties":
                faults.update(_unknown_keys(document, path, node, sub))
            case Mapping() if error.validator == "required":
                faults.update(_missing_keys(document, path, node, sub))
            case Scalar(value=str()) if path in _EXPLAINED_BY_PARSER:
                pass
            case Scalar() | Listing() | Mapping():
                faulty.add(path)
                message = _wanted(sub) if _keys(path) in _NEVER_SHOWN else _value_message(node, sub)
                faults.add(document.fault(path, message))
            case _:
                pass
    return faults, frozenset(faulty)


def _keys(path: Path) -> Path:
    return tuple(step for step in path if isinstance(step, str))


def _unknown_keys(document: Document, path: Path, mapping: Mapping, sub: dict[str, Any]) -> Iterator[Fault]:
    for key in mapping.entries:
        if key not in sub["properties"]:
            hint = _key_hint(key, tuple(sub["properties"]))
            yield document.key_fault(path, key, f"unknown key {quoted(key)}: {hint}")


def _key_hint(key: str, allowed: tuple[str, ...]) -> str:
    spelled = _snake_case(key)
    if spelled in allowed:
        return f"did you mean `{spelled}`?"
    if spelled in _homes() and not get_close_matches(spelled, allowed, n=1, cutoff=_SURE_RATIO):
        return f"it belongs {' or '.join(_homes()[spelled])}"
    guess = _guess(key, allowed)
    return f"did you mean `{guess}`?" if guess else f"the keys here are {any_of(allowed)}"


def _missing_keys(document: Document, path: Path, mapping: Mapping, sub: dict[str, Any]) -> Iterator[Fault]:
    if mapping.is_partial:
        return
    allowed = tuple(sub["properties"])
    # `nam: primary` is one fault, and the person is told what to do about it.
    meant = {_snake_case(key) for key in mapping.entries} | {_guess(key, allowed) for key in mapping.entries}
    for key in sub["required"]:
        if key not in meant:
            example = f"{key}: {_flow(sub['properties'][key]['examples'][0])}"
            yield document.fault(path, f"`{key}` is missing: add it, such as `{example}`")


def _value_message(node: Scalar | Listing | Mapping, sub: dict[str, Any]) -> str:
    wanted = _wanted(sub)
    match node:
        case Scalar(value=None):
            return f"is empty: it {wanted}"
        case Scalar(text=""):
            return f"{wanted}, not an empty text"
        case Scalar():
            return f"{wanted}, not {_shown(node, sub)}{_value_hint(node, sub)}"
        case Listing(items=items):
            return f"{wanted}, not {f'a list of {len(items)}' if items else 'an empty list'}"
        case _:
            return f"{wanted}, not a mapping of keys"


def _wanted(sub: dict[str, Any]) -> str:
    """The sentence that starts with ``must be``."""
    if "errorMessage" in sub:
        return str(sub["errorMessage"])
    if "enum" in sub:
        return f"must be {any_of(sub['enum'])}"
    if sub["type"] == "integer":
        return f"must be a whole number from {sub['minimum']} to {sub['maximum']}"
    return f"must be a mapping with {any_of(sub['properties'])}"


def _shown(node: Scalar, sub: dict[str, Any]) -> str:
    if not node.is_plain and not _takes_text(sub):
        return f"the text {quoted(node.text, mark=chr(34))}"
    return quoted(node.text)


def _value_hint(node: Scalar, sub: dict[str, Any]) -> str:
    if not _takes_text(sub):
        if _ODD_NUMBER.fullmatch(node.text):
            return "; write plain decimal digits"
        return "" if node.is_plain or not node.text.isdecimal() else "; remove the quotes"
    if _fits(node.text, sub) and "integer" not in sub.get("type", ()):
        # Only a boolean or a number gets here: YAML took the word for one.
        kind = f"means {str(node.value).lower()}" if isinstance(node.value, bool) else "is a number"
        return f', which {kind} in YAML: write "{node.text}" with quotes'
    guess = next((text for text in _respelled(node.text) if _fits(text, sub)), None)
    if _NOTHING.fullmatch(node.text) and _fits(f"1{node.text}", sub):
        return ": it must be more than nothing"
    guess = guess or _guess(node.text, tuple(sub.get("enum", ())))
    return f": did you mean `{guess}`?" if guess else ""


def _respelled(text: str) -> Iterator[str]:
    """What may be meant by a text that lacks a unit, or has it in another form."""
    if len(text) > _MAX_GUESSED:
        return
    yield text.replace(" ", "_")
    tight = text.replace(" ", "").lower()
    yield tight
    if tight[:1].isdecimal():
        yield f"{tight}s"
        yield f"{tight}%"
        yield f"tcp:127.0.0.1:{tight}"
    if found := _LONG_UNIT.fullmatch(tight):
        yield found.expand(r"\1\2")
    if found := _FRACTION_OF_UNIT.fullmatch(tight):
        factor, unit = _SMALLER_UNIT[found[2]]
        yield f"{float(found[1]) * factor:g}{unit}"
    if _FRACTION.fullmatch(tight):
        yield f"{float(tight):.0%}"


def _takes_text(sub: dict[str, Any]) -> bool:
    return "pattern" in sub or "enum" in sub


def _fits(text: str, sub: dict[str, Any]) -> bool:
    """Whether ``text`` would be right for a value that takes text."""
    if "enum" in sub:
        return text in sub["enum"]
    return re.search(sub["pattern"], text) is not None and len(text) <= sub.get("maxLength", len(text))


def _guess(word: str, allowed: tuple[str, ...]) -> str | None:
    if len(word) > _MAX_GUESSED:
        return None
    return next(iter(get_close_matches(word.lower(), allowed, n=1)), None)


def _snake_case(key: str) -> str:
    """``maxStreams`` and ``max-streams`` as ``max_streams``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key[:_MAX_GUESSED]).replace("-", "_").lower()


@cache
def _homes() -> dict[str, list[str]]:
    """For each key of the schema the mappings it belongs in."""
    homes: dict[str, list[str]] = {}

    def walk(sub: dict[str, Any], path: Path, home: str) -> None:
        for key, child in sub["properties"].items():
            homes.setdefault(key, []).append(home)
            if "properties" in child:
                walk(child, (*path, key), f"under `{path_text((*path, key))}`")
            elif "properties" in child.get("items", {}):
                walk(child["items"], (*path, key), f"in an entry of `{path_text((*path, key))}`")

    walk(load_schema(), (), "at the top level")
    return homes


def _flow(value: Any) -> str:  # noqa: ANN401 - an example of the schema
    """A value as YAML writes it on one line."""
    match value:
        case list():
            return f"[{', '.join(map(_flow, value))}]"
        case dict():
            return f"{{{', '.join(f'{key}: {_flow(item)}' for key, item in value.items())}}}"
        case _:
            return str(value)
