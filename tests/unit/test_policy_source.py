"""Policy files: whatever the name leads to, one line and no waiting."""

from __future__ import annotations

import os
import socket
import stat
import tracemalloc
from pathlib import Path

import pytest

from circuitloom.errors import PolicyError
from circuitloom.policy import read_policy, read_source
from circuitloom.policy.source import MAX_BYTES

pytestmark = pytest.mark.timeout(20)

VALID = b"version: 1\ncircuits: [{name: a}, {name: b}]\n"


def refusal(path: Path | str) -> str:
    """The one line that a file is refused with, without the name and place it starts with."""
    with pytest.raises(PolicyError) as caught:
        read_policy(path)
    line = str(caught.value)
    assert "\n" not in line
    name, _, message = line.partition(":1:1: ")
    assert name == str(path).encode("ascii", "backslashreplace").decode() or not str(path).isprintable()
    return message


def test_regular_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(VALID)

    assert read_source(path) == VALID
    assert [slot.name for slot in read_policy(path).slots] == ["a", "b"]


def test_symbolic_link_to_a_file_is_followed(tmp_path: Path) -> None:
    tmp_path.joinpath("policy.yaml").write_bytes(VALID)
    tmp_path.joinpath("link").symlink_to("policy.yaml")

    assert len(read_policy(tmp_path / "link").slots) == 2


def test_name_is_in_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_bytes(b"version: 2\ncircuits: []\n")

    with pytest.raises(PolicyError) as caught:
        read_policy(path)

    assert {str(path)} == {fault.file for fault in caught.value.faults}


def test_missing_file(tmp_path: Path) -> None:
    assert refusal(tmp_path / "policy.yaml") == "there is no such file"


def test_dangling_link(tmp_path: Path) -> None:
    tmp_path.joinpath("link").symlink_to("nowhere")

    assert refusal(tmp_path / "link") == "there is no such file"


def test_dash_is_a_file_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert refusal("-") == "there is no such file"

    tmp_path.joinpath("-").write_bytes(VALID)

    assert len(read_policy("-").slots) == 2


def test_file_as_directory(tmp_path: Path) -> None:
    tmp_path.joinpath("file").touch()

    message = "there is no such file: a part of its path is not a directory"
    assert refusal(tmp_path / "file" / "policy.yaml") == message


def test_links_in_a_circle(tmp_path: Path) -> None:
    tmp_path.joinpath("a").symlink_to("b")
    tmp_path.joinpath("b").symlink_to("a")

    assert refusal(tmp_path / "a") == "its symbolic links go round in a circle"


def test_name_too_long(tmp_path: Path) -> None:
    assert refusal(tmp_path / ("x" * 300)) == "cannot be read: File name too long"


def test_name_with_nul() -> None:
    assert refusal("policy\0.yaml") == "there is no such file: its name holds a NUL character"


@pytest.mark.parametrize(
    ("name", "shown"), [("a\nb", r"a\nb"), ("\x1b[2J", r"\x1b[2J"), ("\udcff", r"\udcff")]
)
def test_name_that_does_not_print_is_escaped(tmp_path: Path, name: str, shown: str) -> None:
    with pytest.raises(PolicyError) as caught:
        read_policy(tmp_path / name)

    assert str(caught.value) == f"{tmp_path}/{shown}:1:1: there is no such file"


def test_directory(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "is a directory: name the policy file in it"


def test_fifo_without_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    assert refusal(tmp_path / "fifo") == "is a FIFO: a policy must be a regular file"


def test_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's address is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")

        message = "is a socket or a device without a driver: a policy must be a regular file"
        assert refusal("socket") == message


def test_device() -> None:
    assert refusal("/dev/zero") == "is a device: a policy must be a regular file"


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # root may read everything, and the tests may run as root.
    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)

    message = "permission denied: let the user that runs this read the file and enter its directories"
    assert refusal(tmp_path / "policy.yaml") == message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_read_permission(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.touch(mode=0)

    assert refusal(path).startswith("permission denied")


def test_read_error() -> None:
    # A regular file that opens and cannot be read at offset 0.
    assert refusal("/proc/self/mem") == "cannot be read: Input/output error"


def test_hundred_megabytes_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)

    tracemalloc.start()
    message = refusal(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert message == "the file is larger than 1 MiB, so it is no policy"
    assert peak_bytes < MAX_BYTES


def test_file_larger_than_it_claims_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As files of /proc do, and a file that grows.
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    monkeypatch.setattr(os, "fstat", lambda _: os.stat_result([stat.S_IFREG | 0o644, *[0] * 9]))

    tracemalloc.start()
    message = refusal(path)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert message == "the file is larger than 1 MiB, so it is no policy"
    assert peak_bytes < 4 * MAX_BYTES


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    tmp_path.joinpath("policy.yaml").write_bytes(VALID)
    descriptors = Path("/proc/self/fd")
    before = sorted(descriptors.iterdir())

    read_source(tmp_path / "policy.yaml")
    refusal(tmp_path)
    refusal("/proc/self/mem")

    assert before == sorted(descriptors.iterdir())
