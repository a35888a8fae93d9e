"""Values that are written as text: durations, sizes, percentages, addresses, fingerprints.

Each ``parse_`` function takes text that the schema's pattern let through, except ``parse_control``, which
explains every fault itself: the pattern can only say that an address is wrong, not which part of it.
"""

from __future__ import annotations

import re
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Network, ip_network

from circuitloom.policy.types import ControlAddress, TcpAddress, UnixAddress
from circuitloom.policy.wording import quoted

__all__ = [
    "MAX_SOCKET_PATH_BYTES",
    "ValueFault",
    "check_socket_path",
    "parse_control",
    "parse_duration",
    "parse_fingerprint",
    "parse_listen",
    "parse_network",
    "parse_percentage",
    "parse_ports",
    "parse_size",
]

# sockaddr_un.sun_path is 108 bytes on Linux, and the last one ends the string (unix(7)).
MAX_SOCKET_PATH_BYTES = 107

_MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"([0-9]+)(ms|s|m|h|d)")
_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_SIZE = re.compile(r"([0-9]+)(kB|MB|GB|KiB|MiB|GiB)")
_TCP = re.compile(r"(\[[^]]*\]|[^:]+):([0-9]{1,5})")


_LOOPBACK_NAMES = ("*", "0.0.0.0", "localhost", "localhost.localdomain")  # noqa: S104 - refused, not bound to


class ValueFault(ValueError):
    """A value that cannot be used; its text is what is wrong and what to do."""


def parse_duration(text: str) -> float:
    """``500ms`` in seconds: 0.5."""
    found = _DURATION.fullmatch(text)
    assert found is not None  # noqa: S101 - the schema's pattern let it through
    return int(found[1]) * _MILLISECONDS[found[2]] / 1000


def parse_size(text: str) -> int:
    """``64MiB`` in bytes: 67108864."""
    found = _SIZE.fullmatch(text)
    assert found is not None  # noqa: S101 - the schema's pattern let it through
    return int(found[1]) * _BYTES[found[2]]


def parse_percentage(text: str) -> float:
    """``20%`` as a fraction: 0.2."""
    return int(text.removesuffix("%")) / 100


def parse_fingerprint(text: str) -> str:
    """``$ab...~nick`` as Tor's circuit events write it, without ``$`` and nickname: ``AB...``."""
    return text.removeprefix("$")[:40].upper()


def parse_ports(text: str) -> tuple[int, int]:
    """``8000-8999`` as its ends; a single port is both.

    Raises:
        ValueFault: It is no port, or a range that ends before it starts.
    """
    first, _, last = text.partition("-")
    ports = int(first), int(last or first)
    if not 1 <= ports[0] <= ports[1] <= 65535:
        raise ValueFault(
            f"must be a port, or a range of ports that grows, from 1 to 65535, not {quoted(text)}"
        )
    return ports


def parse_network(text: str) -> IPv4Network | IPv6Network:
    """``10.1.0.0/16``, or a single address.

    Raises:
        ValueFault: It is neither.
    """
    try:
        return ip_network(text)
    except ValueError:
        raise ValueFault(
            f"must be an address, or a network without bits beyond its length, not {quoted(text)}"
        ) from None


def check_socket_path(path: str) -> None:
    """Raises ValueFault if the kernel would refuse an absolute ``path`` as a socket's address."""
    size = len(path.encode())
    if size > MAX_SOCKET_PATH_BYTES:
        raise ValueFault(f"the path is {size} bytes long, and the kernel takes {MAX_SOCKET_PATH_BYTES}")


def parse_control(text: str) -> ControlAddress:
    """Reads ``unix:/path`` or ``tcp:ADDRESS:PORT``.

    Raises:
        ValueFault: The text is neither, or the address is not on this machine.
    """
    scheme, _, rest = text.partition(":")
    if scheme == "unix":
        return _parse_unix(rest)
    if scheme == "tcp":
        return _parse_tcp(rest)
    message = f"must be `unix:/path` or `tcp:127.0.0.1:PORT`, not {quoted(text) if text else 'an empty text'}"
    for start, meant in (("/", "unix"), ("127.", "tcp")):
        if text.startswith(start):
            message += f": did you mean `{meant}:{text}`?"
    raise ValueFault(message)


def parse_listen(text: str) -> TcpAddress:
    """Reads ``ADDRESS:PORT``.

    Raises:
        ValueFault: It is no such thing, or the address is not on this machine.
    """
    return _parse_tcp(text, scheme="", usual="Prometheus' exporters have 9100 and above")


def _parse_unix(path: str) -> UnixAddress:
    if not path.startswith("/"):
        raise ValueFault("`unix:` needs an absolute path, such as `unix:/run/tor/control`")
    if path.endswith("/"):
        raise ValueFault("the path ends with `/`: name Tor's ControlSocket, not its folder")
    check_socket_path(path)
    return UnixAddress(path)


def _parse_tcp(
    rest: str, *, scheme: str = "tcp:", usual: str = "Tor's usual ControlPort is 9051"
) -> TcpAddress:
    found = _TCP.fullmatch(rest)
    if found is None:
        if not scheme:
            raise ValueFault("must be an address of this machine and a port, as in `127.0.0.1:9955`")
        raise ValueFault("`tcp:` needs an address and a port, as in `tcp:127.0.0.1:9051`")
    host, port = found[1], int(found[2])
    if not 1 <= port <= 65535 or found[2].startswith("0"):
        raise ValueFault(f"port `{found[2]}` must be from 1 to 65535; {usual}")
    if host == "[::1]":
        return TcpAddress("::1", port)
    try:
        is_loopback = IPv4Address(host).is_loopback
    except AddressValueError:
        is_loopback = False
    if not is_loopback:
        hint = (
            f"did you mean `{scheme}127.0.0.1:{port}`?" if host in _LOOPBACK_NAMES else "nothing else is safe"
        )
        raise ValueFault(f"{quoted(host)} is not an address of this machine, 127.0.0.1 or [::1]: {hint}")
    return TcpAddress(host, port)
