"""A device that must not be mounted, for commands that look below the file system.

Role: refuses a mounted device with one line that says what to do.

Not here: devices that may be mounted (fuse/targets.py).
"""

from __future__ import annotations

import os

from shardfs.errors import DeviceBusyError, UsageError
from shardfs.fuse.mounts import mounts_of


def unmounted_device(device: str) -> str:
    """The device's real path.

    Raises:
        UsageError: there is no such device.
        DeviceBusyError: it is mounted.
    """
    if not os.path.lexists(device):
        raise UsageError(f"there is no {device}")
    mounted = mounts_of(device)
    if mounted:
        raise DeviceBusyError(
            f"{device} is mounted at {mounted[0].mountpoint}; unmount it first: "
            f"shardfs umount {mounted[0].mountpoint}"
        )
    return os.path.realpath(device)
