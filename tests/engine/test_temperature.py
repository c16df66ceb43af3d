"""Data that is overwritten soon again lies apart from data that is not."""

from __future__ import annotations

from shardfs import limits
from shardfs.engine.layout import Stream
from shardfs.engine.pieces import locators
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
EXTENT = 64 * KIB


async def streams_of(store: Store, key: bytes) -> set[Stream]:
    shard = await store.get_shard(key)
    assert shard is not None
    return {store._extents.all[at.extent].stream for at in locators(shard.pieces).values()}


async def test_what_is_overwritten_soon_is_hot_and_what_is_new_or_old_is_not() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    async with opened(device) as store:
        await store.put(b"old", b"o" * KIB)
        await store.put(b"young", b"y" * KIB)
        assert await streams_of(store, b"young") == {Stream.DATA}
        await store.put(b"young", b"Y" * KIB)
        assert await streams_of(store, b"young") == {Stream.HOT}
        store._extents.space.hot_lives.append(20)
        for number in range(30):
            await store.put(b"%d" % number, b"n" * KIB)
        await store.put(b"old", b"O" * KIB)
        assert await streams_of(store, b"old") == {Stream.DATA}
    async with opened(device) as store:
        await store.put(b"young", b"?" * KIB)
        assert await streams_of(store, b"young") == {Stream.DATA}, "an earlier open wrote it"


async def test_what_is_moved_climbs_down_the_ladder() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    async with opened(device) as store:
        for turn in range(3):
            for number in range(60):
                if turn < 2 or number % 3:
                    await store.put(b"%03d" % number, b"%d" % turn * 6 * KIB)
        await store.sync()
        expected = await content(store)
        assert await streams_of(store, b"000") == {Stream.HOT}
        for stream in (Stream.DATA, Stream.SURVIVORS, Stream.SURVIVORS):
            shard = await store.get_shard(b"000")
            assert shard is not None
            extent = store._extents.all[shard.pieces[0].locator.extent]
            store._extents.seal(extent)
            await store.sync()
            await store._evacuator.evacuate(extent)
            assert await streams_of(store, b"000") == {stream}
        assert await content(store) == expected


async def test_a_full_device_holds_as_much_as_one_without_hot_data() -> None:
    filled = []
    for overwritten in (0, 40):
        device = await formatted(4, extent_bytes=EXTENT)
        async with opened(device) as store:
            for number in range(overwritten):
                await store.put(b"%04d" % (number % 8), b"h" * 6 * KIB)
            count = 0
            try:
                while True:
                    await store.put(b"%04d" % count, b"f" * 6 * KIB)
                    count += 1
            except NoSpaceError:
                filled.append(count)
            await store.sync()
            hot = store._extents._current.get(Stream.HOT)
            assert hot is None or store._extents.room(Stream.HOT) < 16 * KIB
    assert abs(filled[0] - filled[1]) <= filled[0] * 0.02
