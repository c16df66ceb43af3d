"""What the engine costs: device bytes for user bytes, and what opening reads."""

from __future__ import annotations

import random

import pytest

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.layout import TABLES
from shardfs.engine.pieces import DIGEST_BYTES, granule_count
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError
from tests.engine.stores import MANUAL, formatted, opened

KIB = limits.KIB


@pytest.mark.parametrize(
    ("size", "count", "bytes_per_byte"), [(1024 * KIB, 48, 1.02), (4 * KIB, 6000, 1.35)]
)
async def test_device_bytes_per_user_byte(size: int, count: int, bytes_per_byte: float) -> None:
    """Puts without a sync each, closed in order: everything that was written counts."""
    device = await formatted(128)
    before = device.counts.write_bytes
    value = random.Random(0).randbytes(size)
    async with Store.open(device) as store:
        for number in range(count):
            await store.put(b"object %06d" % number, value)
        await store.checkpoint()
    written = device.counts.write_bytes - before
    assert written <= bytes_per_byte * size * count


async def bytes_read_by_opening(device: SimulatedDevice) -> int:
    before = device.counts.read_bytes
    async with Store.open(device, options=MANUAL):
        return device.counts.read_bytes - before


@pytest.mark.parametrize("cut", [False, True], ids=["closed", "power cut"])
@pytest.mark.parametrize("checkpoint", [False, True])
async def test_opening_reads_the_same_whatever_the_size_of_the_data(
    cut: bool, checkpoint: bool
) -> None:
    figures = []
    for size in (4 * KIB, 64 * KIB):
        device = await formatted(256, extent_bytes=4096 * KIB)
        value = bytes(size)
        async with opened(device) as store:
            for number in range(1500):
                await store.put(b"object %06d" % number, value)
                if number % 100 == 99:
                    await store.sync()
            if checkpoint:
                await store.checkpoint()
            after = device.power_cut()
        figures.append(await bytes_read_by_opening(after if cut else device))
    small, large = figures
    # The data is 16 times as large. The log is read in steps that double, so up to twice its
    # length; after a cut the riders of the last delta are verified.
    allowed = limits.RIDER_BYTES_MAX if cut else 0
    # An entry has a digest for each granule: those of the large values may be read twice as well.
    allowed += 2 * 1500 * DIGEST_BYTES * granule_count(64 * KIB)
    assert large <= 2 * small + allowed, figures


@pytest.mark.parametrize("sector_bytes", [512, 4096])
async def test_a_cold_get_of_a_small_value_takes_two_reads(sector_bytes: int) -> None:
    device = await formatted(64, sector_bytes=sector_bytes)
    async with opened(device) as store:
        for number in range(3000):
            await store.put(b"object %06d" % number, bytes(4 * KIB))
        await store.checkpoint()
    async with opened(device) as store:
        before = device.counts.reads
        assert await store.get(b"object 001234") == bytes(4 * KIB)
        assert device.counts.reads - before <= 2, "an index block and the chunk"
        assert await store.get(b"no such object") is None


async def records_in_one_run(device: SimulatedDevice) -> list[bytes]:
    """Keys of as many records as fill some twenty blocks."""
    keys = [b"record %06d" % number for number in range(2000)]
    async with opened(device) as store:
        batch = store.batch()
        for key in keys:
            batch.put(key, bytes(150))
        store.apply(batch)
        await store.checkpoint()
    return keys


async def test_neighbouring_blocks_are_brought_by_one_read() -> None:
    device = await formatted(64)
    keys = await records_in_one_run(device)
    async with opened(device) as store:
        for wanted, reads in ((keys[100:1500:7], 1), (keys[:20] + keys[-20:], 2)):
            before = device.counts.reads
            await store.bring(wanted)
            for key in wanted:
                assert await store.get_record(key) == bytes(150)
            assert device.counts.reads - before <= reads
        before = device.counts.reads
        assert len(await store.records(b"record", b"recore", 2000)) == 2000
        assert device.counts.reads - before <= 4


async def test_a_damaged_block_is_lost_alone_however_it_is_read() -> None:
    device = await formatted(64)
    keys = await records_in_one_run(device)
    async with opened(device) as store:
        segment = store._tree.runs[0].segments[0]
        damaged = segment.index.blocks[5]
        device.rot(store.identity.extent_offset(damaged.extent) + damaged.offset + 500)
        await store.bring(keys)
        lost = []
        for key in keys:
            try:
                assert await store.get_record(key) == bytes(150)
            except CorruptionError:
                lost.append(segment.block_number(key))
        assert set(lost) == {5}


async def test_overwriting_one_key_for_ever_needs_a_bounded_device() -> None:
    device = await formatted(24, zoned=True)
    async with Store.open(device) as store:
        for number in range(3000):
            await store.put(b"key", bytes([number % 256]) * 40_000)
            await store.admit()
            if number % 10 == 0:
                await store.sync()
        assert await store.get(b"key") == bytes([2999 % 256]) * 40_000
        assert store.health.reason == ""


def test_no_structure_is_padded() -> None:
    for table in TABLES:
        rows = list(table.describe())
        assert rows[0][0] == 0
        assert sum(size for _, size, _, _ in rows) == table.size
