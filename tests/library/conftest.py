"""Fixtures for tests of the library: formatted images, and disks opened on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

import shardfs
from shardfs.engine import create_image, format_device, open_device, plan
from shardfs.library import Disk

IMAGE_BYTES = 64 * 1024 * 1024


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image file with an empty store."""
    path = tmp_path / "disk.img"
    create_image(path, IMAGE_BYTES)
    device = open_device(path)
    try:
        trio.run(format_device, device, plan(IMAGE_BYTES, 512))
    finally:
        device.close()
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[Disk]:
    """The files on the image, to be changed."""
    with shardfs.open(image, writable=True) as opened:
        yield opened
