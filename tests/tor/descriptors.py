"""Takes file descriptors away from a running process, and gives them back."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Iterator
from pathlib import Path


def open_descriptors(pid: int) -> set[int]:
    """The numbers of the descriptors that a process has open."""
    return {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}


@contextlib.contextmanager
def few_descriptors(pid: int, *, left: int = 0) -> Iterator[None]:
    """Around a time in which a process can open only so many more descriptors; open ones stay.

    RLIMIT_NOFILE bounds a new descriptor's number, which is the lowest free one; so the limit is the first
    number below which just this many are free.
    """
    taken = open_descriptors(pid)
    free = (number for number in itertools.count() if number not in taken)
    limit = next(itertools.islice(free, left, None))
    with descriptor_limit(pid, limit):
        yield


@contextlib.contextmanager
def descriptor_limit(pid: int, limit: int) -> Iterator[None]:
    """Around a time in which every new descriptor of a process has a number below this; open ones stay."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        # The process may have ended meanwhile.
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def allow_many_descriptors(wanted: int) -> int:
    """Raise this process's limit, which its children inherit, to what is wanted or to the hard limit.

    Returns:
        How many may be open now.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted > hard and os.geteuid() == 0:
        # Root may raise the hard limit as well, if nothing else (seccomp, fs.nr_open) forbids it.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
            return wanted
    allowed = min(max(wanted, soft), hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    return allowed
