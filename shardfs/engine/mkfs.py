"""Makes an empty store on a device.

Role: decides the geometry and writes the first superblock records.

Invariants:
    I1. The geometry satisfies every relation in limits.py, or nothing is written.
    I2. Signatures of earlier owners at both ends of the device are erased first.

Ordering: erase old superblocks -> flush -> erase edges -> flush -> first copy -> flush -> second
copy -> flush. A power cut before the first flush may leave the earlier store, whole; one after it
leaves no store; one after the first copy leaves the new one.

Not here: asking whether the device may be overwritten (probe.py, cli/mkfs.py).
"""

from __future__ import annotations

import itertools
import uuid

import trio

from shardfs import clock, limits
from shardfs.engine.device import Device
from shardfs.engine.health import Health
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock import Superblock
from shardfs.engine.superblock_record import ExtentEntry, Identity, Root, extent_count_max
from shardfs.errors import DeviceError, DeviceTooSmallError, LimitError

_ERASED_BYTES = 1 * limits.MIB


def plan(
    device_bytes: int,
    sector_bytes: int,
    *,
    label: str = "",
    extent_bytes: int | None = None,
    store_uuid: uuid.UUID | None = None,
) -> Identity:
    """The geometry for a device of this size.

    Args:
        device_bytes: size of the device.
        sector_bytes: its logical sector.
        label: up to limits.LABEL_BYTES_MAX bytes of UTF-8.
        extent_bytes: a power of two; chosen from the size when None.
        store_uuid: a fresh one when None.

    Raises:
        DeviceTooSmallError: fewer than limits.EXTENT_COUNT_MIN extents would fit.
        LimitError: the label or the extent size is out of bounds.
    """
    if len(label.encode()) > limits.LABEL_BYTES_MAX or "\0" in label:
        raise LimitError(f"a label has at most {limits.LABEL_BYTES_MAX} bytes and no NUL")
    if extent_bytes is None:
        extent_bytes = _choose_extent_bytes(device_bytes)
    if (
        extent_bytes & (extent_bytes - 1)
        or not limits.EXTENT_BYTES_MIN <= extent_bytes <= limits.EXTENT_BYTES_MAX
    ):
        raise LimitError(
            f"an extent has {limits.EXTENT_BYTES_MIN} to {limits.EXTENT_BYTES_MAX} bytes, "
            "a power of two"
        )
    extent_count = device_bytes // extent_bytes
    if extent_count < limits.EXTENT_COUNT_MIN:
        least = limits.EXTENT_COUNT_MIN * extent_bytes
        raise DeviceTooSmallError(
            f"the device has {device_bytes} bytes; with extents of {extent_bytes} bytes it "
            f"needs at least {least}"
        )
    chunk_bytes_max = min(limits.CHUNK_BYTES_MAX, extent_bytes // limits.CHUNKS_PER_EXTENT_MIN)
    most = extent_count_max(extent_bytes, chunk_bytes_max)
    if extent_count > most:
        raise LimitError(
            f"{extent_count} extents of {extent_bytes} bytes are too many: {most} are allowed"
        )
    return Identity(
        store_uuid or uuid.uuid4(),
        label,
        device_bytes,
        sector_bytes,
        extent_bytes,
        extent_count,
        chunk_bytes_max,
        clock.now_ns(),
    )


def _choose_extent_bytes(device_bytes: int) -> int:
    size = limits.EXTENT_BYTES_DEFAULT_MIN
    while (
        size < limits.EXTENT_BYTES_DEFAULT_MAX and size * limits.EXTENT_COUNT_TARGET < device_bytes
    ):
        size *= 2
    while device_bytes // size > limits.EXTENT_COUNT_MAX and size < limits.EXTENT_BYTES_MAX:
        size *= 2
    return size


async def format_device(device: Device, identity: Identity) -> None:
    """Write an empty store; whatever was on the device is lost.

    Args:
        device: open for writing.
        identity: from `plan` for this device.

    Durable when: returned.

    Raises:
        DeviceError: the device could not be written.
    """
    await _erase_signatures(device, identity)
    failure: DeviceError | None = None
    async with trio.open_nursery() as nursery:
        health = Health()
        scheduler = Scheduler(device, health, nursery)
        superblock = Superblock(identity, scheduler, device, 0, 0, itertools.count())
        try:
            await superblock.start_logs(Root(), _first_entries(identity), 0)
        except DeviceError as error:
            failure = error
    if failure is not None:
        raise failure  # out here, where no nursery wraps it into a group
    await device.flush()


def _first_entries(identity: Identity) -> list[ExtentEntry]:
    states = itertools.chain(
        itertools.repeat(ExtentState.SUPERBLOCK, limits.SUPERBLOCK_EXTENTS),
        itertools.repeat(ExtentState.FREE),
    )
    return [
        ExtentEntry(extent, state, Stream.NONE, 1, 0, 0)
        for extent, state in zip(range(identity.extent_count), states, strict=False)
    ]


async def _erase_signatures(device: Device, identity: Identity) -> None:
    if device.write_pointer(0) is not None:
        for extent in range(identity.extent_count):
            if device.write_pointer(identity.extent_offset(extent)):
                await device.reset(identity.extent_offset(extent), identity.extent_bytes)
        return
    # First the superblock copies of an earlier store, whatever size its extents had: while one of
    # them stands, that store must be whole.
    block = bytes(limits.BLOCK_BYTES)
    places = [0]
    size = limits.EXTENT_BYTES_MIN
    while size <= limits.EXTENT_BYTES_MAX and size + len(block) <= device.size_bytes:
        places.append(size)
        size *= 2
    for place in places:
        await device.write(place, (block,))
    await device.flush()
    zeros = bytes(_ERASED_BYTES)
    tail = device.size_bytes // limits.BLOCK_BYTES * limits.BLOCK_BYTES - _ERASED_BYTES
    for place in (0, max(0, tail)):
        await device.write(place, (zeros,))
    await device.flush()
