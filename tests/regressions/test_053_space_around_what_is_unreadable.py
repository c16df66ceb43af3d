"""Garbage that cannot be given back, beside data that cannot be read, was told as free.

An extent in which something cannot be read is not emptied. What else was in it, and deleted, went
on counting as free: df promised it, write(2) took data for it, and with more such extents than the
reserve makes good fsync answered ENOSPC. Found by an experiment: one bad sector in each of twelve
extents.
"""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.checking.faults import Fault
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError
from tests.engine.stores import formatted, opened

EXTENT = 256 * limits.KIB
EXTENTS = 48
STUCK = 12
CRUMB = b"c" * 4096
VALUE = b"v" * 65536


async def fill(store: Store) -> int:
    """Put and make durable until nothing more is taken; how many values were."""
    count = 0
    while True:
        try:
            await store.put(b"value %d" % count, VALUE)
        except NoSpaceError:
            return count
        await store.sync()
        count += 1


@pytest.mark.expected_warnings("can not be scanned", "that can not be moved")
async def test_it_is_not_promised_to_anybody() -> None:
    device = await formatted(EXTENT * EXTENTS // limits.MIB, extent_bytes=EXTENT)
    async with opened(device) as store:
        fresh = store.space().free_bytes
        extents: dict[int, Fault] = {}
        pairs = 0
        try:
            while True:
                await store.put(b"crumb %d" % pairs, CRUMB)
                await store.put(b"large %d" % pairs, VALUE * 3)
                await store.sync()
                pairs += 1
        except NoSpaceError:
            pass
        for number in range(pairs):
            shard = await store.get_shard(b"crumb %d" % number)
            assert isinstance(shard, Shard)
            locator = shard.pieces[0].locator
            if locator.extent not in extents and len(extents) < STUCK:
                start = store.identity.extent_offset(locator.extent) + locator.offset
                extents[locator.extent] = fault = Fault("read", start, start + 4096, times=None)
                device.faults.add(fault)
        assert len(extents) == STUCK
        for number in range(pairs + 1):
            await store.delete(b"large %d" % number)
        await store.sync()
        assert await fill(store) > 10
        assert store.space().free_bytes < len(VALUE) + EXTENT // 8, "promised, and not to be had"
        stuck = [extent.index for extent in store._extents.all if extent.is_stuck]
        assert len(stuck) >= STUCK - 1, "they were not found out"
        for number in range(pairs):
            await store.delete(b"crumb %d" % number)
        for number in range(pairs * 4):
            await store.delete(b"value %d" % number)
        await store.sync()
        while await store.reclaim():
            pass
        assert store._extents.space.stuck_bytes == 0
        assert store.space().free_bytes >= 0.98 * fresh
