"""Records the life of a device into a file, while the device works as before.

Role: RecordingDevice stands before a device, does what it does, and writes each request and each
answer to a Recorder, whose file says what the device held at first. With marks put between them
the file tells what a power cut at any moment could have left (see recording.py).

Invariants:
    I1. A request is written down before the device sees it, an answer after the device gave it.
        So a flush that the recording shows after a write's answer did begin after that answer.
    I2. A write is recorded with the bytes that the device was given.
    I3. Trouble with the file ends the recording, with one error in the log, and nothing else:
        the device goes on, and the file holds a whole recording up to there.

Ordering: the device is flushed, then copied, then used: what is copied is durable.

The file is written on the trio thread, so that its order is the order of events. This costs time
in every write; recordings are for finding mistakes.

Not here: who decides to record (cli/mount.py), reading (recording.py), zoned devices.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.device import Buffer, Device, ForwardingDevice
from shardfs.engine.recording import (
    Answer,
    Beginning,
    Content,
    Header,
    Mark,
    Record,
    Request,
    RequestKind,
    encode_header,
    encode_record,
)
from shardfs.errors import UsageError

_log = logging.getLogger(__name__)

DEVICE_BYTES_MAX: Final = 64 * limits.GIB
"""Recording starts with reading all of the device: larger ones are refused."""
_READ_BYTES: Final = 1 * limits.MIB
_BUFFERS_PER_CALL_MAX: Final = 512


class Recorder:
    """A recording that is being written. Made by `create`.

    Args:
        descriptor: of an empty file, written at its end; closed by `close`.
    """

    def __init__(self, path: str, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor
        self._count = 0
        self._has_failed = False

    @classmethod
    def create(cls, path: str) -> Recorder:
        """A recording in a new file, which only this user may read.

        Raises:
            UsageError: the file exists, or cannot be made.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            return cls(path, os.open(path, flags, 0o600))
        except FileExistsError as error:
            raise UsageError(
                f"{path} exists already, and a recording overwrites nothing; name a new file"
            ) from error
        except OSError as error:
            raise UsageError(f"cannot make the recording {path}: {error.strerror}") from error

    def begin(self, header: Header) -> None:
        """Write what comes first."""
        self._write([encode_header(header)])

    def add(self, record: Record) -> None:
        """Append a record. It never fails (I3)."""
        if not self._has_failed:
            self._write(encode_record(self._count, record))
            self._count += 1

    def mark(self, payload: bytes) -> None:
        """Append a mark."""
        self.add(Mark(payload))

    def close(self) -> None:
        """End the recording. May be called again."""
        self._has_failed = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def remove(self) -> None:
        """End the recording and delete its file: there was nothing to record."""
        self.close()
        os.unlink(self.path)

    def _write(self, buffers: Sequence[Buffer]) -> None:
        pending = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        try:
            while pending:
                count = os.writev(self._descriptor, pending[:_BUFFERS_PER_CALL_MAX])
                while pending and count >= len(pending[0]):
                    count -= len(pending.pop(0))
                if count:
                    pending[0] = pending[0][count:]
        except OSError as error:
            self._has_failed = True
            _log.error("the recording %s ends here: %s", self.path, error.strerror)


class RecordingDevice(ForwardingDevice):
    """A device and its recording. Made by `start`; see Device for what the methods do."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self.recorder = recorder
        super().__init__(device)
        self._step = 0

    @classmethod
    async def start(cls, device: Device, recorder: Recorder) -> RecordingDevice:
        """Write down what the device holds; from here on it is used through the result only.

        Raises:
            UsageError: the device is too large or takes no writes.
            DeviceError: it cannot be read or flushed.
        """
        if device.read_only:
            raise UsageError(f"{device.path} takes no writes, so there is nothing to record")
        if device.size_bytes > DEVICE_BYTES_MAX:
            raise UsageError(
                f"{device.path} has {device.size_bytes} bytes; a recording starts with reading "
                f"all of them, and at most {DEVICE_BYTES_MAX} are allowed"
            )
        assert device.write_pointer(0) is None, "zoned devices are not recorded"
        await device.flush()
        recorder.begin(Header(device.size_bytes, device.sector_bytes))
        for start in range(0, device.size_bytes, _READ_BYTES):
            data = await device.read(start, min(_READ_BYTES, device.size_bytes - start))
            for first, end in _used_ranges(bytes(data)):
                recorder.add(Content(start + first, memoryview(data)[first:end]))
        recorder.add(Beginning())
        return cls(device, recorder)

    async def read(self, offset: int, length: int) -> bytes | memoryview:
        """See Device.read."""
        return await self._device.read(offset, length)

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See Device.write."""
        length = sum(memoryview(buffer).nbytes for buffer in buffers)
        call = partial(self._device.write, offset, buffers)
        await self._recorded(RequestKind.WRITE, offset, length, buffers, call)

    def write_at_once(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """See Device.write_at_once: what is recorded goes through `write`."""
        return False

    async def flush(self) -> None:
        """See Device.flush."""
        await self._recorded(RequestKind.FLUSH, 0, 0, (), self._device.flush)

    async def reset(self, offset: int, length: int) -> None:
        """See Device.reset."""
        call = partial(self._device.reset, offset, length)
        await self._recorded(RequestKind.RESET, offset, length, (), call)

    async def discard(self, offset: int, length: int) -> None:
        """See Device.discard."""
        call = partial(self._device.discard, offset, length)
        await self._recorded(RequestKind.DISCARD, offset, length, (), call)

    def write_pointer(self, offset: int) -> int | None:
        """See Device.write_pointer."""
        return self._device.write_pointer(offset)

    async def measure(self) -> int:
        """The size that the recording began with: it tells of no other."""
        await trio.lowlevel.checkpoint()
        return self.size_bytes

    async def set_length(self, size_bytes: int) -> bool:
        """False: a device that is recorded keeps its length."""
        del size_bytes
        await trio.lowlevel.checkpoint()
        return False

    def close(self) -> None:
        """See Device.close. The recording ends, too."""
        self._device.close()
        self.recorder.close()

    async def _recorded(
        self,
        kind: RequestKind,
        offset: int,
        length: int,
        buffers: Sequence[Buffer],
        call: Callable[[], Awaitable[None]],
    ) -> None:
        """Write a request down, have it done, write the answer down (I1).

        Shielded: a request that was written down is given to the device, and answered.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        self._step += 1
        step = self._step
        self.recorder.add(Request(step, kind, offset, length, buffers))
        is_done = False
        try:
            with trio.CancelScope(shield=True):
                await call()
            is_done = True
        finally:
            self.recorder.add(Answer(step, is_done))


def _used_ranges(data: bytes) -> list[tuple[int, int]]:
    """The ranges [first, end) of blocks that are not all zeros."""
    if data.count(0) == len(data):
        return []
    zeros = bytes(limits.BLOCK_BYTES)
    ranges: list[tuple[int, int]] = []
    for first in range(0, len(data), limits.BLOCK_BYTES):
        end = first + limits.BLOCK_BYTES
        if data[first:end] != zeros:
            if ranges and ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], end)
            else:
                ranges.append((first, end))
    return ranges
