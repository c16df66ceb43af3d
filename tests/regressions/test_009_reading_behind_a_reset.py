"""A chunk could be read after its extent had been reset, and after its place was used again.

Found by the world of extents: scrap 1 4 0; flush; seal 1; free; read-reset 0. Nothing in the store
reads through an outdated locator on purpose, but nothing kept it from doing so either: the device
may still have the old bytes, and bytes not yet written were looked up by place alone, unverified.
"""

from __future__ import annotations

import pytest

from shardfs.engine.chunks import locator_bytes
from shardfs.engine.layout import Kind, Stream
from shardfs.errors import CorruptionError
from tests.engine.test_extents import bench


async def test_what_lay_in_an_extent_before_its_reset_is_unreadable_at_once() -> None:
    async with bench() as it:
        old, persistent = it.chunks.put(Kind.DATA, Stream.DATA, b"k", 0, (b"old" * 500,))
        extent = it.extents.all[old.extent]
        await it.settle(persistent)
        it.extents.seal(extent)
        it.extents.mark_free(extent)
        with pytest.raises(CorruptionError, match="reset since"):
            await it.chunks.get(old, 0, 1)
        await it.extents.release(extent)
        with pytest.raises(CorruptionError, match="reset since"):
            await it.chunks.get(old, 0, 1)
        it.extents._free.rotate(1)
        new, persistent = it.chunks.put(Kind.DATA, Stream.DATA, b"k", 0, (b"new" * 500,))
        assert (new.extent, new.offset) == (old.extent, old.offset)
        assert locator_bytes(new) == locator_bytes(old)
        with pytest.raises(CorruptionError, match="reset since"):
            await it.chunks.get(old, 0, 3)
        assert bytes(await it.chunks.get(new, 0, 3)) == b"new"
        await it.settle(persistent)
