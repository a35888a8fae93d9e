"""Sans-I/O codec of Tor's control protocol: bytes in any chunking in, replies and events out.

Rules of this file:

* It knows the grammar (control-spec 2.3) and nothing about connections, time or policy.
* Whatever the bytes, ``feed`` returns messages or raises ``ControlProtocolError``; memory is bounded.
* STREAM lines are the hot path: they are cut with ``str.split`` and read no further than a decision needs.
* Text is latin-1: every byte has a character, so nothing is lost and nothing can fail to decode.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

from circuitloom.errors import ControlProtocolError
from circuitloom.model import (
    CircuitBandwidth,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    ConfChanged,
    Hop,
    NetworkReady,
    Reserved,
    SignalReceived,
    StreamEvent,
    StreamId,
    StreamStatus,
    waits_for_controller,
)

MAX_LINE_BYTES = 1 << 20
"""Tor's own bound on one line of a command (tor-facts 9); no reply line comes near it."""

MAX_MESSAGE_BYTES = 64 << 20
"""A stream-status of 500,000 streams is about 32 MiB; a message beyond this bound is no honest Tor's."""

MAX_REPEATED_CHARACTERS = 4096
"""What Tor repeats of a stream is below it, with SOCKS name and password of 255 bytes each, escaped."""

_STREAM_PREFIX = "650 STREAM "
_CIRCUIT_STATUS = {status.value: status for status in CircuitStatus}
_WITH_KEYWORDS = frozenset(
    {
        StreamStatus.NEW,
        StreamStatus.NEWRESOLVE,
        StreamStatus.DETACHED,
        StreamStatus.FAILED,
        StreamStatus.CLOSED,
    }
)
_STREAM_STATUS = {
    status.value: (status, status is StreamStatus.CONTROLLER_WAIT, status in _WITH_KEYWORDS)
    for status in StreamStatus
}
"""By its word: the status, whether the target alone is read, and whether the keywords are read as well."""

_KEYWORD = re.compile(r' ([A-Z][A-Z0-9_]*)=("(?:[^"\\]|\\.)*"|[^" ]*)')
_ESCAPED = re.compile(r"\\([0-7]{1,3}|.)", re.DOTALL)
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
_ID = re.compile(r"[A-Za-z0-9]{1,16}")  # StreamID and CircuitID, control-spec 2.4
_COUNT = re.compile(r"[0-9]{1,20}")  # below 2 ** 64
_HOP = re.compile(r"\$?([0-9A-Fa-f]{40})(?:[~=]([A-Za-z0-9]{1,19}))?")
_WARNINGS = ("WARN ", "ERR ")
_READY = frozenset({"ENOUGH_DIR_INFO", "CIRCUIT_ESTABLISHED"})


class Reply(NamedTuple):
    """A reply to one command.

    Attributes:
        code: The last line's three-digit code; 2xx is success.
        lines: The text of each line after its code; the lines of a data block follow it, each on its own.
    """

    code: int
    lines: tuple[str, ...]

    @property
    def is_ok(self) -> bool:
        """Whether the command was carried out."""
        return 200 <= self.code < 300

    @property
    def text(self) -> str:
        """The last line: of a refusal, Tor's reason."""
        return self.lines[-1]

    def values(self) -> dict[str, str]:
        """The ``key=value`` lines of a GETINFO or GETCONF reply; a data block is the value."""
        values: dict[str, str] = {}
        for line in self.lines:
            key, separator, value = line.partition("=")
            if separator:
                values[key] = value.removeprefix("\n")
        return values


OK = Reply(250, ("OK",))
"""What nearly every command is answered with."""

_OK_LINE = "250 OK"


class TorWarning(NamedTuple):
    """A STATUS_GENERAL event of severity WARN or ERR: something ails Tor as a whole.

    Attributes:
        action: What, in Tor's word, such as ``CLOCK_JUMPED`` (control-spec 4.1.10).
    """

    action: str


class DirectoryNews(StrEnum):
    """What changed in what Tor knows of the network: its consensus, or what it thinks of its guards."""

    CONSENSUS = "consensus"
    GUARDS = "guards"


