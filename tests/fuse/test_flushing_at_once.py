"""Many files with long entries are flushed at once: the log keeps to what is there for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio

from shardfs import limits
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store
from tests.engine.stores import formatted
from tests.fuse.harness import Caller, serving

FILES = 48
PARTS = 96
PART_BYTES, STRIDE_BYTES = 100, 6000
"""Holes between them are too large to be filled."""


async def test_each_flush_sees_what_those_before_it_have_added() -> None:
    device = await formatted(12, extent_bytes=limits.MOUNT_EXTENT_BYTES_MIN)
    async with Store.open(device) as store, serving(store) as file_system:
        caller = Caller(file_system)
        inos = [await caller.create(str(number)) for number in range(FILES)]
        for ino in inos:
            for part in range(PARTS):
                await file_system.writeback.write(ino, part * STRIDE_BYTES, b"x" * PART_BYTES)
        committer = store._committer
        fills: list[float] = []
        added = committer.add

        def add(changes: dict[bytes, bytes], riders: Sequence[Any]) -> None:
            added(changes, list(riders))
            fills.append(committer.fill)

        get_shard = store.get_shard

        async def read_shard(key: bytes) -> Shard | None:
            await trio.sleep(0.01)  # the entry is not cached
            return await get_shard(key)

        vars(committer)["add"] = add
        vars(file_system.store)["get_shard"] = read_shard
        async with trio.open_nursery() as nursery:
            for ino in inos:
                nursery.start_soon(file_system.writeback.fsync, ino)
        assert len(fills) >= 2 * FILES  # a first part was given to the engine while it was written
        assert max(fills) > 1, "there was something to wait for"
        assert max(fills) < limits.OVERDUE_FACTOR + 0.25, "one batch beyond the bound, not all"
        for number in range(FILES):
            content = await caller.read(str(number))
            assert content.count(b"x") == PARTS * PART_BYTES
