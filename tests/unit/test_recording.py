"""Recordings: what they tell, what they never tell, how they end; and what is read back."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from circuitloom import wire
from circuitloom.errors import CannotCreate, RecordingError
from circuitloom.model import (
    Action,
    AttachStream,
    BuildAccepted,
    BuildCircuit,
    CircuitAdopted,
    CircuitEvent,
    CircuitId,
    CircuitStatus,
    CloseStream,
    Connected,
    DeadlinePassed,
    Event,
    ReleaseStream,
    Reserved,
    StreamEvent,
    StreamId,
)
from circuitloom.recording import recorder
from circuitloom.recording.lines import Recording
from circuitloom.recording.read import read_recording
from circuitloom.recording.recorder import Recorder
from circuitloom.wire import ControlCodec
from unit.pool_driver import opened

HEAD = b'{"recording":1}\n'
NEW = (
    b'{"time":1,"stream":"7","event":"new","destination":"aa","port":80,"is_resolve":false,"is_tors":false}\n'
)
MARKS = ("secret.example", "marked-user", "marked-password", "203.0.113.99")


def events(*lines: str) -> list[Event]:
    codec = ControlCodec()
    messages = codec.feed("".join(f"650 {line}\r\n" for line in lines).encode("latin-1"))
    return [message for message in messages if isinstance(message, StreamEvent | CircuitEvent)]


def marked(stream_id: int, target: str = "secret.example:443", user: str = "marked-user") -> StreamEvent:
    (new, _) = events(
        *opened(stream_id, target, user=user, password="marked-password", source="203.0.113.99:4711")  # noqa: S106
    )
    assert isinstance(new, StreamEvent)
    return new


def told(recording: Recording, event: Event, *actions: Action) -> list[dict[str, Any]]:
    return [json.loads(line) for line in recording.lines(event, actions, time=1.5)]


def test_a_stream_from_its_coming_to_its_end() -> None:
    recording = Recording(b"k" * 32)
    attach = AttachStream(StreamId("7"), CircuitId("30"), "primary")
    new, waits, sent, open_, end = events(
        *opened(7, user="alice"),
        "STREAM 7 SENTCONNECT 30 example.com:80",
        "STREAM 7 SUCCEEDED 30 example.com:80",
        "STREAM 7 CLOSED 30 example.com:80 REASON=DONE",
    )

    assert [line["event"] for line in told(recording, new)] == ["new"]
    assert told(recording, waits, attach) == [
        {"time": 1.5, "stream": "7", "event": "attached", "circuit": "primary"}
    ]
    assert told(recording, sent) == []
    assert told(recording, open_) == [{"time": 1.5, "stream": "7", "event": "succeeded"}]
    assert told(recording, end) == [{"time": 1.5, "stream": "7", "event": "closed", "reason": "DONE"}]
    assert told(recording, end) == []


def test_what_isolates_a_stream_is_told_without_what_it_is() -> None:
    (line,) = told(Recording(b"k" * 32), marked(7))

    assert line["port"] == 443
    assert (line["group"], line["epoch"], line["protocol"]) == ("-4", "0", "SOCKS5")
    assert line["isolated_by"] == "SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH"
    hidden = {line[key] for key in ("destination", "user", "password", "source")}
    assert len(hidden) == 4
    assert all(len(value) == 16 for value in hidden)
    assert not any(mark in json.dumps(line) for mark in MARKS)


def test_the_same_stays_the_same_within_one_recording_and_under_no_other_key() -> None:
    one, other = Recording(b"k" * 32), Recording(b"l" * 32)
    first, again = told(one, marked(7))[0], told(one, marked(8, "SECRET.example:80"))[0]
    elsewhere = told(other, marked(7))[0]

    assert first["destination"] == again["destination"] != elsewhere["destination"]
    assert first["user"] == again["user"] != elsewhere["user"]


def test_a_user_named_like_a_host_does_not_look_like_it() -> None:
    (line,) = told(Recording(b"k" * 32), marked(7, "same.example:80", "same.example"))

    assert line["destination"] != line["user"]


def test_what_a_client_could_smuggle_into_tor_s_words_is_hidden() -> None:
    new = marked(7)._replace(keywords={"PURPOSE": "USER", "ISO_FIELDS": "secret.example!"})
    (line,) = told(Recording(b"k" * 32), new)

    assert "secret" not in json.dumps(line)


def test_tor_s_own_streams_have_no_line_and_what_only_tor_serves_is_marked() -> None:
    recording = Recording(b"k" * 32)
    told(recording, Connected(reserved=Reserved(hosts=frozenset({"mapped.example"}))))
    (directory, _) = events(*opened(9, "203.0.113.9.$" + "D" * 40 + ".exit:9001", "DIR_FETCH"))

    assert told(recording, directory, ReleaseStream(StreamId("9"), "why")) == []
    assert told(recording, marked(1, "abcdef.onion:80"))[0]["is_tors"]
    assert told(recording, marked(2, "mapped.example:80"))[0]["is_tors"]
    assert not told(recording, marked(3, "other.example:80"))[0]["is_tors"]
    told(recording, Reserved(hosts=frozenset({"other.example"})))
    assert told(recording, marked(4, "other.example:80"))[0]["is_tors"]


def test_decisions_against_a_circuit_are_told_with_the_core_s_words() -> None:
    recording = Recording(b"k" * 32)
    told(recording, marked(7))

    (left,) = told(recording, DeadlinePassed(), ReleaseStream(StreamId("7"), "no circuit is usable"))
    (shut,) = told(recording, DeadlinePassed(), CloseStream(StreamId("7"), "a rule rejects it"))
    assert (left["event"], left["why"]) == ("left to Tor", "no circuit is usable")
    assert (shut["event"], shut["why"]) == ("rejected", "a rule rejects it")


def test_circuits_are_told_by_their_names() -> None:
    recording = Recording(b"k" * 32)
    told(recording, DeadlinePassed(), BuildCircuit(1, "primary", None), BuildCircuit(2, "backup", None))
    told(recording, BuildAccepted(1, CircuitId("30")))
    told(recording, BuildAccepted(2, CircuitId("31")))
    told(recording, BuildAccepted(9, CircuitId("39")))
    adopted = CircuitEvent(CircuitId("40"), CircuitStatus.BUILT)
    told(recording, CircuitAdopted("paid", adopted))

    def word(circuit_id: str, status: CircuitStatus) -> list[tuple[str, str]]:
        event = CircuitEvent(CircuitId(circuit_id), status, keywords={"REASON": "DESTROYED"})
        return [(line["circuit"], line["event"]) for line in told(recording, event)]

    assert word("30", CircuitStatus.EXTENDED) == []
    assert word("30", CircuitStatus.BUILT) == [("primary", "built")]
    assert word("30", CircuitStatus.CLOSED) == [("primary", "lost")]
    assert word("31", CircuitStatus.FAILED) == [("backup", "not built")]
    assert word("40", CircuitStatus.CLOSED) == [("paid", "lost")]
    assert word("99", CircuitStatus.CLOSED) == []


def test_a_new_connection_forgets_ids() -> None:
    recording = Recording(b"k" * 32)
    told(recording, marked(7))

    assert told(recording, Connected()) == [{"time": 1.5, "event": "connected"}]
    (end,) = events("STREAM 7 CLOSED 30 example.com:80 REASON=DONE")
    assert told(recording, end) == []


# --- the file ----------------------------------------------------------------------------------------------


def record(path: Path, script: Callable[[Recorder], Awaitable[None]], **settings: int) -> None:
    async def run() -> None:
        async with asyncio.timeout(20):
            one = Recorder(path, **settings)
            try:
                await script(one)
            finally:
                one.close()

    asyncio.run(run())


async def three(one: Recorder) -> None:
    for number in (1, 2, 3):
        one.take(marked(number), ())


def test_what_was_taken_is_in_the_file_when_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "streams.jsonl"
    record(path, three)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    lines = path.read_bytes().splitlines(keepends=True)
    assert lines[0] == HEAD
    assert [line.stream for line in read_recording(lines, "x")] == ["1", "2", "3"]
    assert not any(mark.encode() in path.read_bytes() for mark in MARKS)


def test_it_is_written_while_the_agent_runs(tmp_path: Path) -> None:
    path = tmp_path / "streams.jsonl"

    async def watch(one: Recorder) -> None:
        await three(one)
        while path.read_bytes().count(b"\n") < 4:  # noqa: ASYNC110 - bounded by the caller
            await asyncio.sleep(0.02)

    record(path, watch)


def test_the_recording_before_is_kept_and_the_one_before_that_is_not(tmp_path: Path) -> None:
    path = tmp_path / "streams.jsonl"
    for _ in range(3):
        record(path, three)

    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["streams.jsonl", "streams.jsonl.1"]


def test_it_ends_at_its_bound_with_one_line(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "streams.jsonl"

    async def much(one: Recorder) -> None:
        for number in range(100):
            one.take(marked(number), ())
        await asyncio.sleep(0.2)

    record(path, much, max_bytes=5000)

    assert 4000 < path.stat().st_size <= 5000
    assert path.read_bytes().endswith(b"}\n")
    assert [message for message in log.messages if "recording ends" in message] == [
        f"recording ends: {path} has 0 MiB, its most; serving goes on"
    ]


def test_a_full_disk_ends_it_with_one_line(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "_open", lambda _path: os.open("/dev/full", os.O_WRONLY))

    async def until_told(one: Recorder) -> None:
        while not any("recording ends" in message for message in log.messages):
            one.take(marked(1), ())
            await asyncio.sleep(0.02)
        one.take(marked(2), ())
        await asyncio.sleep(0.2)

    record(tmp_path / "x", until_told)

    said = [message for message in log.messages if "recording ends" in message]
    assert said == [
        f"recording ends: {tmp_path / 'x'} cannot be written (No space left on device); serving goes on"
    ]


def test_a_writer_that_does_not_keep_up_ends_it_and_never_holds_up(
    tmp_path: Path, log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A FIFO that nobody empties is a disk that hangs."""
    os.mkfifo(tmp_path / "slow")
    monkeypatch.setattr(recorder, "_open", lambda _path: os.open(tmp_path / "slow", os.O_RDWR))
    monkeypatch.setattr(recorder, "MAX_PENDING_BYTES", 50_000)

    async def much(one: Recorder) -> None:
        for number in range(5000):
            one.take(marked(number), ())
            if number % 50 == 0:
                await asyncio.sleep(0)

    record(tmp_path / "x", much)

    assert [message for message in log.messages if "does not keep up" in message]


