"""Removed files are freed several in one batch, and whatever stands in the way of one frees the
others."""

from __future__ import annotations

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.fuse.keys import inode_key
from tests.fuse.harness import Caller, serving

FILES = 8


async def test_small_files_share_a_batch() -> None:
    store = ModelStore(64 * limits.MIB)
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        inos = [await caller.create(f"f{n}", data=b"x" * 4096) for n in range(FILES)]
        await file_system.sync()
        for number, ino in enumerate(inos):
            await caller.unlink(f"f{number}")
            file_system.orphans.queue(ino)
        file_system.tables.settle()
        before = len(store.unsynced)
        await file_system.orphans.reap_queued()
        assert len(store.unsynced) - before <= FILES // 4
        assert not any(inode_key(ino) in store.state for ino in inos)


async def test_a_large_file_and_small_ones_are_all_freed() -> None:
    store = ModelStore(64 * limits.MIB)
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        large = await caller.create("large", data=b"x" * 4096)
        await file_system.writeback.write(large, limits.SHARD_BYTES, b"y" * 4096)
        inos = [large, *[await caller.create(f"f{n}", data=b"z" * 100) for n in range(3)]]
        await file_system.sync()
        for name, ino in zip(("large", "f0", "f1", "f2"), inos, strict=True):
            await caller.unlink(name)
            file_system.orphans.queue(ino)
        await file_system.orphans.reap_queued()
        assert not any(inode_key(ino) in store.state for ino in inos)
