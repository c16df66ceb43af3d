"""fsync answered ENOSPC for data that write(2) had taken: many isolated stretches of a full disk.

A shard in about a thousand separate stretches does not fit into a record; the holes between them
are filled then, which takes space that nobody had set aside. Now write(2) knows how many stretches
the record still takes, and it is write(2) that is refused, or that has the holes filled.
"""

from __future__ import annotations

import pytest

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.errors import NoSpaceError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import shard_key
from tests.fuse.harness import Caller, serving

KIB = limits.KIB
STEP = 2 * KIB
"""From one stretch to the next: 2,048 of them in a shard."""


async def fill_the_rest(file_system: FileSystem, caller: Caller) -> None:
    """Nothing is left for anybody but what is deleted again."""
    ino = await caller.create("rest")
    at, length = 0, 64 * KIB
    while length >= KIB:
        try:
            await file_system.writeback.write(ino, at, bytes([7]) * length)
            at += length
        except NoSpaceError:
            length //= 2
    await file_system.writeback.flush(ino)


async def scatter(
    file_system: FileSystem, ino: int, expected: bytearray, *, every: int, first: int = 0
) -> int:
    """Write single bytes until write is refused; each `every`-th is flushed. How many were
    taken."""
    for number in range(first, limits.SHARD_BYTES // STEP):
        at = number * STEP
        try:
            await file_system.writeback.write(ino, at, bytes([1 + number % 255]))
        except NoSpaceError:
            return number
        expected[at] = 1 + number % 255
        if number % every == every - 1:
            await file_system.writeback.fsync(ino)
    return limits.SHARD_BYTES // STEP


@pytest.mark.parametrize("every", [1, 7, 100, 5000], ids=lambda every: f"each {every}")
async def test_what_write_has_taken_is_flushed(every: int) -> None:
    store = ModelStore(5 * limits.MIB)
    async with serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("scattered")
        spare = await caller.create("spare")
        await file_system.writeback.write(spare, 0, bytes([3]) * 512 * KIB)
        await file_system.writeback.flush(spare)
        await fill_the_rest(file_system, caller)
        await caller.unlink("spare")
        await file_system.orphans.drained()
        expected = bytearray(limits.SHARD_BYTES)
        taken = await scatter(file_system, ino, expected, every=every)
        assert 200 < taken < limits.SHARD_BYTES // STEP
        await file_system.writeback.fsync(ino)
        assert not file_system.writeback.is_dirty(ino)
        data = await caller.read("scattered")
        assert data == expected[: len(data)] and len(data) > (taken - 1) * STEP
        # With space for the holes it goes on, also while that is yet to come back.
        await caller.unlink("rest")
        assert await scatter(file_system, ino, expected, every=every, first=taken) == 2048
        await file_system.writeback.fsync(ino)
        assert await caller.read("scattered") == expected[: 2047 * STEP + 1]
        shard = await store.get_shard(shard_key(ino, 0))
        assert shard is not None and len(shard.pieces) < 2 * limits.PIECES_PER_SHARD_MAX
