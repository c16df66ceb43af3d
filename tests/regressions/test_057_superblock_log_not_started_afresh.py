"""After a superblock log could not be started afresh live data counted as garbage.

A checkpoint makes its manifest the root, and then writes a record that says so. When that record
began a new log, and the device failed to reset the old one, the checkpoint was given up: what the
root named counted as garbage, and could have been overwritten. Found by the world of stores, seed
20261129, on a zoned device.
"""

from __future__ import annotations

import errno

import pytest

from shardfs import limits
from shardfs.engine.fsck import check_store
from shardfs.engine.health import HealthState
from shardfs.errors import DeviceError
from tests.engine.stores import content, formatted, opened

EXTENT = 64 * limits.KIB
CHECKPOINTS_MAX = 2000


@pytest.mark.expected_warnings("read-only", "closing without a clean record")
async def test_the_store_takes_no_more_changes_and_the_next_open_has_all_that_was_durable() -> None:
    device = await formatted(4, extent_bytes=EXTENT, zoned=True)
    async with opened(device) as store:
        device.fail("reset", 0, EXTENT, errno=errno.EIO)
        kept = 0
        with pytest.raises(DeviceError):
            for kept in range(CHECKPOINTS_MAX):
                await store.put(b"key %d" % (kept % 20), b"%d" % kept)
                await store.sync()
                await store.checkpoint()
        assert kept < CHECKPOINTS_MAX - 1
        assert store.health.state is HealthState.READ_ONLY
    async with opened(device) as store:
        found = await content(store)
        assert found[b"key %d" % (kept % 20)] == b"%d" % kept
        assert (await check_store(store, data=True)).is_clean
