"""SOCKS5 as a client speaks it (RFC 1928, RFC 1929): the exchange on a connection that somebody else opened.

Nothing here waits for ever by itself, and nothing is bounded: whoever calls bounds it.
"""

from __future__ import annotations

import ipaddress
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

CONNECT, RESOLVE, RESOLVE_PTR = 0x01, 0xF0, 0xF1
"""Commands; the last two are Tor's own (socks-extensions.txt)."""

VERSION = 5
NO_AUTHENTICATION, USER_AND_PASSWORD = 0, 2
IPV4, NAME, IPV6 = 1, 3, 4


async def greet(reader: StreamReader, writer: StreamWriter, user: bytes | None, password: bytes) -> bool:
    """Begin, with a user name of at most 255 bytes (None: without one); returns whether that is accepted.

    Raises:
        EOFError: The connection ended.
        OSError: It broke.
    """
    method = NO_AUTHENTICATION if user is None else USER_AND_PASSWORD
    writer.write(bytes((VERSION, 1, method)))
    if await reader.readexactly(2) != bytes((VERSION, method)):
        return False
    if user is None:
        return True
    writer.write(bytes((1, len(user))) + user + bytes((len(password),)) + password)
    return (await reader.readexactly(2))[1] == 0


def request(command: int, host: str, port: int, *, is_name: bool = False) -> bytes:
    """A request.

    Args:
        command: One of the above.
        host: An IP address (IPv6 without brackets), or a name of at most 255 bytes.
        port: At that host.
        is_name: Whether to send it as a name also if it is an IPv4 address.
    """
    return struct.pack("!BBB", VERSION, command, 0) + _address(host, is_name) + struct.pack("!H", port)


async def read_answer(reader: StreamReader) -> tuple[int, str]:
    """The reply: its code, and the address in it (what RESOLVE asked for, of no use after CONNECT).

    Raises:
        EOFError: The connection ended.
        OSError: It broke.
    """
    _, code, _, kind = await reader.readexactly(4)
    if code:
        return code, ""
    if kind == NAME:
        size = (await reader.readexactly(1))[0]
        answer = (await reader.readexactly(size)).decode("ascii", "replace")
    else:
        answer = str(ipaddress.ip_address(await reader.readexactly(4 if kind == IPV4 else 16)))
    await reader.readexactly(2)
    return code, answer


def _address(host: str, is_name: bool) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        is_name = True
    if is_name:
        name = host.encode("idna")
        return bytes((NAME, len(name))) + name
    return bytes((IPV4 if address.version == 4 else IPV6,)) + address.packed
