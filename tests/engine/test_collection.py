"""Collecting garbage may be given up, or cut off, anywhere: nothing is lost and it goes on."""

from __future__ import annotations

import pytest
import trio

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.collection import Collection, collection_plan
from shardfs.engine.fsck import check_store
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import DeviceError, ReadOnlyError
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
EXTENT = 64 * KIB


async def with_garbage() -> tuple[SimulatedDevice, dict[bytes, bytes]]:
    """A device whose extents and tree are mostly garbage, and what is live on it."""
    device = await formatted(4, extent_bytes=EXTENT, checkpoints_max=2)
    async with opened(device) as store:
        for number in range(90):
            await store.put(b"%04d" % number, bytes([number]) * 9000)
            await store.put(b"small %04d" % number, b"r" * 100)
        await store.checkpoint()
        for number in range(90):
            await store.put(b"small %04d" % number, b"s" * 100)
            if number % 4:
                await store.delete(b"%04d" % number)
                await store.delete(b"small %04d" % number)
        await store.sync()
        expected = await content(store)
    device.reopen()
    return device, expected


async def collect(store: Store) -> Collection:
    collection = Collection(store)
    while not (await collection.step()).is_done:
        pass
    return collection


@pytest.mark.parametrize("checkpoints", [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144])
async def test_giving_up_anywhere_does_no_harm(checkpoints: int) -> None:
    device, expected = await with_garbage()
    async with opened(device) as store:
        with trio.CancelScope() as scope:

            async def cancel_later() -> None:
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_later)
                await collect(store)
                nursery.cancel_scope.cancel()
        assert store.health.reason == ""
        assert await content(store) == expected
        async with opened(device.power_cut()) as after:
            assert await content(after) == expected
        await collect(store)
        plan = await collection_plan(store)
        assert plan.dead_extents == plan.emptied_extents == 0
        assert await content(store) == expected
        assert (await check_store(store, data=True)).is_clean


async def test_a_power_cut_after_any_step_does_no_harm() -> None:
    device, expected = await with_garbage()
    async with opened(device) as store:
        collection = Collection(store)
        while not (await collection.step()).is_done:
            async with opened(device.power_cut()) as after:
                assert await content(after) == expected


async def test_others_may_write_meanwhile() -> None:
    device, expected = await with_garbage()
    async with opened(device) as store:
        collection = Collection(store)
        for number in range(1000):
            if (await collection.step()).is_done:
                break
            key = b"%04d" % (number % 90)
            await store.put(key, b"new" * 3000)
            expected[key] = b"new" * 3000
        else:
            raise AssertionError("collecting does not end while others write")
        assert await content(store) == expected


@pytest.mark.expected_warnings("stays where it is", "can not be moved", "can not be scanned")
async def test_what_cannot_be_read_stops_nothing() -> None:
    device, expected = await with_garbage()
    async with opened(device) as store:
        shard = await store.get_shard(b"0004")
        assert shard is not None
        at = shard.pieces[0].locator
        device.rot(store.identity.extent_offset(at.extent) + at.offset + 200, 1)
        collection = await collect(store)
        assert collection.progress().freed_extents > 0
        assert (await collection_plan(store)).stuck_extents == 1
        for key, value in expected.items():
            if key != b"0004":
                assert await store.get(key) == value


async def test_a_store_that_takes_no_changes_is_not_collected() -> None:
    device, _ = await with_garbage()
    async with opened(device, StoreOptions(read_only=True, background=False)) as store:
        plan = await collection_plan(store)
        assert plan.emptied_extents > 0
        with pytest.raises(ReadOnlyError):
            Collection(store)


@pytest.mark.expected_warnings(".")
async def test_a_device_that_fails_ends_it() -> None:
    device, _ = await with_garbage()
    async with opened(device) as store:
        collection = Collection(store)
        device.fail("write", skip=3)
        with pytest.raises((DeviceError, ReadOnlyError)):
            while not (await collection.step()).is_done:
                pass
        assert store.health.reason