def test_a_writer_that_is_killed_ends_it(tmp_path: Path, log: pytest.LogCaptureFixture) -> None:
    async def kill(one: Recorder) -> None:
        one._child.kill()
        while not any("its process ended" in message for message in log.messages):
            one.take(marked(1), ())
            await asyncio.sleep(0.02)

    record(tmp_path / "x", kill)


def test_a_slow_reader_gets_everything_in_the_end(tmp_path: Path) -> None:
    path = tmp_path / "streams.jsonl"

    async def much(one: Recorder) -> None:
        for number in range(6000):
            one.take(marked(number), ())
        while path.read_bytes().count(b"\n") < 6001:  # noqa: ASYNC110 - bounded by the caller
            await asyncio.sleep(0.02)

    record(path, much)


@pytest.mark.parametrize("kind", ["folder", "link", "nowhere"])
def test_a_file_that_cannot_be_made_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "folder":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/null")
    else:
        path = tmp_path / "no" / "x"

    with pytest.raises(CannotCreate, match=f"cannot record to {path}: "):
        record(path, three)
    assert kind != "link" or path.is_symlink()


def fault_of(lines: list[bytes]) -> str | None:
    try:
        read_recording(lines, "f")
    except RecordingError as error:
        return str(error)
    return None


# --- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        ([], "f:1: the file is empty"),
        ([b"version: 1\n"], "f:1: this is no recording"),
        ([b"[]\n"], "f:1: this is no recording"),
        ([b'{"recording":2}\n'], "f:1: a recording of another version"),
        ([HEAD, b"{\n"], "f:2: this is not JSON"),
        ([HEAD, b"[" * 4000 + b"\n"], "f:2: this is not JSON"),
        ([HEAD, b"\xff\n"], "f:2: this is not JSON"),
        ([HEAD, b"7\n"], "f:2: a line must be one JSON object"),
        ([HEAD, b" " * 5000 + b"\n"], "f:2: the line is longer than 4096 bytes"),
        ([HEAD, NEW.replace(b'"time":1', b'"time":"1"')], "f:2: `time` must be"),
        ([HEAD, NEW.replace(b'"time":1', b'"time":NaN')], "f:2: `time` must be"),
        ([HEAD, NEW.replace(b'"time":1', b'"time":true')], "f:2: `time` must be"),
        ([HEAD, NEW, NEW.replace(b'"time":1', b'"time":0.5')], "f:3: `time` 0.5 is before that"),
        ([HEAD, NEW.replace(b'"time":1', b'"time":-1')], "f:2: `time` -1 is before"),
        ([HEAD, NEW.replace(b'"new"', b'"gone"')], "f:2: `event` must be one of: attached, closed"),
        ([HEAD, NEW.replace(b'"new"', b"7")], "f:2: `event` must be one of"),
        ([HEAD, b'{"time":1,"circuit":"a","event":"new"}\n'], "f:2: `event` must be one of: built, lost"),
        ([HEAD, b'{"time":1,"event":"new"}\n'], "f:2: `event` must be one of: connected"),
        ([HEAD, NEW.replace(b'"port":80,', b"")], "f:2: `port` is missing"),
        ([HEAD, NEW.replace(b"80", b"65536")], "f:2: `port` must be a number"),
        ([HEAD, NEW.replace(b"80", b"true")], "f:2: `port` must be a number"),
        ([HEAD, NEW.replace(b"false", b"0")], "f:2: `is_resolve` must be true or false"),
        ([HEAD, NEW.replace(b'"aa"', b"[]")], "f:2: `destination` must be a text"),
        ([HEAD, NEW.replace(b'"aa"', rb'"a\nb"')], "f:2: `destination` must be a text"),
        ([HEAD, NEW.replace(b'"aa"', b'"aa","a b":1')], "f:2: a key of this line is no word"),
        ([HEAD, b'{"time":1,"stream":"7","event":"attached"}\n'], "f:2: `circuit` is missing"),
    ],
)
def test_a_bad_recording_is_one_line_with_its_place(lines: list[bytes], fault: str) -> None:
    with pytest.raises(RecordingError) as caught:
        read_recording(lines, "f")

    assert str(caught.value).startswith(fault)
    assert str(caught.value).isprintable()


