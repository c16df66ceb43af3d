"""A number of 64 bits that no store reaches, under right checksums, crashed the repair.

SQLite, which repair keeps its index of frames in, knows numbers of 63 bits. Sequence numbers and
numbers of deltas above that were taken for negative ones, those of name pages and of the last
checkpoint ended the repair. Found by the damage campaign (superblock record: checkpoint, with
mended checksums, seed 23).
"""

from __future__ import annotations

import logging

import pytest

from shardfs.checking.image_device import ImageDevice
from shardfs.checking.mending import FrameMender
from shardfs.errors import CorruptionError, NoSpaceError
from shardfs.fuse.repair import repair_device
from tests.fuse.damage_targets import make_ground

BEYOND = 1 << 63


@pytest.mark.parametrize(
    "field",
    [
        "superblock: superblock record: checkpoint",
        "superblock: superblock record: durable_delta",
        "name page: frame header: sequence",
        "data: frame header: sequence",
        "delta: frame header: sequence",
        "delta: delta: number",
        "delta: delta: durable",
    ],
)
async def test_it_is_repaired_or_refused(field: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")
    ground = await make_ground()
    frames = [(each.start, each.end) for some in ground.frames.values() for each in some]
    mender = FrameMender(ground.image, frames)
    for at in ground.fields[field][-2:]:
        image = bytearray(ground.image)
        image[at.start : at.start + at.length] = BEYOND.to_bytes(at.length, "little")
        mender.mend(image, at.frame.start, at.frame.end)
        try:
            report = await repair_device(ImageDevice(image))
        except (CorruptionError, NoSpaceError):
            continue
        assert report.after.is_clean
