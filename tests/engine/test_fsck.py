"""fsck of the engine: clean stores are clean, also after a crash, and each planted damage is found.

Role: one test plants one break of each numbered invariant of shardfs/engine/fsck.py and expects
that very number. Damage on the device is planted before the store is opened read-only; damage that
recovery would never let through is planted in the open store.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine import fsck as engine_fsck
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.findings import FINDINGS_MAX, Finding, Report
from shardfs.engine.framing import head_bytes
from shardfs.engine.fsck import check_store
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Locator, Piece, Shard
from shardfs.engine.store import Store
from shardfs.limits import KIB, MIB
from tests.engine.stores import MANUAL, formatted, opened, tidy_up

LOOKING = StoreOptions(read_only=True, background=False)
VALUE = bytes(range(256)) * 400


def numbers_of(report: Report) -> set[str]:
    return {finding.invariant for finding in report.findings}


async def filled(**options: bool) -> SimulatedDevice:
    """A closed store with two runs, overwritten and deleted keys, and a delta log."""
    device = await formatted(32, **options)
    async with opened(device, MANUAL) as store:
        for number in range(60):
            await store.put(b"big%03d" % number, VALUE[: 2000 + 1500 * number])
            await store.put(b"small%03d" % number, b"x" * number)
        await store.checkpoint()
        for number in range(0, 60, 3):
            await store.put(b"big%03d" % number, VALUE[:40000])
            await store.delete(b"big%03d" % (number + 1))
        await tidy_up(store)
        await store.put(b"last", VALUE)
        await store.sync()
        assert numbers_of(await check_store(store, data=True)) == set()
    return device


async def looked_at(device: SimulatedDevice, *, data: bool = True) -> Report:
    async with opened(device, LOOKING) as store:
        return await check_store(store, data=data)


async def shard_of(store: Store, key: bytes) -> Shard:
    shard = await store.get_shard(key)
    assert shard is not None
    return shard


def place_of(store: Store, locator: Locator) -> int:
    """Where a frame begins on the device."""
    return store.identity.extent_offset(locator.extent) + locator.offset


# --- what is in order ------------------------------------------------------------------------


@pytest.mark.parametrize("zoned", [False, True])
async def test_a_store_in_order_is_clean(zoned: bool) -> None:
    device = await filled(zoned=zoned)
    flushes, writes = device.counts.flushes, device.counts.writes
    report = await looked_at(device)
    assert report.is_clean, report.findings
    assert report.notes == []
    assert report.counts["shards"] == 41
    assert report.counts["runs"] >= 1
    assert report.counts["data_bytes"] >= report.counts["shards"] * 2000
    assert (device.counts.flushes, device.counts.writes) == (flushes, writes), "it only reads"


async def test_an_empty_store_is_clean() -> None:
    assert (await looked_at(await formatted(32))).is_clean


@pytest.mark.parametrize("zoned", [False, True])
async def test_a_store_is_clean_after_a_power_cut_at_any_step(zoned: bool) -> None:
    """Recovery in memory, nothing written: what a crash leaves is no finding, but for the one
    state that fsck says it cannot tell from damage."""
    identity = plan(4 * MIB, 512, extent_bytes=64 * KIB)
    points: list[PowerCutPoint] = []
    device = SimulatedDevice(identity.device_bytes, 512, identity.extent_bytes if zoned else None)
    await format_device(device, identity)
    device.observer = lambda operation: points.append(device.power_cut_point())
    for _ in range(2):
        async with opened(device, MANUAL) as store:
            for number in range(12):
                await store.put(b"key%d" % (number % 5), VALUE[: 3000 * number])
                if number % 2:
                    await store.sync()
                if number % 5 == 4:
                    await tidy_up(store)
    randomness = random.Random(7)
    checked = 0
    for point in points:
        for choice in point.choices(6, randomness):
            report = await looked_at(device.after_power_cut(point, choice))
            found = [str(finding) for finding in report.findings]
            known = [line for line in found if re.match(r"E1 .* superblock copy: .* payload", line)]
            assert found == known, (point.step, choice)
            checked += 1
    assert checked > 300


# --- damage on the device --------------------------------------------------------------------


@pytest.mark.parametrize("copy", [0, 1])
async def test_e1_a_superblock_copy(copy: int) -> None:
    device = await filled()
    async with opened(device, LOOKING) as store:
        start = store.identity.extent_offset(copy)
    device.rot(start + 60)
    report = await looked_at(device)
    assert numbers_of(report) == {"E1"}
    assert ("first", "second")[copy] in str(report.findings[0])


async def test_e3_a_block_of_a_run() -> None:
    """What the block held cannot be checked; everything else is, and nothing is said twice."""
    device = await filled()
    async with opened(device, LOOKING) as store:
        locator = store._tree.runs[-1].segments[0].index.blocks[0]
        device.rot(place_of(store, locator) + head_bytes(locator.key_bytes, locator.length) + 9)
    report = await looked_at(device)
    assert numbers_of(report) == {"E3"}
    assert report.findings[0].extent == locator.extent
    assert report.findings[0].offset == locator.offset


async def test_e10_a_frame_head() -> None:
    device = await filled()
    async with opened(device, LOOKING) as store:
        locator = (await shard_of(store, b"big002")).pieces[0].locator
        device.rot(place_of(store, locator) + 4)
    report = await looked_at(device, data=False)
    assert numbers_of(report) == {"E10"}
    assert report.findings[0].key == b"big002"


async def test_e10_another_frame_in_its_place() -> None:
    device = await filled()
    async with opened(device, LOOKING) as store:
        victim = (await shard_of(store, b"big002")).pieces[0].locator
        other = (await shard_of(store, b"big005")).pieces[0].locator
        head = await device.read(place_of(store, other), 4096)
        place = place_of(store, victim)
    data = bytearray(await device.read(place - place % 4096, 8192))
    data[place % 4096 : place % 4096 + 60] = head[:60]
    await device.write(place - place % 4096, (bytes(data),))
    report = await looked_at(device, data=False)
    assert "E10" in numbers_of(report)


async def test_e11_a_byte_of_data_is_named_by_key_and_bytes() -> None:
    device = await filled()
    async with opened(device, LOOKING) as store:
        shard = await shard_of(store, b"last")
        locator = shard.pieces[0].locator
        at = place_of(store, locator) + head_bytes(locator.key_bytes, locator.length)
        device.rot(at + 40_000)
    assert (await looked_at(device, data=False)).is_clean, "without data it is not seen"
    report = await looked_at(device)
    assert numbers_of(report) == {"E11"}
    (finding,) = report.findings
    assert finding.key == b"last"
    assert (finding.start, finding.length) == (36864, 4096)
    assert finding.extent == locator.extent


async def test_a_device_error_is_a_finding() -> None:
    device = await filled()
    async with opened(device, LOOKING) as store:
        locator = (await shard_of(store, b"last")).pieces[0].locator
        device.fail("read", place_of(store, locator) + 40_000, 1, times=100)
        report = await check_store(store, data=True)
    assert "E11" in numbers_of(report)


# --- damage that only an open store can have --------------------------------------------------


def swap_run_order(store: Store) -> None:
    tree = store._tree
    run = tree.runs[0]
    tree.runs = (run._replace(level=0), run._replace(level=3))


def lose_a_key_of_the_index(store: Store) -> None:
    segment = store._tree.runs[-1].segments[0]
    segment.meta = segment.meta._replace(entry_count=segment.meta.entry_count + 1)


def damage_the_log(store: Store) -> None:
    store.damage = "the delta log ends too early"


def data_extent(store: Store) -> int:
    return next(
        extent.index
        for extent in store._extents.all
        if extent.stream is Stream.DATA and extent.live_bytes
    )


def raise_an_epoch(store: Store) -> None:
    store._extents.all[data_extent(store)].epoch += 1


def pull_back_a_pointer(store: Store) -> None:
    store._extents.all[data_extent(store)].write_pointer = 8


def change_a_stream(store: Store) -> None:
    store._extents.all[data_extent(store)].stream = Stream.RUNS


def miscount_live_bytes(store: Store) -> None:
    store._extents.all[data_extent(store)].live_bytes += 8


def free_an_extent(store: Store) -> None:
    store._extents.all[data_extent(store)].state = ExtentState.FREE


def impossible_pointer(store: Store) -> None:
    store._extents.all[data_extent(store)].write_pointer = 1 << 31


@pytest.mark.parametrize(
    ("plant", "invariant"),
    [
        (swap_run_order, "E2"),
        (lose_a_key_of_the_index, "E3"),
        (damage_the_log, "E5"),
        (raise_an_epoch, "E6"),
        (pull_back_a_pointer, "E6"),
        (change_a_stream, "E6"),
        (miscount_live_bytes, "E8"),
        (free_an_extent, "E9"),
        (impossible_pointer, "E12"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
async def test_planted_damage_is_found(plant: Callable[[Store], None], invariant: str) -> None:
    device = await filled()
    async with opened(device, LOOKING) as store:
        assert (await check_store(store)).is_clean
        plant(store)
        assert invariant in numbers_of(await check_store(store))


async def test_e4_an_entry_that_does_not_decode() -> None:
    async with opened(await filled(), LOOKING) as store:
        store._tree.set(b"big0020", b"\x07nonsense")
        assert "E4" in numbers_of(await check_store(store))


async def test_e7_chunks_that_overlap() -> None:
    async with opened(await filled(), MANUAL) as store:
        shard = await shard_of(store, b"last")
        locator = shard.pieces[0].locator
        batch = store.batch()
        batch.put_shard(b"twin", (Piece(0, 10, 0, locator),), None)
        store.apply(batch)
        assert "E7" in numbers_of(await check_store(store))
        twin = await shard_of(store, b"twin")
        batch = store.batch()
        batch.delete_shard(b"twin", twin)
        store.apply(batch)
        assert (await check_store(store)).is_clean


async def test_e6_an_extent_beyond_the_device() -> None:
    async with opened(await filled(), LOOKING) as store:
        locator = (await shard_of(store, b"last")).pieces[0].locator
        from shardfs.engine.lsm.entry import encode_shard

        far = Piece(0, 10, 0, locator._replace(extent=1 << 20))
        store._tree.set(b"far", encode_shard((far,)))
        assert locator_bytes(far.locator) > 10
        assert "E6" in numbers_of(await check_store(store))


# --- the report ------------------------------------------------------------------------------


def test_findings_are_bounded_and_all_counted() -> None:
    report = Report()
    for number in range(FINDINGS_MAX + 7):
        report.add(Finding("E8", str(number)))
    assert len(report.findings) == FINDINGS_MAX
    assert report.finding_count == FINDINGS_MAX + 7
    assert not report.is_clean


def test_a_finding_is_one_line() -> None:
    assert str(Finding("E8", "wrong", "extent 7")) == "E8 extent 7: wrong"
    assert str(Finding("E9", "gone", "x", extent=3)) == "E9 x: gone (extent 3)"
    assert str(Finding("E9", "gone", extent=3, offset=8)) == "E9 gone (extent 3 byte 8)"


def test_every_invariant_is_planted_here() -> None:
    """A new number in fsck's docstring needs a test in this module."""
    documented = set(re.findall(r"^    (E\d+)\.", engine_fsck.__doc__ or "", re.MULTILINE))
    tested = set(re.findall(r'"(E\d+)"', Path(__file__).read_text()))
    assert len(documented) == 12
    assert documented <= tested
