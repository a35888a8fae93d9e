"""Opens and authenticates a control connection; the one module that knows stem.

Rules of this file:

* stem speaks PROTOCOLINFO and AUTHENTICATE (null, password, cookie, SAFECOOKIE) on a blocking socket with a
  timeout; the authenticated socket is then handed on and stem is done with.
* Each way to fail ends in one line that says what to do. No line ever holds the password or the cookie.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from typing import Any

import stem
import stem.connection
import stem.socket
import stem.util.log

from circuitloom.errors import (
    ControlError,
    ControlProtocolError,
    ControlRefused,
    ControlUnreachable,
    OutOfDescriptors,
    is_out_of_descriptors,
    reason_of,
)
from circuitloom.policy.types import TorControl, UnixAddress

AUTHENTICATE_TIMEOUT_SECONDS = 2.0
"""For each answer. Tor answers in a millisecond; the event loop stands still meanwhile, so this stays well
below the 5 s in which a stop must end."""

MAX_PASSWORD_BYTES = 4096

COOKIE_BYTES = 32
"""Of Tor's CookieAuthFile (control-spec 5.1)."""

_JOIN_THE_GROUP = "run as a user of Tor's group (on Debian: debian-tor)"


class _Socket(stem.socket.ControlSocket):  # type: ignore[misc]  # stem has no types
    """stem's control socket on a connection with a timeout; stem may ask for a second one."""

    def __init__(self, tor: TorControl) -> None:
        super().__init__()
        self._tor = tor
        self.connect()

    def _make_socket(self) -> socket.socket:
        address = self._tor.control
        if isinstance(address, UnixAddress):
            family: int = socket.AF_UNIX
            target: Any = address.path
        else:
            family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
            target = (address.host, address.port)
        connection: socket.socket | None = None
        try:
            connection = socket.socket(family, socket.SOCK_STREAM)
            connection.settimeout(AUTHENTICATE_TIMEOUT_SECONDS)
            connection.connect(target)
        except OSError as error:
            if connection is not None:
                connection.close()
            raise stem.SocketError(error) from error
        return connection

    def hand_over(self) -> socket.socket:
        """The connected socket; this object is of no more use."""
        try:
            return self._socket.dup()  # type: ignore[no-any-return]
        finally:
            self.discard()

    def discard(self) -> None:
        """Close our end without a shutdown, which would reach a duplicate as well."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._socket_file.close()
        with contextlib.suppress(OSError, AttributeError):
            self._socket.close()


def open_control(tor: TorControl) -> socket.socket:
    """Connect to Tor and authenticate.

    Args:
        tor: Where, and the password file if there is one.

    Returns:
        A non-blocking socket on which commands can be sent.

    Raises:
        ControlUnreachable: Nothing answers there.
        ControlRefused: Tor, or the file system, does not let us in.
        ControlProtocolError: Something answers that is not a control port.
        OutOfDescriptors: No file descriptor is left.
    """
    # stem would log, in its own words, what we report ourselves.
    stem.util.log.get_logger().disabled = True
    password = None if tor.password_file is None else read_password(tor.password_file)
    try:
        connection = _Socket(tor)
    except stem.SocketError as error:
        raise _connect_error(tor, error.__cause__) from None
    try:
        stem.connection.authenticate(connection, password=password)
    except Exception as error:  # noqa: BLE001 - stem's own, and whatever its parsers meet in garbage
        connection.discard()
        raise _authentication_error(tor, error) from None
    try:
        handed = connection.hand_over()
    except OSError as error:
        raise _connect_error(tor, error) from None
    handed.settimeout(0)
    return handed


def read_password(path: str) -> str:
    """Read the control password: the file's first line.

    Args:
        path: The file; it must be a regular file that only its owner and group can read.

    Raises:
        ControlRefused: It cannot be read, is empty, or everybody can read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            mode = os.fstat(descriptor).st_mode
            if not stat.S_ISREG(mode):
                raise ControlRefused(f"password file {path}: not a regular file")
            if mode & stat.S_IROTH:
                raise ControlRefused(f"password file {path}: everybody can read it; chmod o-r {path}")
            line = file.read(MAX_PASSWORD_BYTES).split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        if is_out_of_descriptors(error):
            raise OutOfDescriptors(f"password file {path}: {reason_of(error)}") from None
        raise ControlRefused(f"password file {path}: {reason_of(error)}") from None
    if not line:
        raise ControlRefused(f"password file {path}: its first line is empty")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        raise ControlRefused(f"password file {path}: not UTF-8") from None


def _connect_error(tor: TorControl, cause: BaseException | None) -> ControlError:
    reason = reason_of(cause) if isinstance(cause, OSError) else str(cause)
    if is_out_of_descriptors(cause):
        return OutOfDescriptors(f"cannot connect to Tor at {tor.control}: {reason}")
    if getattr(cause, "errno", None) in {errno.EACCES, errno.EPERM}:
        return ControlRefused(f"control socket {tor.control}: {reason}; {_JOIN_THE_GROUP}")
    return ControlUnreachable(
        f"no Tor at {tor.control} ({reason}); start Tor, or correct tor.control in the policy"
    )


def _authentication_error(tor: TorControl, error: Exception) -> ControlError:
    """Turn what stem raised into what to do; the first fitting line counts."""
    met: BaseException | None = error
    while met is not None:
        if is_out_of_descriptors(met):
            return _connect_error(tor, met)
        # stem reports an unreadable cookie in words only; what it met is the context.
        met = met.__context__
    at = f"Tor at {tor.control}"
    cookie = getattr(error, "cookie_path", None)
    known: tuple[tuple[tuple[str, ...], type[ControlError], str], ...] = (
        (
            ("IncorrectSocketType",),
            ControlProtocolError,
            f"{tor.control} does not answer like a control port; correct tor.control in the policy",
        ),
        (
            ("MissingPassword",),
            ControlRefused,
            f"{at} wants a password; name a file with it in tor.password_file",
        ),
        (("IncorrectPassword",), ControlRefused, f"{at} refuses the password in {tor.password_file}"),
        (
            ("UnreadableCookieFile",),
            ControlRefused,
            f"Tor's cookie {cookie} cannot be read; set CookieAuthFileGroupReadable 1, {_JOIN_THE_GROUP}",
        ),
        (
            ("IncorrectCookieSize", "IncorrectCookieValue"),
            ControlRefused,
            f"{cookie} is not the cookie of the {at}",
        ),
        (
            ("UnrecognizedAuthMethods", "MissingAuthInfo"),
            ControlRefused,
            f"{at} offers no way to authenticate that we know; set CookieAuthentication 1 in torrc",
        ),
        (
            ("OpenAuthRejected", "CookieAuthRejected", "PasswordAuthFailed"),
            ControlRefused,
            f"{at} refuses what it asked for itself; set CookieAuthentication 1 in torrc",
        ),
        (
            ("AuthenticationFailure",),
            ControlUnreachable,
            f"{at} hung up or did not answer while we authenticated",
        ),
    )
    for names, kind, message in known:
        if isinstance(error, tuple(getattr(stem.connection, name) for name in names)):
            return kind(message)
    if isinstance(error, stem.SocketError):
        return ControlUnreachable(f"{at} hung up while we authenticated")
    return ControlProtocolError(f"{at} answered in an unknown way while we authenticated")


def read_cookie(path: str) -> bytes | None:
    """Tor's cookie, which is another one after each start of Tor; None if it cannot be read.

    Args:
        path: As PROTOCOLINFO names it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor has no path
            return file.read(COOKIE_BYTES)
    except OSError:
        return None
