"""A run index that named a block in an extent of data, under right checksums, crashed the opening.

Its bytes were counted before there was a table to count them in. Found by the damage campaign
(block reference: locator: extent, with mended checksums).
"""

from __future__ import annotations

import logging

import pytest

from shardfs.checking.image_device import ImageDevice
from shardfs.checking.mending import FrameMender
from shardfs.fuse.repair import repair_device
from tests.fuse.damage_targets import EXTENT_BYTES, make_ground


async def test_it_is_found_and_mended(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")
    ground = await make_ground()
    image = bytearray(ground.image)
    data_extent = ground.frames["data"][0].start // EXTENT_BYTES
    field = ground.fields["run index: block reference: locator: extent"][0]
    image[field.start : field.start + field.length] = data_extent.to_bytes(4, "little")
    frames = [(each.start, each.end) for some in ground.frames.values() for each in some]
    FrameMender(ground.image, frames).mend(image, field.frame.start, field.frame.end)
    report = await repair_device(ImageDevice(image))
    assert not report.before.is_clean
    assert report.after.is_clean
