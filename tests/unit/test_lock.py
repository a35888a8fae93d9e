"""One agent for one Tor."""

from __future__ import annotations

from pathlib import Path

from circuitloom import wire
from circuitloom.lock import TorLock
from circuitloom.wire import Reply


def test_the_second_one_has_to_wait(tmp_path: Path) -> None:
    cookie = tmp_path / "cookie"
    cookie.touch()
    first, second = TorLock(), TorLock()

    assert first.acquire(str(cookie))
    assert first.acquire(str(cookie))
    assert not second.acquire(str(cookie))
    first.release()
    assert second.acquire(str(cookie))
    second.release()
    second.release()


def test_a_new_cookie_is_a_new_tor(tmp_path: Path) -> None:
    cookie = tmp_path / "cookie"
    cookie.write_bytes(b"1")
    lock = TorLock()
    assert lock.acquire(str(cookie))
    (tmp_path / "next").write_bytes(b"2")
    (tmp_path / "next").rename(cookie)

    assert lock.acquire(str(cookie))
    assert not TorLock().acquire(str(cookie))
    lock.release()


def test_without_a_cookie_there_is_no_lock(tmp_path: Path) -> None:
    assert TorLock().acquire(None)
    assert TorLock().acquire(str(tmp_path / "gone"))


def test_the_cookie_is_named_by_protocolinfo() -> None:
    line = 'AUTH METHODS=COOKIE,SAFECOOKIE COOKIEFILE="/run/tor/control \\"a\\".authcookie"'

    assert wire.parse_cookie_path(Reply(250, ("PROTOCOLINFO 1", line, "OK"))) == [
        '/run/tor/control "a".authcookie'
    ]
    assert wire.parse_cookie_path(Reply(250, ("PROTOCOLINFO 1", "AUTH METHODS=NULL", "OK"))) == []
