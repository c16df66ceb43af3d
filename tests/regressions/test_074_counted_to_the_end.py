"""A superblock record with counts at the end of their fields, under right checksums, crashed a
repair, and a mount, which count on from there.

Such a record is damage like any other now: the one before it, or the other copy's, counts. Found by
the damage campaign (superblock record: durable_delta, with mended checksums, seed 679).
"""

from __future__ import annotations

import contextlib
import logging

import pytest
import trio

from shardfs.checking.image_device import ImageDevice
from shardfs.checking.mending import FrameMender
from shardfs.engine.store import Store
from shardfs.errors import ShardfsError
from shardfs.fuse.repair import repair_device
from tests.engine.stores import MANUAL
from tests.fuse.damage_targets import Ground, make_ground


@pytest.fixture(scope="module")
def ground() -> Ground:
    return trio.run(make_ground)


@pytest.mark.parametrize("count", ["record_number", "incarnation", "checkpoint", "durable_delta"])
async def test_it_is_opened_and_repaired_or_refused(
    ground: Ground, count: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")
    frames = [(each.start, each.end) for some in ground.frames.values() for each in some]
    mender = FrameMender(ground.image, frames)
    places = ground.fields[f"superblock: superblock record: {count}"]
    for hit in (places[-1:], places):
        image = bytearray(ground.image)
        for at in hit:
            image[at.start : at.start + at.length] = b"\xff" * at.length
            mender.mend(image, at.frame.start, at.frame.end)
        with contextlib.suppress(ShardfsError):
            async with Store.open(ImageDevice(bytearray(image)), options=MANUAL):
                pass
        try:
            report = await repair_device(ImageDevice(image))
        except ShardfsError:
            assert hit is places, "one record of several is damaged"
        else:
            assert report.after.is_clean
