"""A shrink waited for ever for an extent that could not be reset.

Such an extent is not freed before the next opening. The shrink had emptied everything behind the
new end, and waited for somebody else to free what was left. Found by the world of stores, seed
2450 of its day.
"""

from __future__ import annotations

import errno

import pytest

from shardfs import limits
from shardfs.engine.shrinking import Shrinking
from shardfs.errors import DeviceBusyError, DeviceError
from tests.engine.stores import content, formatted, opened

EXTENT = 64 * limits.KIB
STEPS_MAX = 1000


async def test_a_shrink_ends_where_an_extent_stays_stuck() -> None:
    device = await formatted(4, extent_bytes=EXTENT, zoned=True)
    async with opened(device) as store:
        for number in range(40):
            await store.put(b"%d" % number, bytes(60_000))
        await store.sync()
        for number in range(1, 40):
            await store.delete(b"%d" % number)
        await store.sync()
        device.fail("reset", 26 * EXTENT, 38 * EXTENT, errno=errno.EIO)
        with pytest.raises(DeviceError):
            await store.reclaim_dead()
        shrinking = Shrinking(store, 24 * EXTENT)
        with pytest.raises(DeviceBusyError, match="mount again"):
            for _ in range(STEPS_MAX):
                await shrinking.step()
        shrinking.abandon()
        expected = await content(store)
    async with opened(device) as store:
        assert await content(store) == expected
        shrinking = Shrinking(store, 24 * EXTENT)
        while (await shrinking.step()).result is None:
            pass
        assert store.identity.extent_count == 24
        assert await content(store) == expected