ControlEvent = StreamEvent | CircuitEvent | CircuitBandwidth | ConfChanged | SignalReceived | NetworkReady
"""What the core takes."""

AnyEvent = ControlEvent | TorWarning | DirectoryNews
Message = Reply | AnyEvent


class ControlCodec:
    """Turns what Tor sends into messages, in order.

    Events of a kind the agent does not read are dropped here, also when they are malformed in a part that
    nobody reads.
    """

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._chunk_bytes = 0
        self._lines: list[str] = []
        self._code = ""
        self._data: list[str] | None = None
        self._message_bytes = 0

    def feed(self, data: bytes) -> list[Message]:
        """Take what arrived and return the messages it completes.

        Args:
            data: Bytes as they came, cut anywhere.

        Returns:
            Replies and events in the order of arrival.

        Raises:
            ControlProtocolError: The bytes are not the control protocol, or a bound is exceeded.
        """
        # Joining is put off until a line can end, or a long line in small pieces would cost its square.
        self._chunks.append(data)
        self._chunk_bytes += len(data)
        if b"\n" not in data:
            if self._chunk_bytes > MAX_LINE_BYTES:
                raise ControlProtocolError(f"a control line is longer than {MAX_LINE_BYTES} bytes")
            return []
        text = b"".join(self._chunks).decode("latin-1")
        lines = text.split("\r\n")
        rest = lines.pop()
        self._chunks = [rest.encode("latin-1")] if rest else []
        self._chunk_bytes = len(rest)
        if len(rest) > MAX_LINE_BYTES:
            raise ControlProtocolError(f"a control line is longer than {MAX_LINE_BYTES} bytes")
        messages: list[Message] = []
        for line in lines:
            message: Message | None
            if self._lines:
                message = self._take(line)
            elif line.startswith(_STREAM_PREFIX):
                message = parse_stream(line[11:])
            elif line == _OK_LINE:
                message = OK
            else:
                message = self._take(line)
            if message is not None:
                messages.append(message)
        return messages

    def _take(self, line: str) -> Message | None:
        """Add one line to the message under way; return it when the line ends it."""
        self._message_bytes += len(line) + 2
        if self._message_bytes > MAX_MESSAGE_BYTES:
            raise ControlProtocolError(f"a control message is longer than {MAX_MESSAGE_BYTES} bytes")
        if self._data is not None:
            if line == ".":
                self._lines[-1] += "".join(self._data)
                self._data = None
            else:
                self._data.append("\n" + line.removeprefix("."))
            return None
        code, separator = line[:3], line[3:4]
        if not (code.isascii() and code.isdigit()) or separator not in {" ", "-", "+"}:
            raise ControlProtocolError("a line from the control port does not begin with a reply code")
        if self._lines and (code == "650") != (self._code == "650"):
            raise ControlProtocolError("an event and a reply are mixed in one message")
        self._code = code
        self._lines.append(line[4:])
        if separator == "+":
            self._data = []
            return None
        if separator == "-":
            return None
        message_lines, self._lines, self._message_bytes = tuple(self._lines), [], 0
        if code[0] == "6":
            return _parse_event(message_lines)
        return Reply(int(code), message_lines)


