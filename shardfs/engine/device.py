"""The device: a protocol of a few calls, and the raw disk or image file behind it.

Role: the one place that does blocking I/O, owns threads and file descriptors, and knows ioctls.
Everything above it sees a flat range of bytes that is written in whole blocks.

Invariants:
    I1  A device is opened through claims.claim alone: two exclusive openings never exist at once.
    I2  After a flush has failed nothing is written or flushed any more. The kernel drops the
        dirty pages of a failed fdatasync, so a later success would say nothing about them.
    I3  A write, flush, reset or discard that has begun runs to its end: cancelling the caller
        waits for it. The bytes in a write's buffers must not change until the call returns.
    I4  The descriptor stays open while a thread uses it, whatever close() was told.

Ordering: none between calls in flight. A flush covers the writes completed before it began.

Not here: when to write or flush (scheduler), whose bytes they are, and checksums.
"""

from __future__ import annotations

import array
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeVar

import trio

from shardfs.engine.claims import claim
from shardfs.engine.images import set_image_bytes
from shardfs.errors import DeviceError, UsageError
from shardfs.limits import BLOCK_BYTES, SECTOR_BYTES_ALLOWED

Buffer = bytes | bytearray | memoryview
Result = TypeVar("Result")

THREADS_MAX: Final = 8
"""Requests of one device that may be with the kernel at once."""
INLINE_READ_BYTES_MAX: Final = 256 * 1024
"""Longer reads go to a thread at once: copying them would hold up the trio thread."""
INLINE_WRITE_BYTES_MAX: Final = 64 * 1024
"""Shorter writes are copied to the page cache on the trio thread: that takes a few microseconds,
going to a thread and back takes a hundred. Early writing back keeps the kernel from throttling."""
START_BYTES: Final = 8 * 1024 * 1024
"""After this many written bytes the kernel is told to begin writing them to the medium, so that
a long copy keeps the disk busy and the flush at its end finds little left to do."""
BUFFERS_PER_CALL_MAX: Final = min(os.sysconf("SC_IOV_MAX"), 1024)

# linux/fs.h and linux/falloc.h
_BLKROGET: Final = 0x125E
_BLKSSZGET: Final = 0x1268
_BLKDISCARD: Final = 0x1277
_BLKGETSIZE64: Final = 0x80081272
_FALLOC_FL_KEEP_SIZE: Final = 0x01
_FALLOC_FL_PUNCH_HOLE: Final = 0x02
_SYNC_FILE_RANGE_WRITE: Final = 2

_LIBC: Final = ctypes.CDLL(None, use_errno=True)

_UNSUPPORTED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM}
)


@dataclass(slots=True)
class DeviceCounts:
    """What a device was asked to do since it was opened. Bytes are those asked for."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    write_bytes: int = 0
    flushes: int = 0
    resets: int = 0
    discards: int = 0
    discard_bytes: int = 0
    """Bytes that it has taken a discard for; a device may take none."""


class Device(Protocol):
    """A flat range of bytes, written in whole blocks (limits.BLOCK_BYTES).

    Every call raises DeviceError when the device answers with an error, and also for a range
    beyond the device. What a failed write leaves in its range is undefined.
    """

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def sector_bytes(self) -> int:
        """The piece that a power cut leaves either old or new: 512 or 4096."""
        ...

    @property
    def read_only(self) -> bool: ...
    @property
    def counts(self) -> DeviceCounts: ...

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """Exactly `length` bytes from byte `offset`; neither needs any alignment.

        Checkpoints: sometimes (cached bytes are returned at once).
        """
        ...

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """Writes the buffers one behind the other from byte `offset` on.

        Requires: `offset` and the total length are multiples of limits.BLOCK_BYTES.
        Durable when: a flush that began after this call returned has returned.
        """
        ...

    async def flush(self) -> None:
        """Makes every write completed before this call durable.

        Raises: DeviceError; from then on the device takes no write and no flush.
        """
        ...

    async def reset(self, offset: int, length: int) -> None:
        """Moves a zone's write pointer back to its start; nothing on a conventional device."""
        ...

    async def discard(self, offset: int, length: int) -> None:
        """Hints that the bytes are not needed; later reads of them may return anything."""
        ...

    def write_pointer(self, offset: int) -> int | None:
        """Bytes written in the zone that holds byte `offset`; None on a conventional device."""
        ...

    async def measure(self) -> int:
        """Looks how large the device is now, and takes that for `size_bytes`."""
        ...

    async def set_length(self, size_bytes: int) -> bool:
        """Makes an image file longer or shorter; False: it is none, and nothing happens.

        Durable when: it returns.
        """
        ...

    def close(self) -> None:
        """Gives the device back. May be called again."""
        ...


