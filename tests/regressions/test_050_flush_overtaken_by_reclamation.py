"""A flush whose shard was moved each time while it waited to be let in looked it up before the wait
only: on a small, nearly full device, where every writer waits for reclamation and that moves what
little there is, it began anew for ever, and fsync(2) never returned.

Found by `shardfs check`, world files, as a livelock of 200,000 steps.
"""

from __future__ import annotations

from typing import Any, cast

from shardfs.engine.store import Store
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.keys import shard_key
from tests.fuse.harness import Caller, opened_store, serving

ADMITTED_MAX = 20
BLOCK = 4096


class MovingStore:
    """A store that lets nobody in before it has moved a shard elsewhere."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.moving: bytes | None = None
        self.admitted = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def admits_at_once(self, length: int = 0) -> bool:
        return self.moving is None and self._store.admits_at_once(length)

    async def admit(self, length: int = 0) -> None:
        await self._store.admit(length)
        if self.moving is None:
            return
        self.admitted += 1
        assert self.admitted <= ADMITTED_MAX, "a flush begins anew for ever"
        shard = await self._store.get_shard(self.moving)
        assert shard is not None
        data = await self._store.read_shard(shard, 0, shard.length)
        batch = self._store.batch(essential=True)
        batch.put_shard(self.moving, self._store.append_pieces(self.moving, 0, [data]), shard)
        self._store.apply(batch)


async def test_a_flush_ends_though_its_shard_is_moved_while_it_waits() -> None:
    async with opened_store("engine") as plain:
        store = MovingStore(cast(Store, plain))
        async with serving(cast(StoreDoor, store), tasks=False) as file_system:
            caller = Caller(file_system)
            ino = await caller.create("file", data=b"a" * 4 * BLOCK)
            await file_system.writeback.fsync(ino)
            store.moving = shard_key(ino, 0)
            await file_system.writeback.write(ino, BLOCK, b"b" * BLOCK)
            await file_system.writeback.fsync(ino)
            assert store.admitted
            store.moving = None
            assert await caller.read("file") == b"a" * BLOCK + b"b" * BLOCK + b"a" * 2 * BLOCK
