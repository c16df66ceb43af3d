"""Makes an open store larger, and discards what is free.

Role: `grow` adds extents where the device has become larger; `trim` tells the device of all that is
free. The size of an extent stays. Both work while the store is in use.

Invariants:
    I1. On the device the store has the old size or the new one: whole superblock logs begin with
        a snapshot, and say one size only; the copies change one after the other.
    I2. Extents that are added have an epoch that no extent has had: what lies there from an
        earlier life is of an epoch that means nothing.

Ordering, to grow: [image file longer, durably] -> first superblock copy, new size -> flush ->
second copy -> flush -> the new extents may be written. A power cut in between leaves the old
size, on a device that is larger than its store, or the new one.

Not here: making a store smaller (shrinking.py), the commands (cli/).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import trio

from shardfs import limits
from shardfs.engine.extent import Extent
from shardfs.engine.reserve import reserve_extents
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import Identity, extent_count_max
from shardfs.errors import DeviceBusyError, LimitError, UsageError

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resized:
    """The size of a store before and after, in bytes; and what user data may take now."""

    before_bytes: int
    device_bytes: int
    extent_bytes: int
    extent_count: int
    free_bytes: int


async def grow(store: Store, size_bytes: int | None = None) -> Resized:
    """Use more of the device.

    Args:
        store: open for writing.
        size_bytes: the new size. An image file is made that long first; None takes the size
            that the device has.

    Durable when: returned.

    Raises:
        UsageError: the device is not that large, or nothing would be gained.
        LimitError: there would be too many extents.
        DeviceBusyError: the store is being made smaller.
        DeviceError, ReadOnlyError: it failed; the store has the old size or the new one.
    """
    require_resizable(store)
    device, before = store._parts.device, store.identity
    available = await device.measure()
    wanted = available if size_bytes is None else size_bytes
    wanted -= wanted % limits.BLOCK_BYTES
    identity = _larger(before, wanted, available)
    if wanted > available and not await device.set_length(wanted):
        raise UsageError(
            f"{device.path} has {available} bytes, {wanted} are wanted; enlarge the device first"
        )
    # Nothing was changed at that await but the device: another grow may have come first.
    require_resizable(store)
    if store.identity != before:
        raise DeviceBusyError(f"{device.path} is being resized already")
    with trio.CancelScope(shield=True):
        new: list[Extent] = []

        def change() -> Identity:
            new.extend(store._extents.lengthen(identity.extent_count))
            return identity

        try:
            await store._committer.change_identity(change)
            for extent in new:
                await _take_over(store, extent)
        finally:
            # Also where the device has failed: what the store says of its size is one size.
            set_bounds(store)
    _log.info("grown from %d to %d extents", before.extent_count, identity.extent_count)
    return resized(store, before)


def _larger(before: Identity, wanted: int, available: int) -> Identity:
    """The identity of a store that has grown to `wanted` bytes."""
    extent_bytes = before.extent_bytes
    count = wanted // extent_bytes
    most = extent_count_max(extent_bytes, before.chunk_bytes_max)
    if wanted < before.device_bytes:
        raise UsageError(
            f"the store has {before.device_bytes} bytes, more than {wanted}; to make it smaller "
            "use: shardfs shrink"
        )
    if count > most:
        raise LimitError(
            f"with extents of {extent_bytes} bytes a store has {most} at most: "
            f"{most * extent_bytes} bytes can be used, {wanted} are too many; "
            f"use --size {most * extent_bytes}"
        )
    if count <= before.extent_count:
        raise UsageError(
            f"nothing to gain: {available} bytes are there, the store uses "
            f"{before.extent_count * extent_bytes}, and a further extent takes {extent_bytes}"
        )
    return replace(before, device_bytes=wanted, extent_count=count)


async def _take_over(store: Store, extent: Extent) -> None:
    """Make a new extent available; a zone may have been written to by somebody else."""
    device, offset = store._parts.device, store.identity.extent_offset(extent.index)
    if device.write_pointer(offset):
        await device.reset(offset, store.identity.extent_bytes)
    store._extents.free.append(extent)


async def trim(store: Store) -> int:
    """Tell the device of everything that is free; the bytes that it has taken.

    What is free but not yet persistently so stays as it is: extents are discarded that could be
    written to, each while nobody else gets it.

    Raises:
        UsageError: the device takes no discards.
        DeviceError, ReadOnlyError: some may have been discarded.
    """
    store.health.require_writable()
    await store.sync()
    await store.reclaim_dead()
    device, extents = store._parts.device, store._extents
    taken = 0
    for _ in range(extents.free_count):
        if not extents.free_count:
            break
        with extents.free.lent() as extent:
            before = device.counts.discard_bytes
            offset = extents.identity.extent_offset(extent.index)
            await device.discard(offset, extents.extent_bytes)
        if device.counts.discard_bytes == before:
            raise UsageError(f"{device.path} takes no discards")
        taken += extents.extent_bytes
    return taken


def require_resizable(store: Store) -> None:
    """Raises:
    DeviceBusyError: the store is being made smaller.
    StoreClosedError, ReadOnlyError: it takes no changes.
    """
    store._applier.require_open()
    if store._extents.free.are_withheld:
        raise DeviceBusyError(f"{store._parts.device.path} is being made smaller already")


def set_bounds(store: Store, extent_count: int | None = None) -> None:
    """What depends on the number of extents that may be used: by default, all there are."""
    extents = store._extents
    count = len(extents.all) if extent_count is None else extent_count
    extents.reserve = reserve_extents(count)
    extents.space.resize(count, extents.reserve)
    store._committer.fit_reserve()


def resized(store: Store, before: Identity) -> Resized:
    """What a store has become that was `before`."""
    now = store.identity
    free = max(0, store._extents.space.user_bytes() - store._applier.reserved_bytes)
    return Resized(before.device_bytes, now.device_bytes, now.extent_bytes, now.extent_count, free)
