"""Fuzzes the control-port codec: messages or ControlProtocolError, whatever Tor sends and however it is cut.

Lines that Tor really sends are mutated and mixed with noise. Whatever a message holds is read on as the agent
does; what it sends back must be one line. Cutting the same bytes elsewhere must make no difference.
"""

from __future__ import annotations

import contextlib
import random
import sys

from circuitloom import wire
from circuitloom.errors import ControlProtocolError
from circuitloom.model import (
    CircuitBandwidth,
    CircuitEvent,
    ConfChanged,
    NetworkReady,
    SignalReceived,
    StreamEvent,
)
from circuitloom.wire import MAX_LINE_BYTES, ControlCodec, DirectoryNews, Message, Reply, TorWarning
from fuzz.campaign import Case, main
from fuzz.mutate import cut, mutate

DEFAULT_COUNT = 1_000_000

A, B, C = (f"${digit * 40}~{name}" for digit, name in (("A", "one"), ("B", "two"), ("C", "three")))

MESSAGES = tuple(
    message.replace("\n", "\r\n").encode()
    for message in (
        "650 STREAM 17 NEW 0 192.0.2.1:80 SOURCE_ADDR=127.0.0.1:40312 PURPOSE=USER CLIENT_PROTOCOL=SOCKS5",
        "650 STREAM 16 NEW 0 192.0.2.1:80 NYM_EPOCH=0 SESSION_GROUP=-9 ISO_FIELDS=SOCKS_USERNAME,CLIENTADDR",
        '650 STREAM 18 NEW 0 a.example:443 SOCKS_USERNAME="a \\"b\\"" SOCKS_PASSWORD="\\303\\244"',
        "650 STREAM 19 NEWRESOLVE 0 a.example:0 PURPOSE=DNS_REQUEST CLIENT_PROTOCOL=DNS",
        "650 STREAM 17 CONTROLLER_WAIT 0 192.0.2.1:80",
        "650 STREAM 17 SENTCONNECT 30 192.0.2.1:80",
        "650 STREAM 17 REMAP 30 192.0.2.1:80 SOURCE=EXIT",
        "650 STREAM 17 SUCCEEDED 30 192.0.2.1:80",
        "650 STREAM 17 DETACHED 30 192.0.2.1:80 REASON=END REMOTE_REASON=EXITPOLICY",
        "650 CIRC_BW ID=30 READ=4980 WRITTEN=509 TIME=2026-11-25T14:20:01.123456 DELIVERED_READ=4000",
        "650 STREAM 17 FAILED 30 192.0.2.1:80 REASON=DESTROY",
        "650 STREAM 17 CLOSED 30 192.0.2.1:80 REASON=DONE",
        "650 STREAM 20 CLOSED 0 a b!c:80 REASON=SOCKS_PROTOCOL",
        "650 STREAM 17 XOFF_SENT 30 192.0.2.1:80",
        "650 CIRC 30 LAUNCHED BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL TIME_CREATED=2024-01-01T00:00:00.1",
        f"650 CIRC 30 EXTENDED {A} PURPOSE=GENERAL",
        f"650 CIRC 30 BUILT {A},{B},{C} PURPOSE=GENERAL TIME_CREATED=2024-01-01T00:00:00.123456",
        f"650 CIRC 30 CLOSED {A},{B} REASON=DESTROYED REMOTE_REASON=CHANNEL_CLOSED",
        "650 CIRC 31 FAILED REASON=TIMEOUT",
        f"650 CIRC_MINOR 30 PURPOSE_CHANGED {A},{B} PURPOSE=MEASURE_TIMEOUT OLD_PURPOSE=GENERAL",
        "650-CONF_CHANGED\n650-__LeaveStreamsUnattached=0\n650-SocksPort\n650 OK",
        "650 SIGNAL RELOAD",
        "650 SIGNAL NEWNYM",
        "650 STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED",
        "650 STATUS_CLIENT NOTICE BOOTSTRAP PROGRESS=100 TAG=done",
        "650 STATUS_GENERAL WARN TOO_MANY_CONNECTIONS CURRENT=1024",
        "650 CIRC_BW ID=30 READ=1428 WRITTEN=1024 TIME=2026-11-22T11:00:00.000030 OVERHEAD_READ=2",
        "650 STATUS_CLIENT NOTICE CONSENSUS_ARRIVED",
        "650 GUARD ENTRY $AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA~alpha DOWN",
        "650+NS\nr one AAAA\n..\n.\n650 OK",
        "250 OK",
        "250 EXTENDED 30",
        f"250-version=0.4.9.11\n250+circuit-status=\n30 BUILT {A},{B},{C} PURPOSE=GENERAL\n.\n250 OK",
        "250+stream-status=\n17 SUCCEEDED 30 192.0.2.1:80\n18 NEW 0 192.0.2.1:80\n.\n250 OK",
        '250-VirtualAddrNetworkIPv6=[FE80::]/10\n250 MapAddress="a.example b.example"',
        '552 Unknown stream "17"',
        "551 Can't attach stream to non-open origin circuit",
        "555 Connection is not managed by controller.",
        "514 Authentication required.",
    )
)

