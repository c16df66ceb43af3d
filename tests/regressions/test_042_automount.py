"""A mount that an automount had asked for waited for itself, until systemd gave up after 90 s.

The kernel holds everybody up who walks over such a mount point until the mount has been made, but
for the process group of whoever makes it (mount units of systemd keep mount(8) in theirs). The
server left that group before it had mounted. docs/operations.md has a line for /etc/fstab with
x-systemd.automount; no test had tried it with an automount of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shardfs.fuse.mounts import FUSE_DEVICE
from tests.mounted.mounts import SHARDFS, find_mount, run_command, shardfs

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts autofs: needs root"),
    pytest.mark.skipif(not FUSE_DEVICE.exists(), reason=f"no {FUSE_DEVICE}"),
]
SECONDS_MAX = 60
READY = 0x9360
"""AUTOFS_IOC_READY of <linux/auto_fs.h>: what has been asked for is mounted."""
MISSING_DIRECT = 5
DETACH = 2
LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def automount(place: Path) -> Iterator[tuple[int, int]]:
    """A mount point at which the kernel asks this process group for a mount: where it asks, and
    the file that takes the answer."""
    asking, asked = os.pipe()
    options = f"fd={asked},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct".encode()
    if LIBC.mount(b"test", os.fsencode(place), b"autofs", 0, options) != 0:
        code = ctypes.get_errno()
        pytest.skip(f"this kernel has no automounts: {errno.errorcode[code]}")
    root = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield asking, root
    finally:
        for descriptor in (root, asking, asked):
            os.close(descriptor)
        while find_mount(place) is not None:
            assert LIBC.umount2(os.fsencode(place), DETACH) == 0


@pytest.mark.timeout(3 * SECONDS_MAX)
def test_a_mount_that_an_automount_asks_for(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    shardfs("mkfs", image, "--size", "64M")
    place = tmp_path / "mnt"
    place.mkdir()
    with automount(place) as (asking, root):
        visitor = subprocess.Popen(
            ["ls", "-a", place], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert select.select([asking], [], [], SECONDS_MAX)[0], "nobody asked for a mount"
        version, kind, token = struct.unpack_from("=iiI", os.read(asking, 4096))
        assert (version, kind) == (5, MISSING_DIRECT)
        run_command(SHARDFS, "mount", image, place, seconds_max=SECONDS_MAX)
        mounted = find_mount(place)
        assert mounted is not None and mounted.kind == "fuse.shardfs"
        fcntl.ioctl(root, READY, token)
        assert visitor.communicate(timeout=SECONDS_MAX)[0].split() == [".", ".."]
        shardfs("umount", place)
