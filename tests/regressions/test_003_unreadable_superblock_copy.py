"""EIO on one superblock copy ended the opening, although the other copy was whole."""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.errors import DeviceError
from tests.engine.stores import content, formatted, opened


@pytest.mark.parametrize("copy", [0, 1])
async def test_one_unreadable_copy_is_no_obstacle(copy: int) -> None:
    device = await formatted(24)
    async with opened(device) as store:
        await store.put(b"key", b"value")
    device.fail("read", copy * limits.MIB, limits.MIB, times=100)
    async with opened(device) as store:
        assert await content(store) == {b"key": b"value"}
        assert any("superblock copy is damaged" in note for note in store.notes)


async def test_two_unreadable_copies_are_an_error() -> None:
    device = await formatted(24)
    device.fail("read", 0, 2 * limits.MIB, times=100)
    with pytest.raises(DeviceError):
        async with opened(device):
            raise AssertionError("it opened")


async def test_a_damaged_copy_beside_an_unreadable_one_is_an_error_of_the_device() -> None:
    """It was told as damage of both, for which there is no remedy; the device may be read again."""
    device = await formatted(24)
    async with opened(device) as store:
        await store.put(b"key", b"value")
    device.rot(0, limits.BLOCK_BYTES)
    device.fail("read", limits.MIB, limits.MIB)
    with pytest.raises(DeviceError):
        async with opened(device):
            raise AssertionError("it opened")
    async with opened(device) as store:
        assert await content(store) == {b"key": b"value"}
