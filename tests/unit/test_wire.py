"""The control-port codec, fed with lines as Tor sends them."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from circuitloom import wire
from circuitloom.errors import ControlProtocolError
from circuitloom.model import (
    TOR_CHOOSES,
    CircuitBandwidth,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    ConfChanged,
    Hop,
    NetworkReady,
    Purpose,
    Reserved,
    SignalReceived,
    StreamEvent,
    StreamId,
    StreamStatus,
    dirtiness_seconds,
)
from circuitloom.wire import ControlCodec, DirectoryNews, Message, Reply, TorWarning

ISOLATION = (
    "CLIENT_PROTOCOL=SOCKS5 NYM_EPOCH=0 SESSION_GROUP=-4 "
    "ISO_FIELDS=SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH"
)
NEW = (
    "650 STREAM 12 NEW 0 example.com:443 SOURCE_ADDR=127.0.0.1:4711 PURPOSE=USER "
    f'SOCKS_USERNAME="al\\"ice b=c" SOCKS_PASSWORD="" {ISOLATION}\r\n'
)
TRANSCRIPT = (
    "250 OK\r\n"
    f"{NEW}"
    f"650 STREAM 12 CONTROLLER_WAIT 0 example.com:443 {ISOLATION}\r\n"
    "250 OK\r\n"
    f"650 STREAM 12 SENTCONNECT 30 example.com:443 {ISOLATION}\r\n"
    f"650 STREAM 12 REMAP 30 127.0.0.1:443 SOURCE=EXIT {ISOLATION}\r\n"
    f"650 STREAM 12 SUCCEEDED 30 127.0.0.1:443 {ISOLATION}\r\n"
    "650-CONF_CHANGED\r\n650-__LeaveStreamsUnattached=0\r\n650-Nickname\r\n650 OK\r\n"
    "650 CIRC 7 BUILT $9695DFC35FFEB861329B9F1AB04C46397020CE31~alpha,"
    "$AAAADFC35FFEB861329B9F1AB04C46397020CE31~beta BUILD_FLAGS=NEED_CAPACITY PURPOSE=GENERAL "
    "TIME_CREATED=2026-11-22T11:00:00.000000\r\n"
    "250+stream-status=\r\n1 SUCCEEDED 7 a.example:80\r\n2 NEW 0 b.example:80\r\n.\r\n250 OK\r\n"
    f"650 STREAM 12 CLOSED 30 127.0.0.1:443 REASON=END REMOTE_REASON=DONE {ISOLATION}\r\n"
    "650 SIGNAL RELOAD\r\n"
    "650 STATUS_CLIENT NOTICE ENOUGH_DIR_INFO\r\n"
    "650 STATUS_CLIENT NOTICE BOOTSTRAP PROGRESS=50\r\n"
    "650 BW 1 2\r\n"
    '552 Unknown circuit "30"\r\n'
)


def read(text: str) -> list[Message]:
    return ControlCodec().feed(text.encode("latin-1"))


def test_a_transcript_becomes_messages_in_order() -> None:
    messages = read(TRANSCRIPT)

    assert [type(message).__name__ for message in messages] == [
        "Reply",
        "StreamEvent",
        "StreamEvent",
        "Reply",
        "StreamEvent",
        "StreamEvent",
        "ConfChanged",
        "CircuitEvent",
        "Reply",
        "StreamEvent",
        "SignalReceived",
        "NetworkReady",
        "Reply",
    ]


@given(st.lists(st.integers(min_value=0, max_value=len(TRANSCRIPT)), max_size=40))
def test_chunks_do_not_matter(cuts: list[int]) -> None:
    data = TRANSCRIPT.encode()
    codec = ControlCodec()
    messages: list[Message] = []
    edges = [0, *sorted(cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        messages += codec.feed(data[start:end])

    assert messages == read(TRANSCRIPT)


def test_one_byte_at_a_time_does_not_matter() -> None:
    codec = ControlCodec()

    assert [m for byte in TRANSCRIPT.encode() for m in codec.feed(bytes([byte]))] == read(TRANSCRIPT)


def test_new_carries_target_and_unquoted_keywords() -> None:
    (event,) = read(NEW)

    assert isinstance(event, StreamEvent)
    assert (event.stream_id, event.status, event.circuit_id) == ("12", StreamStatus.NEW, TOR_CHOOSES)
    assert event.target == "example.com:443"
    assert event.keywords["PURPOSE"] == "USER"
    assert event.keywords["SOCKS_USERNAME"] == 'al"ice b=c'
    assert event.keywords["SOCKS_PASSWORD"] == ""


def test_controller_wait_carries_its_target_only() -> None:
    (event,) = read(f"650 STREAM 12 CONTROLLER_WAIT 0 example.com:443 {ISOLATION}\r\n")

    assert event == StreamEvent(StreamId("12"), StreamStatus.CONTROLLER_WAIT, TOR_CHOOSES, "example.com:443")


def test_a_target_may_hold_spaces() -> None:
    (event,) = read("650 STREAM 13 CLOSED 0 a b!c:80 REASON=SOCKS_PROTOCOL PURPOSE=USER\r\n")

    assert isinstance(event, StreamEvent)
    assert event.target == "a b!c:80"
    assert event.keywords == {"REASON": "SOCKS_PROTOCOL", "PURPOSE": "USER"}


def test_repr_shows_no_destination() -> None:
    (event,) = read(NEW)

    assert repr(event) == "<stream 12 NEW circuit 0>"
    assert repr(CircuitEvent(CircuitId("7"), CircuitStatus.BUILT)) == "<circuit 7 BUILT>"


def test_circuit_path_and_keywords() -> None:
    (event,) = read(
        "650 CIRC 7 FAILED $9695dfc35ffeb861329b9f1ab04c46397020ce31=alpha,"
        "$AAAADFC35FFEB861329B9F1AB04C46397020CE31 PURPOSE=GENERAL "
        'SOCKS_USERNAME="x y" REASON=DESTROYED REMOTE_REASON=CONNECTFAILED\r\n'
    )

    assert isinstance(event, CircuitEvent)
    assert event.path == (
        Hop("9695DFC35FFEB861329B9F1AB04C46397020CE31", "alpha"),
        Hop("AAAADFC35FFEB861329B9F1AB04C46397020CE31", ""),
    )
    assert event.keywords["REASON"] == "DESTROYED"
    assert event.keywords["SOCKS_USERNAME"] == "x y"


def test_circuit_without_path() -> None:
    (event,) = read("650 CIRC 7 LAUNCHED PURPOSE=GENERAL TIME_CREATED=2026-11-22T11:00:00.000000\r\n")

    assert isinstance(event, CircuitEvent)
    assert event.path == ()
    assert event.keywords["TIME_CREATED"] == "2026-11-22T11:00:00.000000"


def test_purpose_changed_is_read() -> None:
    (event,) = read("650 CIRC_MINOR 7 PURPOSE_CHANGED PURPOSE=MEASURE_TIMEOUT OLD_PURPOSE=GENERAL\r\n")

    assert isinstance(event, CircuitEvent)
    assert event.status is CircuitStatus.PURPOSE_CHANGED


def test_what_a_circuit_carried_is_read() -> None:
    line = (
        "650 CIRC_BW ID=7 READ=4980 WRITTEN=509 TIME=2026-11-25T14:20:01.123456 DELIVERED_READ=4000 "
        "OVERHEAD_READ=482 DELIVERED_WRITTEN=100 OVERHEAD_WRITTEN=398 SS=0 CWND=124\r\n"
    )

    assert read(line) == [CircuitBandwidth(CircuitId("7"), 4980, 509)]


def test_max_circuit_dirtiness_is_read_in_seconds() -> None:
    assert [dirtiness_seconds(value) for value in ("900", None, "", "10 minutes")] == [
        900.0,
        600.0,
        None,
        None,
    ]


def test_statuses_nobody_reads_are_dropped() -> None:
    assert read("650 STREAM 1 XOFF_SENT 3 a:1\r\n650 CIRC_MINOR 7 CANNIBALIZED PURPOSE=GENERAL\r\n") == []


def test_conf_changed_tells_values_and_defaults() -> None:
    (event,) = read('650-CONF_CHANGED\r\n650-A=1\r\n650-B\r\n650-C="x y"\r\n650 OK\r\n')

    assert event == ConfChanged({"A": "1", "B": None, "C": "x y"})


def test_signal_and_network_ready() -> None:
    assert read("650 SIGNAL NEWNYM\r\n") == [SignalReceived("NEWNYM")]
    assert read("650 STATUS_CLIENT NOTICE CIRCUIT_ESTABLISHED\r\n") == [NetworkReady()]
    assert read("650 STATUS_CLIENT\r\n") == []


def test_what_ails_tor_as_a_whole() -> None:
    assert read("650 STATUS_GENERAL WARN TOO_MANY_CONNECTIONS CURRENT=1024\r\n") == [
        TorWarning("TOO_MANY_CONNECTIONS")
    ]
    assert read("650 STATUS_CLIENT NOTICE CONSENSUS_ARRIVED\r\n") == [DirectoryNews.CONSENSUS]
    assert read(f"650 GUARD ENTRY ${'A' * 40}~a DOWN\r\n") == [DirectoryNews.GUARDS]
    assert read('650 STATUS_GENERAL ERR BUG REASON="a b"\r\n') == [TorWarning("BUG")]
    assert read("650 STATUS_GENERAL WARN DANGEROUS_VERSION\r\n") == [TorWarning("DANGEROUS_VERSION")]
    assert read("650 STATUS_GENERAL NOTICE CLOCK_JUMPED TIME=3\r\n") == []
    assert read("650 STATUS_GENERAL\r\n") == []


def test_reply_values_come_from_lines_and_blocks() -> None:
    (reply,) = read(
        "250-version=0.4.9.11\r\n250+circuit-status=\r\n..dot\r\nline\r\n.\r\n"
        "250-stream-status=\r\n250 OK\r\n"
    )

    assert isinstance(reply, Reply)
    assert reply.is_ok
    assert reply.values() == {"version": "0.4.9.11", "circuit-status": ".dot\nline", "stream-status": ""}


def test_refusal_has_code_and_text() -> None:
    (reply,) = read('552 Unknown stream "9"\r\n')

    assert reply == Reply(552, ('Unknown stream "9"',))
    assert isinstance(reply, Reply)
    assert not reply.is_ok
    assert reply.text == 'Unknown stream "9"'


@pytest.mark.parametrize(
    "text",
    [
        "hello\r\n",
        "25 OK\r\n",
        "250_OK\r\n",
        "²50 OK\r\n",
        "650 STREAM 1 NEW\r\n",
        "650 CIRC_BW ID=7 READ=1\r\n",
        "650 CIRC_BW ID=7 READ=1 WRITTEN=-1\r\n",
        "650 CIRC_BW ID=7;8 READ=1 WRITTEN=1\r\n",
        "650 CIRC_BW READ=1 WRITTEN=1\r\n",
        "650 STREAM a-b NEW 0 c:1\r\n",
        "650 STREAM 1 NEW 0;1 c:1\r\n",
        "650 STREAM é NEW 0 c:1\r\n",
        "650 CIRC\r\n",
        "650 CIRC 7\r\n",
        "650 CIRC a!b BUILT\r\n",
        "650 CIRC 7 BUILT $zz~alpha\r\n",
        "250-a=1\r\n650 OK\r\n",
        "650-CONF_CHANGED\r\n250 OK\r\n",
    ],
)
def test_what_is_not_the_protocol_is_one_documented_error(text: str) -> None:
    with pytest.raises(ControlProtocolError):
        read(text)


def test_a_line_without_end_is_refused() -> None:
    codec = ControlCodec()
    for _ in range(wire.MAX_LINE_BYTES // 65536):
        codec.feed(b"x" * 65536)

    with pytest.raises(ControlProtocolError, match="longer"):
        codec.feed(b"x")


def test_a_long_rest_after_a_line_is_refused() -> None:
    with pytest.raises(ControlProtocolError, match="longer"):
        ControlCodec().feed(b"250 OK\r\n" + b"x" * (wire.MAX_LINE_BYTES + 1))


def test_a_block_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("circuitloom.wire.codec.MAX_MESSAGE_BYTES", 1000)
    codec = ControlCodec()
    codec.feed(b"250+stream-status=\r\n")
    for _ in range(70):
        codec.feed(b"1 NEW 0 a:1\r\n")

    with pytest.raises(ControlProtocolError, match="longer"):
        codec.feed(b"1 NEW 0 a:1\r\n" * 10)


@given(st.binary(max_size=300))
def test_any_bytes_are_messages_or_the_documented_error(data: bytes) -> None:
    codec = ControlCodec()
    try:
        codec.feed(data)
        codec.feed(b"\r\n650 STREAM 1 NEW 0 a:1\r\n")
    except ControlProtocolError:
        pass


@given(st.text(alphabet='650 -+STREAMCINWVT$="\\\r\n.:~,', max_size=200))
def test_lines_of_the_grammar_s_letters_are_messages_or_the_documented_error(text: str) -> None:
    codec = ControlCodec()
    with contextlib.suppress(ControlProtocolError):
        codec.feed(text.encode())


def test_status_values_are_read_line_by_line() -> None:
    assert wire.parse_streams("1 SUCCEEDED 7 a:80\n2 XOFF_SENT 7 a:80\n3 NEW 0 b:80\n") == (
        StreamEvent(StreamId("1"), StreamStatus.SUCCEEDED, CircuitId("7")),
        StreamEvent(StreamId("3"), StreamStatus.NEW, TOR_CHOOSES, "b:80"),
    )
    assert wire.parse_circuits("7 LAUNCHED PURPOSE=GENERAL\n8 UNKNOWN\n") == (
        CircuitEvent(CircuitId("7"), CircuitStatus.LAUNCHED, (), {"PURPOSE": "GENERAL"}),
    )


def test_commands_are_one_line() -> None:
    assert wire.attach_stream(StreamId("12"), CircuitId("30")) == b"ATTACHSTREAM 12 30\r\n"
    assert wire.extend_circuit(None) == b"EXTENDCIRCUIT 0\r\n"
    assert wire.extend_circuit(["A" * 40, "B" * 40]) == b"EXTENDCIRCUIT 0 $%b,$%b\r\n" % (
        b"A" * 40,
        b"B" * 40,
    )
    purpose = wire.set_circuit_purpose(CircuitId("30"), Purpose.CONTROLLER)
    assert purpose == b"SETCIRCUITPURPOSE 30 purpose=controller\r\n"
    assert wire.command("SETCONF", "__LeaveStreamsUnattached=1") == b"SETCONF __LeaveStreamsUnattached=1\r\n"


@pytest.mark.parametrize("bad", ["a\nb", "a\rb", "a\0b"])
def test_an_argument_cannot_smuggle_a_command(bad: str) -> None:
    with pytest.raises(ValueError, match="line break"):
        wire.command("GETINFO", bad)


@given(st.text(alphabet=st.characters(max_codepoint=255, exclude_characters="\r\n\0")))
def test_unquote_undoes_quoting(text: str) -> None:
    quoted = '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

    assert wire.unquote(quoted) == text


def test_unquote_reads_octal_and_control_escapes() -> None:
    assert wire.unquote(r'"a\101\n\t\r\x"') == "aA\n\t\rx"
    assert wire.unquote("plain") == "plain"
    assert wire.unquote('"') == '"'


def test_the_id_of_a_new_circuit() -> None:
    assert wire.extended_circuit_id(Reply(250, ("EXTENDED 19",))) == "19"
    for text in ("EXTENDED", "BUILT 19", "EXTENDED a b"):
        with pytest.raises(ControlProtocolError):
            wire.extended_circuit_id(Reply(250, (text,)))


def test_reserved_addresses_are_read_from_getconf() -> None:
    (reply,) = read(
        "250-VirtualAddrNetworkIPv4=127.192.0.0/10\r\n250-VirtualAddrNetworkIPv6=[FE80::]/10\r\n"
        '250-MapAddress="*.Example.com *.example.net"\r\n'
        "250-MapAddress=10.0.0.1 x.onion\r\n250 MapAddress\r\n"
    )
    assert isinstance(reply, Reply)

    assert wire.parse_reserved(reply) == Reserved(
        ("127.192.0.0/10", "FE80::/10"), frozenset({".example.com", "10.0.0.1"})
    )


def test_a_stream_event_of_several_lines_is_read_by_its_first() -> None:
    assert read("650-STREAM 3 SUCCEEDED 7 a:80\r\n650 OK\r\n") == [
        StreamEvent(StreamId("3"), StreamStatus.SUCCEEDED, CircuitId("7"))
    ]


def test_an_event_of_a_kind_nobody_reads_is_dropped() -> None:
    assert read("650 NOTICE hello\r\n650+NEWCONSENSUS\r\nr x\r\n.\r\n650 OK\r\n") == []


def test_events_and_replies_tell_nothing_of_a_user_when_shown() -> None:
    (stream,) = read('650 STREAM 3 NEW 0 secret.example:80 SOCKS_USERNAME="al"\r\n')
    (circuit,) = read('650 CIRC 7 CLOSED REASON=FINISHED SOCKS_USERNAME="al"\r\n')

    assert repr(stream) == "<stream 3 NEW circuit 0>"
    assert repr(circuit) == "<circuit 7 CLOSED>"
