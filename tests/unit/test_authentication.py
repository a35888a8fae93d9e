"""Opening a control connection: each way in, and each way to be kept out, in one bounded line."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from circuitloom import authentication
from circuitloom.authentication import open_control, read_password
from circuitloom.errors import ControlError, ControlProtocolError, ControlRefused, ControlUnreachable
from circuitloom.policy.types import TcpAddress, TorControl, UnixAddress
from unit.fake_control_port import HANG, HANG_UP, PROTOCOL_INFO, FakeControlPort

PASSWORD = "correct horse"  # noqa: S105 - of a fake


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(authentication, "AUTHENTICATE_TIMEOUT_SECONDS", 0.2)


@pytest.fixture
def password_file(tmp_path: Path) -> str:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\nanother line\n")
    path.chmod(0o640)
    return str(path)


def fail(tor: TorControl, kind: type[ControlError]) -> str:
    """The one line of an error, which must come soon and tell no secret."""
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        open_control(tor)
    assert time.monotonic() - started < 5
    text = str(caught.value)
    assert "\n" not in text
    assert PASSWORD not in text
    return text


def exchange(connection: socket.socket) -> bytes:
    connection.settimeout(5)
    with connection:
        connection.sendall(b"GETINFO version\r\n")
        return connection.recv(100)


@pytest.mark.parametrize("chunk_bytes", [1 << 16, 1])
def test_null_authentication_on_a_unix_socket(fake: FakeControlPort, chunk_bytes: int) -> None:
    fake.chunk_bytes = chunk_bytes
    connection = open_control(TorControl(fake.address))

    assert not connection.getblocking()
    assert exchange(connection)[:1] == b"2"
    assert [command.split(" ")[0] for command in fake.commands] == ["PROTOCOLINFO", "AUTHENTICATE", "GETINFO"]


def test_null_authentication_on_a_tcp_port() -> None:
    with FakeControlPort() as fake:
        assert exchange(open_control(TorControl(fake.address))).startswith(b"250-version=")


def test_ipv6_is_spoken() -> None:
    if not socket.has_ipv6:
        pytest.skip("this Python knows no IPv6")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    assert f"tcp:[::1]:{port}" in fail(TorControl(TcpAddress("::1", port)), ControlUnreachable)


def test_the_password_is_the_file_s_first_line(fake: FakeControlPort, password_file: str) -> None:
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format("HASHEDPASSWORD")

    open_control(TorControl(fake.address, password_file)).close()
    assert fake.commands[-1] == f'AUTHENTICATE "{PASSWORD}"'


def test_a_cookie_is_sent(fake: FakeControlPort, tmp_path: Path) -> None:
    cookie = tmp_path / "cookie"
    cookie.write_bytes(bytes(range(32)))
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format(f'COOKIE COOKIEFILE="{cookie}"')

    open_control(TorControl(fake.address)).close()
    assert fake.commands[-1] == f"AUTHENTICATE {bytes(range(32)).hex()}"


# --- refusals ----------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path: Path) -> None:
    path = str(tmp_path / "control")

    assert fail(TorControl(UnixAddress(path)), ControlUnreachable) == (
        f"no Tor at unix:{path} (No such file or directory); start Tor, or correct tor.control in the policy"
    )


def test_nobody_listens_on_the_port() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    assert "Connection refused" in fail(TorControl(TcpAddress("127.0.0.1", port)), ControlUnreachable)


def test_a_socket_we_may_not_connect_to(fake: FakeControlPort, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_self: socket.socket, _address: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket.socket, "connect", refuse)

    assert fail(TorControl(fake.address), ControlRefused) == (
        f"control socket {fake.address}: Permission denied; "
        "run as a user of Tor's group (on Debian: debian-tor)"
    )


def test_a_tor_that_asks_for_nothing_and_refuses_us(fake: FakeControlPort) -> None:
    fake.answers["AUTHENTICATE"] = "515 Authentication failed\r\n"

    fail(TorControl(fake.address), ControlRefused)


def test_a_password_is_wanted(fake: FakeControlPort) -> None:
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format("HASHEDPASSWORD")

    assert "name a file with it in tor.password_file" in fail(TorControl(fake.address), ControlRefused)


def test_a_password_is_refused(fake: FakeControlPort, password_file: str) -> None:
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format("HASHEDPASSWORD")
    fake.answers["AUTHENTICATE"] = "515 Authentication failed: Password did not match\r\n"

    assert fail(TorControl(fake.address, password_file), ControlRefused) == (
        f"Tor at {fake.address} refuses the password in {password_file}"
    )


def test_a_cookie_that_cannot_be_read(fake: FakeControlPort, tmp_path: Path) -> None:
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format(f'COOKIE COOKIEFILE="{tmp_path}/none"')

    assert "CookieAuthFileGroupReadable 1" in fail(TorControl(fake.address), ControlRefused)


@pytest.mark.parametrize("content", [b"short", bytes(32)])
def test_a_cookie_that_is_not_this_tor_s(fake: FakeControlPort, tmp_path: Path, content: bytes) -> None:
    cookie = tmp_path / "cookie"
    cookie.write_bytes(content)
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format(f'COOKIE COOKIEFILE="{cookie}"')
    fake.answers["AUTHENTICATE"] = "515 Authentication failed: Wrong value\r\n"

    assert f"{cookie} is not the cookie of the Tor" in fail(TorControl(fake.address), ControlRefused)


def test_no_way_in_that_we_know(fake: FakeControlPort) -> None:
    fake.answers["PROTOCOLINFO"] = PROTOCOL_INFO.format("MAGIC")

    assert "CookieAuthentication 1" in fail(TorControl(fake.address), ControlRefused)


@pytest.mark.parametrize("command", ["PROTOCOLINFO", "AUTHENTICATE"])
@pytest.mark.parametrize(
    "answer",
    [
        HANG,
        HANG_UP,
        "250-PROTOCOLINFO 1\r\n250-AU",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "\x00\xff\xfe\r\n",
        "250-never\r\n",
        "599 what\r\n",
        PROTOCOL_INFO.format(""),
    ],
)
def test_whatever_is_answered_ends_in_one_line_and_soon(
    fake: FakeControlPort, command: str, answer: str | None
) -> None:
    fake.answers[command] = answer

    text = fail(TorControl(fake.address), ControlError)
    assert str(fake.address) in text


def test_an_answer_that_is_no_control_port_s(fake: FakeControlPort) -> None:
    fake.answers["PROTOCOLINFO"] = "HTTP/1.1 400 Bad Request\r\n\r\n"

    assert fail(TorControl(fake.address), ControlProtocolError) == (
        f"{fake.address} does not answer like a control port; correct tor.control in the policy"
    )


# --- the password file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("content", "password"), [(b"a b\r\nc", "a b"), ("pä".encode(), "pä")])
def test_a_password_is_one_line_of_utf_8(tmp_path: Path, content: bytes, password: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)

    assert read_password(str(path)) == password


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"", "its first line is empty"), (b"\nx", "is empty"), (b"\xff", "not UTF-8")]
)
def test_a_password_that_cannot_be_used(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    path.chmod(0o600)

    with pytest.raises(ControlRefused, match=complaint):
        read_password(str(path))


def test_a_password_that_everybody_can_read_is_refused(password_file: str) -> None:
    Path(password_file).chmod(0o644)

    with pytest.raises(ControlRefused, match=f"everybody can read it; chmod o-r {password_file}"):
        read_password(password_file)


def test_a_password_file_that_is_missing() -> None:
    with pytest.raises(ControlRefused, match="password file /nowhere/password: No such file"):
        read_password("/nowhere/password")


def test_a_pipe_is_no_password_file_and_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "password"
    os.mkfifo(path, 0o600)

    with pytest.raises(ControlRefused, match="not a regular file"):
        read_password(str(path))
