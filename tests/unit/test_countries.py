"""Countries of relays: asked for once, never waited for."""

from __future__ import annotations

from collections.abc import Callable

from circuitloom.countries import Countries
from circuitloom.wire import ControlCodec, Reply

RELAY = "A" * 40
ENTRY = f"r alpha {'a' * 27} 2026-11-25 10:00:00 192.0.2.7 9001 0\ns Exit Fast Running Valid"
FULL_ENTRY = f"r alpha {'a' * 27} {'b' * 27} 2026-11-25 10:00:00 192.0.2.7 9001 0"


class Tor:
    """Remembers what it is asked; answers when a test says so."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._waiting: list[Callable[[Reply], None]] = []

    def send(self, command: bytes, on_reply: Callable[[Reply], None]) -> None:
        self.asked.append(command.decode().strip())
        self._waiting.append(on_reply)

    def answer(self, text: str) -> None:
        (reply,) = ControlCodec().feed(text.encode())
        assert isinstance(reply, Reply)
        self._waiting.pop(0)(reply)

    def tell_entry(self, entry: str) -> None:
        lines = entry.replace("\n", "\r\n")
        self.answer(f"250+ns/id/{RELAY}=\r\n{lines}\r\n.\r\n250 OK\r\n")


def test_a_relay_is_asked_for_once_and_unknown_until_tor_has_answered_twice() -> None:
    tor = Tor()
    countries = Countries(tor.send)
    for _ in range(3):
        countries.want({RELAY})
    assert countries.of(RELAY) == "??"

    tor.tell_entry(ENTRY)
    tor.answer("250-ip-to-country/192.0.2.7=de\r\n250 OK\r\n")

    assert countries.of(RELAY) == "de"
    assert tor.asked == [f"GETINFO ns/id/{RELAY}", "GETINFO ip-to-country/192.0.2.7"]


def test_an_entry_with_a_digest_is_read_as_well() -> None:
    tor = Tor()
    Countries(tor.send).want({RELAY})
    tor.tell_entry(FULL_ENTRY)

    assert tor.asked[1:] == ["GETINFO ip-to-country/192.0.2.7"]


def test_what_tor_does_not_know_stays_unknown() -> None:
    tor = Tor()
    countries = Countries(tor.send)
    countries.want({RELAY, "B" * 40, "C" * 40})
    tor.answer("552 Unrecognized key\r\n")
    tor.answer("250 OK\r\n")
    tor.answer("250 OK\r\n")

    assert {countries.of(relay) for relay in (RELAY, "B" * 40, "C" * 40)} == {"??"}
    assert len(tor.asked) == 3


def test_a_tor_without_geoip_leaves_it_unknown() -> None:
    tor = Tor()
    countries = Countries(tor.send)
    countries.want({RELAY})
    tor.tell_entry(ENTRY)
    tor.answer("551 GeoIP data not loaded\r\n")

    assert countries.of(RELAY) == "??"


def test_relays_that_are_no_longer_used_are_forgotten() -> None:
    tor = Tor()
    countries = Countries(tor.send)
    countries.want({RELAY})
    tor.tell_entry(ENTRY)
    countries.want(set())
    tor.answer("250-ip-to-country/192.0.2.7=de\r\n250 OK\r\n")
    assert countries.of(RELAY) == "??"

    countries.want({RELAY})
    countries.forget()
    countries.want({RELAY})
    assert tor.asked.count(f"GETINFO ns/id/{RELAY}") == 3
