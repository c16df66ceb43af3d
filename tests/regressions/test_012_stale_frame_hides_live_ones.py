"""Emptying an extent passed over live chunks that lie where a chunk of an earlier life began.

A crash may lose a write that nothing refers to and keep the ones behind it. At its place stand the
bytes of the extent's former life then, a whole frame perhaps, which may have been longer than what
was lost. The scan went on behind that frame's end, and took the chunks below it for gone: they
stayed where they were, and so did their extent, for good.
"""

from __future__ import annotations

from shardfs import limits
from shardfs.checking.power_cuts import store_bytes
from shardfs.engine.framing import digests_of, encode_head
from shardfs.engine.layout import Kind
from tests.engine.stores import content, formatted, opened

EXTENT = 64 * limits.KIB
VALUE_BYTES = 4000


async def test_chunks_below_a_stale_frame_are_moved() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        for number in range(30):
            await store.put(b"key %02d" % number, bytes([number]) * VALUE_BYTES)
        first = await store.get_shard(b"key 00")
        assert first is not None
        lost = first.pieces[0].locator
        for number in range(0, 30, 3):
            await store.delete(b"key %02d" % number)
        await store.sync()
        extent = store._extents.all[lost.extent]
        stale = bytes(16 * limits.KIB - 200)
        head = encode_head(
            Kind.DATA,
            store.identity.store_id,
            extent.epoch - 1,
            1,
            b"key 00",
            0,
            len(stale),
            digests_of((stale,)),
        )
        start = store.identity.extent_offset(lost.extent) + lost.offset
        store_bytes(device.medium.pages, start, head)
        expected = await content(store)
        while await store.reclaim():
            pass
        assert extent.live_bytes == 0
        assert await content(store) == expected
