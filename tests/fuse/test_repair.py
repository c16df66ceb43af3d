"""Repair: whatever structure is damaged, the store is clean afterwards and has lost only what was
hit; a repair that is cut off anywhere leaves a store that can be repaired."""

from __future__ import annotations

import logging
import random

import pytest
import trio

from shardfs.checking.power_cuts import PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError
from shardfs.fuse.repair import check_device, repair_device
from tests.fuse.damage import DAMAGES, LOOKING, Sample, make_sample, read_tree
from tests.fuse.harness import serving

POINTS_MAX = 10


@pytest.fixture(autouse=True)
def _stores_may_complain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")


@pytest.fixture(scope="module")
def sample() -> Sample:
    return trio.run(make_sample)


def damaged(sample: Sample, kind: str, how: str, seed: int) -> SimulatedDevice:
    image = bytearray(sample.image)
    source = random.Random(f"{kind} {how} {seed}")
    start, length = source.choice(sample.places[kind])
    DAMAGES[how](image, start, length, source)
    return SimulatedDevice.from_image(bytes(image))


async def test_the_sample_is_clean(sample: Sample) -> None:
    device = SimulatedDevice.from_image(sample.image)
    report, _ = await check_device(device, data=True)
    assert report.findings == []
    async with Store.open(device, options=LOOKING) as store:
        assert await read_tree(store) == (sample.tree, set())
    assert set(sample.places) == {
        *("superblock", "manifest", "run index", "run block", "data", "name page", "delta")
    }


@pytest.mark.parametrize(
    ("kind", "how"),
    [("superblock", "zeroed"), ("run block", "zeroed"), ("data", "zeroed"), ("delta", "lost")],
)
async def test_a_repair_may_be_cut_off_anywhere(sample: Sample, kind: str, how: str) -> None:
    """After a power cut at any write it is no worse than before, and another repair mends it."""
    for seed in range(20):
        device = damaged(sample, kind, how, seed)
        before, _ = await check_device(device, data=True)
        if not before.is_clean:
            break
    points: list[PowerCutPoint] = []
    device.observer = lambda operation: points.append(device.power_cut_point())
    first = await repair_device(device)
    device.observer = None
    assert first.after.findings == [] and len(points) > 5
    source = random.Random(kind)
    for point in points if len(points) <= POINTS_MAX else source.sample(points, POINTS_MAX):
        for choice in point.choices(1, source):
            cut = device.after_power_cut(point, choice)
            found, _ = await check_device(cut, data=True)
            assert found.finding_count <= before.finding_count, (point.step, found.findings)
            again = await repair_device(cut)
            assert again.after.findings == [], point.step
            async with Store.open(cut, options=LOOKING) as store:
                tree, unreadable = await read_tree(store)
            known = {path: sample.tree.get(path) for path in tree}
            assert tree == known, point.step
            assert sample.tree.keys() - tree.keys() == unreadable, point.step
            assert first.lost_bytes or not unreadable


async def test_deleting_what_is_damaged(sample: Sample) -> None:
    device = damaged(sample, "data", "zeroed", 3)
    report = await repair_device(device, delete_damaged=True)
    assert report.after.findings == [] and report.deleted
    async with Store.open(device, options=LOOKING) as store:
        tree, unreadable = await read_tree(store)
    assert unreadable == set()
    assert sample.tree.keys() - tree.keys() == {each.lstrip("/") for each in report.deleted}


async def test_lost_bytes_are_errors_until_they_are_written_over(sample: Sample) -> None:
    device = damaged(sample, "data", "zeroed", 3)
    ranges = (await repair_device(device)).lost
    assert ranges
    async with Store.open(device) as store, serving(store) as file_system:
        read = file_system.writeback.read
        for lost in ranges:
            length = lost.end - lost.start
            with pytest.raises(CorruptionError, match="lost"):
                await read(lost.ino, lost.start, length)
            data = random.Random(length).randbytes(length)
            await file_system.writeback.write(lost.ino, lost.start, data)
            await file_system.writeback.flush(lost.ino)
            assert await read(lost.ino, lost.start, length) == data
    report, _ = await check_device(device, data=True)
    assert report.findings == [] and "lost_bytes" not in report.counts
