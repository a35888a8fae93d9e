"""The whole agent with probes, between a control port and a SOCKS port that a test plays."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from unit.fake_control_port import FakeControlPort
from unit.service_driver import TAKE_OVER, change_policy, serve, status, wait_until

USER = "marked-user"
TARGET = "marked-target.example:80"
STREAM = (
    '{0} {1} {2}SOCKS_USERNAME="marked-user" SOCKS_PASSWORD="marked-password" CLIENT_PROTOCOL=SOCKS5 '
    "NYM_EPOCH=0 SESSION_GROUP=-4 "
    "ISO_FIELDS=SOCKS_USERNAME,SOCKS_PASSWORD,CLIENTADDR,SESSION_GROUP,NYM_EPOCH"
)


class SocksPort:
    """Tor's SOCKS port: tells the control port of each stream, and answers when it is attached.

    Attributes:
        logins: User names of the connections, in order.
    """

    def __init__(self, fake: FakeControlPort) -> None:
        self.logins: list[bytes] = []
        self._fake = fake
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        number = 100
        while True:
            try:
                connection, peer = self._listener.accept()
            except OSError:
                return
            number += 1
            with connection, connection.makefile("rb") as received:
                connection.settimeout(10)
                self._take(connection, received, number, f"{peer[0]}:{peer[1]}")

    def _take(self, connection: socket.socket, received: object, number: int, source: str) -> None:
        read = received.read  # type: ignore[attr-defined]  # a file
        if read(3) != b"\x05\x01\x02":
            return
        connection.sendall(b"\x05\x02")
        read(1)
        self.logins.append(read(read(1)[0]))
        read(read(1)[0])
        connection.sendall(b"\x01\x00")
        read(4 + 1 + len(TARGET) - 3 + 2)
        birth = STREAM.format("0", TARGET, f"SOURCE_ADDR={source} PURPOSE=USER ")
        self._fake.tell(
            f"STREAM {number} NEW {birth}",
            f"STREAM {number} CONTROLLER_WAIT {STREAM.format('0', TARGET, '')}",
        )
        self._fake.wait_for(f"ATTACHSTREAM {number} ")
        circuit = next(c for c in self._fake.commands if c.startswith(f"ATTACHSTREAM {number} ")).split()[2]
        self._fake.tell(
            f"STREAM {number} SENTCONNECT {circuit} {TARGET}", f"STREAM {number} SUCCEEDED {circuit} {TARGET}"
        )
        connection.sendall(b"\x05\x00\x00\x01\0\0\0\0\0\0")
        read()
        self._fake.tell(f"STREAM {number} CLOSED {circuit} {TARGET} REASON=DONE")


@pytest.fixture
def port(fake: FakeControlPort) -> Iterator[SocksPort]:
    socks = SocksPort(fake)
    yield socks
    socks.close()


def enable(policy_path: Path, socks: str) -> None:
    change_policy(policy_path, ", isolation: none", "")
    probe = f"{{socks: '{socks}', targets: ['{TARGET}'], interval: 1s, timeout: 1s, jitter: 0%}}"
    policy_path.write_text(policy_path.read_text() + f"health: {{probe: {probe}}}\n")


def open_stream(fake: FakeControlPort, number: int) -> None:
    birth = STREAM.format("0", "example.com:80", "SOURCE_ADDR=127.0.0.1:4711 PURPOSE=USER ")
    fake.tell(
        f"STREAM {number} NEW {birth}",
        f"STREAM {number} CONTROLLER_WAIT {STREAM.format('0', 'example.com:80', '')}",
    )
    fake.wait_for(f"ATTACHSTREAM {number} ")


def test_each_circuit_is_probed_and_no_log_names_the_target(
    policy_path: Path, fake: FakeControlPort, port: SocksPort, log: pytest.LogCaptureFixture
) -> None:
    enable(policy_path, f"tcp:127.0.0.1:{port.port}")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 1)
        open_stream(fake, 2)
        wait_until(
            lambda: all((c["probe"] or {}).get("health") == "up" for c in status(policy_path)["circuits"])
        )
        told = status(policy_path)
        assert told["probes"] == {"problem": None}
        assert (told["streams"]["active"], told["streams"]["attached_total"]) == (2, 2)
        assert "marked" not in json.dumps(told)

    assert serve(policy_path, script) == 0
    assert set(port.logins) == {USER.encode()}
    everything = "\n".join(log.messages)
    assert "marked" not in everything
    assert "->" in everything, "streams are not logged at all"


def test_a_socks_port_that_is_not_there_is_one_line(
    policy_path: Path, fake: FakeControlPort, log: pytest.LogCaptureFixture
) -> None:
    enable(policy_path, "tcp:127.0.0.1:1")

    def script() -> None:
        fake.wait_for(TAKE_OVER)
        open_stream(fake, 1)
        wait_until(lambda: bool((status(policy_path)["probes"] or {}).get("problem")))

    assert serve(policy_path, script) == 0
    lines = [line for line in log.messages if "probes do not work" in line]
    assert len(lines) == 1
    assert "Connection refused" in lines[0]
