"""Commits, checkpoints and merges: what they cost, and that they fit on small devices."""

from __future__ import annotations

import contextlib

import pytest
import trio

from shardfs import limits
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import DeviceError, ReadOnlyError
from tests.engine.stores import MANUAL, content, fill_a_level, formatted, opened, tidy_up


@pytest.mark.parametrize("size", [0, 100, 4096, 100_000])
async def test_a_sync_costs_at_most_two_flushes(size: int) -> None:
    device = await formatted()
    async with opened(device) as store:
        for number in range(20):
            before = device.counts.flushes
            dependency = await store.put(b"k%d" % number, b"v" * size)
            assert not dependency.is_persistent()
            await store.sync()
            assert dependency.is_persistent()
            assert device.counts.flushes - before <= 2
        before = device.counts.flushes
        await store.sync()
        assert device.counts.flushes == before, "nothing was dirty"


async def test_sixty_four_syncs_at_once_cost_at_most_four_flushes() -> None:
    device = await formatted(checkpoints_max=3)
    async with opened(device) as store:
        before = device.counts.flushes

        async def put_and_sync(number: int) -> None:
            dependency = await store.put(b"k%d" % number, bytes([number]) * 4096)
            await store.sync(dependency)
            assert dependency.is_persistent()

        async with trio.open_nursery() as nursery:
            for number in range(64):
                nursery.start_soon(put_and_sync, number)
        assert device.counts.flushes - before <= 4


async def test_more_data_than_may_ride_along_is_flushed_first() -> None:
    device = await formatted(64)
    async with opened(device) as store:
        before = device.counts.flushes
        value = b"v" * (limits.RIDER_BYTES_MAX + 1)
        await store.put(b"k", value)
        await store.sync()
        assert device.counts.flushes - before <= 2
        async with opened(device.power_cut()) as after:
            assert await after.get(b"k") == value


async def test_an_object_of_a_few_mib_rides_along() -> None:
    device = await formatted(64)
    async with opened(device) as store:
        await store.put(b"k", bytes(8 * limits.MIB))
        before = device.counts.flushes
        await store.sync()
        assert device.counts.flushes - before == 1
        async with opened(device.power_cut()) as after:
            assert await after.get(b"k") == bytes(8 * limits.MIB)


async def test_more_chunks_than_may_ride_along_are_flushed_first() -> None:
    device = await formatted(64)
    async with opened(device) as store:
        for number in range(limits.RIDERS_MAX + 1):
            await store.put(b"%d" % number, bytes(512))
        before = device.counts.flushes
        await store.sync()
        assert device.counts.flushes - before == 2
        async with opened(device.power_cut()) as after:
            assert await after.get(b"%d" % limits.RIDERS_MAX) == bytes(512)


@pytest.mark.parametrize("extent_bytes", [64 * limits.KIB, None])
async def test_a_delta_larger_than_the_extents_declared_ahead(extent_bytes: int | None) -> None:
    device = await formatted(32, extent_bytes=extent_bytes, zoned=True)
    expected = {b"key%06d" % n: b"v" * 200 for n in range(20_000)}
    async with opened(device) as store:
        batch = store.batch()
        for key, value in expected.items():
            batch.put(key, value)
        store.apply(batch)
        await store.sync()
        async with opened(device.power_cut()) as after:
            assert await content(after) == expected


@pytest.mark.parametrize("kib", [64, 128, 256, 512])
async def test_blocks_of_large_neighbours_fit_into_a_chunk(kib: int) -> None:
    """Entries that share a long prefix stay in one block, but never beyond a chunk."""
    device = await formatted(kib / 4, extent_bytes=kib * limits.KIB)
    expected = {}
    async with opened(device) as store:
        largest = store.identity.chunk_bytes_max // 2
        for number in range(24):
            key = b"the same prefix" + b"%05d" % number + b"x" * (1000 if number % 3 else 0)
            expected[key] = b"v" * min(limits.RECORD_BYTES_MAX, largest - number % 5 * 1500)
            batch = store.batch()
            batch.put(key, expected[key])
            store.apply(batch)
        await store.checkpoint()
        assert await content(store) == expected
    async with opened(device) as store:
        assert await content(store) == expected


async def test_endless_small_syncs_fit_on_a_small_device() -> None:
    """Each takes a block of the log, however little it says: checkpoints must keep up."""
    device = await formatted(24, zoned=True)
    async with Store.open(device, options=StoreOptions()) as store:
        for number in range(6000):
            await store.put(b"key%d" % (number % 9), b"value %d" % number)
            await store.sync()
        statistics = store.statistics()
        assert statistics.health == "healthy"
        assert statistics.extents_free >= 10
    async with opened(device) as store:
        assert await store.get(b"key5") == b"value 5999"


