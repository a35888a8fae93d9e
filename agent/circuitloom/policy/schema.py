"""The JSON Schema as the package carries it: text, validator, defaults."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

__all__ = ["fill_defaults", "load_schema", "schema_text", "schema_validator"]


def schema_text() -> str:
    """The schema as shipped: what ``circuitloom schema`` prints for editors."""
    return files("circuitloom").joinpath("schemas", "policy.schema.json").read_text(encoding="utf-8")


@cache
def load_schema() -> dict[str, Any]:
    """The schema as data; shared, so callers must not change it."""
    schema: dict[str, Any] = json.loads(schema_text())
    return schema


@cache
def schema_validator() -> Draft202012Validator:
    """The schema, ready to judge documents."""
    return Draft202012Validator(load_schema())


def fill_defaults(data: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Returns a valid document with every default of the schema written out.

    A mapping that the document leaves out (``log``) is filled in as if it were there and empty. Keys whose
    default depends on other keys have none in the schema and stay absent.

    Args:
        data: A mapping that the schema accepts.
        schema: The schema of this mapping.
    """
    filled = dict(data)
    for key, sub in schema["properties"].items():
        if sub.get("type") == "object":
            filled[key] = fill_defaults(data.get(key, {}), sub)
        elif key in data and "properties" in sub.get("items", {}):
            filled[key] = [fill_defaults(item, sub["items"]) for item in data[key]]
        elif key not in data and "default" in sub:
            filled[key] = sub["default"]
    return filled
