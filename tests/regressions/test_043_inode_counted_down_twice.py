"""An inode whose end was written twice was counted down twice: df said too many files were free.

Two tasks that freed what is queued did it, and so did a mark of a removed file without its inode,
which a damaged device may hold: each mount of it counted one more down, below zero in the end,
which no record can hold.
"""

from __future__ import annotations

import trio

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.fuse.keys import orphan_key
from tests.fuse.harness import Caller, mounted, serving, verify


async def test_two_tasks_free_what_is_queued() -> None:
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        await caller.create("kept")
        before = file_system.tables.inode_count
        for number, size in enumerate([0, 10, 3 * limits.SHARD_BYTES]):
            ino = await caller.create(f"{number}", data=b"x" * size)
            await file_system.writeback.flush(ino)
        for number in range(3):
            await caller.unlink(f"{number}")
        assert file_system.orphans.queue_length == 3
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(file_system.orphans.reap_queued)
        assert file_system.orphans.queue_length == 0
        assert file_system.tables.inode_count == before
        await file_system.sync()
        assert await verify(store) == []


async def test_a_mark_without_an_inode() -> None:
    async with mounted() as file_system:
        await Caller(file_system).create("kept")
        count, absent = file_system.tables.inode_count, file_system.tables.next_ino + 5
        batch = file_system.store.batch()
        batch.put(orphan_key(absent), b"")
        file_system.store.apply(batch)
        for _ in range(2):
            await file_system.orphans._reap_leftovers()
            assert file_system.tables.inode_count == count
        assert await file_system.store.get_record(orphan_key(absent)) is None
