"""The bytes of a policy: read from a file and decoded, both bounded.

Rules of this file:

* Opening never blocks and never follows what a name might turn into: a FIFO, a device or a folder is refused.
* No more than ``MAX_BYTES`` are held, whatever the file's size claims to be.
* Every failure is a PolicyError with one fault at the place it stands, or at 1:1.
"""

from __future__ import annotations

import errno
import os
import re
import stat

from circuitloom.errors import Fault, PolicyError, reason_of
from circuitloom.policy.wording import escaped

__all__ = ["MAX_BYTES", "decode", "read_source"]

# 1,000 circuits, each with eight relays written out, are half of this.
MAX_BYTES = 1 << 20

_TOO_LARGE = f"the file is larger than {MAX_BYTES >> 20} MiB, so it is no policy"

# What YAML calls non-printable, and three more that count as a line break for YAML but not for an editor
# (carriage return alone, U+0085, U+2028, U+2029): places would not be where the reader looks for them.
_CONTROL = re.compile(
    "[^\t\n\r -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|\r(?!\n)",
)

_KINDS = (
    (stat.S_ISDIR, "is a directory: name the policy file in it"),
    (stat.S_ISFIFO, "is a FIFO: a policy must be a regular file"),
    (stat.S_ISSOCK, "is a socket: a policy must be a regular file"),
    (stat.S_ISCHR, "is a device: a policy must be a regular file"),
    (stat.S_ISBLK, "is a device: a policy must be a regular file"),
)

_OPEN_ERRORS = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file: a part of its path is not a directory",
    errno.EACCES: "permission denied: let the user that runs this read the file and enter its directories",
    errno.ELOOP: "its symbolic links go round in a circle",
    errno.ENXIO: "is a socket or a device without a driver: a policy must be a regular file",
}


def read_source(path: str | os.PathLike[str]) -> bytes:
    """Reads a policy file.

    Raises:
        PolicyError: It is not a readable regular file of at most ``MAX_BYTES``.
    """
    name = os.fspath(path)
    try:
        # NONBLOCK: opening a FIFO would wait for a writer. NOCTTY: a terminal must not become ours.
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        raise _refused(name, _reason(error)) from None
    except ValueError:
        raise _refused(name, "there is no such file: its name holds a NUL character") from None
    try:
        return _read(descriptor, name)
    except OSError as error:
        raise _refused(name, _reason(error)) from None
    finally:
        os.close(descriptor)


def _read(descriptor: int, name: str) -> bytes:
    status = os.fstat(descriptor)
    for is_kind, message in _KINDS:
        if is_kind(status.st_mode):
            raise _refused(name, message)
    if status.st_size > MAX_BYTES:
        raise _refused(name, _TOO_LARGE)
    # The size is 0 for files of /proc and stale for a file that grows: it is a first check only.
    with open(descriptor, "rb", closefd=False) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise _refused(name, _TOO_LARGE)
    return data


def decode(data: bytes, name: str) -> str:
    """Decodes a policy, without its byte order mark.

    Raises:
        PolicyError: It is too large, not UTF-8, or holds control characters.
    """
    if len(data) > MAX_BYTES:
        raise _refused(name, _TOO_LARGE)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _refused(name, "the file is UTF-16: save it as UTF-8")
    body = data.removeprefix(b"\xef\xbb\xbf")
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        offset = error.start + len(data) - len(body)
        message = f"byte 0x{body[error.start]:02x} at offset {offset} is not UTF-8: save the file as UTF-8"
        raise _fault_after(body[: error.start].decode(), name, message) from None
    found = _CONTROL.search(text)
    if found is not None:
        message = f"control character U+{ord(found[0]):04X}: remove it"
        raise _fault_after(text[: found.start()], name, message)
    return text


def _fault_after(text: str, name: str, message: str) -> PolicyError:
    """A fault at the character that follows ``text``."""
    column = len(text) - text.rfind("\n")
    return PolicyError([Fault(escaped(name), text.count("\n") + 1, column, "", message)])


def _refused(name: str, message: str) -> PolicyError:
    return PolicyError([Fault(escaped(name), 1, 1, "", message)])


def _reason(error: OSError) -> str:
    if error.errno in _OPEN_ERRORS:
        return _OPEN_ERRORS[error.errno]
    return f"cannot be read: {reason_of(error)}"
