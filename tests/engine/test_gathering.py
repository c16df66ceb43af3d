"""Scattered shards are rewritten in fewer pieces, and nobody is in the way of anybody."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.fsck import check_store
from shardfs.engine.gathering import groups_worth_joining
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Locator, Piece, Shard, splice
from shardfs.engine.shards import ShardData
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError, StaleError
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
KEY = b"shard"
PIECE = 1 * KIB


async def patch(store: Store, start: int, data: bytes) -> None:
    """Overwrite some bytes of the shard, as the file system does."""
    while True:
        base = await store.get_shard(KEY)
        pieces = base.pieces if base is not None else ()
        for piece in store.append_pieces(KEY, start, (data,)):
            pieces = splice(pieces, piece.start, piece.locator, piece.length)
        batch = store.batch()
        batch.put_shard(KEY, pieces, base)
        try:
            store.apply(batch)
        except StaleError:
            continue
        return


async def scattered(store: Store, count: int = 64) -> bytes:
    """A shard written at random in small pieces, with a hole; what it holds."""
    rng = random.Random(count)
    places = [number for number in range(count) if number != count // 2]
    rng.shuffle(places)
    expected = bytearray(count * PIECE)
    for number in places:
        data = rng.randbytes(PIECE)
        expected[number * PIECE : (number + 1) * PIECE] = data
        await patch(store, number * PIECE, data)
        await store.put(b"between %d" % number, b"x" * 300)
    await store.sync()
    return bytes(expected)


async def shard_of(store: Store) -> Shard:
    shard = await store.get_shard(KEY)
    assert shard is not None
    return shard


async def read_all(device: SimulatedDevice, store: Store) -> tuple[bytes, int]:
    """The shard's bytes, and the device reads that reading them took."""
    shard = await shard_of(store)
    before = device.counts.reads
    data = await store.read_shard(shard, 0, shard.length)
    return data, device.counts.reads - before


async def test_a_sequential_read_takes_fewer_device_reads() -> None:
    device = await formatted(32, extent_bytes=1024 * KIB)
    async with opened(device) as store:
        expected = await scattered(store, 200)
        data, reads = await read_all(device, store)
        assert data == expected
        assert reads == 199
        written = device.counts.write_bytes
        assert await store.gather() == 199 * PIECE
        assert await store.gather() == 0
        await store.sync()
        data, reads = await read_all(device, store)
        assert data == expected
        assert reads == 2, "one on each side of the hole"
        assert device.counts.write_bytes - written < 1.2 * 200 * PIECE
        assert len((await shard_of(store)).pieces) == 2
        statistics = store.statistics()
        assert (statistics.gathered_shards, statistics.gathered_bytes) == (1, 199 * PIECE)
        assert statistics.scattered_shards == 0
        assert (await check_store(store, data=True)).is_clean


async def test_in_the_background_after_a_while_without_changes() -> None:
    device = await formatted(8, extent_bytes=64 * KIB)
    async with opened(device, StoreOptions()) as store:
        expected = await scattered(store)
        for _ in range(20):
            await trio.sleep(limits.SCATTERED_IDLE_S / 5)
            await patch(store, 0, expected[:PIECE])
        assert store.statistics().gathered_shards == 0, "it was being written"
        await trio.sleep(2 * limits.SCATTERED_IDLE_S)
        assert store.statistics().gathered_shards == 1
        assert (await read_all(device, store))[0] == expected


async def test_one_of_an_earlier_opening_is_noticed_when_it_is_read() -> None:
    device = await formatted(8, extent_bytes=64 * KIB)
    async with opened(device) as store:
        expected = await scattered(store)
    async with opened(device) as store:
        assert await store.gather() == 0
        await store.get(KEY, 0, 10)
        assert store.statistics().scattered_shards == 1
        assert await store.gather() > 0
        assert (await read_all(device, store))[0] == expected


async def test_not_on_a_device_that_is_short_of_space() -> None:
    device = await formatted(4, extent_bytes=64 * KIB)
    async with opened(device) as store:
        expected = await scattered(store)
        number = 0
        while not store._extents.space.is_short:
            await store.put(b"fill %d" % number, b"f" * 6 * KIB)
            number += 1
        written = store._extents.space.written_bytes.total()
        assert await store.gather() == 0
        assert store._extents.space.written_bytes.total() == written
        for each in range(number):
            await store.delete(b"fill %d" % each)
        await store.sync()
        while await store.reclaim():
            pass
        assert await store.gather() > 0
        assert (await read_all(device, store))[0] == expected


async def test_a_writer_who_comes_meanwhile_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    device = await formatted(8, extent_bytes=64 * KIB)
    async with opened(device) as store:
        expected = bytearray(await scattered(store))
        real_read = ShardData.read

        async def read(self: ShardData, *arguments: Any) -> bytes:
            data = await real_read(self, *arguments)
            expected[5 * PIECE : 6 * PIECE] = b"w" * PIECE
            await patch(store, 5 * PIECE, b"w" * PIECE)
            return data

        monkeypatch.setattr(ShardData, "read", read)
        assert await store.gather() == 0
        monkeypatch.undo()
        assert (await read_all(device, store))[0] == expected
        assert await store.gather() > 0, "the change made it wait again"
        assert (await read_all(device, store))[0] == expected
        assert (await check_store(store, data=True)).is_clean


