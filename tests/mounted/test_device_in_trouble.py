"""The option errors= on a device whose end is taken away under the mount.

A loop device is made smaller while it is mounted: what lay behind its new end can be neither read
nor written, as with a disk that dies.
"""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mounted.conftest import LoopDeviceFactory, MountFactory
from tests.mounted.mounts import MountedShardfs, errno_of, find_mount, run_command

LEFT_BYTES = 8 << 20
SERVER_SECONDS_MAX = 20.0
EXPECTED = ["the store is now", "failed: device", "taking .* away", "closing without"]


def take_the_end_away(device: Path) -> None:
    """Leave LEFT_BYTES of a loop device, with nothing of the rest in any cache."""
    backing = run_command("losetup", "--noheadings", "--output", "BACK-FILE", device).strip()
    os.truncate(backing, LEFT_BYTES)
    run_command("losetup", "--set-capacity", device)
    run_command("blockdev", "--flushbufs", device)
    Path("/proc/sys/vm/drop_caches").write_text("1")


def fill(root: Path) -> dict[str, bytes]:
    """Files beyond LEFT_BYTES, durable, each with an attribute; their contents."""
    contents = {f"f{number}": random.Random(number).randbytes(1 << 20) for number in range(30)}
    for name, content in contents.items():
        descriptor = os.open(root / name, os.O_CREAT | os.O_WRONLY)
        os.write(descriptor, content)
        os.setxattr(descriptor, "user.mark", name.encode())
        os.fsync(descriptor)
        os.close(descriptor)
    return contents


def store_durably(path: Path) -> None:
    """Write a MiB to a new file, and fsync it."""
    with path.open("xb", buffering=0) as file:
        file.write(b"x" * (1 << 20))
        os.fsync(file)


def read_until_refused(root: Path, contents: dict[str, bytes]) -> int:
    """Read files until one cannot be read; its errno. What can be read is whole."""
    for name, content in contents.items():
        try:
            assert (root / name).read_bytes() == content, name
        except OSError as error:
            return error.errno or 0
    return 0


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Poll for a condition, at most SERVER_SECONDS_MAX."""
    deadline = time.monotonic() + SERVER_SECONDS_MAX
    while not condition():
        assert time.monotonic() < deadline, f"still not: {what}"
        time.sleep(0.05)


@pytest.fixture
def device(loop_device: LoopDeviceFactory) -> Path:
    """A loop device on an image of its own."""
    return loop_device()


def mount_doomed(device: Path, mount_shardfs: MountFactory, option: str) -> MountedShardfs:
    """A mount whose device will fail, so fsck would find what the test did."""
    mounted = mount_shardfs(device, [option])
    mounted.verify_at_end = False
    mounted.expected_log_patterns += EXPECTED
    return mounted


def test_unmount_after_a_read(device: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_doomed(device, mount_shardfs, "errors=unmount")
    root = mounted.path
    contents = fill(root)
    with (root / "f29").open("rb") as held:
        take_the_end_away(device)
        assert read_until_refused(root, contents) in (errno.EIO, errno.ENOENT, errno.ENOTCONN)
        # The answer is there, so the mount is not: who acts on it finds an empty folder.
        assert find_mount(root) is None and os.listdir(root) == []
        assert errno_of(os.rename, root / "f29", root / "moved") == errno.ENOENT
        assert errno_of(held.read, 10) != 0, "a file that is open is no longer served"
    wait_until(lambda: not mounted.is_running, "the server has ended")
    assert "taking" in mounted.log_text() and "device read" in mounted.log_text()
    mounted.kill()


def test_unmount_after_a_failed_write(device: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_doomed(device, mount_shardfs, "errors=unmount")
    root = mounted.path
    fill(root)
    take_the_end_away(device)
    assert errno_of(store_durably, root / "new") != 0
    wait_until(lambda: find_mount(root) is None, "the mount is gone")
    wait_until(lambda: not mounted.is_running, "the server has ended")
    mounted.kill()


def test_remount_read_only_stays(device: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_doomed(device, mount_shardfs, "errors=remount-ro")
    root = mounted.path
    contents = fill(root)
    take_the_end_away(device)
    assert read_until_refused(root, contents) == errno.EIO
    assert find_mount(root) is not None
    assert errno_of(store_durably, root / "new") == errno.EIO
    wait_until(lambda: "ro" in kernel_flags(root), "the kernel's table shows it")
    assert errno_of(os.mkdir, root / "directory") == errno.EROFS
    mounted.kill()


def test_continue_leaves_the_kernels_table(device: Path, mount_shardfs: MountFactory) -> None:
    mounted = mount_doomed(device, mount_shardfs, "errors=continue")
    root = mounted.path
    fill(root)
    take_the_end_away(device)
    assert errno_of(store_durably, root / "new") == errno.EIO
    assert errno_of(os.mkdir, root / "directory") == errno.EROFS
    assert "rw" in kernel_flags(root), "the kernel asks, and is answered"
    mounted.kill()


def kernel_flags(root: Path) -> list[str]:
    """The flags that the kernel shows for a mount."""
    return run_command("findmnt", "-no", "OPTIONS", root).strip().split(",")