def parse_stream(line: str) -> StreamEvent | None:
    """Read a STREAM event after its ``650 STREAM``, or a line of ``GETINFO stream-status``.

    The target may contain spaces (a client can ask for any name, tor-facts 1), so the keywords are found by
    their form, not by position.

    Args:
        line: ``ID STATUS CIRCUIT TARGET [KEYWORDS]``.

    Returns:
        The event; None when its status is one that the agent does not read.

    Raises:
        ControlProtocolError: The line is cut short or an id is malformed.
    """
    try:
        stream_id, word, circuit_id, rest = line.split(" ", 3)
    except ValueError:
        raise ControlProtocolError("a STREAM line has fewer than four fields") from None
    known = _STREAM_STATUS.get(word)
    if known is None:
        return None
    status, reads_target, reads_keywords = known
    # isalnum admits letters beyond ASCII, which latin-1 text can hold: isascii closes that.
    if not (stream_id.isalnum() and circuit_id.isalnum() and (stream_id + circuit_id).isascii()):
        raise ControlProtocolError("a STREAM line has a malformed id")
    if reads_keywords:
        first = _KEYWORD.search(rest)
        if first is None:
            return StreamEvent(stream_id, status, circuit_id, rest)  # type: ignore[arg-type]  # checked above
        start = first.start()
        keywords: Mapping[str, str]
        if first[1] == "SOURCE_ADDR":
            # The port differs from stream to stream; what follows it does not.
            keywords = {"SOURCE_ADDR": unquote(first[2]), **_parse_stream_keywords(rest[first.end() :])}
        else:
            keywords = _parse_stream_keywords(rest[start:])
        return StreamEvent(stream_id, status, circuit_id, rest[:start], keywords)  # type: ignore[arg-type]
    if reads_target:
        first = _KEYWORD.search(rest)
        target = rest[: first.start()] if first else rest
        return StreamEvent(stream_id, status, circuit_id, target)  # type: ignore[arg-type]  # checked above
    return StreamEvent(stream_id, status, circuit_id)  # type: ignore[arg-type]  # checked above


def parse_circuit(line: str) -> CircuitEvent | None:
    """Read a CIRC event after its ``650 CIRC``, or a line of ``GETINFO circuit-status``.

    Args:
        line: ``ID STATUS [PATH] [KEYWORDS]``.

    Returns:
        The event; None when its status is one that the agent does not read.

    Raises:
        ControlProtocolError: The line is cut short or the id is malformed.
    """
    circuit_id, _, rest = line.partition(" ")
    word, separator, rest = rest.partition(" ")
    if not word or not _ID.fullmatch(circuit_id):
        raise ControlProtocolError("a CIRC line has no id or status")
    status = _CIRCUIT_STATUS.get(word)
    if status is None:
        return None
    first, _, _ = rest.partition(" ")
    path = _parse_path(first) if first.startswith("$") else ()
    return CircuitEvent(CircuitId(circuit_id), status, path, _parse_keywords(separator + rest))


def parse_bandwidth(line: str) -> CircuitBandwidth:
    """Read a CIRC_BW event after its ``650 CIRC_BW`` (control-spec, "Per-circuit bandwidth stats").

    Args:
        line: ``ID=CIRCUIT READ=BYTES WRITTEN=BYTES [KEYWORDS]``.

    Raises:
        ControlProtocolError: One of the three is missing or malformed.
    """
    keywords = _parse_keywords(f" {line}")
    circuit_id, read, written = (keywords.get(key, "") for key in ("ID", "READ", "WRITTEN"))
    if not (_ID.fullmatch(circuit_id) and _COUNT.fullmatch(read) and _COUNT.fullmatch(written)):
        raise ControlProtocolError("a CIRC_BW line has no id or no byte counts")
    return CircuitBandwidth(CircuitId(circuit_id), int(read), int(written))


def parse_streams(text: str) -> tuple[StreamEvent, ...]:
    """Read the value of ``GETINFO stream-status``; raises as ``parse_stream`` does."""
    events = (parse_stream(line) for line in text.split("\n") if line)
    return tuple(event for event in events if event is not None)


def waiting_streams(status: Reply) -> set[StreamId]:
    """The ids of the streams that may wait for a controller, from the reply to ``GETINFO stream-status``."""
    lines = parse_streams(status.values().get("stream-status", ""))
    return {line.stream_id for line in lines if waits_for_controller(line)}


def parse_circuits(text: str) -> tuple[CircuitEvent, ...]:
    """Read the value of ``GETINFO circuit-status``; raises as ``parse_circuit`` does."""
    events = (parse_circuit(line) for line in text.split("\n") if line)
    return tuple(event for event in events if event is not None)


