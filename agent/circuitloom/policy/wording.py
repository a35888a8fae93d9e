"""How names, values and places are written in faults: one line each, printable, of bounded length."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

__all__ = ["Path", "any_of", "escaped", "no_circuit", "path_text", "quoted"]

# Where in a document: keys of mappings and indexes of lists.
Path = tuple[str | int, ...]

# Long enough for a fingerprint with its nickname, and for most paths.
_MAX_SHOWN = 64

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,32}")


def escaped(text: str) -> str:
    """The text with every character that would break or disturb a line written as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quoted(text: str, *, mark: str = "`") -> str:
    """The text between marks, cut if it is long."""
    shown = text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
    return f"{mark}{escaped(shown)}{mark}"


def no_circuit(name: str, names: Iterable[str]) -> str:
    """What is wrong with a name that no circuit has."""
    guess = next(iter(get_close_matches(name, names, n=1)), None)
    hint = f": did you mean `{guess}`?" if guess else ""
    return f"there is no circuit {quoted(name)}{hint}"


def any_of(words: Iterable[str]) -> str:
    """``a, b or c``."""
    shown = [quoted(word) for word in words]
    return " or ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def path_text(path: Sequence[str | int]) -> str:
    """``circuits[1].weight``; a key that is no plain word is put in quotes."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            key = step if _PLAIN_KEY.fullmatch(step) else quoted(step, mark='"')
            text += f".{key}" if text else key
    return text