WORDS = (
    *(
        b"\r\n",
        b"\r",
        b"\n",
        b"\0",
        b"\xff",
        b"\xc3",
        b" ",
        b"  ",
        b"\t",
        b'"',
        b"\\",
        b'\\"',
        b"\\777",
        b"=",
    ),
    *(b"$", b",", b"~", b".", b"-", b"+", b":", b"*", b"%0d%0a", b"650 ", b"650-", b"650+", b"250 ", b"250+"),
    *(b"STREAM ", b"CIRC ", b"NEW ", b"CLOSED ", b"BUILT ", b"REASON=", b'SOCKS_USERNAME="', b"PURPOSE="),
    *(
        b"0",
        b"-1",
        b"18446744073709551616",
        b"9" * 40,
        b"A" * 17,
        b"\xb2",
        b"\xaa",
        b"\xbd",
        b"_",
        b"EXTENDED ",
    ),
)

CHANGED_SHARE = 0.05

LONG_EVERY = 400
"""One case in so many has a line that is longer than any of Tor's, or longer than the codec's bound."""


class CodecFuzzer:
    """Draws some dozen lines a case."""

    unit = "lines"

    def draw(self, rng: random.Random) -> Case:
        """Messages as Tor sends them, some of them changed, cut anywhere."""
        messages = []
        for _ in range(rng.randrange(4, 40)):
            message = rng.choice(MESSAGES)
            # Most stay whole, or an error in the first would end every case at once.
            if rng.random() < CHANGED_SHARE:
                message = mutate(rng, message, WORDS, edits=rng.randrange(1, 4))
            elif rng.random() < 0.5:
                message = message.replace(b"17", str(rng.randrange(100_000)).encode())
            messages.append(message)
        if rng.randrange(20) == 0:
            messages.append(rng.randbytes(rng.randrange(200)))
        if rng.randrange(LONG_EVERY) == 0:
            messages.append(rng.choice(MESSAGES) + rng.choice(WORDS) * rng.choice((3_000, 60_000, 600_000)))
        return cut(rng, b"\r\n".join(messages) + b"\r\n", rng.randrange(1, 12))

    def judge(self, case: Case) -> int:
        """Feed it whole, and cut: both give the same, or both refuse."""
        data = b"".join(case)
        whole, is_whole_refused, _ = feed((data,))
        cut_up, is_cut_refused, lines = feed(case)
        # The bound on a line is one on what the codec keeps: a line that comes whole is never kept.
        if max(map(len, data.split(b"\r\n"))) <= MAX_LINE_BYTES:
            assert is_whole_refused == is_cut_refused, "where the bytes are cut decides if they are refused"
            assert is_whole_refused or whole == cut_up, "where the bytes are cut changes the messages"
        for message in cut_up:
            read_on(message)
        return lines


def feed(chunks: Case) -> tuple[list[Message], bool, int]:
    """The messages, whether any bytes were refused, and how many lines were read.

    After a refusal the rest goes to a new codec, as a new connection does; of the refused chunk only one line
    is counted.
    """
    codec = ControlCodec()
    messages: list[Message] = []
    is_refused, lines = False, 0
    for chunk in chunks:
        try:
            messages += codec.feed(chunk)
        except ControlProtocolError as error:
            codec, is_refused, lines = ControlCodec(), True, lines + 1
            assert len(str(error)) < 120, "an error repeats what was sent"  # noqa: PT017 - of every refusal
        else:
            lines += chunk.count(b"\r\n")
    return messages, is_refused, lines


def read_on(message: Message) -> None:
    """What the agent does with a message; ControlProtocolError ends the connection, nothing else may come."""
    match message:
        case Reply():
            assert 0 <= message.code <= 999
            _read_reply(message)
        case StreamEvent():
            assert_one_line(wire.attach_stream(message.stream_id, message.circuit_id))
        case CircuitEvent():
            assert_one_line(wire.command("CLOSECIRCUIT", message.circuit_id))
            assert all(len(hop.fingerprint) == 40 for hop in message.path)
        case CircuitBandwidth():
            assert message.read_bytes >= 0
            assert message.written_bytes >= 0
        case DirectoryNews() | ConfChanged() | SignalReceived() | NetworkReady() | TorWarning():
            pass
        case _:
            raise AssertionError(f"the codec made a {type(message).__name__}")


def _read_reply(reply: Reply) -> None:
    values = reply.values()
    wire.parse_reserved(reply)
    with contextlib.suppress(ControlProtocolError):
        assert_one_line(wire.command("CLOSECIRCUIT", wire.extended_circuit_id(reply)))
    for key, parse in (("stream-status", wire.parse_streams), ("circuit-status", wire.parse_circuits)):
        with contextlib.suppress(ControlProtocolError):
            for event in parse(values.get(key, "")):
                read_on(event)


def assert_one_line(command: bytes) -> None:
    """What is sent to Tor holds one command."""
    assert command.count(b"\n") == 1
    assert command.endswith(b"\r\n")
    assert command.isascii()


if __name__ == "__main__":
    sys.exit(main(CodecFuzzer(), default_count=DEFAULT_COUNT))
