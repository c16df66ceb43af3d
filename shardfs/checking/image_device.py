"""A device that is an array of bytes: what is read and written is there at once.

Role: where thousands of damaged images are opened, checked and repaired and nothing of the device
itself is to be tested. A case then costs what shardfs does, and hardly what the device does.

Invariants:
    I1. Reads return the last write; every write is durable when it returns.
    I2. Nobody waits: no call but `measure` and those that say so passes a checkpoint.

Not here: caches, faults, power cuts, zones (simulated_device.py).
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

from shardfs.engine.device import Buffer, DeviceCounts
from shardfs.errors import DeviceError
from shardfs.limits import BLOCK_BYTES


class ImageDevice:
    """A Device in memory, of fixed size.

    Args:
        image: its content, which is changed by writes.
        sector_bytes: 512 or 4096.
    """

    def __init__(self, image: bytearray, sector_bytes: int = 512) -> None:
        self.image = image
        self.path = "image"
        self.size_bytes = len(image)
        self.sector_bytes = sector_bytes
        self.read_only = False
        self.counts = DeviceCounts()

    async def read(self, offset: int, length: int) -> bytes:
        """See Device.read."""
        self._require("read", offset, length)
        self.counts.reads += 1
        self.counts.read_bytes += length
        return bytes(memoryview(self.image)[offset : offset + length])

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See Device.write."""
        self.write_at_once(offset, buffers)

    def write_at_once(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """See Device.write_at_once."""
        data = b"".join(buffers)
        self._require("write", offset, len(data))
        assert offset % BLOCK_BYTES == len(data) % BLOCK_BYTES == 0
        self.counts.writes += 1
        self.counts.write_bytes += len(data)
        self.image[offset : offset + len(data)] = data
        return True

    async def flush(self) -> None:
        """See Device.flush."""
        self.counts.flushes += 1

    async def reset(self, offset: int, length: int) -> None:
        """See Device.reset."""
        self._require("reset", offset, length)
        self.counts.resets += 1

    async def discard(self, offset: int, length: int) -> None:
        """See Device.discard: the bytes stay."""
        self._require("discard", offset, length)
        self.counts.discards += 1

    def expect_extents(self, extent_bytes: int) -> None:
        """See Device.expect_extents."""

    def write_pointer(self, offset: int) -> int | None:
        """See Device.write_pointer: there are no zones."""
        return None

    async def measure(self) -> int:
        """See Device.measure: it stays as it is."""
        return self.size_bytes

    async def set_length(self, size_bytes: int) -> bool:
        """See Device.set_length: it is no image file."""
        return False

    def close(self) -> None:
        """See Device.close."""

    def _require(self, operation: str, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise DeviceError(operation, offset, length, errno.EINVAL)
