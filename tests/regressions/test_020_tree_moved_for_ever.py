"""Reclamation moved the same part of the tree from extent to extent, for ever.

A segment that lies in two extents is moved as a whole. Where the room at the end of the open
extent was right, it lay in two again, no less garbage beside it than before: the extent that it
came from was freed, another one taken, and each step counted as progress. A nearly full device
was written to without end, and a writer that waited for space waited as long.
"""

from __future__ import annotations

import pytest

from shardfs import limits
from tests.engine.stores import formatted, opened

RECORDS = 7
STEPS_MAX = 8


@pytest.mark.parametrize("manifests_before", range(4, 10))
async def test_moving_the_tree_ends(manifests_before: int) -> None:
    device = await formatted(2, extent_bytes=64 * limits.KIB)
    async with opened(device) as store:
        for _ in range(manifests_before):  # so far into an extent does the segment begin
            batch = store.batch()
            batch.put(b"first", bytes(100))
            store.apply(batch)
            await store.checkpoint()
        batch = store.batch()
        for number in range(RECORDS):
            batch.put(b"record %d" % number, bytes(7200))
        store.apply(batch)
        await store.checkpoint()
        while await store._checkpointer.compact(garbage_share_max=0.0):
            pass
        steps = 0
        while await store.reclaim():
            steps += 1
            assert steps <= STEPS_MAX, "extents are freed and taken in turns"
        assert await store.reclaim() == 0, "and it stays so"
        assert store.health.reason == ""
