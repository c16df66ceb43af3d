"""fuse/session.py: the parts that need no kernel."""

from __future__ import annotations

import errno
import logging
import os

import pytest

from shardfs.fuse.mount_options import MountOptions
from shardfs.fuse.session import device_number_of, fuse_options, is_wanted

MOUNTINFO = r"""22 28 0:20 / /sys rw shared:7 - sysfs sysfs rw
90 28 0:40 / /mnt/a\040b rw,nosuid - fuse.shardfs /dev/loop0 rw
91 28 0:41 / /mnt/c rw - ext4 /dev/sda rw
92 91 0:42 / /mnt/c rw - fuse.shardfs /dev/loop1 rw
"""


def test_the_mount_on_top_counts() -> None:
    assert device_number_of("/mnt/a b", MOUNTINFO) == "0:40"
    assert device_number_of("/mnt/c", MOUNTINFO) == "0:42"
    with pytest.raises(FileNotFoundError):
        device_number_of("/mnt", MOUNTINFO)


def test_options_for_the_kernel() -> None:
    options = fuse_options("/dev/a,b\\c", MountOptions(read_only=True, allow_other=True))
    assert options >= {"fsname=/dev/a\\,b\\\\c", "subtype=shardfs", "ro", "allow_other"}
    assert "default_permissions" in options and "sync" not in options
    options = fuse_options("x", MountOptions(allow_other=False, sync=True, exec=False))
    assert options == {"fsname=x", "subtype=shardfs", "default_permissions", "sync", "noexec"}


@pytest.mark.parametrize(("code", "is_kept"), [(errno.ENOENT, False), (errno.EINVAL, True)])
def test_an_answer_that_nobody_waits_for_is_no_trouble(code: int, is_kept: bool) -> None:
    message = "fuse_release(): fuse_reply_* failed with %s"  # as pyfuse3 has it
    record = logging.LogRecord("pyfuse3", logging.ERROR, "", 0, message, (os.strerror(code),), None)
    assert is_wanted(record) is is_kept
