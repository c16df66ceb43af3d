"""An extent kept its place for good because a shard in it was overwritten while it was emptied.

What a shard has in an extent is moved a batch of pieces at a time. When it was overwritten between
reading and moving it was looked at again, and then had more pieces than one batch takes: the rest
stayed, and the extent was not chosen again before the next open. Overwriting parts of large chunks
on a nearly full device met it every few thousand writes (scripts/bench_overwriting.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from shardfs import limits
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.extent import Extent
from shardfs.engine.pieces import splice
from shardfs.engine.store import Store
from tests.engine.stores import formatted, opened

KEY = b"key"
LENGTH = 60 * limits.KIB
PARTS = 40


async def overwrite_parts(store: Store) -> None:
    """Short parts of the shard, so far apart that each leaves a piece in front of it."""
    base = await store.get_shard(KEY)
    assert base is not None
    pieces = base.pieces
    for number in range(PARTS):
        start = number * LENGTH // PARTS + 500
        for piece in store.append_pieces(KEY, start, (b"new",)):
            pieces = splice(pieces, piece.start, piece.locator, piece.length)
    batch = store.batch()
    batch.put_shard(KEY, pieces, base)
    store.apply(batch)


async def test_a_shard_that_falls_into_pieces_while_it_is_moved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_place = Evacuator._place
    device = await formatted(8, extent_bytes=256 * limits.KIB)
    async with opened(device) as store:
        await store.put(KEY, b"old" * (LENGTH // 3))
        for number in range(8):
            await store.put(b"other %d" % number, bytes(LENGTH))
        await store.sync()
        shard = await store.get_shard(KEY)
        assert shard is not None
        extent = store._extents.all[shard.pieces[0].locator.extent]
        is_first = True

        async def place(self: Evacuator, where: Extent, moves: Sequence[Any]) -> int:
            nonlocal is_first
            if is_first:
                is_first = False
                await overwrite_parts(store)
            return await real_place(self, where, moves)

        monkeypatch.setattr(Evacuator, "_place", place)
        await store._evacuator.evacuate(extent)
        assert not extent.live_bytes
        assert not extent.is_stuck
        content = await store.get(KEY)
        assert content is not None and content.count(b"new") == PARTS
