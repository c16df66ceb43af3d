"""Extents that are mostly garbage are emptied: what is live moves, and nothing else changes."""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.checking.faults import FaultPlan
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.extent import Extent
from shardfs.engine.fsck import check_store
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.pacing import Slices
from shardfs.engine.pieces import Shard, locators
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
EXTENT = 64 * KIB
VALUE_BYTES = 6 * KIB


def value_of(number: int) -> bytes:
    """A value unlike any other."""
    return b"%06d" % number * (VALUE_BYTES // 6)


def key_of(number: int) -> bytes:
    return b"key %04d" % number


async def half_dead(store: Store, count: int = 60) -> dict[bytes, bytes]:
    """Many extents full of values of which two in three are deleted; what is left."""
    for number in range(count):
        await store.put(key_of(number), value_of(number))
    await store.sync()
    for number in range(count):
        if number % 3:
            await store.delete(key_of(number))
    await store.sync()
    await store.reclaim_dead()
    return {key_of(number): value_of(number) for number in range(0, count, 3)}


def sealed(store: Store) -> list[Extent]:
    """Extents of data to which nothing is added."""
    return [each for each in store._extents.all if each.state is ExtentState.SEALED]


async def extents_of(store: Store, key: bytes) -> set[int]:
    shard = await store.get_shard(key)
    assert isinstance(shard, Shard)
    return {locator.extent for locator in locators(shard.pieces).values()}


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
async def test_live_values_move_and_the_space_comes_back(zoned: bool) -> None:
    device = await formatted(4, extent_bytes=EXTENT, zoned=zoned, checkpoints_max=3)
    async with opened(device) as store:
        expected = await half_dead(store)
        free, full = store._extents.free_count, len(sealed(store))
        assert full >= 4
        while await store.reclaim():
            pass
        assert store._extents.free_count >= free + full // 2
        assert await content(store) == expected
        streams = {store._extents.all[index].stream for index in await extents_of(store, key_of(0))}
        assert streams == {Stream.SURVIVORS}
        assert (await check_store(store, data=True)).is_clean
        point = device.power_cut_point()
    async with opened(device.after_power_cut(point)) as store:
        assert await content(store) == expected


async def test_the_victim_is_the_best_of_all_and_looking_for_it_gives_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(await formatted(8, extent_bytes=EXTENT)) as store:
        await half_dead(store, 500)
        evacuator = store._evacuator
        oldest_last = sorted(evacuator.candidates(), key=lambda extent: -extent.order)
        assert len(oldest_last) > 20
        scores = [evacuator._score(extent, age) for age, extent in enumerate(oldest_last)]
        steps = 0

        class Counted(Slices):
            async def spend(self, cost: int) -> None:
                nonlocal steps
                steps += 1
                await super().spend(cost)

        monkeypatch.setattr(evacuator, "slices", Counted())
        assert await evacuator.choose() is oldest_last[scores.index(max(scores))]
        assert steps >= len(oldest_last), "tens of thousands of extents are not one slice"


@pytest.mark.expected_warnings("stays where it is", "can not be moved")
async def test_a_rotten_chunk_stays_and_its_neighbours_move() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await half_dead(store)
        victim = key_of(3)
        shard = await store.get_shard(victim)
        assert shard is not None
        at = shard.pieces[0].locator
        device.rot(store.identity.extent_offset(at.extent) + at.offset + 200, 1)
        while await store.reclaim():
            pass
        assert store._extents.all[at.extent].live_bytes > 0
        with pytest.raises(CorruptionError):
            await store.get(victim)
        for key, value in expected.items():
            if key != victim:
                assert await store.get(key) == value
                assert at.extent not in await extents_of(store, key)


@pytest.mark.expected_warnings("stays where it is", "can not be moved", "can not be scanned")
async def test_a_read_error_drops_nothing() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await half_dead(store)
        for skip in range(6):
            device.fail("read", skip=skip)
            try:
                await store.reclaim()
            except DeviceError as error:
                assert error.operation == "read"
        device.faults = FaultPlan(device.size_bytes)
        assert await content(store) == expected
        assert store.health.reason == ""
    device.reopen()
    async with opened(device) as store:
        while await store.reclaim():
            pass
        assert await content(store) == expected
        assert all(2 * each.live_bytes > EXTENT for each in sealed(store) if each.live_bytes)


async def test_a_value_that_changes_while_it_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await half_dead(store)
        real_read = Evacuator._read
        changed: set[bytes] = set()

        async def read(self: Evacuator, extent: Extent, key: bytes) -> object:
            move = await real_read(self, extent, key)
            if move is not None and key not in changed and len(changed) < 8:
                changed.add(key)
                if len(changed) % 2:
                    expected[key] = b"newer" * 200
                    await store.put(key, expected[key])
                else:
                    del expected[key]
                    await store.delete(key)
            return move

        monkeypatch.setattr(Evacuator, "_read", read)
        while await store.reclaim():
            pass
        assert len(changed) == 8
        assert await content(store) == expected
        assert (await check_store(store, data=True)).is_clean


async def test_what_a_scan_gives_can_be_read_whatever_was_moved_since_it_began() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await half_dead(store)
        found = {}
        async for key, value in store.scan(b"\0", b"\xff"):
            assert isinstance(value, Shard)
            found[key] = await store.read_shard(value, 0, value.length)
            while await store.reclaim():
                pass
        assert found == expected