def test_a_last_line_that_was_cut_short_is_left_out() -> None:
    assert len(read_recording([HEAD, NEW, NEW[:-20]], "f")) == 1


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_whatever_is_in_a_file_is_read_or_refused(lines: list[bytes]) -> None:
    for begin in ([], [HEAD], [HEAD, NEW]):
        fault = fault_of([*begin, *(line + b"\n" for line in lines)])
        assert fault is None or fault.startswith("f:")


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=2)
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from(["time", "stream", "event", "destination", "port", "is_tors", "circuit"]), json_values
    )
)
def test_whatever_a_line_holds_is_read_or_refused(values: dict[str, Any]) -> None:
    line = NEW if not values else json.dumps(json.loads(NEW) | values).encode() + b"\n"
    fault = fault_of([HEAD, line])
    assert fault is None or fault.startswith("f:2: ")


def test_what_is_written_can_be_read() -> None:
    recording = Recording(b"k" * 32)
    lines = [recording.head(), *recording.lines(marked(7), (), time=0.5)]
    lines += recording.lines(
        wire.parse_streams("7 SUCCEEDED 30 example.com:80")[0],
        [AttachStream(StreamId("7"), CircuitId("30"), "primary")],
        time=1.0,
    )

    read = read_recording([line.encode() for line in lines], "f")
    assert [(line.event, line.stream, line.circuit) for line in read] == [
        ("new", "7", ""),
        ("succeeded", "7", ""),
        ("attached", "7", "primary"),
    ]
