"""What a device is to the engine: a protocol of a few calls.

Role: what the engine asks of a disk, and what a disk promises it. Everything above sees a flat
range of bytes that is written in whole blocks.

Invariants, of every device:
    I1  A call for a range beyond the device raises DeviceError and does nothing.
    I2  After a flush has failed nothing is written or flushed any more. The kernel drops the
        dirty pages of a failed fdatasync, so a later success would say nothing about them.
    I3  A write, flush, reset or discard that has begun runs to its end: cancelling the caller
        waits for it. The bytes in a write's buffers must not change until the call returns.

Ordering: none between calls in flight. A flush covers the writes completed before it began.

Not here: the raw disk or image file (block_device.py), the disk in memory for tests
(checking/simulated_device.py), when to write or flush (scheduler.py), whose bytes they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

Buffer = bytes | bytearray | memoryview


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


class Readable(Protocol):
    """What can only be read, as far as reading goes: a Device fits."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """See Device."""
        ...


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

    def write_at_once(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """What `write` does, if the device takes that without waiting.

        Returns:
            False: nothing was done, or it could not be done whole; `write` has to be called.
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

    def expect_extents(self, extent_bytes: int) -> None:
        """From now on writes that go on at the same time are to different extents, each of so many
        bytes and beginning at a multiple of them."""
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


class ForwardingDevice:
    """What a device that stands before another passes on unchanged.

    Args:
        device: the one behind it.
    """

    def __init__(self, device: Device) -> None:
        self._device = device

    @property
    def path(self) -> str:
        """See Device."""
        return self._device.path

    @property
    def size_bytes(self) -> int:
        """See Device."""
        return self._device.size_bytes

    @property
    def sector_bytes(self) -> int:
        """See Device."""
        return self._device.sector_bytes

    @property
    def read_only(self) -> bool:
        """See Device."""
        return self._device.read_only

    @property
    def counts(self) -> DeviceCounts:
        """See Device."""
        return self._device.counts

    def expect_extents(self, extent_bytes: int) -> None:
        """See Device."""
        self._device.expect_extents(extent_bytes)
