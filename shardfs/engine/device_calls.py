"""The system calls that a block device or image file is used with.

Role: each a plain function of a descriptor and a byte offset that blocks until it is done, made to
run on a worker thread. Loops where the kernel may do less than it was asked.

Invariants:
    I1  A function returns when all of it is done, or raises OSError.

Not here: threads, who may call what when, and counting (block_device.py).
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from typing import Final

from shardfs.engine.images import set_image_bytes
from shardfs.engine.neighbours import Span

UNSUPPORTED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM}
)
"""Errors of calls that a device or a kernel does not know."""
BUFFERS_PER_CALL_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024)

# linux/fs.h and linux/falloc.h
BLKROGET: Final = 0x125E
BLKSSZGET: Final = 0x1268
_BLKDISCARD: Final = 0x1277
_BLKGETSIZE64: Final = 0x80081272
_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_SYNC_FILE_RANGE_WRITE: Final = 2

_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def ioctl_number(descriptor: int, request: int, typecode: str) -> int:
    """The number that an ioctl answers with, of the C type `typecode` (as in array.array)."""
    answer = array.array(typecode, [0])
    fcntl.ioctl(descriptor, request, answer, True)
    return int(answer[0])


def size_of(descriptor: int, _offset: int = 0) -> int:
    """Bytes of a block device or a file."""
    if stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return ioctl_number(descriptor, _BLKGETSIZE64, "Q")
    return os.fstat(descriptor).st_size


def set_length(size_bytes: int, descriptor: int, _offset: int) -> None:
    """Make an image file as long as that; durable when it returns."""
    set_image_bytes(size_bytes, descriptor)


def read_all(view: memoryview, descriptor: int, offset: int) -> None:
    """Fill `view` from byte `offset` on."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise OSError(errno.EIO, "the device ends early")  # an image file was truncated
        done += count


def read_around(around: Span | None, view: memoryview, descriptor: int, offset: int) -> None:
    """The same; before that have the kernel begin to read what lies around it, if anything."""
    if around is not None:
        os.posix_fadvise(descriptor, around.offset, around.length, os.POSIX_FADV_WILLNEED)
    read_all(view, descriptor, offset)


def write_all(views: Sequence[memoryview], start: bool, descriptor: int, offset: int) -> None:
    """Write the views one behind the other from byte `offset` on.

    Args:
        start: have the kernel begin to write back all that is dirty.
    """
    pending = list(views)
    while pending:
        count = os.pwritev(descriptor, pending[:BUFFERS_PER_CALL_MAX], offset)
        if not count:
            raise OSError(errno.EIO, "the device takes no more bytes")
        offset += count
        whole = 0
        while count and count >= len(pending[whole]):
            count -= len(pending[whole])
            whole += 1
        del pending[:whole]
        if count:
            pending[0] = pending[0][count:]
    if start:
        # A hint, and without effect on what a later flush reports: its answer says nothing.
        everything = ctypes.c_int64(0)
        _LIBC.sync_file_range(descriptor, everything, everything, _SYNC_FILE_RANGE_WRITE)


def flush(descriptor: int, _offset: int) -> None:
    """Make durable what was written; see device.I2 for what follows an error."""
    os.fdatasync(descriptor)


def discard_blocks(length: int, descriptor: int, offset: int) -> None:
    """Tell a block device that the bytes are not needed."""
    fcntl.ioctl(descriptor, _BLKDISCARD, array.array("Q", [offset, length]))


def punch_hole(length: int, descriptor: int, offset: int) -> None:
    """The same for an image file: the file system below has the space back."""
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _LIBC.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
