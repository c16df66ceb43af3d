"""File handles, as the kernel's NFS server makes and uses them: they find their file or none.

Role: name_to_handle_at(2) and open_by_handle_at(2), which go the same way through the kernel
(lookup of "." in the inode of the handle, and of ".." in a directory whose parent is not known),
before and after a new mount. A kernel with an NFS server is not needed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.mounted.mounts import MountedShardfs
from tests.mounted.test_posix_attributes import as_root

pytestmark = as_root
LIBC = ctypes.CDLL(None, use_errno=True)
HANDLE_BYTES_MAX = 128
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000


def handle_of(path: Path | str | int) -> bytes:
    """name_to_handle_at(2): struct file_handle."""
    buffer = ctypes.create_string_buffer(struct.pack("Ii", HANDLE_BYTES_MAX, 0), 8 + 128)
    mount_id = ctypes.c_int()
    directory, name, flags = (
        (path, b"", AT_EMPTY_PATH) if isinstance(path, int) else (AT_FDCWD, os.fsencode(path), 0)
    )
    status = LIBC.name_to_handle_at(directory, name, buffer, ctypes.byref(mount_id), flags)
    if status != 0:
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    length = struct.unpack_from("I", buffer)[0]
    return buffer.raw[: 8 + length]


def open_handle(root: Path, handle: bytes, flags: int = os.O_RDONLY) -> int:
    """open_by_handle_at(2)."""
    mount = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        descriptor = LIBC.open_by_handle_at(mount, handle, flags)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        return int(descriptor)
    finally:
        os.close(mount)


@contextmanager
def opened(root: Path, handle: bytes, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = open_handle(root, handle, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def errno_of_handle(root: Path, handle: bytes) -> int:
    """The errno of opening a handle; 0 if it opens."""
    try:
        os.close(open_handle(root, handle))
    except OSError as error:
        return error.errno or 0
    return 0


def drop_names() -> None:
    """Have the kernel forget names and inodes, so that a handle has to be looked up."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def test_handles_find_their_files(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "a/b").mkdir(parents=True)
    (root / "a/b/file").write_text("content")
    (root / "a/b/file").chmod(0o640)
    paths = ("", "a", "a/b", "a/b/file")
    handles = {path: handle_of(root / path) for path in paths}
    assert len(set(handles.values())) == 4
    for _ in range(2):
        for path, handle in handles.items():
            drop_names()
            with opened(root, handle) as descriptor:
                assert os.fstat(descriptor).st_ino == (root / path).stat().st_ino
                found = os.readlink(f"/proc/self/fd/{descriptor}")
                if path != "a/b/file":  # a file's name is not known from its handle
                    assert found == str(root / path).rstrip("/")
            assert handle_of(root / path) == handle, "it is the same whenever it is asked for"
        mounted_shardfs.remount()
    drop_names()
    with opened(root, handles["a/b/file"], os.O_RDWR) as descriptor:
        assert os.read(descriptor, 100) == b"content"
        os.write(descriptor, b" and more")
    assert (root / "a/b/file").read_text() == "content and more"


def test_handles_follow_names(mounted_shardfs: MountedShardfs) -> None:
    """Renaming a file, or the directories above it, changes no handle."""
    root = mounted_shardfs.path
    (root / "a/b").mkdir(parents=True)
    (root / "c").mkdir()
    (root / "a/b/file").write_text("content")
    file, directory = handle_of(root / "a/b/file"), handle_of(root / "a/b")
    os.rename(root / "a/b", root / "c/moved")
    os.rename(root / "c/moved/file", root / "other")
    for _ in range(2):
        drop_names()
        with opened(root, file) as descriptor:
            assert os.read(descriptor, 100) == b"content"
        with opened(root, directory) as descriptor:
            assert os.readlink(f"/proc/self/fd/{descriptor}") == str(root / "c/moved")
        mounted_shardfs.remount()


def test_handles_of_removed_files_are_stale(mounted_shardfs: MountedShardfs) -> None:
    root = mounted_shardfs.path
    (root / "directory").mkdir()
    for name in ("file", "open", "replaced"):
        (root / name).write_text(name)
    handles = {name: handle_of(root / name) for name in ("file", "open", "replaced", "directory")}
    kept = os.open(root / "open", os.O_RDONLY)
    os.unlink(root / "file")
    os.unlink(root / "open")
    os.rmdir(root / "directory")
    (root / "new").write_text("another")
    os.rename(root / "new", root / "replaced")
    with opened(root, handles["open"]) as descriptor:
        assert os.read(descriptor, 10) == b"open", "as long as somebody has it open"
    os.close(kept)
    for _ in range(2):
        drop_names()
        for name, handle in handles.items():
            assert errno_of_handle(root, handle) == errno.ESTALE, name
        # Numbers are not given to others: what is new leaves the old handles stale.
        for number in range(200):
            (root / f"new-{number}").touch()
        mounted_shardfs.remount()


def test_handles_after_a_kill(mounted_shardfs: MountedShardfs) -> None:
    """A file that a crash has undone leaves its handle stale, even when others are made."""
    root = mounted_shardfs.path
    (root / "durable").write_text("durable")
    descriptor = os.open(root, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    (root / "lost").write_text("lost")
    durable, lost = handle_of(root / "durable"), handle_of(root / "lost")
    mounted_shardfs.kill()
    mounted_shardfs.start()
    survived = (root / "lost").exists()
    for number in range(200):
        (root / f"new-{number}").write_text("new")
    drop_names()
    with opened(root, durable) as descriptor:
        assert os.fstat(descriptor).st_ino == (root / "durable").stat().st_ino
    assert survived or errno_of_handle(root, lost) == errno.ESTALE


@pytest.mark.parametrize("number", [0, 2, 12345, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_made_up_handles(shared_mount: MountedShardfs, number: int) -> None:
    """Any bytes may come from the network: they find nothing, and nothing breaks."""
    root = shared_mount.path
    handle = bytearray(handle_of(root))
    kind = struct.unpack_from("i", handle, 4)[0]
    assert kind in (0x81, 0x82) and len(handle) >= 8 + 12, "FUSE's own form"
    real_number = root.stat().st_ino
    high, low = struct.unpack_from("II", handle, 8)
    assert (high << 32 | low) == real_number
    struct.pack_into("II", handle, 8, number >> 32, number & 0xFFFFFFFF)
    assert errno_of_handle(root, bytes(handle)) == errno.ESTALE
    wrong_generation = bytearray(handle_of(root))
    wrong_generation[16] ^= 1
    assert errno_of_handle(root, bytes(wrong_generation)) == errno.ESTALE
    assert (root / ".").stat().st_ino == real_number
