"""Batches, shards and what is stale; readers beside those who replace and reclaim."""

from __future__ import annotations

import itertools
import random

import pytest
import trio

from shardfs import limits
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Shard, splice, truncate
from shardfs.engine.store import Store
from shardfs.errors import LimitError, NoSpaceError, ReadOnlyError, StaleError
from tests.engine.stores import content, formatted, opened, tidy_up

KIB = limits.KIB
READS_WITHOUT_A_PAUSE = 20


def write_shard(store: Store, key: bytes, data: bytes, base: Shard | None) -> None:
    """Replace a whole shard, in one critical section."""
    batch = store.batch()
    batch.put_shard(key, store.append_pieces(key, 0, (data,)), base)
    store.apply(batch)


async def test_a_shard_that_has_changed_is_stale() -> None:
    device = await formatted()
    async with opened(device) as store:
        write_shard(store, b"s", b"1" * 5000, None)
        base = await store.get_shard(b"s")
        write_shard(store, b"s", b"2" * 5000, base)
        with pytest.raises(StaleError):
            write_shard(store, b"s", b"3" * 5000, base)
        batch = store.batch()
        assert base is not None
        batch.delete_shard(b"s", base)
        batch.put(b"r", b"record")
        with pytest.raises(StaleError):
            store.apply(batch)
        assert await store.get_record(b"r") is None, "nothing of a stale batch counts"
        assert await store.get(b"s") == b"2" * 5000


@pytest.mark.parametrize("checkpoints", [0, 1, 4])
async def test_a_base_of_none_is_stale_when_there_is_a_shard_by_now(checkpoints: int) -> None:
    """Also when the entry has moved from memory into a run meanwhile."""
    device = await formatted()
    async with opened(device) as store:
        base = await store.get_shard(b"s")
        assert base is None
        write_shard(store, b"s", b"1" * 5000, None)
        for _ in range(checkpoints):
            await store.checkpoint()
        await store.compact()
        with pytest.raises(StaleError):
            write_shard(store, b"s", b"2" * 5000, base)
        base = await store.get_shard(b"s")
        write_shard(store, b"s", b"3" * 5000, base)
        assert await store.get(b"s") == b"3" * 5000


@pytest.mark.parametrize("deleted", [False, True])
async def test_a_shard_that_was_read_as_absent_can_be_made(deleted: bool) -> None:
    """Filters that answer 'perhaps', and tombstones in runs, must not keep a caller retrying."""
    device = await formatted()
    async with opened(device) as store:
        for number in range(3000):
            await store.put(b"k%06d" % (2 * number), b"v")
        if deleted:
            for number in range(0, 3000, 7):
                await store.delete(b"k%06d" % (2 * number))
        await store.checkpoint()
        for number in range(0, 3000, 7):
            key = b"k%06d" % (2 * number + (0 if deleted else 1))
            base = await store.get_shard(key)
            assert base is None
            write_shard(store, key, b"x", base)


@pytest.mark.parametrize("checkpoint", [False, True])
async def test_a_base_read_before_a_checkpoint_is_refreshed_by_reading_again(
    checkpoint: bool,
) -> None:
    device = await formatted()
    async with opened(device) as store:
        write_shard(store, b"s", b"1" * 5000, None)
        base = await store.get_shard(b"s")
        if checkpoint:
            await store.checkpoint()
        try:
            write_shard(store, b"s", b"2" * 5000, base)
        except StaleError:
            write_shard(store, b"s", b"2" * 5000, await store.get_shard(b"s"))
        assert await store.get(b"s") == b"2" * 5000


