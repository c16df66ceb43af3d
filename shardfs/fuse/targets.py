"""What a command line's TARGET is: a device or image, a mount point, or a path in a mount.

Role: opens whatever the user named, for looking at it: an unmounted device read-only and by this
process itself, a mounted one through its control socket. Both answer the same requests
(inspection.py).

Invariants:
    I1. A device is opened read-only, unless the caller says that it is to be changed; then nothing
        is written to it, not even by recovery.
    I2. A device that is mounted as shardfs is not opened at all: its mount is asked.

Not here: the requests (inspection.py), the socket (control.py), opening a device (disk_targets.py).
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from shardfs.errors import UsageError
from shardfs.fuse.control import connect
from shardfs.fuse.mounts import (
    MountEntry,
    find_mount,
    mount_around,
    mounts_of,
    shardfs_mounts,
)
from shardfs.fuse.requests import Answer

_INODE: Final = re.compile(r"inode:(\d{1,19})")


class Questions(Protocol):
    """Whoever answers: this process, or a mount over its socket."""

    async def answer(self, request: Answer) -> Answer:
        """The result of one request; see inspection.py.

        Raises:
            ShardfsError: it cannot be answered.
        """


@dataclass(frozen=True)
class Target:
    """Something open for questions.

    name: what the user called it.
    inner_path: for a path in a mount, where in the file system it is; else empty.
    mount: the mount, or None for a device.
    notes: what opening the device had to say.
    """

    name: str
    inner_path: str
    mount: MountEntry | None
    conversation: Questions
    notes: tuple[str, ...] = ()

    def path_of(self, path: str | None) -> str:
        """The path in the file system that the user means: one behind TARGET goes below it."""
        parts = (self.inner_path, path or "")
        return "/".join(part.strip("/") for part in parts if part.strip("/"))

    def file_of(self, what: str | None) -> Answer:
        """What the user named, a path or "inode:12", as arguments of a request."""
        inode = _INODE.fullmatch(what or "")
        return {"ino": int(inode[1])} if inode is not None else {"path": self.path_of(what)}


def require_mount(name: str) -> MountEntry:
    """The shardfs mount at a mount point.

    Raises:
        UsageError: there is none.
    """
    entry = find_mount(name) or find_mount(os.path.realpath(name))
    if entry is None:
        raise UsageError(f"{name} is not a mount point; see what is mounted with: findmnt")
    if not entry.is_shardfs:
        raise UsageError(f"{name} is a {entry.kind} mount, not a shardfs one")
    return entry


def default_target() -> str:
    """The mount that the current directory is in, or else the only one that there is.

    Raises:
        UsageError: there is no such mount, or the choice is the user's.
    """
    around = mount_around(os.curdir)
    if around is not None:
        return around[0].mountpoint
    mounts = shardfs_mounts()
    if len(mounts) == 1:
        return mounts[0].mountpoint
    if not mounts:
        raise UsageError("no shardfs is mounted; name a device or an image file")
    names = ", ".join(each.mountpoint for each in mounts)
    raise UsageError(f"several are mounted; say which: {names}")


@asynccontextmanager
async def open_target(
    name: str, *, change: bool = False, tolerant: bool = False
) -> AsyncIterator[Target]:
    """Open what the user named.

    Args:
        tolerant: an unmounted device is opened though parts of its tree are lost; see StoreOptions.
        change: an unmounted device is opened for writing, and recovered; nothing runs on it by
            itself.

    Raises:
        UsageError, NotShardfsError, IncompatibleError, CorruptionError, DeviceBusyError
    """
    entry, inner_path = find_target(name)
    if entry is not None:
        async with connect(entry) as client:
            yield Target(name, inner_path, entry, client)
        return
    # All of the file system, which those who ask a mount need not load.
    from shardfs.fuse.disk_targets import open_disk

    async with open_disk(name, change=change, tolerant=tolerant) as (inspection, notes):
        yield Target(name, "", None, inspection, notes)


def find_target(name: str) -> tuple[MountEntry | None, str]:
    """The mount to ask and the path in it; None for a device to open.

    Raises:
        UsageError: there is nothing of that name.
    """
    around = mount_around(name)
    if around is None and os.path.islink(name):
        around = mount_around(os.path.realpath(name))
    if around is not None:
        return around
    try:
        mode = os.stat(name).st_mode
    except OSError as error:
        raise UsageError(f"cannot open {name}: {error.strerror}") from error
    if stat.S_ISDIR(mode):
        raise UsageError(
            f"{name} is a directory and no shardfs is mounted there; name a device, an image "
            "file or a mount point"
        )
    mounted = mounts_of(name)
    return (mounted[0], "") if mounted else (None, "")
