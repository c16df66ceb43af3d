"""Extended attributes through the kernel: namespaces, sizes, names, kinds of files, file rights."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.mounts import MountedShardfs, errno_of
from tests.mounted.test_access_lists import ALICE, as_user
from tests.mounted.test_posix_attributes import as_root

KIB = 1024
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep, as setcap(8) writes it."""


@as_root
@pytest.mark.parametrize("kind", ["file", "directory", "link", "fifo", "device"])
def test_kinds_of_files(shared_mount: MountedShardfs, folder: Path, kind: str) -> None:
    """user is for files and directories; trusted and security are for all."""
    path = folder / kind
    make: dict[str, Callable[[], object]] = {
        "file": path.touch,
        "directory": path.mkdir,
        "link": lambda: path.symlink_to("nothing"),
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
    }
    make[kind]()
    has_user = kind in ("file", "directory")
    expected = {"trusted.t": b"\0\1\2", "security.s": b""}
    for name, value in expected.items():
        os.setxattr(path, name, value, follow_symlinks=False)
    refusal = errno_of(lambda: os.setxattr(path, "user.u", b"u", follow_symlinks=False))
    assert refusal == (0 if has_user else errno.EPERM)
    if has_user:
        expected["user.u"] = b"u"
    shared_mount.remount()
    assert sorted(os.listxattr(path, follow_symlinks=False)) == sorted(expected)
    for name, value in expected.items():
        assert os.getxattr(path, name, follow_symlinks=False) == value


@as_root
def test_who_sees_what(folder: Path) -> None:
    path = folder / "file"
    path.touch()
    path.chmod(0o644)
    for name in ("user.u", "trusted.t", "security.s"):
        os.setxattr(path, name, b"value")
    assert sorted(os.listxattr(path)) == ["security.s", "trusted.t", "user.u"]
    seen = "assert sorted(os.listxattr(path)) == ['security.s', 'user.u']"
    assert as_user(ALICE, seen, path) == 0
    assert as_user(ALICE, "os.getxattr(path, 'user.u')", path) == 0
    assert as_user(ALICE, "os.getxattr(path, 'trusted.t')", path) == errno.ENODATA
    assert as_user(ALICE, "os.setxattr(path, 'user.u', b'')", path) == errno.EACCES
    assert as_user(ALICE, "os.setxattr(path, 'trusted.t', b'')", path) == errno.EPERM
    assert as_user(ALICE, "os.setxattr(path, 'security.s', b'')", path) == errno.EPERM
    os.chown(path, ALICE, ALICE)
    assert as_user(ALICE, "os.setxattr(path, 'user.u', b'mine')", path) == 0
    assert as_user(ALICE, "os.removexattr(path, 'trusted.t')", path) == errno.EPERM
    assert os.getxattr(path, "user.u") == b"mine"


def test_sizes(shared_mount: MountedShardfs, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"content")
    source = random.Random(1)
    sizes = (0, 1, 255, 256, 257, 4 * KIB, 32 * KIB, 64 * KIB - 1, 64 * KIB)
    values = {f"user.{size}": source.randbytes(size) for size in sizes}
    for name, value in values.items():
        os.setxattr(path, name, b"before")
        os.setxattr(path, name, value)
    too_long = bytes(64 * KIB + 1)
    assert errno_of(lambda: os.setxattr(path, "user.longer", too_long)) == errno.E2BIG
    before = os.statvfs(folder).f_bfree
    shared_mount.remount()
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == values
    for name in values:
        os.removexattr(path, name)
    assert os.listxattr(path) == [] and path.read_bytes() == b"content"
    assert before > 0


def test_names(folder: Path) -> None:
    path = folder / "file"
    path.touch()
    odd = bytes(byte for byte in range(1, 256))
    names = {b"user." + name for name in (b"x", b"x" * 250, odd[:125], odd[125:], b".", b"a.b/c")}
    for name in names:
        os.setxattr(path, name, name)
    assert {os.fsencode(name) for name in os.listxattr(path)} == names
    assert all(os.getxattr(path, name) == name for name in names)
    assert errno_of(lambda: os.setxattr(path, b"user." + b"x" * 251, b"")) == errno.ERANGE
    assert errno_of(lambda: os.setxattr(path, b"user.", b"")) == errno.EINVAL
    assert errno_of(lambda: os.setxattr(path, b"other.x", b"")) == errno.EOPNOTSUPP
    assert errno_of(lambda: os.getxattr(path, b"user.none")) == errno.ENODATA
    assert errno_of(lambda: os.removexattr(path, b"user.none")) == errno.ENODATA


def test_a_list_as_long_as_the_kernel_takes(folder: Path) -> None:
    """64 KiB of names, each with the byte behind it; what does not fit is refused."""
    path = folder / "file"
    path.touch()
    names = [f"user.{number:0250d}" for number in range(256)]
    for name in names:
        os.setxattr(path, name, b"")
    assert sorted(os.listxattr(path)) == names
    assert errno_of(lambda: os.setxattr(path, "user.one", b"")) == errno.ENOSPC
    os.setxattr(path, names[0], b"replacing takes no room in the list")
    os.removexattr(path, names[0])
    os.setxattr(path, "user.one", b"")
    assert len(os.listxattr(path)) == 256


@as_root
@pytest.mark.parametrize(
    "change",
    [
        "write",
        "append",
        "truncate",
        "ftruncate",
        "O_TRUNC",
        "chown",
        "fallocate",
    ],
)
def test_capabilities_go_when_the_content_changes(folder: Path, change: str) -> None:
    """As in the kernel's own file systems; root is no exception."""
    path = folder / "program"
    path.write_bytes(b"content" * 1000)
    path.chmod(0o755)
    os.setxattr(path, "security.capability", CAPABILITY)
    os.setxattr(path, "security.other", b"stays")
    path.chmod(0o711)
    assert path.read_bytes()
    os.utime(path)
    os.link(path, folder / "twin")
    assert os.getxattr(path, "security.capability") == CAPABILITY
    with path.open("r+b", 0) as file:
        if change == "write":
            file.write(b"x")
        elif change == "append":
            with path.open("ab", 0) as other:
                other.write(b"x")
        elif change == "truncate":
            os.truncate(path, 10)
        elif change == "ftruncate":
            file.truncate(10)
        elif change == "O_TRUNC":
            path.open("wb").close()
        elif change == "chown":
            os.chown(path, 0, 0)
        elif change == "fallocate":
            os.posix_fallocate(file.fileno(), 0, 100_000)
    assert os.listxattr(path) == ["security.other"]


@as_root
def test_capabilities_in_use(folder: Path) -> None:
    """A second write does not ask again, and a capability set between two writes goes too."""
    path = folder / "program"
    with path.open("wb", 0) as file:
        for _ in range(3):
            file.write(b"x")
            os.setxattr(path, "security.capability", CAPABILITY)
            file.write(b"y")
            assert os.listxattr(path) == []
    assert path.read_bytes() == b"xy" * 3
