"""Repair: whatever structure is damaged, the store is clean afterwards and has lost only what was
hit; a repair that is cut off anywhere leaves a store that can be repaired."""

from __future__ import annotations

import logging
import random

import pytest

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.store import Store
from shardfs.fuse.repair import check_device, repair_device
from tests.fuse.damage import DAMAGES, LOOKING, Sample, make_sample, read_tree


@pytest.fixture(autouse=True)
def _stores_may_complain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")


@pytest.fixture(scope="module")
def sample() -> Sample:
    import trio

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


@pytest.mark.parametrize("how", ["bit", "zeroed", "lost"])
@pytest.mark.parametrize(
    "kind", ["superblock", "manifest", "run index", "run block", "data", "name page", "delta"]
)
async def test_a_damaged_store_is_repaired(sample: Sample, kind: str, how: str) -> None:
    for seed in range(2):
        device = damaged(sample, kind, how, seed)
        report = await repair_device(device)
        assert report.after.findings == [], (seed, report.actions)
        async with Store.open(device, options=LOOKING) as store:
            tree, unreadable = await read_tree(store)
        for path, data in tree.items():
            known = sample.tree.get(path)
            assert data == known or path.startswith("lost+found"), (seed, path)
        missing = sample.tree.keys() - tree.keys() - unreadable
        assert not missing or how == "lost", (seed, missing, report.actions)
        if how != "lost" and kind != "data":
            assert not unreadable, (seed, unreadable, report.actions, report.lost)
