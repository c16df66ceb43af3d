"""The raw disk or image file below a store, through the kernel's page cache.

Role: the one place that owns threads and file descriptors, and that does blocking I/O on a device.
What is cached, or short, is done at once; flushes (kernel_flush.py) and reads of a block device
(async_reads.py) are the kernel's work, the rest is done on a worker thread.

Invariants (those of device.py, and):
    I1  A device is opened through claims.claim alone: two exclusive openings never exist at once.
    I2  The descriptor stays open while a thread uses it, whatever close() was told.
    I3  Only worker threads, the kernel's or ours, wait for the disk, and the trio thread for
        moments (async_reads.I1); beside that it copies to and from memory (cached_reads.py).

Not here: the calls themselves (device_calls.py), when to write or flush (scheduler.py), checksums.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from shardfs.engine.async_reads import READ_BYTES_MAX, AsyncReads
from shardfs.engine.cached_reads import CachedReads
from shardfs.engine.claims import claim
from shardfs.engine.device import Buffer, DeviceCounts
from shardfs.engine.device_calls import (
    BLKROGET,
    BLKSSZGET,
    UNSUPPORTED,
    discard_blocks,
    flush,
    ioctl_number,
    punch_hole,
    read_all,
    read_around,
    set_length,
    size_of,
    write_all,
)
from shardfs.engine.direct_io import FOLIO_BYTES, AlignedRead, Bounce, HugePages, open_direct
from shardfs.engine.kernel_flush import KernelFlush
from shardfs.engine.neighbours import Neighbours
from shardfs.errors import DeviceError, UsageError
from shardfs.limits import BLOCK_BYTES, SECTOR_BYTES_ALLOWED

Result = TypeVar("Result")

THREADS_MAX: Final = 8
"""Requests of one device that may be with the kernel at once."""
INLINE_READ_BYTES_MAX: Final = 256 * 1024
"""Longer reads are not copied from the page cache by the trio thread, which that would hold up."""
INLINE_WRITE_BYTES_MAX: Final = 64 * 1024
"""Shorter writes are copied to the page cache on the trio thread: that takes a few microseconds,
going to a thread and back takes a hundred. Early writing back keeps the kernel from throttling."""
BOUNCES_KEPT_MAX: Final = 4
"""Buffers of 2 MiB that are kept for writes past the page cache."""
DIRECT_WRITE_BYTES_MIN: Final = 256 * 1024
"""Shorter writes go through the page cache: so do the reads that soon follow small ones."""
START_BYTES: Final = 8 * 1024 * 1024
"""After this many bytes written through the page cache the kernel is told to begin writing them to
the medium, so that a long copy keeps the disk busy and the flush at its end finds little to do."""


class BlockDevice:
    """A block device or image file, through the kernel's page cache.

    Made by open_device. Args: see there; `descriptors` are held until close() and the first
    is the device's own, `direct` the one of them that goes past the page cache.
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
        direct: int | None = None,
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
        self._direct = direct
        self._writes_direct = False
        self._bounces: list[Bounce] = []
        self._pages = HugePages()
        self._async_reads = AsyncReads(direct, sector_bytes) if direct is not None else None
        self._neighbours = Neighbours()
        self._cached = CachedReads(self._descriptor)
        self._limiter = trio.CapacityLimiter(THREADS_MAX)
        self._flush_errno = 0
        self._kernel_flush: KernelFlush | None = None
        self._flushes_in_kernel = True
        self._unstarted_bytes = 0
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
        done, view = 0, memoryview(b"")
        if self._cached.is_possible and length <= INLINE_READ_BYTES_MAX:
            await trio.lowlevel.checkpoint_if_cancelled()
            view, done = self._cached.read(offset, length)
        around = None
        if self._direct is not None and not done:
            if length <= READ_BYTES_MAX:
                around = self._neighbours.missed(offset, length, self.size_bytes)
                exact = None if around else await self._read_in_kernel(offset, length)
            else:
                exact = await self._read_direct(self._direct, offset, length)
            if exact is not None:
                return memoryview(exact)
        if done < length:
            view = view or memoryview(bytearray(length))
            call = partial(read_around, around, view[done:])
            await self._in_thread("read", offset, length, call, done)
        return view.toreadonly()

    def read_blocking(self, offset: int, length: int) -> bytes:
        """The same on the calling thread, for tools that run before there is an event loop."""
        self._require_usable("read", offset, length)
        self.counts.reads += 1
        self.counts.read_bytes += length
        buffer = bytearray(length)
        try:
            read_all(memoryview(buffer), self._descriptor, offset)
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
        if self._writes_direct and length >= DIRECT_WRITE_BYTES_MIN:
            assert self._direct is not None
            if await self._write_direct(self._direct, offset, length, views):
                return
        self._unstarted_bytes += length
        start = self._unstarted_bytes >= START_BYTES
        if start:
            self._unstarted_bytes = 0
        elif length <= INLINE_WRITE_BYTES_MAX:
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                write_all(views, False, self._descriptor, offset)
            except OSError as error:
                raise _device_error("write", offset, length, error) from error
            return
        await self._in_thread("write", offset, length, partial(write_all, views, start))

    def write_at_once(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """See Device.write_at_once: short writes, as the page cache takes them."""
        length = sum(map(len, buffers))
        if length > INLINE_WRITE_BYTES_MAX or self._unstarted_bytes + length >= START_BYTES:
            return False
        assert offset % BLOCK_BYTES == 0 and length % BLOCK_BYTES == 0
        if self._closed or self.read_only or self._flush_errno or offset + length > self.size_bytes:
            return False
        try:
            if os.pwritev(self._descriptor, buffers, offset) != length:
                return False
        except OSError:
            return False  # `write` will try again, and report
        self.counts.writes += 1
        self.counts.write_bytes += length
        self._unstarted_bytes += length
        return True

    async def flush(self) -> None:
        """See Device.flush."""
        self._require_writable("flush", 0, 0)
        self.counts.flushes += 1
        self._requests_in_flight += 1
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            kernel = self._begin_in_kernel()
            if kernel is not None:
                await kernel.end()
            else:
                await _on_thread(partial(flush, self._descriptor, 0))
        except OSError as error:
            failure = _device_error("flush", 0, 0, error)
            self._flush_errno = failure.errno
            raise failure from error
        finally:
            self._requests_in_flight -= 1
            self._close_when_idle()
        # Another flush may have taken the kernel's only report of an error (device.I2).
        self._require_writable("flush", 0, 0)

    def _begin_in_kernel(self) -> KernelFlush | None:
        """The flush that the kernel has begun; None: it is at another one, or takes none here (it
        has no such call, or too many are in use), and a thread will do."""
        if not self._flushes_in_kernel:
            return None
        try:
            kernel = self._kernel_flush
            if kernel is None:
                kernel = self._kernel_flush = KernelFlush(self._descriptor)
            if kernel.is_busy:
                return None
            kernel.begin()
        except OSError:
            self._flushes_in_kernel = False
            return None
        return kernel

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
        call = partial(discard_blocks if self._is_block_device else punch_hole, length)
        try:
            await self._in_thread("discard", offset, length, call)
        except DeviceError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._discards = False
        else:
            self.counts.discard_bytes += length

    def expect_extents(self, extent_bytes: int) -> None:
        """See Device.expect_extents."""
        self._writes_direct = self._direct is not None and extent_bytes % FOLIO_BYTES == 0

    def write_pointer(self, offset: int) -> int | None:
        """None: conventional."""
        assert 0 <= offset < self.size_bytes
        return None

    async def measure(self) -> int:
        """See Device.measure."""
        size_bytes = await self._in_thread("read", 0, 0, size_of)
        self.size_bytes = size_bytes - size_bytes % BLOCK_BYTES
        return self.size_bytes

    async def set_length(self, size_bytes: int) -> bool:
        """See Device.set_length."""
        self._require_writable("write", 0, 0)
        if self._is_block_device:
            await trio.lowlevel.checkpoint()
            return False
        await self._in_thread("write", size_bytes, 0, partial(set_length, size_bytes))
        self.size_bytes = size_bytes
        return True

    def close(self) -> None:
        """See Device.close. Requests in flight finish first, on their own threads (I2)."""
        if not self._closed:
            self._closed = True
            self._close_when_idle()

    def _close_when_idle(self) -> None:
        if self._closed and not self._requests_in_flight:
            if self._kernel_flush is not None:
                self._kernel_flush.close()
                self._kernel_flush = None
            if self._async_reads is not None:
                self._async_reads.close()
                self._async_reads = None
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors = ()

    async def _read_in_kernel(
        self, offset: int, length: int, memory: memoryview | None = None
    ) -> Buffer | None:
        """Bytes past the page cache, without a thread; None: that cannot be done."""
        if self._async_reads is None:
            return None
        self._requests_in_flight += 1
        try:
            return await self._async_reads.read(offset, length, memory)
        finally:
            self._requests_in_flight -= 1
            self._close_when_idle()

    async def _read_direct(self, direct: int, offset: int, length: int) -> memoryview | None:
        """The bytes, past the page cache; None: that cannot be done here."""
        memory = AlignedRead(offset, length, self._pages)
        if await self._read_in_kernel(memory.begin, len(memory.view), memory.view):
            return memory.wanted
        call = partial(read_all, memory.view)
        try:
            await self._in_thread(
                "read", offset, length, call, memory.begin - offset, descriptor=direct
            )
        except DeviceError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._stop_direct()
            return None
        return memory.wanted

    async def _write_direct(
        self, direct: int, offset: int, length: int, views: Sequence[memoryview]
    ) -> bool:
        """Write past the page cache; False: that cannot be done here, and has to be done again."""
        bounce = self._bounces.pop() if self._bounces else Bounce()
        call = partial(bounce.write, views)
        try:
            await self._in_thread("write", offset, length, call, descriptor=direct)
        except DeviceError as error:
            if error.errno not in UNSUPPORTED:
                raise
            self._stop_direct()
            return False
        if len(self._bounces) < BOUNCES_KEPT_MAX:
            self._bounces.append(bounce)
        return True

    def _stop_direct(self) -> None:
        """From now on everything goes through the page cache; the descriptor is closed later."""
        self._direct = None
        self._writes_direct = False

    async def _in_thread(
        self,
        operation: str,
        offset: int,
        length: int,
        call: Callable[[int, int], Result],
        shift: int = 0,
        *,
        descriptor: int | None = None,
    ) -> Result:
        """Runs call(descriptor, offset + shift) on a worker thread, to its end (device.I3).

        Args:
            descriptor: other than the device's own.
        """
        self._requests_in_flight += 1
        try:
            return await trio.to_thread.run_sync(
                call,
                self._descriptor if descriptor is None else descriptor,
                offset + shift,
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
            sector_bytes = sector_bytes or ioctl_number(descriptor, BLKSSZGET, "i")
            read_only = read_only or bool(ioctl_number(descriptor, BLKROGET, "i"))
        size_bytes = size_of(descriptor)
        if exclusive:
            # After a failed flush the page cache may hold, as clean, what never reached the medium:
            # an earlier process has seen the error, and nobody else would.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if sector_bytes is not None and sector_bytes not in SECTOR_BYTES_ALLOWED:
            raise UsageError(f"{name} has sectors of {sector_bytes} bytes; 512 or 4096 needed")
        direct = open_direct(descriptor, read_only=read_only) if is_block_device else None
        if direct is not None:
            descriptors.append(direct)
        return BlockDevice(
            name,
            descriptors,
            size_bytes=size_bytes - size_bytes % BLOCK_BYTES,
            sector_bytes=sector_bytes or SECTOR_BYTES_ALLOWED[0],
            read_only=read_only,
            is_block_device=is_block_device,
            direct=direct,
        )
    except BaseException:  # whatever ended it, nobody has the descriptors to close them
        for held in descriptors:
            os.close(held)
        raise


async def _on_thread(call: Callable[[], None]) -> None:
    """Run a call on a worker thread, to its end (device.I3)."""
    task = trio.lowlevel.current_task()
    token = trio.lowlevel.current_trio_token()

    def deliver(result: Any) -> None:
        token.run_sync_soon(trio.lowlevel.reschedule, task, result)

    trio.lowlevel.start_thread_soon(call, deliver)
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)


def _require_conventional(descriptor: int, name: str) -> None:
    number = os.fstat(descriptor).st_rdev
    model = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/zoned")
    if model.exists() and model.read_text().strip() == "host-managed":
        raise UsageError(f"{name} is a host-managed zoned device, which is not supported yet")


def _device_error(operation: str, offset: int, length: int, error: OSError) -> DeviceError:
    return DeviceError(operation, offset, length, error.errno or errno.EIO)
