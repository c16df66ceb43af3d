"""The mount in the kernel: made as root does where possible, else by libfuse; and let go of.

Role: root mounts with mount(2) itself, because libfuse and fusermount3 cannot ask for access lists
(MS_POSIXACL: the kernel then hands over the modes of new files as programs ask for them, with
the umask beside, which does not count below a default list). Others mount through libfuse.

Invariants:
    I1. When `close` returns nothing is left at the mount point, unless something else stands there.

Only one exists in a process, because pyfuse3 keeps its session in globals.

Not here: mounts of other processes (mounts.py), answering requests (session.py).
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import stat
from collections.abc import Collection
from typing import Final

import pyfuse3

from shardfs.errors import UsageError
from shardfs.fuse.mounts import FLAGS, FUSE_DEVICE, find_mount, unmount
from shardfs.fuse.operations import Operations

_POSIX_ACCESS_LISTS: Final = 1 << 16


class Attachment:
    """What pyfuse3 serves; made by the functions below.

    Args:
        descriptor: where requests come from, if this process has mounted by itself.
    """

    def __init__(self, source: str, mountpoint: str, descriptor: int | None) -> None:
        self._source = source
        self._mountpoint = mountpoint
        self._descriptor = descriptor

    def close(self, *, detached: bool) -> None:
        """Let go of the kernel.

        Args:
            detached: nothing is left at the mount point, though files may still be open.

        Raises:
            UsageError: the mount cannot be taken away.
        """
        by_libfuse = self._descriptor is None
        is_left = not (by_libfuse or detached) and _is_served(self._descriptor)
        pyfuse3.close(unmount=by_libfuse and not detached)
        if is_left:
            _take_away(self._source, self._mountpoint)


def mount_as_root(
    source: str, mountpoint: str, words: Collection[str], *, allow_other: bool, access_lists: bool
) -> int | None:
    """Mount with mount(2).

    Args:
        source: shown in the kernel's table.
        words: of mount(8): "ro", "nosuid", "noatime" and the like.
        access_lists: see the module.

    Returns:
        The descriptor that requests come from; None: this process may not.

    Raises:
        UsageError: it cannot be mounted there.
    """
    if os.geteuid() != 0:
        return None
    descriptor = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    names = {"nosuid", "nodev"} - {f"no{word}" for word in words} | set(words) & FLAGS.keys()
    flags = sum(FLAGS[name] for name in names) | (_POSIX_ACCESS_LISTS if access_lists else 0)
    kind = stat.S_IFMT(os.stat(mountpoint).st_mode)
    text = f"fd={descriptor},rootmode={kind:o},user_id=0,group_id={os.getegid()}"
    text += ",default_permissions" + (",allow_other" if allow_other else "")
    paths = (os.fsencode(source), os.fsencode(mountpoint))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(*paths, b"fuse.shardfs", ctypes.c_ulong(flags), text.encode()) == 0:
        return descriptor
    code = ctypes.get_errno()
    os.close(descriptor)
    if code == errno.EPERM:
        return None  # root of a container, perhaps; fusermount3 may be allowed what it is not
    raise UsageError(f"cannot mount at {mountpoint}: {os.strerror(code)}")


def serve_descriptor(
    operations: Operations, source: str, mountpoint: str, descriptor: int
) -> Attachment:
    """Have pyfuse3 serve what mount_as_root has mounted.

    Raises:
        UsageError: it cannot; nothing is mounted any more.
    """
    try:
        pyfuse3.init(operations, f"/dev/fd/{descriptor}", set())
    except RuntimeError as error:
        _take_away(source, mountpoint)
        raise UsageError(f"cannot serve {mountpoint}: {error}") from error
    return Attachment(source, mountpoint, descriptor)


def serve_through_libfuse(
    operations: Operations, source: str, mountpoint: str, options: set[str]
) -> Attachment:
    """Have libfuse mount, through fusermount3 where this process may not.

    Args:
        options: in the words of libfuse.

    Raises:
        UsageError: it cannot be mounted there.
    """
    try:
        pyfuse3.init(operations, mountpoint, options)
    except RuntimeError as error:
        raise UsageError(f"cannot mount at {mountpoint}: {error}") from error
    return Attachment(source, mountpoint, None)


def _is_served(descriptor: int | None) -> bool:
    """Whether the kernel still has the mount behind a descriptor (as libfuse finds out)."""
    assert descriptor is not None
    poll = select.poll()
    poll.register(descriptor, 0)
    return not any(happened & select.POLLERR for _, happened in poll.poll(0))


def _take_away(source: str, mountpoint: str) -> None:
    entry = find_mount(mountpoint)
    if entry is not None and entry.is_shardfs and entry.source == source:
        unmount(mountpoint, lazily=True)