async def test_changes_during_a_checkpoint_are_neither_lost_nor_early() -> None:
    device = await formatted(64, checkpoints_max=4)
    expected: dict[bytes, bytes] = {}
    async with opened(device) as store:

        async def write(task: int) -> None:
            for number in range(150):
                key = b"%d-%d" % (task, number % 40)
                expected[key] = b"%d" % number * 99
                await store.put(key, expected[key])
                if number % 10 == 0:
                    await store.sync()

        async def checkpoint_again_and_again() -> None:
            for _ in range(8):
                await store.checkpoint()
                await store.compact()
                await store.reclaim()
                assert await content(store) is not None

        async with trio.open_nursery() as nursery:
            for task in range(4):
                nursery.start_soon(write, task)
            nursery.start_soon(checkpoint_again_and_again)
        assert await content(store) == expected
        await store.sync()
        async with opened(device.power_cut()) as after:
            assert await content(after) == expected


async def test_a_cancelled_checkpoint_leaves_no_garbage_counted_as_live() -> None:
    device = await formatted(64, checkpoints_max=3)
    async with opened(device) as store:
        for number in range(600):
            await store.put(b"%05d" % number, b"v" * 100)
        await store.checkpoint()
        live = store.space_parts().index_bytes
        for steps in range(12):
            await store.put(b"%05d" % steps, b"w" * 100)
            with trio.CancelScope() as scope:

                async def cancel_after(count: int, target: trio.CancelScope) -> None:
                    for _ in range(count):
                        await trio.lowlevel.checkpoint()
                    target.cancel()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(cancel_after, steps, scope)
                    await store.checkpoint()
                    nursery.cancel_scope.cancel()
        await tidy_up(store)
        for _ in range(4):
            await tidy_up(store)
        assert store.space_parts().index_bytes < 4 * live
        expected = {b"%05d" % n: b"w" * 100 if n < 12 else b"v" * 100 for n in range(600)}
        assert await content(store) == expected
        live = store.space_parts().index_bytes
    async with opened(device) as store:
        assert await content(store) == expected
        assert store.space_parts().index_bytes == live, "recovery counts the same bytes as live"


async def test_merging_drops_tombstones_and_old_versions() -> None:
    device = await formatted(64)
    async with opened(device) as store:
        await fill_a_level(store)
        assert store.statistics().runs == limits.RUNS_PER_LEVEL_MAX
        assert await store.compact()
        assert not await store.compact()
        assert store.statistics().levels == (0, 1)
        merged_bytes = store.statistics().tree_bytes
        for number in range(500):
            await store.delete(b"%05d" % number)
        for _ in range(limits.RUNS_PER_LEVEL_MAX - 1):
            await store.checkpoint()
            await store.put(b"x", b"y")
        await store.checkpoint()
        for _ in range(20):
            await store.put(b"x", b"y")
            await tidy_up(store)
        assert await content(store) == {b"x": b"y"}
        assert store.statistics().tree_bytes < merged_bytes // 4


async def test_everything_is_reclaimed_after_deleting_everything() -> None:
    device = await formatted(32, zoned=True)
    async with opened(device) as store:
        free = store.statistics().extents_free
        for round_number in range(4):
            for number in range(60):
                await store.put(b"%d" % number, bytes([round_number]) * 100_000)
                await store.sync()
            for number in range(60):
                await store.delete(b"%d" % number)
            await store.sync()
            await tidy_up(store)
        assert store.statistics().extents_free >= free - 4
        assert await content(store) == {}


@pytest.mark.expected_warnings("now read-only", "closing without")
@pytest.mark.parametrize("kind", ["write", "flush"])
@pytest.mark.parametrize("skip", range(6))
async def test_a_device_error_in_a_checkpoint_loses_nothing_durable(kind: str, skip: int) -> None:
    device = await formatted(32)
    expected = {b"%03d" % number: b"v" * 3000 for number in range(50)}
    async with Store.open(device, options=MANUAL) as store:
        for key, value in expected.items():
            await store.put(key, value)
        await store.sync()
        device.fail(kind, skip=skip)
        with trio.move_on_after(100) as scope:
            with contextlib.suppress(DeviceError, ReadOnlyError):
                await store.checkpoint()
                await store.checkpoint()
        assert not scope.cancelled_caught
    after = device.power_cut()
    async with opened(after) as store:
        assert await content(store) == expected


@pytest.mark.expected_warnings("a run cannot be merged")
async def test_a_failed_read_in_the_background_puts_merging_off() -> None:
    device = await formatted(64)
    async with opened(device) as store:
        await fill_a_level(store)
    async with Store.open(device) as store:
        device.fail("read", times=1)
        await trio.sleep(20)
        assert store.health.reason == ""
        assert store.statistics().levels == (0, 1), "it was tried again"
        assert len(await content(store)) == 500
