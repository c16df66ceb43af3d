"""A manifest whose usage was wrong, under right checksums, crashed the opening of its store.

The log then took more live bytes from an extent than it had, and a negative count did not fit into
the table of extents. Found by the damage campaign (usage: epoch, with mended checksums).
"""

from __future__ import annotations

import logging

import pytest

from shardfs.checking.image_device import ImageDevice
from shardfs.checking.mending import FrameMender
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.fuse.repair import check_device, repair_device
from tests.fuse.damage_targets import make_ground


async def test_a_wrong_usage_is_a_finding(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")
    ground = await make_ground()
    image = bytearray(ground.image)
    for usage in ground.fields["manifest: usage: epoch"]:
        image[usage.start] ^= 1
    frame = ground.frames["manifest"][0]
    frames = [(each.start, each.end) for some in ground.frames.values() for each in some]
    FrameMender(ground.image, frames).mend(image, frame.start, frame.end)
    device = ImageDevice(image)
    async with Store.open(device, options=StoreOptions(background=False)) as store:
        assert "live bytes" in store.health.reason
    before, _ = await check_device(device, data=True)
    assert any("live bytes" in str(finding) for finding in before.findings)
    assert (await repair_device(device)).after.is_clean
