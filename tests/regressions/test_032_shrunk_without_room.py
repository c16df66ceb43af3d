"""A shrink left a store in which nothing was free, and reclamation had no room to begin in.

Behind the new end nothing lived, so nothing had to be moved, and the end was given up although no
extent before it was free: there all extents were garbage in part. Found by the world of stores.
Before that, a checkpoint at the end of such a shrink failed, though all before the new end was
dead and only had to be freed.
"""

from __future__ import annotations

from shardfs import limits
from shardfs.engine.shrinking import Shrinking
from shardfs.engine.store import Store
from tests.engine.stores import content, formatted, opened
from tests.engine.test_resizing import Watch, check_moments, require_sound

EXTENT = 64 * limits.KIB
EXTENTS = 40
FEWER = 24
VALUE = 9000
STEPS_MAX = 100


async def fill_the_front(store: Store) -> int:
    """Values until nothing before the new end is free; the number of them."""
    number = 0
    while any(extent.index < FEWER for extent in store._extents.free):
        await store.put(b"%d" % number, bytes([number % 251]) * VALUE)
        number += 1
    await store.sync()
    return number


async def shrink(store: Store) -> None:
    shrinking = Shrinking(store, FEWER * EXTENT)
    for _ in range(STEPS_MAX):
        if (await shrinking.step()).result is not None:
            return
    raise AssertionError(f"not at its end in {STEPS_MAX} steps")


async def test_what_is_garbage_in_part_is_moved_together_before_the_end_is_given_up() -> None:
    """The power may fail at any write of it."""
    device = await formatted(EXTENTS * EXTENT / limits.MIB, extent_bytes=EXTENT, checkpoints_max=3)
    async with opened(device) as store:
        for number in range(await fill_the_front(store)):
            if number % 3:
                await store.delete(b"%d" % number)
        await store.sync()
        expected = await content(store)
        watch = Watch(device, expected)
        await shrink(store)
        assert store._extents.free_count, "nothing is free in the smaller store"
        await require_sound(store, expected)
        while await store.reclaim():
            pass
        await require_sound(store, expected)
        await watch.put(store, 1, VALUE)

    async def go_on(store: Store) -> None:
        if store.identity.extent_count == EXTENTS:
            await shrink(store)
        await store.put(b"new", b"")
        await store.delete(b"new")

    await check_moments(device, watch.moments[::3], {FEWER, EXTENTS}, go_on)


async def test_what_is_dead_is_freed_before_the_end_is_given_up() -> None:
    device = await formatted(EXTENTS * EXTENT / limits.MIB, extent_bytes=EXTENT)
    async with opened(device) as store:
        for number in range(await fill_the_front(store)):
            await store.delete(b"%d" % number)
        await shrink(store)
        assert store._extents.free_count, "nothing is free in the smaller store"
        assert not await content(store)


async def test_a_store_without_a_free_extent_is_reclaimed() -> None:
    """What earlier versions have shrunk: the room left in an open extent is enough to begin."""
    device = await formatted(EXTENTS * EXTENT / limits.MIB, extent_bytes=EXTENT)
    async with opened(device) as store:
        for number in range(await fill_the_front(store)):
            if number % 7:
                await store.delete(b"%d" % number)
        await store.sync()
        await store.reclaim_dead()
        expected = await content(store)
        store._extents.free.clear()
        freed = 0
        for _ in range(STEPS_MAX):
            freed += await store.reclaim()
        assert freed > 1
        assert await content(store) == expected
