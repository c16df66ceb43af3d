"""One failed read while an extent was emptied, and a writer was told that the device is full.

The extent keeps what could not be read, and the step of reclamation ended with it: nothing had been
freed, though others were mostly garbage. Found by the world of stores, sequence 729 of seed 6101 of
its day.
"""

from __future__ import annotations

import pytest

from shardfs import limits
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
EXTENT_BYTES = 64 * KIB
VALUE_BYTES = 6 * KIB


@pytest.mark.expected_warnings("stays where it is", "can not be moved", "can not be scanned")
@pytest.mark.parametrize("skip", range(4))
async def test_the_next_extent_is_emptied_instead(skip: int) -> None:
    device = await formatted(4, extent_bytes=EXTENT_BYTES)
    async with opened(device) as store:
        for number in range(60):
            await store.put(b"%d" % number, bytes([number]) * VALUE_BYTES)
        for number in range(60):
            if number % 3:
                await store.delete(b"%d" % number)
        await store.sync()
        await store.reclaim_dead()
        expected = await content(store)
        assert len(store._evacuator.candidates()) > 1
        device.fail("read", skip=skip)
        assert await store.reclaim() >= 1
        assert await content(store) == expected