def parse_reserved(reply: Reply) -> Reserved:
    """The addresses that Tor rewrites, from the answer to GETCONF of the options that map addresses.

    Args:
        reply: Its lines are ``VirtualAddrNetworkIPv6=[FE80::]/10`` and ``MapAddress=FROM TO``.
    """
    prefixes: list[str] = []
    hosts: set[str] = set()
    for line in reply.lines:
        option, _, value = line.partition("=")
        if option.startswith("VirtualAddrNetwork") and value:
            prefixes.append(value.replace("[", "").replace("]", ""))
        elif option == "MapAddress" and value:
            hosts.add(unquote(value).split(" ")[0].lower().removeprefix("*"))
    return Reserved(tuple(prefixes), frozenset(hosts))


def parse_cookie_path(reply: Reply) -> list[str]:
    """The file with Tor's cookie, from the answer to PROTOCOLINFO; empty without one."""
    return [
        unquote(value)
        for line in reply.lines
        if line.startswith("AUTH ")
        for key, value in _KEYWORD.findall(line)
        if key == "COOKIEFILE"
    ]


def unquote(text: str) -> str:
    """Undo the quoting of a QuotedString (control-spec 2.1.1); other text is returned as it is."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    return _ESCAPED.sub(_unescape, text[1:-1])


def extended_circuit_id(reply: Reply) -> CircuitId:
    """The id in ``250 EXTENDED id``.

    Raises:
        ControlProtocolError: The reply is not of that form.
    """
    word, _, circuit_id = reply.text.partition(" ")
    if word != "EXTENDED" or not _ID.fullmatch(circuit_id):
        raise ControlProtocolError("the reply to EXTENDCIRCUIT names no circuit")
    return CircuitId(circuit_id)


def _unescape(match: re.Match[str]) -> str:
    escaped = match[1]
    if escaped[0] in "01234567":
        return chr(int(escaped, 8) & 0xFF)
    return _ESCAPES.get(escaped, escaped)


def _parse_keywords(text: str) -> dict[str, str]:
    return {key: unquote(value) if value[:1] == '"' else value for key, value in _KEYWORD.findall(text)}


def _parse_stream_keywords(text: str) -> Mapping[str, str]:
    """Those of a STREAM line: the streams of one client repeat them word by word."""
    return _repeated_keywords(text) if len(text) <= MAX_REPEATED_CHARACTERS else _parse_keywords(text)


@lru_cache(maxsize=256)
def _repeated_keywords(text: str) -> Mapping[str, str]:
    """Both bounds keep a client with a new, or huge, password for each stream from filling the memory."""
    return MappingProxyType(_parse_keywords(text))


def _parse_path(text: str) -> tuple[Hop, ...]:
    hops = []
    for part in text.split(","):
        match = _HOP.fullmatch(part)
        if match is None:
            raise ControlProtocolError("a CIRC line has a malformed path")
        hops.append(Hop(match[1].upper(), match[2] or ""))
    return tuple(hops)


def _parse_event(lines: tuple[str, ...]) -> AnyEvent | None:
    kind, _, rest = lines[0].partition(" ")
    event: AnyEvent | None = None
    match kind:
        case "STREAM":
            event = parse_stream(rest)
        case "CIRC" | "CIRC_MINOR":
            event = parse_circuit(rest)
        case "CIRC_BW":
            event = parse_bandwidth(rest)
        case "CONF_CHANGED":
            event = ConfChanged(dict(_parse_option(line) for line in lines[1:] if line != "OK"))
        case "SIGNAL":
            event = SignalReceived(rest)
        case "STATUS_CLIENT":
            words = rest.split(" ")
            action = words[1] if len(words) > 1 else ""
            event = NetworkReady() if action in _READY else None
            event = DirectoryNews.CONSENSUS if action == "CONSENSUS_ARRIVED" else event
        case "GUARD":
            event = DirectoryNews.GUARDS
        case "STATUS_GENERAL" if rest.startswith(_WARNINGS):
            event = TorWarning(rest.split(" ", 2)[1])
    return event


def _parse_option(line: str) -> tuple[str, str | None]:
    key, separator, value = line.partition("=")
    return key, unquote(value) if separator else None