class BlockDevice:
    """A block device or image file, through the kernel's page cache.

    Made by open_device. Args: see there; `descriptors` are held until close() and the first
    is the device's own.
    """

    def __init__(
        self,
        path: str,
        descriptors: Sequence[int],
        *,
        size_bytes: int,
        sector_bytes: int,
        read_only: bool,
        is_block_device: bool,
    ) -> None:
        assert sector_bytes in SECTOR_BYTES_ALLOWED
        self.path = path
        self.size_bytes = size_bytes
        self.sector_bytes = sector_bytes
        self.read_only = read_only
        self.counts = DeviceCounts()
        self._descriptors = tuple(descriptors)
        self._descriptor = descriptors[0]
        self._is_block_device = is_block_device
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._flush_errno = 0
        self._unstarted_bytes = 0
        self._reads_inline = True
        self._discards = True
        self._closed = False
        self._requests_in_flight = 0

    def __repr__(self) -> str:
        return f"<BlockDevice {self.path} {self.size_bytes} bytes>"

    async def read(self, offset: int, length: int) -> memoryview:
        """See Device.read. The result is the caller's own memory, and read-only."""
        self._require_usable("read", offset, length)
        self.counts.reads += 1
        self.counts.read_bytes += length
        buffer = bytearray(length)
        view = memoryview(buffer)
        done = 0
        if self._reads_inline and length <= INLINE_READ_BYTES_MAX:
            await trio.lowlevel.checkpoint_if_cancelled()
            done = self._read_cached(view, offset)
        if done < length:
            await self._in_thread("read", offset, length, partial(_read_all, view[done:]), done)
        return view.toreadonly()

    def read_blocking(self, offset: int, length: int) -> bytes:
        """The same on the calling thread, for tools that run before there is an event loop."""
        self._require_usable("read", offset, length)
        self.counts.reads += 1
        self.counts.read_bytes += length
        buffer = bytearray(length)
        try:
            _read_all(memoryview(buffer), self._descriptor, offset)
        except OSError as error:
            raise _device_error("read", offset, length, error) from error
        return bytes(buffer)

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See Device.write."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        length = sum(map(len, views))
        assert offset % BLOCK_BYTES == 0, f"write at byte {offset}"
        assert length % BLOCK_BYTES == 0, f"write of {length} bytes"
        self._require_writable("write", offset, length)
        self.counts.writes += 1
        self.counts.write_bytes += length
        self._unstarted_bytes += length
        start = self._unstarted_bytes >= START_BYTES
        if start:
            self._unstarted_bytes = 0
        elif length <= INLINE_WRITE_BYTES_MAX:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                _write_all(views, False, self._descriptor, offset)
            except OSError as error:
                raise _device_error("write", offset, length, error) from error
            return
        await self._in_thread("write", offset, length, partial(_write_all, views, start))

    async def flush(self) -> None:
        """See Device.flush."""
        self._require_writable("flush", 0, 0)
        self.counts.flushes += 1
        try:
            await self._in_thread("flush", 0, 0, _flush)
        except DeviceError as error:
            self._flush_errno = error.errno
            raise
        # Another flush may have taken the kernel's only report of an error (I2).
        self._require_writable("flush", 0, 0)

    async def reset(self, offset: int, length: int) -> None:
        """See Device.reset."""
        self._require_writable("reset", offset, length)
        self.counts.resets += 1
        await trio.lowlevel.checkpoint()

    async def discard(self, offset: int, length: int) -> None:
        """See Device.discard. A device that cannot discard is left in peace after one try."""
        self._require_writable("discard", offset, length)
        self.counts.discards += 1
        if not self._discards or not length:
            await trio.lowlevel.checkpoint()
            return
        call = partial(_discard_blocks if self._is_block_device else _punch_hole, length)
        try:
            await self._in_thread("discard", offset, length, call)
        except DeviceError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            self._discards = False
        else:
            self.counts.discard_bytes += length

    def write_pointer(self, offset: int) -> int | None:
        """None: conventional."""
        assert 0 <= offset < self.size_bytes
        return None

    async def measure(self) -> int:
        """See Device.measure."""
        size_bytes = await self._in_thread("read", 0, 0, _size_of)
        self.size_bytes = size_bytes - size_bytes % BLOCK_BYTES
        return self.size_bytes

    async def set_length(self, size_bytes: int) -> bool:
        """See Device.set_length."""
        self._require_writable("write", 0, 0)
        if self._is_block_device:
            await trio.lowlevel.checkpoint()
            return False
        await self._in_thread("write", size_bytes, 0, partial(_set_length, size_bytes))
        self.size_bytes = size_bytes
        return True

    def close(self) -> None:
        """See Device.close. Requests in flight finish first, on their own threads (I4)."""
        if not self._closed:
            self._closed = True
            self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._closed and not self._requests_in_flight:
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors = ()

    def _read_cached(self, view: memoryview, offset: int) -> int:
        """Bytes at the front of the range that the page cache has, copied into `view`."""
        try:
            return os.preadv(self._descriptor, [view], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                self._reads_inline = False
            return 0  # the thread will try again, and report

    async def _in_thread(
        self,
        operation: str,
        offset: int,
        length: int,
        call: Callable[[int, int], Result],
        done: int = 0,
    ) -> Result:
        """Runs call(descriptor, offset + done) on a worker thread, to its end (I3)."""
        self._requests_in_flight += 1
        try:
            return await trio.to_thread.run_sync(
                call,
                self._descriptor,
                offset + done,
                abandon_on_cancel=False,
                limiter=self._limiter,
            )
        except OSError as error:
            raise _device_error(operation, offset, length, error) from error
        finally:
            self._requests_in_flight -= 1
            self._close_when_idle()

    def _require_usable(self, operation: str, offset: int, length: int) -> None:
        if self._closed:
            raise DeviceError(operation, offset, length, errno.EBADF)
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise DeviceError(operation, offset, length, errno.EINVAL)

    def _require_writable(self, operation: str, offset: int, length: int) -> None:
        self._require_usable(operation, offset, length)
        if self.read_only:
            raise DeviceError(operation, offset, length, errno.EROFS)
        if self._flush_errno:
            raise DeviceError(operation, offset, length, self._flush_errno)


def open_device(
    path: str | os.PathLike[str],
    *,
    read_only: bool = False,
    exclusive: bool = True,
    sector_bytes: int | None = None,
) -> BlockDevice:
    """Opens a block device or an image file.

    Args:
        read_only: opens it for reading. A write-protected device is opened so in any case;
            see Device.read_only.
        exclusive: nobody else may have it open. False only for looking at a device that may
            be mounted, and then it must be read_only.
        sector_bytes: 512 or 4096 in place of what the device says (an image file: 512).

    Raises: DeviceBusyError when it is mounted or open elsewhere; UsageError when there is no
        such device, or it is none that can be used.
    """
    assert exclusive or read_only, "an opening for writing must be exclusive"
    name = os.fspath(path)
    descriptors, read_only = claim(name, read_only=read_only, exclusive=exclusive)
    descriptor = descriptors[0]
    try:
        is_block_device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        if is_block_device:
            _require_conventional(descriptor, name)
            sector_bytes = sector_bytes or _ioctl_number(descriptor, _BLKSSZGET, "i")
            read_only = read_only or bool(_ioctl_number(descriptor, _BLKROGET, "i"))
        size_bytes = _size_of(descriptor)
        if exclusive:
            # After a failed flush the page cache may hold, as clean, what never reached the medium:
            # an earlier process has seen the error, and nobody else would.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if sector_bytes is not None and sector_bytes not in SECTOR_BYTES_ALLOWED:
            raise UsageError(f"{name} has sectors of {sector_bytes} bytes; 512 or 4096 needed")
        return BlockDevice(
            name,
            descriptors,
            size_bytes=size_bytes - size_bytes % BLOCK_BYTES,
            sector_bytes=sector_bytes or SECTOR_BYTES_ALLOWED[0],
            read_only=read_only,
            is_block_device=is_block_device,
        )
    except BaseException:
        for held in descriptors:
            os.close(held)
        raise


def _require_conventional(descriptor: int, name: str) -> None:
    number = os.fstat(descriptor).st_rdev
    model = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/zoned")
    if model.exists() and model.read_text().strip() == "host-managed":
        raise UsageError(f"{name} is a host-managed zoned device, which is not supported yet")


def _ioctl_number(descriptor: int, request: int, typecode: str) -> int:
    answer = array.array(typecode, [0])
    fcntl.ioctl(descriptor, request, answer, True)
    return int(answer[0])


def _device_error(operation: str, offset: int, length: int, error: OSError) -> DeviceError:
    return DeviceError(operation, offset, length, error.errno or errno.EIO)


# --- what runs on a worker thread: call(descriptor, offset) -----------------------------------


def _size_of(descriptor: int, _offset: int = 0) -> int:
    if stat.S_ISBLK(os.fstat(descriptor).st_mode):
        return _ioctl_number(descriptor, _BLKGETSIZE64, "Q")
    return os.fstat(descriptor).st_size


def _set_length(size_bytes: int, descriptor: int, _offset: int) -> None:
    set_image_bytes(size_bytes, descriptor)


def _read_all(view: memoryview, descriptor: int, offset: int) -> None:
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if not count:
            raise OSError(errno.EIO, "the device ends early")  # an image file was truncated
        done += count


def _write_all(views: Sequence[memoryview], start: bool, descriptor: int, offset: int) -> None:
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


def _flush(descriptor: int, _offset: int) -> None:
    os.fdatasync(descriptor)


def _discard_blocks(length: int, descriptor: int, offset: int) -> None:
    fcntl.ioctl(descriptor, _BLKDISCARD, array.array("Q", [offset, length]))


def _punch_hole(length: int, descriptor: int, offset: int) -> None:
    mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
    if _LIBC.fallocate(descriptor, mode, ctypes.c_int64(offset), ctypes.c_int64(length)):
        raise OSError(ctypes.get_errno(), "fallocate")
