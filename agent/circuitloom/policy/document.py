"""YAML text to a tree of nodes, and every fault of the YAML itself.

Rules of this file:

* Of PyYAML only the parser is used, which yields events. No tag can build an object, because nothing that
  builds objects is here.
* Always the parser written in Python, also where libyaml is installed. The two differ in what they accept (a
  tab after a colon) and in their words, and a policy must be judged alike on every host. A policy of 40 lines
  takes it a few milliseconds; ``MAX_NODES`` bounds the rest.
* Only what YAML 1.1, YAML 1.2 and a person read alike has a type: null, booleans and plain decimal integers.
  Everything else is text, so nothing turns into a date, a base-60 number or a float on the way.
* A faulty node becomes ``Bad``, so that no later check speaks about it again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from yaml.error import Mark, MarkedYAMLError
from yaml.events import (
    AliasEvent,
    CollectionStartEvent,
    MappingEndEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.scanner import Scanner

from circuitloom.errors import Fault, PolicyError
from circuitloom.policy.nodes import Bad, Document, Entry, Listing, Mapping, Node, Place, Scalar
from circuitloom.policy.syntax import syntax_fault
from circuitloom.policy.wording import Path, escaped, path_text, quoted

__all__ = ["parse_document"]

# A policy nests four deep. Each level costs two Python frames here and in jsonschema.
MAX_DEPTH = 32

# 1,000 circuits with eight relays each are 21,000 nodes, and take about two seconds in all.
MAX_NODES = 32_768

_NULLS = frozenset(["", "~", "null", "Null", "NULL"])
_TRUE_WORDS = ("true", "yes", "on")
_FALSE_WORDS = ("false", "no", "off")
_BOOLEANS = {
    spelling: word in _TRUE_WORDS
    for word in (*_TRUE_WORDS, *_FALSE_WORDS)
    for spelling in (word, word.title(), word.upper())
}

# At most 18 digits: every number of a policy is far smaller, and int() of 5,000 digits is an error by itself.
# No leading zero: 010 is eight in YAML 1.1 and ten in YAML 1.2.
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")

_EMPTY = "the policy is empty: it needs at least `version` and `circuits`"

_TAG_PREFIX = "tag:yaml.org,2002:"


def parse_document(text: str, name: str) -> Document:
    """Parses one YAML document.

    Args:
        text: What ``source.decode`` let through.
        name: The policy's name, as the user gave it.

    Raises:
        PolicyError: There is no top mapping to judge further. Lesser faults are in ``Document.faults``.
    """
    composer = _Composer(text, escaped(name))
    try:
        root = composer.compose()
    except _Stop:
        raise PolicyError(composer.faults) from None
    return Document(composer.name, root, tuple(composer.faults))


class _Stop(Exception):
    """Nothing behind this place can be judged."""


class _Events(Reader, Scanner, Parser):
    """PyYAML's parser without its composer, resolver and constructor."""

    def __init__(self, text: str) -> None:
        Reader.__init__(self, text)
        Scanner.__init__(self)
        Parser.__init__(self)

    def take_event(self) -> Any:  # noqa: ANN401 - events have no common attributes
        """The next event."""
        return self.get_event()  # type: ignore[no-untyped-call] # PyYAML's stubs leave it out

    def next_event(self) -> Any:  # noqa: ANN401 - as above
        """The next event, which stays the next."""
        return self.peek_event()  # type: ignore[no-untyped-call] # as above


