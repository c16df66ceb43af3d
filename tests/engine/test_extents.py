"""Extents and chunks: placing, padding, reading back, freeing."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.chunks import ChunkStore, locator_bytes
from shardfs.engine.dependency import PERSISTENT, Dependency, all_of
from shardfs.engine.extents import Extents
from shardfs.engine.health import Health
from shardfs.engine.layout import ExtentState, Kind, Stream
from shardfs.engine.mkfs import plan
from shardfs.engine.pieces import Locator
from shardfs.engine.scheduler import Scheduler
from shardfs.engine.superblock import Superblock
from shardfs.errors import CorruptionError, DeviceTooSmallError, LimitError, NoSpaceError

KIB = limits.KIB
EXTENT = 64 * KIB


class Bench:
    """Extents over a strict zoned device, without a store."""

    def __init__(self, nursery: trio.Nursery, *, reserve: int = 2) -> None:
        identity = plan(32 * EXTENT, 512, extent_bytes=EXTENT, store_uuid=uuid.UUID(int=1))
        self.device = SimulatedDevice(
            identity.device_bytes, 512, EXTENT, strict_reads=True, checkpoints_max=3
        )
        self.scheduler = Scheduler(self.device, Health(), nursery)
        sequence = itertools.count(1 << 40)
        superblock = Superblock(identity, self.scheduler, self.device, 1, 0, sequence)
        self.extents = Extents(self.device, self.scheduler, superblock, sequence, reserve)
        self.extents.begin()
        self.chunks = ChunkStore(self.extents, sequence)

    async def settle(self, dependency: Dependency) -> None:
        self.extents.cut_all()
        await self.scheduler.settle(dependency)


@asynccontextmanager
async def bench(reserve: int = 2) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        yield Bench(nursery, reserve=reserve)


@pytest.mark.parametrize("seed", range(8))
async def test_chunks_come_back_whatever_their_sizes_and_streams(seed: int) -> None:
    rng = random.Random(seed)
    async with bench() as it:
        chunks: list[tuple[Locator, bytes, Dependency]] = []
        for _ in range(60):
            size = max(0, rng.choice((0, 1, 512, 4096, 16 * KIB)) - rng.choice((0, 0, 1, 100)))
            data = rng.randbytes(size)
            parts = [data[: size // 3], data[size // 3 :]] if size > 3 else [data]
            owner = bytes(rng.randrange(limits.KEY_BYTES_MAX))
            stream = rng.choice((Stream.DATA, Stream.SURVIVORS, Stream.RUNS, Stream.HOT))
            before = rng.choice([PERSISTENT, *(each for _, _, each in chunks[-2:])])
            locator, persistent = it.chunks.put(Kind.DATA, stream, owner, 7, parts, before)
            chunks.append((locator, data, persistent))
            if rng.random() < 0.3:
                it.extents.cut_all()
            for known, content, _ in rng.sample(chunks, min(3, len(chunks))):
                start = rng.randint(0, known.length)
                length = rng.randint(0, known.length - start)
                got = await it.chunks.get(known, start, length)
                assert bytes(got) == content[start : start + length]
        await it.settle(all_of(persistent for _, _, persistent in chunks))
        for locator, content, persistent in chunks:
            assert persistent.is_persistent()
            assert bytes(await it.chunks.get(locator, 0, locator.length)) == content
            assert locator.offset + locator_bytes(locator) <= EXTENT
            assert await it.chunks.is_whole(
                locator.extent, locator.epoch, locator.offset, locator.sequence
            )
            assert not await it.chunks.is_whole(
                locator.extent, locator.epoch, locator.offset, locator.sequence + 1
            )
        assert not it.extents._unwritten, "nothing written is held in memory"


async def test_a_chunk_may_fill_an_extent_to_its_last_byte() -> None:
    async with bench() as it:
        sizes: list[int] = []
        while True:
            room = it.chunks.payload_room(Stream.DATA, 3)
            if sizes and room < 1:
                break
            size = room or it.chunks.payload_bytes_max
            sizes.append(size)
            locator, persistent = it.chunks.put(Kind.DATA, Stream.DATA, b"key", 0, (bytes(size),))
            assert locator.extent == it.extents._current[Stream.DATA].index
        assert it.extents.room(Stream.DATA) < 200
        await it.settle(persistent)
        assert sum(sizes) > EXTENT - 1000


async def test_a_padded_tail_still_fits() -> None:
    """Cutting pads to a block: the next frame is placed behind the padding, or elsewhere."""
    async with bench() as it:
        last: tuple[int, int] = (0, -1)
        every = []
        for number in range(200):
            locator, persistent = it.chunks.put(
                Kind.DATA, Stream.DATA, b"k", 0, (bytes(number * 17 % 3000),)
            )
            it.extents.cut_all()
            every.append(persistent)
            assert locator.offset % limits.BLOCK_BYTES == 0
            assert (locator.extent, locator.offset) > last
            last = (locator.extent, locator.offset)
        await it.settle(all_of(every))


async def test_a_flipped_bit_is_found_and_named() -> None:
    async with bench() as it:
        locator, persistent = it.chunks.put(Kind.DATA, Stream.DATA, b"k", 0, (bytes(9000),))
        await it.settle(persistent)
        it.device.rot(locator.extent * EXTENT + locator.offset + 500)
        with pytest.raises(CorruptionError, match=f"extent {locator.extent} byte"):
            await it.chunks.get(locator, 8000, 10)


async def test_user_data_stops_at_the_reserve_and_metadata_does_not() -> None:
    async with bench(reserve=4) as it:
        with pytest.raises(NoSpaceError):
            while True:
                it.chunks.put(Kind.DATA, Stream.DATA, b"k", 0, (bytes(16 * KIB),), floor=4)
        assert it.extents.free_count == 4
        assert it.extents.ready_user_bytes() < 16 * KIB + 200
        it.chunks.put(Kind.RUN_BLOCK, Stream.RUNS, b"k", 0, (bytes(16 * KIB),))
        assert it.extents.free_count == 3
        it.extents.cut_all()


async def test_an_extent_is_dead_only_when_nothing_needs_it() -> None:
    async with bench() as it:
        locator, persistent = it.chunks.put(Kind.DATA, Stream.DATA, b"k", 0, (bytes(999),))
        size = locator_bytes(locator)
        extent = it.extents.all[locator.extent]

        def is_dead(durable: int = 99) -> bool:
            return extent in it.extents.dead(durable, 99, 0)

        it.extents.credit(extent.index, size)
        it.extents.seal(extent)
        assert not is_dead(), "live, and waiting to be written"
        await it.settle(persistent)
        assert not is_dead(), "live"
        with pytest.raises(AssertionError, match="negative"):
            it.extents.debit(extent.index, extent.epoch, size + 1, 5)
        it.extents.debit(extent.index, extent.epoch, size, 5)
        assert not is_dead(durable=4), "the delta that dropped it is not durable"
        with it.extents.pinned(extent.index):
            assert not is_dead(), "somebody reads"
        assert is_dead()
        it.extents.mark_free(extent)
        await it.extents.release(extent)
        assert extent.state is ExtentState.FREE and extent.epoch == 1
        with pytest.raises(AssertionError, match="reset while referenced"):
            it.extents.debit(extent.index, 0, 1)


async def test_writes_wait_for_what_they_depend_on() -> None:
    async with bench() as it:
        first, first_done = it.chunks.put(Kind.DATA, Stream.DATA, b"k", 0, (b"first",))
        gate = Dependency()
        locators = [
            it.chunks.put(Kind.DATA, Stream.DATA, b"k", 0, (b"gated",), gate) for _ in range(3)
        ]
        await it.settle(first_done)
        assert not any(done.settled for _, done in locators)
        assert it.device.write_pointer(first.extent * EXTENT) == limits.BLOCK_BYTES
        gate.resolve()
        await it.settle(all_of(done for _, done in locators))


@pytest.mark.parametrize("mib", [24, 100, 1024, 64 * 1024, 2 * 1024 * 1024])
def test_a_planned_geometry_holds_together(mib: int) -> None:
    identity = plan(mib * limits.MIB, 4096)
    assert identity.extent_count * identity.extent_bytes <= identity.device_bytes
    assert limits.EXTENT_COUNT_MIN <= identity.extent_count <= limits.EXTENT_COUNT_MAX
    assert identity.chunk_bytes_max * limits.CHUNKS_PER_EXTENT_MIN <= identity.extent_bytes


def test_impossible_geometries_are_refused() -> None:
    with pytest.raises(DeviceTooSmallError):
        plan(8 * limits.MIB, 512)
    for size in (1000, 3 * limits.MIB, 32 * KIB, 2 * limits.GIB):
        with pytest.raises(LimitError):
            plan(1 << 40, 512, extent_bytes=size)
    with pytest.raises(LimitError):
        plan(1 << 36, 512, extent_bytes=64 * KIB)
    with pytest.raises(LimitError):
        plan(64 * limits.MIB, 512, extent_bytes=64 * KIB)
    with pytest.raises(LimitError):
        plan(1 << 30, 512, label="ü" * 33)