async def test_sparse_shards_read_zeros_in_their_holes() -> None:
    device = await formatted()
    model = bytearray(300 * KIB)
    rng = random.Random(3)
    async with opened(device) as store:
        for number in range(60):
            shard = await store.get_shard(b"s")
            pieces = shard.pieces if shard else ()
            start = rng.randrange(200 * KIB)
            data = bytes([number + 1]) * rng.choice((1, 500, 32 * KIB, 40_000))
            batch = store.batch()
            if number % 10 == 9:
                pieces = truncate(pieces, start)
                model[start:] = bytes(len(model) - start)
            else:
                locator = store.append(b"s", start, (data,))
                pieces = splice(pieces, start, locator, len(data))
                model[start : start + len(data)] = data
            batch.put_shard(b"s", pieces, shard)
            store.apply(batch)
            if number % 7 == 0:
                await store.checkpoint()
            shard = await store.get_shard(b"s")
            assert shard is not None
            assert await store.read_shard(shard, 0, len(model)) == model
            start = rng.randrange(len(model))
            assert await store.read_shard(shard, start, 999) == bytes(model[start:][:999]).ljust(
                999, b"\0"
            )
        await store.sync()
    async with opened(device) as store:
        shard = await store.get_shard(b"s")
        assert shard is not None
        assert await store.read_shard(shard, 0, len(model)) == model


async def test_limits_are_checked_before_anything_changes() -> None:
    device = await formatted(8, extent_bytes=64 * KIB)
    async with opened(device) as store:
        for bad in (b"", b"k" * (limits.KEY_BYTES_MAX + 1)):
            with pytest.raises(LimitError):
                await store.put(bad, b"v")
            with pytest.raises(LimitError):
                await store.get(bad)
        batch = store.batch()
        with pytest.raises(LimitError):
            batch.put(b"k", bytes(store.identity.chunk_bytes_max))
        with pytest.raises(LimitError):
            await store.put(b"k", memoryview(bytes(limits.QUEUED_BYTES_MAX + 1)))
        assert len(batch) == 0
        with pytest.raises(NoSpaceError):
            await store.put(b"k", bytes(9 * limits.MIB))
        assert await content(store) == {}


async def test_reservations_are_bounded_by_what_is_free() -> None:
    device = await formatted()
    async with opened(device) as store:
        free = store.space().free_bytes
        store.reserve(free)
        assert store.space().free_bytes == 0
        with pytest.raises(NoSpaceError):
            store.reserve(1)
        with pytest.raises(NoSpaceError):
            await store.put(b"k", b"v" * 9999)
        store.release(free)
        await store.put(b"k", b"v" * 9999)


@pytest.mark.parametrize("seed", range(8))
async def test_readers_beside_writers_and_reclamation(seed: int) -> None:
    """A get returns a whole value that the key has had, never an error, never a mixture."""
    device = await formatted(8, extent_bytes=64 * KIB, checkpoints_max=4, seed=seed, zoned=True)
    rng = random.Random(seed)
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        done = False

        async def write() -> None:
            nonlocal done
            for number in range(150):
                key = b"k%d" % rng.randrange(4)
                await store.put(key, bytes([number]) * rng.choice((10, 5000, 40_000)))
                if number % 5 == 0:
                    await store.sync()
                    await tidy_up(store)
            done = True

        async def read() -> None:
            for count in itertools.count():
                if done:
                    break
                value = await store.get(b"k%d" % rng.randrange(4))
                assert value is None or len(set(value)) == 1
                await trio.lowlevel.checkpoint()
                if count % READS_WITHOUT_A_PAUSE == 0:
                    await trio.sleep(0.001)  # the clock of a test stands while anybody runs

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(4):
                nursery.start_soon(read)


@pytest.mark.expected_warnings("now read-only", "closing without")
async def test_nobody_waits_for_ever_when_the_store_turns_read_only() -> None:
    device = await formatted(checkpoints_max=3)
    results: list[str] = []
    async with Store.open(device) as store:

        async def put_and_wait(number: int) -> None:
            try:
                dependency = await store.put(b"k%d" % number, bytes(9999))
                await dependency.wait()
                results.append("persistent")
            except ReadOnlyError:
                results.append("read-only")

        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(put_and_wait, number)
                await trio.lowlevel.checkpoint()
                store.health.make_read_only("the test says so")
    assert results == ["read-only"] * 10