async def test_deleted_and_moved_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    device = await formatted(8, extent_bytes=64 * KIB)
    async with opened(device) as store:
        expected = await scattered(store)
        real_read = ShardData.read

        async def read(self: ShardData, *arguments: Any) -> bytes:
            data = await real_read(self, *arguments)
            for extent in store._extents.sealed_data():
                await store._evacuator.evacuate(extent)
            return data

        monkeypatch.setattr(ShardData, "read", read)
        assert await store.gather() == 0
        assert await store.gather() > 0, "nothing was left to be moved"
        assert (await read_all(device, store))[0] == expected

        async def read_and_delete(self: ShardData, *arguments: Any) -> bytes:
            data = await real_read(self, *arguments)
            await store.delete(KEY)
            return data

        await store.delete(KEY)
        await scattered(store)
        monkeypatch.setattr(ShardData, "read", read_and_delete)
        assert await store.gather() == 0
        assert await store.get_shard(KEY) is None
        assert (await check_store(store, data=True)).is_clean


async def test_a_power_cut_at_any_moment_leaves_the_same_bytes() -> None:
    device = await formatted(8, extent_bytes=64 * KIB)
    async with opened(device) as store:
        await scattered(store)
        expected = await content(store)
        points = [device.power_cut_point()]
        device.observer = lambda _: points.append(device.power_cut_point())
        assert await store.gather() > 0
        await store.sync()
        await store.checkpoint()
        while await store.reclaim():
            pass
        device.observer = None
    assert len(points) > 4
    rng = random.Random(1)
    for point in points:
        for choice in point.choices(6, rng):
            async with opened(device.after_power_cut(point, choice)) as store:
                assert await content(store) == expected
                assert (await check_store(store, data=True)).is_clean


@pytest.mark.parametrize("trouble", ["read error", "rot"])
async def test_what_cannot_be_read_stays(trouble: str) -> None:
    device = await formatted(8, extent_bytes=64 * KIB)
    async with opened(device) as store:
        expected = await scattered(store)
        before = await shard_of(store)
        if trouble == "rot":
            at = before.pieces[9].locator
            device.rot(store.identity.extent_offset(at.extent) + at.offset + 200, 1)
        else:
            device.fail("read", skip=5)
        assert await store.gather() == 0
        assert (await shard_of(store)).pieces == before.pieces
        assert store.health.reason == ""
        if trouble == "rot":
            with pytest.raises(CorruptionError):
                await read_all(device, store)
        else:
            assert (await read_all(device, store))[0] == expected
            device.fail("read", times=1)
            with pytest.raises(DeviceError):
                await read_all(device, store)


def pieces_of(*ranges: tuple[int, int]) -> tuple[Piece, ...]:
    return tuple(
        Piece(start, length, 0, Locator(3, 1, 0, length, number, 0, b""))
        for number, (start, length) in enumerate(ranges)
    )


def test_what_is_worth_joining() -> None:
    small = [(number * KIB, KIB) for number in range(20)]
    assert groups_worth_joining(pieces_of(*small), 64 * KIB) == [pieces_of(*small)]
    assert groups_worth_joining(pieces_of(*small[:6]), 64 * KIB) == [], "too few"
    apart = [(2 * number * KIB, KIB) for number in range(20)]
    assert groups_worth_joining(pieces_of(*apart), 64 * KIB) == [], "holes between them stay"
    large = [(20 * KIB, 60 * KIB), *((start + 80 * KIB, KIB) for start, _ in small)]
    pieces = pieces_of(*small, *large)
    assert groups_worth_joining(pieces, 64 * KIB) == [pieces[:20], pieces[21:]]
    costly = [(number * 200 * KIB, 200 * KIB) for number in range(20)]
    assert groups_worth_joining(pieces_of(*costly), 1024 * KIB) == [], "too many bytes"


async def test_the_most_scattered_are_gathered_before_the_device_is_full() -> None:
    device = await formatted(8, extent_bytes=256 * KIB)
    async with opened(device) as store:
        expected = await scattered(store, 200)
        pieces = len((await shard_of(store)).pieces)
        space = store._extents.space
        number = 0
        while space.user_bytes() > 2 * store._extents.extent_bytes:
            await store.put(b"fill %d" % number, b"f" * 50 * KIB)
            number += 1
        await store.sync()
        assert space.is_short
        assert await store.gather() == 0, "not for the sake of reading"
        before, written = space.user_bytes(), space.written_bytes.total()
        # Who asks for more than there is has it done before he is told so.
        await store.admit(before)
        assert len((await shard_of(store)).pieces) <= 6, "cut at multiples, and by extents' ends"
        assert space.user_bytes() - before >= 56 * (pieces - 6), "at least their heads"
        await store.sync()
        assert space.written_bytes.total() - written < 2 * 200 * PIECE
        again = space.written_bytes.total()
        await store.admit(before)
        await store.sync()
        assert space.written_bytes.total() == again, "there is nothing more to gain"
        assert (await read_all(device, store))[0] == expected
        assert (await check_store(store, data=True)).is_clean


async def test_what_is_gathered_for_space_has_to_be_worth_it() -> None:
    """One piece saved for each limits.SCATTERED_BYTES_PER_PIECE, however short the space."""
    device = await formatted(32, extent_bytes=1024 * KIB)
    async with opened(device) as store:
        large = limits.SCATTERED_BYTES_PER_PIECE + KIB
        for number in range(40):
            await patch(store, number * large, bytes(large))
            await store.put(b"between %d" % number, b"x" * 300)
        while store._extents.space.user_bytes() > store._extents.extent_bytes:
            await store.put(b"fill %d" % store._extents.space.user_bytes(), bytes(200 * KIB))
        written = store._extents.space.written_bytes.total()
        await store.admit(2 * 1024 * KIB)
        assert store._extents.space.written_bytes.total() == written
        assert len((await shard_of(store)).pieces) >= 40
