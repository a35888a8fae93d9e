"""Mutations of text that has a grammar: pieces swapped for others that mean something, and plain noise."""

from __future__ import annotations

import random
from collections.abc import Sequence


def mutate(rng: random.Random, text: bytes, pieces: Sequence[bytes], *, edits: int) -> bytes:
    """Change a text at some places.

    Args:
        rng: Decides all.
        text: What to start from.
        pieces: What is put in: words that mean something to the reader, or to nobody.
        edits: How many places.
    """
    for _ in range(edits):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(8):
            case 0:
                text = text[:at] + text[at + rng.randrange(1, 6) :]
            case 1:
                text = text[:at] + rng.choice(pieces) + text[at:]
            case 2:
                text = text[:at] + rng.choice(pieces) + text[at + rng.randrange(1, 12) :]
            case 3:
                text = text[:at] + rng.randbytes(rng.randrange(1, 5)) + text[at:]
            case 4:
                text = text[:at] + text[max(0, at - rng.randrange(1, 40)) :]
            case 5:
                text = _swap_words(rng, text)
            case 6:
                text = text[:at] + bytes((rng.randrange(256),)) + text[at + 1 :]
            case _:
                text = text[:at]
    return text


def cut(rng: random.Random, text: bytes, pieces: int) -> tuple[bytes, ...]:
    """Cut a text anywhere into at most so many pieces; none is left out."""
    places = sorted(rng.randrange(len(text) + 1) for _ in range(pieces - 1))
    return tuple(text[start:end] for start, end in zip([0, *places], [*places, len(text)], strict=True))


def _swap_words(rng: random.Random, text: bytes) -> bytes:
    words = text.split(b" ")
    one, other = rng.randrange(len(words)), rng.randrange(len(words))
    words[one], words[other] = words[other], words[one]
    return b" ".join(words)
