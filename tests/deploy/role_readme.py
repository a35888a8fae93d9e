"""Makes the table of variables in the role's README from its argument specification.

`python tests/deploy/role_readme.py` writes it; a test fails when the table in the README is another one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

ROLE = Path(__file__).parents[2] / "roles/circuitloom"
README = ROLE / "README.md"
BEGIN = "<!-- made from meta/argument_specs.yml -->\n"
END = "<!-- end -->\n"


def read_yaml(name: str) -> Any:  # noqa: ANN401  # whatever YAML can hold
    """Return the content of one of the role's YAML files."""
    return yaml.safe_load((ROLE / name).read_text())


def table() -> str:
    """Return the table as Markdown."""
    options: dict[str, dict[str, Any]] = read_yaml("meta/argument_specs.yml")["argument_specs"]["main"][
        "options"
    ]
    lines = ["| variable | default | meaning |", "|---|---|---|"]
    for name, option in options.items():
        meaning = option["description"]
        text = meaning if isinstance(meaning, str) else " ".join(meaning)
        if "choices" in option:
            text += " One of " + ", ".join(f"`{choice}`" for choice in option["choices"]) + "."
        for key, element in option.get("options", {}).items():
            needed = " (required)" if element.get("required") else ""
            text += f" `{key}`{needed}: {element['description']}"
        # Ansible's own markup: C(code), O(option).
        text = re.sub(r"[CO]\(([^()]*(?:\([^()]*\))?[^()]*)\)", r"`\1`", text)
        lines.append(f"| `{name}` | `{json.dumps(option['default'])}` | {text} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """Return `readme` with its table replaced by the one the specification gives."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