@dataclass(slots=True)
class _Composer:
    """Turns events into nodes; ``faults`` grows on the way."""

    text: str
    name: str
    faults: list[Fault] = field(default_factory=list)
    nodes: int = 0
    events: _Events = field(init=False)

    def compose(self) -> Mapping:
        """The only document of the stream.

        Raises:
            _Stop: There is no such document.
        """
        self.events = _Events(self.text)
        try:
            return self._stream()
        except MarkedYAMLError as error:
            mark, message = syntax_fault(error)
            raise self._stop(_place(mark), (), message) from None
        except (ValueError, OverflowError):
            # PyYAML lets these out for "\UFFFFFFFF" and for %YAML with thousands of digits.
            place = _place(self.events.get_mark())
            raise self._stop(place, (), "a number or character code here is out of range") from None

    def _stream(self) -> Mapping:
        self.events.take_event()  # the stream starts
        if self.events.check_event(StreamEndEvent):
            raise self._stop(Place(1, 1), (), _EMPTY)
        self.events.take_event()  # the document starts
        root = self._node((), 0)
        self.events.take_event()  # the document ends
        if not self.events.check_event(StreamEndEvent):
            place = _place(self.events.next_event().start_mark)
            self._note(place, (), "a second document starts here: a policy is one, so remove the `---`")
        if isinstance(root, Mapping):
            return root
        if isinstance(root, Bad):
            raise _Stop
        if isinstance(root, Scalar) and root.is_plain and not root.text:
            raise self._stop(Place(1, 1), (), _EMPTY)
        raise self._stop(root.place, (), "a policy is a mapping of keys, such as `version: 1`, not this")

    def _node(self, path: Path, depth: int) -> Node:
        event = self.events.take_event()
        place = _place(event.start_mark)
        self._count(place, path)
        if isinstance(event, AliasEvent):
            return self._bad(place, path, f"alias {quoted(f'*{event.anchor}')}: write the value out here")
        is_sound = self._judge_properties(event, place, path)
        node: Node
        match event:
            case ScalarEvent():
                node = self._scalar(event, place, path)
            case SequenceStartEvent():
                node = self._listing(place, path, depth)
            case _:
                node = self._mapping(place, path, depth)
        return node if is_sound else Bad(place)

    def _judge_properties(self, event: ScalarEvent | CollectionStartEvent, place: Place, path: Path) -> bool:
        """Notes an anchor or a tag; False if the value cannot be taken for what it looks like."""
        if event.anchor is not None:
            message = f"anchor {quoted(f'&{event.anchor}')}: remove it; a policy repeats nothing by reference"
            self._note(place, path, message)
        if event.tag is None:
            return True
        tag = event.tag
        shown = "!!" + tag.removeprefix(_TAG_PREFIX) if tag.startswith(_TAG_PREFIX) else tag
        self._note(place, path, f"tag {quoted(shown)}: remove it; a policy builds no objects")
        return False

    def _scalar(self, event: ScalarEvent, place: Place, path: Path) -> Node:
        text = event.value
        if not text.isprintable():
            odd = next(character for character in text if not character.isprintable())
            what = "a line break" if odd == "\n" else f"U+{ord(odd):04X}, which does not print"
            return self._bad(place, path, f"this holds {what}: keys and values are one line of plain text")
        is_plain = event.style is None
        value: str | int | bool | None = text
        if is_plain and text in _NULLS:
            value = None
        elif is_plain and text in _BOOLEANS:
            value = _BOOLEANS[text]
        elif is_plain and _INTEGER.fullmatch(text):
            value = int(text)
        return Scalar(place, text, value, is_plain)

    def _listing(self, place: Place, path: Path, depth: int) -> Listing:
        self._descend(place, depth)
        items: list[Node] = []
        while not self.events.check_event(SequenceEndEvent):
            items.append(self._node((*path, len(items)), depth + 1))
        self.events.take_event()
        return Listing(place, tuple(items))

    def _mapping(self, place: Place, path: Path, depth: int) -> Mapping:
        self._descend(place, depth)
        entries: dict[str, Entry] = {}
        is_partial = False
        while not self.events.check_event(MappingEndEvent):
            key = self._key(path, depth)
            if key is None:
                is_partial = True
                self._node(path, depth + 1)
                continue
            node = self._node((*path, key.text), depth + 1)
            if key.text in entries:
                first = entries[key.text].key_place.line
                message = f"key {quoted(key.text)} is here a second time, after line {first}: remove one"
                self._note(key.place, path, message)
                continue
            if isinstance(node, Scalar) and node.value is None and not node.text:
                # An empty value has no text of its own to point at.
                node = Scalar(key.place, "", None, is_plain=True)
            entries[key.text] = Entry(key.place, node)
        self.events.take_event()
        return Mapping(place, entries, is_partial)

    def _key(self, path: Path, depth: int) -> Scalar | None:
        """The next key; None, with its fault noted, if it cannot be one."""
        is_merge = False
        if self.events.check_event(ScalarEvent):
            event = self.events.next_event()
            is_merge = event.style is None and event.value == "<<"
        node = self._node(path, depth + 1)
        match node:
            case Scalar() if is_merge:
                self._note(node.place, path, "merge key `<<`: write the keys out here")
            case Scalar(text="", is_plain=True):
                self._note(node.place, path, "a key is missing before this `:`")
            case Scalar():
                return node
            case Bad():
                pass
            case _:
                self._note(node.place, path, "a key must be one word, not a list or a mapping")
        return None

    def _count(self, place: Place, path: Path) -> None:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise self._stop(place, path, f"more than {MAX_NODES} keys and values: no policy needs so many")

    def _descend(self, place: Place, depth: int) -> None:
        if depth >= MAX_DEPTH:
            # Shown without its path, which is as deep.
            raise self._stop(place, (), f"nested deeper than {MAX_DEPTH} levels: a policy needs four")

    def _note(self, place: Place, path: Path, message: str) -> None:
        self.faults.append(Fault(self.name, place.line, place.column, path_text(path), message))

    def _bad(self, place: Place, path: Path, message: str) -> Bad:
        self._note(place, path, message)
        return Bad(place)

    def _stop(self, place: Place, path: Path, message: str) -> _Stop:
        self._note(place, path, message)
        return _Stop()


def _place(mark: Mark) -> Place:
    return Place(mark.line + 1, mark.column + 1)
