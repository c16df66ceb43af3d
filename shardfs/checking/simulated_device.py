"""A device in memory with a volatile write cache, zones, faults, and power cuts.

Role: stands in for a disk where a test must own its failures. It does exactly what
engine.device.Device says, and nothing more kind: whatever the protocol leaves open, it decides
by its seed.

Invariants:
    I1  Reads return the last completed write. A flush makes durable what had completed when it
        began; what was unflushed stays so until a flush that covers it has completed.
    I2  Strict zones: a write begins at the zone's write pointer and stays within the zone, and
        one operation at a time is in flight in a zone. Anything else is a SimulationError, and
        so is a pair of overlapping writes in flight on any device.
    I3  No threads, no clock, no global randomness: the same calls and seed give the same life.

Ordering: operations are numbered in the order submitted; they complete in any order when
checkpoints_max is above 1.

Not here: the fault model (faults), the rules of zones (zones), the states a power cut may leave
(power_cuts), workloads.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import trio
import xxhash

from shardfs.checking.faults import Effect, Fault, FaultPlan
from shardfs.checking.power_cuts import (
    PAGE_BYTES,
    ZEROS,
    Choice,
    Operation,
    PowerCutPoint,
    drop_bytes,
    store_bytes,
)
from shardfs.checking.schedule.driver import is_alone
from shardfs.checking.zones import (
    SimulationError,
    require_alone,
    require_at_pointer,
    require_written,
)
from shardfs.engine.device import Buffer, DeviceCounts
from shardfs.errors import DeviceError

__all__ = ["PowerCut", "SimulatedDevice", "SimulationError", "TraceEntry"]


class PowerCut(BaseException):
    """The power is gone (cut_at): ends the run, whatever handlers for Exception are around."""


Latency = int | Mapping[str, int]
"""Checkpoints that a call passes at most: of any kind, or by its kind."""


class TraceEntry(NamedTuple):
    """One submitted operation, without its data; `step` counts from 1, flushes included."""

    step: int
    kind: str
    offset: int
    length: int


class SimulatedDevice:
    """A Device in memory.

    Args:
        size_bytes: a multiple of 4096, and of zoned_bytes.
        sector_bytes: 512 or 4096: what a power cut leaves whole.
        zoned_bytes: size of each sequential-write zone; None makes a conventional device.
        seed: decides whatever the protocol leaves open.
        strict_reads: reading beyond a zone's write pointer is a SimulationError, else zeros.
        checkpoints_max: a call passes 1 to this many checkpoints, as the seed decides; or the
            same for each kind of call, 1 for those that are not named.
        observer: called with each operation just submitted, before anything else happens.
    """

    def __init__(
        self,
        size_bytes: int,
        sector_bytes: int = 512,
        zoned_bytes: int | None = None,
        seed: int = 0,
        *,
        strict_reads: bool = False,
        checkpoints_max: Latency = 1,
        read_only: bool = False,
        path: str = "simulated",
        observer: Callable[[Operation], None] | None = None,
    ) -> None:
        assert size_bytes % PAGE_BYTES == 0
        assert zoned_bytes is None or size_bytes % zoned_bytes == zoned_bytes % PAGE_BYTES == 0
        self.path = path
        self.size_bytes = self.medium_bytes = size_bytes
        self.is_image = False
        self.sector_bytes = sector_bytes
        self.zoned_bytes = zoned_bytes
        self.read_only = read_only
        self.counts = DeviceCounts()
        self.trace: list[TraceEntry] = []
        self.observer = observer
        self._seed = seed
        self._rng = random.Random(seed)
        self._strict_reads = strict_reads
        self._checkpoints_max = checkpoints_max
        self._pages: dict[int, bytes] = {}
        self._pointers: dict[int, int] = {}
        self._durable_pages: dict[int, bytes] = {}  # replaced by each flush, never changed
        self._durable_pointers: dict[int, int] = {}
        self._unflushed: list[Operation] = []
        self._in_flight: list[Operation] = []
        self.faults = FaultPlan(size_bytes, zoned=zoned_bytes is not None)
        self._flush_errno = 0
        self._cut_step: int | None = None
        self._steps_before = 0
        self._powered = True
        self._closed = False

    # --- the protocol ---------------------------------------------------------------------

    async def read(self, offset: int, length: int) -> bytes:
        """See Device.read."""
        self._begin("read", offset, length)
        self.counts.reads += 1
        self.counts.read_bytes += length
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._pause("read")
        fault = self.faults.strike("read", offset, length)
        if self._strict_reads and self.zoned_bytes:
            require_written(self.zoned_bytes, self._pointers, offset, length)
        content = self._content(self._pages, offset, length)
        return content if fault is None else self._flipped(content, offset, fault)

    async def write(self, offset: int, buffers: Sequence[Buffer]) -> None:
        """See Device.write."""
        data = b"".join(buffers)
        length = len(data)
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begin("write", offset, length)
        if offset % PAGE_BYTES or length % PAGE_BYTES:
            raise SimulationError(f"write of {length} bytes at byte {offset} is not in blocks")
        if self.zoned_bytes:
            require_at_pointer(self.zoned_bytes, self._pointers, offset, length)
        self.counts.writes += 1
        self.counts.write_bytes += length
        await self._change("write", offset, data)

    async def flush(self) -> None:
        """See Device.flush."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begin("flush", 0, 0)
        self.counts.flushes += 1
        in_flight = {each.step for each in self._in_flight}
        covered = {each.step for each in self._unflushed} - in_flight
        self._submit(Operation(self.step + 1, "flush", 0, 0, b""))
        try:
            await self._pause("flush")
            self.faults.strike("flush", 0, self.size_bytes)
            self._require_flushes("flush", 0, 0)
        except DeviceError as error:
            self._flush_errno = error.errno
            raise
        # What another flush has covered meanwhile is not among the unflushed any more.
        flushed = [each for each in self._unflushed if each.step in covered]
        if flushed:
            point = self._point(flushed)
            self._durable_pages, self._durable_pointers = point.after(point.everything())
            self._unflushed = [each for each in self._unflushed if each.step not in covered]

    async def reset(self, offset: int, length: int) -> None:
        """See Device.reset."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begin("reset", offset, length)
        self.counts.resets += 1
        if not self.zoned_bytes:
            await self._pause("reset")
            self.faults.strike("reset", offset, length)
            return
        if offset % self.zoned_bytes or length != self.zoned_bytes:
            raise SimulationError(f"reset of {length} bytes at byte {offset} is not one zone")
        await self._change("reset", offset, b"")

    async def discard(self, offset: int, length: int) -> None:
        """See Device.discard. The seed decides whether the bytes become zeros or stay."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begin("discard", offset, length)
        if offset % PAGE_BYTES or length % PAGE_BYTES:
            raise SimulationError(f"discard of {length} bytes at byte {offset} is not in blocks")
        self.counts.discards += 1
        self.counts.discard_bytes += length
        if self.zoned_bytes or self._rng.random() < 0.5:
            await self._pause("discard")
            self.faults.strike("discard", offset, length)
        else:
            await self._change("discard", offset, bytes(length))

    def write_pointer(self, offset: int) -> int | None:
        """See Device.write_pointer."""
        assert 0 <= offset < self.size_bytes
        if self.zoned_bytes is None:
            return None
        return self._pointers.get(offset // self.zoned_bytes, 0)

    async def measure(self) -> int:
        """See Device.measure. A test makes the device larger by `medium_bytes`."""
        await self._pause("measure")
        self.size_bytes = self.medium_bytes
        return self.size_bytes

    async def set_length(self, size_bytes: int) -> bool:
        """See Device.set_length. An image file if `is_image`; durable at once."""
        assert size_bytes % PAGE_BYTES == 0
        await self._pause("set_length")
        if not self.is_image:
            return False
        self.size_bytes = self.medium_bytes = size_bytes
        end = size_bytes // PAGE_BYTES
        self._pages = {at: page for at, page in self._pages.items() if at < end}
        self._durable_pages = {at: page for at, page in self._durable_pages.items() if at < end}
        self._unflushed = [each for each in self._unflushed if each.offset < size_bytes]
        return True

    def close(self) -> None:
        """See Device.close. The device keeps its content and its unflushed writes."""
        self._closed = True

    def reopen(self, choice: Choice | None = None) -> None:
        """Undoes close(): the same disk, opened by the next process.

        After a failed flush, or when it had vanished, it is found as after a power cut that
        `choice` survived (None: as the seed decides). Otherwise everything is still there.
        """
        self._closed = False
        if self._flush_errno or self.faults.gone or choice is not None:
            point = self.power_cut_point()
            if choice is None:
                choice = self._rng.choice(list(point.choices(8, self._rng)))
            self._pages, self._pointers = point.after(choice)
            self._durable_pages, self._durable_pointers = dict(self._pages), dict(self._pointers)
            self._unflushed = []
        self._flush_errno = 0
        self.faults.come_back()

    def reseed(self, seed: int, checkpoints_max: Latency = 1) -> None:
        """Decides anew what the protocol leaves open, for a copy that shall live differently."""
        self._seed = seed
        self._rng = random.Random(seed)
        self._checkpoints_max = checkpoints_max

    # --- power --------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Operations (writes, flushes, resets, discards) submitted so far."""
        return self._steps_before + len(self.trace)

    def power_cut_point(self) -> PowerCutPoint:
        """This moment, to be cut at later and as often as wanted. Cheap."""
        return self._point(self._unflushed)

    def power_cut(self, choice: Choice = ()) -> SimulatedDevice:
        """The device as found after a power cut now; this one goes on undisturbed."""
        return self.after_power_cut(self.power_cut_point(), choice)

    def after_power_cut(self, point: PowerCutPoint, choice: Choice = ()) -> SimulatedDevice:
        """The device as found after a power cut at an earlier moment of its life."""
        device = SimulatedDevice(
            point.size_bytes,
            self.sector_bytes,
            self.zoned_bytes,
            self._seed + 1,
            strict_reads=self._strict_reads,
            checkpoints_max=self._checkpoints_max,
            path=self.path,
        )
        device.is_image = self.is_image
        device._pages, device._pointers = point.after(choice)
        device._durable_pages = dict(device._pages)
        device._durable_pointers = dict(device._pointers)
        device.faults = self.faults.lasting()
        return device

    def after_kill(self, point: PowerCutPoint) -> SimulatedDevice:
        """The device as the next process finds it when one was killed at an earlier moment.

        The power stayed on: everything submitted is read back, and is as unflushed as before.
        """
        device = self.after_power_cut(point, point.everything())
        device._durable_pages, device._durable_pointers = dict(point.pages), dict(point.pointers)
        device._unflushed = list(point.unflushed)
        device._steps_before = point.step
        return device

    def cut_at(self, step: int) -> None:
        """Cuts the power when the operation with this number has been submitted.

        That call and all later ones raise PowerCut; power_cut() then tells what may be left.
        """
        self._cut_step = step

    # --- content and faults -------------------------------------------------------------------

    def image(self) -> bytes:
        """Everything, as a read would return it."""
        return self._content(self._pages, 0, self.size_bytes)

    def digest(self) -> int:
        """Of what a read of everything would return; the same in every process."""
        whole = xxhash.xxh3_64()
        for number in sorted(self._pages):
            whole.update(number.to_bytes(8, "little"))
            whole.update(self._pages[number])
        return whole.intdigest()

    @classmethod
    def from_image(cls, image: bytes, sector_bytes: int = 512, seed: int = 0) -> SimulatedDevice:
        """A conventional device that holds `image` durably."""
        device = cls(len(image), sector_bytes, None, seed)
        for number in range(len(image) // PAGE_BYTES):
            page = image[number * PAGE_BYTES : (number + 1) * PAGE_BYTES]
            if page != ZEROS:
                device._pages[number] = page
        device._durable_pages = dict(device._pages)
        return device

    def fail(
        self,
        kind: str,
        offset: int = 0,
        length: int | None = None,
        *,
        errno: int = errno.EIO,
        skip: int = 0,
        times: int | None = 1,
    ) -> None:
        """See FaultPlan.fail; `faults` plans whatever else may go wrong."""
        self.faults.fail(kind, offset, length, errno=errno, skip=skip, times=times)

    def rot(self, offset: int, length: int = 1) -> None:
        """Flips a bit in every byte of a range, on the medium and in what reads return."""
        for pages in (self._pages, durable := dict(self._durable_pages)):
            old = self._content(pages, offset, length)
            store_bytes(pages, offset, bytes(byte ^ 0x10 for byte in old))
        self._durable_pages = durable
        self.faults.struck["rot"] += 1

    # --- inside ---------------------------------------------------------------------------------

    def _begin(self, operation: str, offset: int, length: int) -> None:
        if not self._powered:
            raise PowerCut
        if self._closed:
            raise DeviceError(operation, offset, length, errno.EBADF)
        if offset < 0 or length < 0 or offset + length > self.size_bytes:
            raise DeviceError(operation, offset, length, errno.EINVAL)
        self.faults.admit(operation, offset, length)
        if operation != "read":
            if self.read_only:
                raise DeviceError(operation, offset, length, errno.EROFS)
            self._require_flushes(operation, offset, length)

    def _require_flushes(self, operation: str, offset: int, length: int) -> None:
        if self._flush_errno:
            raise DeviceError(operation, offset, length, self._flush_errno)

    def _submit(self, operation: Operation) -> None:
        self.trace.append(
            TraceEntry(operation.step, operation.kind, operation.offset, operation.length)
        )
        if operation.kind != "flush":
            self._unflushed.append(operation)
        if self.observer:
            self.observer(operation)
        if self._cut_step is not None and operation.step >= self._cut_step:
            self._powered = False
            raise PowerCut

    async def _pause(self, kind: str) -> None:
        latency = self._checkpoints_max
        most = latency if isinstance(latency, int) else latency.get(kind, 1)
        for _ in range(self._rng.randint(1, most) if most > 1 else 1):
            if is_alone():
                break
            await trio.lowlevel.cancel_shielded_checkpoint()  # device.I3
            if not self._powered:
                raise PowerCut

    async def _change(self, kind: str, offset: int, data: bytes) -> None:
        length = len(data) if kind != "reset" else self.zoned_bytes or 0
        operation = Operation(self.step + 1, kind, offset, length, data)
        require_alone(operation, self._in_flight, self.zoned_bytes)
        self._submit(operation)
        self._in_flight.append(operation)
        try:
            await self._pause(kind)
            fault = self.faults.strike(kind, offset, length)
        except DeviceError:
            self._leave_ruins(operation)
            raise
        finally:
            self._in_flight.remove(operation)
        if fault is not None:
            self._go_astray(operation, fault)
            return
        self._apply(operation)
        self.faults.rewritten(offset, length)

    def _apply(self, operation: Operation) -> None:
        if operation.kind == "reset":
            drop_bytes(self._pages, operation.offset, operation.length)
        else:
            store_bytes(self._pages, operation.offset, operation.data)
        if self.zoned_bytes and operation.kind != "discard":
            zone, within = divmod(operation.offset, self.zoned_bytes)
            self._pointers[zone] = 0 if operation.kind == "reset" else within + operation.length

    def _leave_ruins(self, operation: Operation) -> None:
        """What a failed write leaves: any of its sectors; in a zone, nothing."""
        index = self._unflushed.index(operation)
        if operation.kind != "write" or self.zoned_bytes:
            del self._unflushed[index]
            return
        torn = bytearray(self._content(self._pages, operation.offset, operation.length))
        for start in range(0, operation.length, self.sector_bytes):
            if self._rng.random() < 0.5:
                end = start + self.sector_bytes
                torn[start:end] = operation.data[start:end]
        self._unflushed[index] = replace(operation, data=bytes(torn))
        self._apply(self._unflushed[index])

    def _go_astray(self, operation: Operation, fault: Fault) -> None:
        """A write that succeeds, and does not leave its bytes at its place."""
        index = self._unflushed.index(operation)
        if fault.effect is Effect.MISDIRECTED:
            elsewhere = (operation.offset + fault.distance) % self.size_bytes
            elsewhere = min(elsewhere, self.size_bytes - operation.length)
            self._unflushed[index] = replace(operation, offset=elsewhere)
        elif self.zoned_bytes:
            # The drive has counted it: the pointer moves, and nothing is there.
            self._unflushed[index] = replace(operation, data=bytes(operation.length))
        else:
            del self._unflushed[index]
            return
        self._apply(self._unflushed[index])

    def _flipped(self, content: bytes, offset: int, fault: Fault) -> bytes:
        first = max(fault.start - offset, 0)
        last = min(fault.end - offset, len(content))
        flipped = bytearray(content)
        flipped[self._rng.randrange(first, last)] ^= 1 << self._rng.randrange(8)
        return bytes(flipped)

    def _point(self, unflushed: Sequence[Operation]) -> PowerCutPoint:
        return PowerCutPoint(
            self.step,
            self._durable_pages,
            self._durable_pointers,
            tuple(unflushed),
            PAGE_BYTES if self.zoned_bytes else self.sector_bytes,
            self.zoned_bytes,
            self.size_bytes,
        )

    @staticmethod
    def _content(pages: dict[int, bytes], offset: int, length: int) -> bytes:
        first, skip = divmod(offset, PAGE_BYTES)
        last = -(-(offset + length) // PAGE_BYTES)
        joined = b"".join(pages.get(number, ZEROS) for number in range(first, last))
        return joined[skip : skip + length]
