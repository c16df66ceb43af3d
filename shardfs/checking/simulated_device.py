"""A device in memory with a volatile write cache, zones, faults, and power cuts.

Role: stands in for a disk where a test must own its failures. It does exactly what
engine.device.Device says, and nothing more kind: whatever the protocol leaves open, it decides
by its seed. What it holds is its `medium`.

Invariants:
    I1  Reads return the last completed write. A flush makes durable what had completed when it
        began; what was unflushed stays so until a flush that covers it has completed.
    I2  Strict zones: a write begins at the zone's write pointer and stays within the zone, and
        one operation at a time is in flight in a zone. Anything else is a SimulationError, and
        so is a pair of overlapping writes in flight on any device.
    I3  No threads, no clock, no global randomness: the same calls and seed give the same life.

Ordering: operations are numbered in the order submitted; they complete in any order when
checkpoints_max is above 1.

Not here: the content (simulated_medium), the fault model (faults), the rules of zones (zones), the
states a power cut may leave (power_cuts), workloads.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import trio

from shardfs.checking.faults import Fault, FaultPlan
from shardfs.checking.power_cuts import (
    PAGE_BYTES,
    Choice,
    Operation,
    PowerCutPoint,
)
from shardfs.checking.schedule.driver import is_alone
from shardfs.checking.simulated_medium import SimulatedMedium
from shardfs.checking.zones import (
    SimulationError,
    require_alone,
    require_at_pointer,
    require_written,
)
from shardfs.engine.device import Buffer, DeviceCounts
from shardfs.errors import DeviceError

__all__ = ["PowerCut", "SimulatedDevice", "SimulationError", "TraceEntry"]


_AT_ONCE_BYTES_MAX: Final = 64 * 1024
_AT_ONCE_SEEDS: Final = 4
"""`reseed` with one seed in so many makes a device that takes short writes at once."""


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
        self.medium_bytes = size_bytes
        self.medium = SimulatedMedium(size_bytes, sector_bytes, zoned_bytes)
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
        self._in_flight: list[Operation] = []
        self.faults = FaultPlan(size_bytes, zoned=zoned_bytes is not None)
        self.takes_at_once = False
        """Short writes need not wait; see write_at_once."""
        self._flush_errno = 0
        self._cut_step: int | None = None
        self._steps_before = 0
        self._powered = True
        self._closed = False

    @property
    def size_bytes(self) -> int:
        """See Device.size_bytes."""
        return self.medium.size_bytes

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
            require_written(self.zoned_bytes, self.medium.pointers, offset, length)
        content = self.medium.read(offset, length)
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
            require_at_pointer(self.zoned_bytes, self.medium.pointers, offset, length)
        self.counts.writes += 1
        self.counts.write_bytes += length
        await self._change("write", offset, data)

    def write_at_once(self, offset: int, buffers: Sequence[Buffer]) -> bool:
        """See Device.write_at_once: short writes, if `takes_at_once` and nothing shall go wrong."""
        data = b"".join(buffers)
        if not self.takes_at_once or len(data) > _AT_ONCE_BYTES_MAX or self.faults.are_planned:
            return False
        self._begin("write", offset, len(data))
        if self.zoned_bytes:
            require_at_pointer(self.zoned_bytes, self.medium.pointers, offset, len(data))
        operation = Operation(self.step + 1, "write", offset, len(data), data)
        require_alone(operation, self._in_flight, self.zoned_bytes)
        self.counts.writes += 1
        self.counts.write_bytes += len(data)
        self._submit(operation)
        self.medium.apply(operation)
        return True

    async def flush(self) -> None:
        """See Device.flush."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._begin("flush", 0, 0)
        self.counts.flushes += 1
        in_flight = {each.step for each in self._in_flight}
        covered = {each.step for each in self.medium.unflushed} - in_flight
        self._submit(Operation(self.step + 1, "flush", 0, 0, b""))
        try:
            await self._pause("flush")
            self.faults.strike("flush", 0, self.size_bytes)
            self._require_flushes("flush", 0, 0)
        except DeviceError as error:
            self._flush_errno = error.errno
            raise
        self.medium.flushed(covered)

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

    def expect_extents(self, extent_bytes: int) -> None:
        """See Device.expect_extents; one write at a time in an extent is checked elsewhere."""

    def write_pointer(self, offset: int) -> int | None:
        """See Device.write_pointer."""
        assert 0 <= offset < self.size_bytes
        if self.zoned_bytes is None:
            return None
        return self.medium.pointers.get(offset // self.zoned_bytes, 0)

    async def measure(self) -> int:
        """See Device.measure. A test makes the device larger by `medium_bytes`."""
        await self._pause("measure")
        self.medium.size_bytes = self.medium_bytes
        return self.size_bytes

    async def set_length(self, size_bytes: int) -> bool:
        """See Device.set_length. An image file if `is_image`; durable at once."""
        assert size_bytes % PAGE_BYTES == 0
        await self._pause("set_length")
        if not self.is_image:
            return False
        self.medium_bytes = size_bytes
        self.medium.set_length(size_bytes)
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
            self.medium.become(point, choice)
        self._flush_errno = 0
        self.faults.come_back()

    def reseed(self, seed: int, checkpoints_max: Latency = 1) -> None:
        """Decides anew what the protocol leaves open, for a copy that shall live differently."""
        self._seed = seed
        self._rng = random.Random(seed)
        self._checkpoints_max = checkpoints_max
        self.takes_at_once = seed % _AT_ONCE_SEEDS == _AT_ONCE_SEEDS - 1

    # --- power --------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Operations (writes, flushes, resets, discards) submitted so far."""
        return self._steps_before + len(self.trace)

    def power_cut_point(self) -> PowerCutPoint:
        """This moment, to be cut at later and as often as wanted. Cheap."""
        return self.medium.point(self.step)

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
        device.takes_at_once = self.takes_at_once
        device.medium.become(point, choice)
        device.faults = self.faults.lasting()
        return device

    def after_kill(self, point: PowerCutPoint) -> SimulatedDevice:
        """The device as the next process finds it when one was killed at an earlier moment.

        The power stayed on: everything submitted is read back, and is as unflushed as before.
        """
        device = self.after_power_cut(point, point.everything())
        device.medium.unsettle(point)
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
        return self.medium.read(0, self.size_bytes)

    def digest(self) -> int:
        """Of what a read of everything would return; the same in every process."""
        return self.medium.digest()

    @classmethod
    def from_image(cls, image: bytes, sector_bytes: int = 512, seed: int = 0) -> SimulatedDevice:
        """A conventional device that holds `image` durably."""
        device = cls(len(image), sector_bytes, None, seed)
        device.medium.load(image)
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
        self.medium.rot(offset, length)
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
            self.medium.unflushed.append(operation)
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
            self.medium.leave_ruins(operation, self._rng)
            raise
        finally:
            self._in_flight.remove(operation)
        if fault is not None:
            self.medium.go_astray(operation, fault)
            return
        self.medium.apply(operation)
        self.faults.rewritten(offset, length)

    def _flipped(self, content: bytes, offset: int, fault: Fault) -> bytes:
        first = max(fault.start - offset, 0)
        last = min(fault.end - offset, len(content))
        flipped = bytearray(content)
        flipped[self._rng.randrange(first, last)] ^= 1 << self._rng.randrange(8)
        return bytes(flipped)
