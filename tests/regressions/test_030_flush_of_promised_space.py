"""Data that write(2) had taken could not be flushed on a small device with garbage to reclaim, and
was lost by an orderly unmount.

Found by the world of files (seed 3087 of its day), and when it no longer excused ENOSPC for what
takes no space. There were four causes, each with a test below. Gathering a scattered shard began
to write what did not fit, and what it had written was garbage that nobody could reclaim before it
had reached the device. It filled holes with space that was set aside for others. A file that found
its room taken by another, after it had been let in, gave up. And reclamation found nothing while
all garbage lay in extents that were just being read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import trio
import trio.testing

from shardfs import limits
from shardfs.checking.conformance.running import decode_line, run_case
from shardfs.checking.models.store_model import ModelStore
from shardfs.engine.layout import Bytes
from shardfs.engine.pieces import Piece
from shardfs.errors import NoSpaceError
from shardfs.fuse.keys import shard_key
from tests.engine.stores import formatted, opened
from tests.fuse.harness import Caller, serving

KIB = limits.KIB
EXTENT_BYTES = limits.MOUNT_EXTENT_BYTES_MIN
LINE = (
    "1:files:3087000006605:5b97ffbb22cc7e5b:zeNpVjs0KwCAMg18oB7WWWXwaEcHTGP68_yoDZTSHwJeU9DLmAw-jF2"
    "JuJY2i1sdcZ7uXg4CMI3ug2VA7IJFAB7oNHS4Q84I7Lr-yVQnzep16_Va8unwn8g:1.p."
)
"""Four files are churned, then the file system ends in order."""


def test_what_was_taken_is_there_after_an_orderly_end() -> None:
    outcome = run_case(replace(decode_line(LINE), digest=""))
    assert outcome.run.finding is None, f"{outcome.line}: {outcome.run.finding}"


async def test_garbage_that_has_not_reached_the_device_is_reclaimed() -> None:
    async with opened(await formatted(3, extent_bytes=EXTENT_BYTES)) as store:
        await store.put(b"live", bytes(EXTENT_BYTES // 2))
        await store.sync()
        store.append_pieces(b"given up", 0, (bytes(2 * EXTENT_BYTES),))
        assert await store.reclaim() == 1, "an extent is full of it"


async def test_garbage_that_is_being_read_is_reclaimed_after_that() -> None:
    async with opened(await formatted(3, extent_bytes=EXTENT_BYTES)) as store:
        await store.put(b"read", bytes(EXTENT_BYTES))
        await store.put(b"live", bytes(EXTENT_BYTES // 2))
        shard = await store.get_shard(b"read")
        assert shard is not None

        async def read() -> None:
            with store.pinned(shard.pieces):
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            await store.delete(b"read")
            await store.sync()
            assert await store.reclaim() == 1


async def test_what_does_not_fit_is_not_begun() -> None:
    async with opened(await formatted(3, extent_bytes=EXTENT_BYTES)) as store:
        free, written = store._extents.free_count, store._extents.space.written_bytes.copy()
        ready = store._extents.ready_user_bytes()
        with pytest.raises(NoSpaceError, match="are ready"):
            store.append_pieces(b"too much", 0, (bytes(ready + 8 * EXTENT_BYTES),))
        assert store._extents.free_count == free
        assert store._extents.space.written_bytes == written


async def test_holes_are_not_filled_with_space_that_is_set_aside() -> None:
    """A shard with holes, in too many pieces, while all that is free is promised to a file."""
    store = ModelStore(3 * limits.MIB)
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        scattered = await caller.create("scattered")
        for number in range(limits.PIECES_PER_SHARD_MAX):
            await file_system.writeback.write(scattered, number * 4 * KIB, bytes([1]) * 2 * KIB)
            await file_system.writeback.flush(scattered)
        promised = await caller.create("promised")
        left = store.space().free_bytes - limits.CHANGE_BYTES_RESERVED
        digests = left // limits.GRANULE_BYTES * limits.GRANULE_SPACE_BYTES
        await file_system.writeback.write(promised, 0, bytes([2]) * (left - digests))
        free = store.space().free_bytes
        await file_system.files.gather(scattered, 0)
        assert store.space().free_bytes >= free
        await file_system.writeback.flush(promised)
        assert not file_system.writeback.is_dirty(promised)
        shard = await store.get_shard(shard_key(scattered, 0))
        assert shard is not None and len(shard.pieces) > 1
        await caller.unlink("promised")
        await file_system.orphans.reap_queued()
        await file_system.files.gather(scattered, 0)
        shard = await store.get_shard(shard_key(scattered, 0))
        assert shard is not None and len(shard.pieces) < limits.PIECES_PER_SHARD_MAX // 2


class RacedStore(ModelStore):
    """Whoever has been let in finds the room taken, until some was reclaimed."""

    reclaimed = 0

    def append_pieces(
        self,
        owner: bytes,
        offset: int,
        buffers: Sequence[Bytes],
        *,
        replaced: Sequence[Piece] = (),
    ) -> tuple[Piece, ...]:
        """Refused until it has been asked for room twice."""
        if self.reclaimed < 2:
            raise NoSpaceError("taken by somebody else")
        return super().append_pieces(owner, offset, buffers, replaced=replaced)

    async def reclaim(self) -> int:
        """Some comes back."""
        await super().reclaim()
        self.reclaimed += 1
        return 1


async def test_who_finds_its_room_taken_waits_for_more() -> None:
    store = RacedStore()
    async with serving(store, tasks=False) as file_system:
        ino = await Caller(file_system).create("a", data=b"x" * 1000)
        await file_system.writeback.flush(ino)
        assert not file_system.writeback.is_dirty(ino)
    assert store.reclaimed == 2
