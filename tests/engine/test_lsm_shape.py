"""The shape of the tree: what it costs to read, to write and to keep, and what leaves it when.

The bounds, for a tree of S bytes and memtables that make runs of m bytes:
    runs        at most 3 * (1 + ceil(log4(S/m))) + 1, between merges
    rewrites    an entry is written at most 1 + ceil(log4(S/m)) times for the levels, and twice for
                garbage, on average
    garbage     at most as many bytes as are live, and two memtables
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import aclosing

import pytest
import trio

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.lsm.compaction import GARBAGE_SHARE_MAX
from shardfs.engine.lsm.entry import TOMBSTONE
from shardfs.engine.lsm.filter import Filter
from shardfs.engine.lsm.merge import load_page
from shardfs.engine.store import Store
from tests.engine.stores import MANUAL, content, formatted, opened, tidy_up

KIB = limits.KIB
MEMTABLE_BYTES = 13 * KIB
CHANGES = 12_000
KEYS = 3_000

Change = tuple[bytes, bytes | None]


def creates() -> Iterator[Change]:
    """Keys that rise."""
    for number in range(CHANGES):
        yield b"key %08d" % number, b"v" * 20


def random_updates() -> Iterator[Change]:
    """The same keys over and over."""
    rng = random.Random(1)
    for number in range(CHANGES):
        yield b"key %08d" % rng.randrange(KEYS), b"%020d" % number


def skewed_updates() -> Iterator[Change]:
    """A tenth of the keys takes nine tenths of the updates."""
    rng = random.Random(2)
    for number in range(CHANGES):
        key = rng.randrange(KEYS // 10) if rng.random() < 0.9 else rng.randrange(KEYS)
        yield b"key %08d" % key, b"%020d" % number


def deletes_in_order() -> Iterator[Change]:
    """Creates, then deletes from the first key to the last."""
    for number in range(CHANGES // 2):
        yield b"key %08d" % number, b"v" * 20
    for number in range(CHANGES // 2):
        yield b"key %08d" % number, None


def deletes_at_random() -> Iterator[Change]:
    """Creates, then deletes in another order."""
    numbers = list(range(CHANGES // 2))
    for number in numbers:
        yield b"key %08d" % number, b"v" * 20
    random.Random(3).shuffle(numbers)
    for number in numbers:
        yield b"key %08d" % number, None


def alternating() -> Iterator[Change]:
    """A queue: each key is created, and deleted some keys later, beside some that stay."""
    for number in range(CHANGES // 4):
        yield b"stay %08d" % (number % 1000), b"%020d" % number
        yield b"temp %08d" % number, b"v" * 20
        yield b"temp %08d" % (number - 400), None
        yield b"temp %08d" % (number - 3), None


WORKLOADS: list[Callable[[], Iterator[Change]]] = [
    creates,
    random_updates,
    skewed_updates,
    deletes_in_order,
    deletes_at_random,
    alternating,
]


def with_small_memtables(store: Store) -> Store:
    """Checkpoints become due after few changes."""
    store._committer.memtable_bytes_max = MEMTABLE_BYTES
    return store


def apply(store: Store, key: bytes, value: bytes | None) -> None:
    batch = store.batch(essential=True)
    if value is None:
        batch.delete(key)
    else:
        batch.put(key, value)
    store.apply(batch)


def levels_for(store: Store, run_bytes: int) -> int:
    return math.ceil(math.log(max(1.0, store.statistics().tree_bytes / run_bytes), 4))


@pytest.mark.parametrize("workload", WORKLOADS)
async def test_reads_writes_and_garbage_are_bounded_by_the_size(
    workload: Callable[[], Iterator[Change]],
) -> None:
    device = await formatted(64, extent_bytes=256 * KIB)
    live: dict[bytes, int] = {}
    run_bytes = 0
    levels_max = 0
    async with opened(device) as store:
        with_small_memtables(store)
        changes = 0
        for key, value in workload():
            apply(store, key, value)
            changes += 1
            if value is None:
                live.pop(key, None)
            else:
                live[key] = len(key) + len(value)
            if not store._committer.is_due:
                continue
            await store.checkpoint()
            run_bytes = max(run_bytes, store._tree.runs[-1].total_bytes)
            while await store.compact():
                pass
            while await store.reclaim_dead():
                pass
            levels = levels_for(store, run_bytes)
            levels_max = max(levels_max, levels)
            assert store.statistics().runs <= 3 * (1 + levels) + 1
            live_bytes = sum(live.values()) * 1.3  # the lengths, heads and filters of the blocks
            assert store.statistics().tree_bytes <= 2.2 * live_bytes + 2 * run_bytes
        assert store._checkpointer.entries_written <= (1 + levels_max + 2) * changes
        assert await content(store) == dict.fromkeys(live, b"v" * 20) or workload not in (
            creates,
            deletes_in_order,
            deletes_at_random,
        )
        assert {key async for key, _ in store.scan(b"a", b"z")} == set(live)


async def test_a_get_reads_one_block_whatever_the_number_of_runs() -> None:
    device = await formatted(64, extent_bytes=256 * KIB)
    async with opened(device) as store:
        with_small_memtables(store)
        for key, value in creates():
            apply(store, key, value)
            if store._committer.is_due:
                await store.checkpoint()
        runs = store.statistics().runs
        assert runs > 20, "nothing was merged"
    async with opened(device) as store:
        before = device.counts.reads
        for number in range(0, CHANGES, CHANGES // 100):
            store._parts.cache._values.clear()
            assert await store.get(b"key %08d" % number) == b"v" * 20
        assert device.counts.reads - before <= 110, "the filters keep the other runs out of it"


async def merged_in_steps(device: SimulatedDevice) -> tuple[int, int]:
    """(steps of the last merge of everything, most bytes that it took beside the tree)."""
    async with opened(device) as store:
        steps, extra = 0, 0
        before = sum(extent.live_bytes for extent in store._extents.all)
        while await store._checkpointer.compact(garbage_share_max=0.0):
            steps += 1
            live = sum(extent.live_bytes for extent in store._extents.all)
            extra = max(extra, live - before)
        return steps, extra


async def test_a_merge_of_everything_needs_room_for_a_few_segments_only() -> None:
    extent_bytes = 128 * KIB
    device = await formatted(64, extent_bytes=extent_bytes)
    async with opened(device) as store:
        for life in range(3):
            for number in range(4000):
                apply(store, b"key %08d" % number, b"%d" % life * 500)
            await store.checkpoint()
        tree_bytes = store.statistics().tree_bytes
        assert tree_bytes > 40 * extent_bytes
    steps, extra = await merged_in_steps(device)
    assert steps > 10
    # One segment of output, and one of each source that is not used up yet.
    assert extra <= 5 * extent_bytes
    async with opened(device) as store:
        assert store.statistics().runs == 1
        assert store.statistics().tree_bytes < tree_bytes * 0.4
        assert await content(store) == {b"key %08d" % number: b"2" * 500 for number in range(4000)}


async def test_merges_do_not_starve_on_a_full_device() -> None:
    """The tree is far larger than what is free: it is merged all the same, and gives space back."""
    device = await formatted(12, extent_bytes=64 * KIB)
    async with opened(device) as store:
        for life in range(3):
            for number in range(2500):
                apply(store, b"key %08d" % number, b"%d" % life * 500)
                if number % 100 == 0:
                    await store.sync()
            await store.checkpoint()
            while await store.reclaim_dead():
                pass
        extents = store._extents
        taken = []
        while extents.free_count > 6:
            taken.append(extents._free.pop())
        assert store.statistics().tree_bytes > 10 * extents.free_bytes
        while await store._checkpointer.compact(garbage_share_max=0.0) or (
            store._checkpointer.is_merging and await store.reclaim_dead()
        ):
            pass
        assert store.statistics().runs == 1
        extents._free.extend(taken)
        assert await content(store) == {b"key %08d" % number: b"2" * 500 for number in range(2500)}


async def test_a_checkpoint_may_come_between_the_steps_of_a_merge() -> None:
    device = await formatted(32, extent_bytes=64 * KIB)
    expected = {}
    async with opened(device) as store:
        for life in range(4):
            for number in range(600):
                apply(store, b"key %08d" % number, b"%d" % life * 500)
            await store.checkpoint()
        expected = {b"key %08d" % number: b"3" * 500 for number in range(600)}
        number = 0
        while await store.compact():
            key = b"key %08d" % (37 * number % 600)
            apply(store, key, None if number % 2 else b"new")
            if number % 2:
                del expected[key]
            else:
                expected[key] = b"new"
            number += 1
            if number < 10:
                await store.checkpoint()
            assert await content(store) == expected
        assert number > 3
    async with opened(device) as store:
        assert await content(store) == expected


async def tombstones(store: Store) -> set[bytes]:
    """The keys for which the runs hold a tombstone."""
    page = await load_page(store._tree.runs, b"a", b"z", 1_000_000)
    return {key for key, value in page.entries.items() if value == TOMBSTONE}


async def test_a_tombstone_is_kept_while_an_older_run_holds_the_key_and_no_longer() -> None:
    device = await formatted(32, extent_bytes=64 * KIB)
    async with opened(device) as store:
        for number in range(200):
            apply(store, b"old %04d" % number, b"x" * 300)
        await store.checkpoint()
        for life in range(4):
            for number in range(50):
                apply(store, b"new %04d" % (50 * life + number), b"x")
            for number in range(10 * life, 10 * life + 10):
                apply(store, b"old %04d" % number, None)
                apply(store, b"never %04d" % number, None)
                apply(store, b"new %04d" % (50 * life + number % 10), None)
            await store.checkpoint()
        held = {b"old %04d" % number for number in range(40)}
        kept = await tombstones(store)
        assert kept >= held, "one was dropped too early"
        assert len(kept - held) <= 5, "of keys that no run holds, but for what a filter says"
        while await store.compact():
            pass
        assert store.statistics().runs == 2, "the oldest four are one"
        assert await tombstones(store) >= {b"old %04d" % number for number in range(30, 40)}
        assert not held & {key async for key, _ in store.scan(b"a", b"z")}
        while await store._checkpointer.compact(garbage_share_max=0.0):
            pass
        assert store.statistics().runs == 1
        assert await tombstones(store) == set()
        assert not held & {key async for key, _ in store.scan(b"a", b"z")}


async def test_what_is_deleted_before_it_reaches_a_run_leaves_nothing_there() -> None:
    device = await formatted(16, extent_bytes=64 * KIB)
    async with opened(device) as store:
        for number in range(1000):
            apply(store, b"key %04d" % number, b"x" * 100)
            apply(store, b"key %04d" % number, None)
        await store.checkpoint()
        assert store.statistics().runs == 0


async def test_a_scan_and_a_get_that_go_on_while_tombstones_are_dropped_see_nothing_old() -> None:
    device = await formatted(32, extent_bytes=64 * KIB, checkpoints_max=3)
    async with opened(device) as store:
        for number in range(1200):
            apply(store, b"key %08d" % number, b"x" * 200)
        await store.checkpoint()
        for number in range(0, 1200, 2):
            apply(store, b"key %08d" % number, None)
        await store.checkpoint()
        done = False

        async def merge() -> None:
            nonlocal done
            while await store._checkpointer.compact(garbage_share_max=0.0):
                await store.reclaim()
            done = True

        async def look() -> None:
            rng = random.Random(4)
            while not done:
                store._parts.cache._values.clear()
                number = 2 * rng.randrange(600)
                assert await store.get(b"key %08d" % number) is None
                assert await store.get(b"key %08d" % (number + 1)) == b"x" * 200
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(merge)
            nursery.start_soon(look)
            while not done:
                store._parts.cache._values.clear()
                async with aclosing(store.scan(b"a", b"z")) as scan:
                    seen = [key async for key, _ in scan]
                assert seen == [b"key %08d" % number for number in range(1, 1200, 2)]
        assert await tombstones(store) == set()


@pytest.mark.parametrize("deleted", [1, 300], ids=["one", "many"])
async def test_no_tombstone_stays_for_ever_on_an_idle_device(deleted: int) -> None:
    device = await formatted(32, extent_bytes=64 * KIB)
    async with Store.open(device) as store:
        for number in range(1000):
            apply(store, b"key %08d" % number, b"x" * 200)
        await store.checkpoint()
        for number in range(deleted):
            apply(store, b"key %08d" % (3 * number), None)
        await store.checkpoint()
        assert len(await tombstones(store)) == deleted
        writes = device.counts.writes
        for _ in range(100):
            await trio.sleep(10)
            if store.statistics().runs <= 1:
                break
        assert await tombstones(store) == set()
        assert device.counts.writes - writes < 100, "it waits without writing"
        writes = device.counts.writes
        await trio.sleep(500)
        assert device.counts.writes == writes, "and then there is nothing more to do"


@pytest.mark.expected_warnings("cannot be merged")
async def test_a_damaged_block_puts_off_the_merge_and_nothing_else() -> None:
    device = await formatted(32, extent_bytes=64 * KIB)
    async with opened(device) as store:
        for life in range(3):
            for number in range(400):
                apply(store, b"key %d %08d" % (life, number), b"x" * 300)
            await store.checkpoint()
        locator = store._tree.runs[1].segments[0].index.blocks[2]
    device.rot(locator.extent * 64 * KIB + locator.offset + 200, 50)
    async with Store.open(device) as store:
        for number in range(400):
            apply(store, b"key 3 %08d" % number, b"x" * 300)
        await store.checkpoint()
        await trio.sleep(60)
        assert store.health.reason == "", "it goes on serving"
        for life in range(4, 12):
            for number in range(400):
                apply(store, b"key %d %08d" % (life, number), b"x" * 300)
            await store.checkpoint()
            await trio.sleep(60)
        assert store.health.reason == ""
        assert store.statistics().runs <= 8, "what is newer goes on being merged"
        assert await store.get(b"key 0 00000000") == b"x" * 300
        assert await store.get(b"key 11 00000399") == b"x" * 300


async def test_an_updated_tree_is_one_run_again_and_again() -> None:
    """Not only the number of checkpoints decides on the levels, but the size."""
    device = await formatted(32, extent_bytes=64 * KIB)
    async with opened(device, MANUAL) as store:
        with_small_memtables(store)
        for life in range(40):
            for number in range(300):
                apply(store, b"key %08d" % number, b"%020d" % life)
            await store.checkpoint()
            while await store.compact():
                pass
            await tidy_up(store)
            assert store.statistics().runs <= 4
            assert max(store.statistics().levels, default=0) <= 1
    assert GARBAGE_SHARE_MAX == 0.5, "what the bounds above are made for"


async def test_the_tombstone_of_something_old_asks_one_filter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is in the oldest run, and there may be a dozen of newer ones."""
    real = Filter.may_contain
    asked = 0

    def may_contain(self: Filter, key_hash: int) -> bool:
        nonlocal asked
        asked += 1
        return real(self, key_hash)

    async with opened(await formatted(32)) as store:
        for run in range(3):
            for number in range(300):
                await store.put(b"key %08d %d" % (number, run), bytes(50))
            await store.checkpoint()
        for number in range(200):
            await store.delete(b"key %08d 0" % number)
        monkeypatch.setattr(Filter, "may_contain", may_contain)
        await store.checkpoint()
        assert len(store._tree.runs) == 4
        assert 200 <= asked <= 210
