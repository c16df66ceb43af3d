"""Every exception shardfs raises on purpose, in one tree.

Role: callers tell kinds of trouble apart by class, never by message. Each message is one line:
what happened, where, and (for people) what to do about it.

Not here: the map from exceptions to errno values (fuse/errnos.py) and to exit codes (cli/).
"""

from __future__ import annotations

import os
from typing import Final


class ShardfsError(Exception):
    """Root of the tree: anything shardfs reports on purpose."""


class DeviceError(ShardfsError):
    """The device answered a request with an error.

    Args:
        operation: "read", "write", "flush", "reset" or "discard".
        offset: first byte of the request on the device.
        length: bytes in the request.
        errno: the operating system's error number.
    """

    def __init__(self, operation: str, offset: int, length: int, errno: int) -> None:
        self.operation = operation
        self.offset = offset
        self.length = length
        self.errno = errno
        super().__init__(
            f"device {operation} of {length} bytes at byte {offset} failed: {os.strerror(errno)}"
        )


class CorruptionError(ShardfsError):
    """Bytes on the device do not decode, or do not match their checksum.

    The one exception every decoder of on-disk bytes may raise.

    Args:
        message: what is wrong.
        where: the structure and place, for example "extent 7 byte 4096".
    """

    def __init__(self, message: str, where: str = "") -> None:
        self.where = where
        super().__init__(f"{where}: {message}" if where else message)


class NotShardfsError(ShardfsError):
    """No shardfs superblock is on the device."""


class IncompatibleError(ShardfsError):
    """The format is one this build must not touch: a newer version or an unknown flag."""


class DeviceBusyError(ShardfsError):
    """The device is mounted, held by the kernel, or open in another shardfs."""


class DeviceTooSmallError(ShardfsError):
    """The device cannot hold the smallest useful store."""


class NoSpaceError(ShardfsError):
    """The store has no room for what was asked; nothing was changed."""


class ReadOnlyError(ShardfsError):
    """The store takes no changes: opened read-only, or turned so by a failure.

    Args:
        reason: why, in words for the user.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"the store is read-only: {reason}")


class LimitError(ShardfsError):
    """A key, name or size is beyond what the format allows."""


class StaleError(ShardfsError):
    """A batch was built on a shard that has changed since: reload it and try again."""


class StoreClosedError(ShardfsError):
    """The store is closing or closed."""


class UsageError(ShardfsError):
    """The request itself makes no sense: fix the call, not the disk."""


class FileError(ShardfsError):
    """A file-system call that POSIX answers with an errno.

    Args:
        errno: the number the application shall see.
        message: one line for the log; the errno's own text when empty.
    """

    def __init__(self, errno: int, message: str = "") -> None:
        self.errno = errno
        super().__init__(message or os.strerror(errno))


class RemoteError(ShardfsError):
    """The mount has answered with an error.

    Args:
        message: its one line.
        kind: the name of the exception there.
    """

    def __init__(self, message: str, kind: str) -> None:
        self.kind = kind
        super().__init__(message)


UNREADABLE: Final = (CorruptionError, DeviceError)
"""What reading raises where something is damaged: the rest may be whole."""
