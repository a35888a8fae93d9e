"""One private Tor network for all tests of this folder; each leaves it as it found it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from circuitloom.lab.network import PrivateNetwork
from circuitloom.lab.node import TorClient
from circuitloom.lab.traffic import EchoServer, SocksProxy


@pytest.fixture(scope="session")
def network() -> Iterator[PrivateNetwork]:
    """Three authorities, six exits and a client, for the whole session."""
    if shutil.which("tor") is None:
        pytest.skip("tor is not installed: NOTHING that needs a real Tor was tested (apt-get install tor)")
    with PrivateNetwork() as network:
        yield network
    assert not network.directory.exists()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    """A server behind the exits that sends back what it gets."""
    with EchoServer() as server:
        yield server


@pytest.fixture
def proxy(network: PrivateNetwork) -> SocksProxy:
    """The client's SOCKS port, with a bound on every call."""
    return SocksProxy(network.client.socks_port, timeout_seconds=20)


@pytest.fixture
def client(network: PrivateNetwork) -> Iterator[TorClient]:
    """The network's client; Tor must never abort, so it still runs after each test."""
    yield network.client
    assert network.client.is_running(), network.client.last_complaint()
