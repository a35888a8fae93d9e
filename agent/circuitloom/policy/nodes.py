"""A policy as a tree of nodes that know their place, and the faults that are shown at them."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from circuitloom.errors import Fault
from circuitloom.policy.wording import Path, path_text

__all__ = ["Bad", "Document", "Entry", "Listing", "Mapping", "Node", "Place", "Scalar"]


class Place(NamedTuple):
    """A place in the text, both numbers from 1."""

    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Scalar:
    """One value. ``text`` is what is written, without quotes; ``value`` what YAML makes of it."""

    place: Place
    text: str
    value: str | int | bool | None
    is_plain: bool


@dataclass(frozen=True, slots=True)
class Listing:
    """A list."""

    place: Place
    items: tuple[Node, ...]


class Entry(NamedTuple):
    """One key of a mapping and its value."""

    key_place: Place
    node: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping. When ``is_partial``, keys are missing that were refused, so no absence means anything."""

    place: Place
    entries: dict[str, Entry]
    is_partial: bool


@dataclass(frozen=True, slots=True)
class Bad:
    """A node whose fault is reported; it must not be judged further."""

    place: Place


Node = Scalar | Listing | Mapping | Bad


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed policy.

    Attributes:
        name: The policy's name, printable.
        root: The top mapping.
        faults: What was wrong with the YAML.
    """

    name: str
    root: Mapping
    faults: tuple[Fault, ...] = ()

    def node_at(self, path: Path) -> Node | None:
        """The node at a path; None if a key of it is absent or leads into something that has no keys."""
        node: Node = self.root
        for step in path:
            match node:
                case Mapping(entries=entries) if step in entries:
                    node = entries[str(step)].node
                case Listing(items=items) if isinstance(step, int):
                    node = items[step]
                case _:
                    return None
        return node

    def sound_texts(self, path: Path, faulty: Container[Path]) -> Iterator[tuple[Path, Scalar]]:
        """The items of the list at a path against which nothing is known, each with its own path."""
        node = self.node_at(path)
        if isinstance(node, Listing) and path not in faulty:
            for position, item in enumerate(node.items):
                if isinstance(item, Scalar) and (*path, position) not in faulty:
                    yield (*path, position), item

    def fault(self, path: Path, message: str) -> Fault:
        """A fault of the value at ``path``, or of the nearest thing around it if there is none."""
        place = self.root.place
        for length in range(len(path) + 1):
            node = self.node_at(path[:length])
            if node is None:
                break
            place = node.place
        return self.fault_at(place, path, message)

    def key_fault(self, path: Path, key: str, message: str) -> Fault:
        """A fault of a key of the mapping at ``path``."""
        mapping = self.node_at(path)
        assert isinstance(mapping, Mapping)  # noqa: S101 - only mappings have keys
        return self.fault_at(mapping.entries[key].key_place, path, message)

    def fault_at(self, place: Place, path: Path, message: str) -> Fault:
        """A fault of the node at ``path`` that shows at ``place``."""
        return Fault(self.name, place.line, place.column, path_text(path), message)
