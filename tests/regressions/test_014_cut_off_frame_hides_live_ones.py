"""Emptying an extent passed over live chunks that a later life had written over a cut-off one.

After a crash writing goes on at the first whole block behind what is referred to. The head of a
chunk that nothing refers to may lie in front of that block, in the same life of the extent; the
scan went on behind where that chunk had ended, and never saw what had been written there since.
The extent kept it, and its space, for good. Found by a cut at every write of
tests/crash/test_refilling.py.
"""

from __future__ import annotations

from shardfs import limits
from shardfs.checking.power_cuts import store_bytes
from shardfs.engine.framing import digests_of, encode_head
from shardfs.engine.layout import Kind
from tests.engine.stores import content, formatted, opened

EXTENT = 64 * limits.KIB
CUT_OFF_AT = 6000


async def test_chunks_written_over_a_cut_off_one_are_moved() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        await store.sync(await store.put(b"first", bytes(5000)))
        shard = await store.get_shard(b"first")
        assert shard is not None
        first = shard.pieces[0].locator
        cut_off = bytes(15_000)
        head = encode_head(
            Kind.DATA,
            store.identity.store_id,
            first.epoch,
            first.sequence + 1,
            b"cut off",
            0,
            len(cut_off),
            digests_of((cut_off,)),
        )
        start = store.identity.extent_offset(first.extent)
        store_bytes(device.medium.pages, start + CUT_OFF_AT, head)
    async with opened(device) as store:
        extent = store._extents.all[first.extent]
        assert CUT_OFF_AT < extent.write_pointer <= 2 * limits.BLOCK_BYTES
        for number in range(20):
            await store.put(b"key %02d" % number, bytes([number]) * 4000)
        for number in range(6, 20):
            await store.delete(b"key %02d" % number)
        await store.sync()
        expected = await content(store)
        while await store.reclaim():
            pass
        assert extent.live_bytes == 0
        assert await content(store) == expected
