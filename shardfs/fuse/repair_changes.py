"""The changes of one repair of files: batches, and what is remembered of inodes meanwhile.

Role: shared by inodes_repair.py and names_repair.py.

Invariants:
    I1. A batch is applied, and durable, before what was changed is read again.

Not here: what is changed.
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

import trio

from shardfs import clock
from shardfs.engine.pieces import Shard
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.keys import ROOT_INO, inode_key
from shardfs.fuse.records import Inode, NamedInode, encode_inode

DIRECTORY_TYPE: Final = stat.S_IFDIR >> 12
_CHANGES_PER_BATCH: Final = 128

Recall = Callable[[int], NamedInode | None]
"""What is known of an inode besides the tree."""
Tell = Callable[[str, int | None], None]
"""Takes (what was done, the inode that it was done to)."""


@dataclass(slots=True)
class Known:
    """What is remembered of one inode; `names` as they are counted."""

    type: int
    nlink: int
    size: int
    parent: int
    names: int = 0


class Changes:
    """Changes of one store, and what is known of its inodes.

    Args:
        store: nobody else changes it.
        tell: hears of each thing that is done.
        recall: what is known of inodes that the tree has lost.
    """

    def __init__(self, store: StoreDoor, tell: Tell, recall: Recall) -> None:
        self.store = store
        self.tell = tell
        self.recall = recall
        self.inodes: dict[int, Known] = {}
        self.orphans: set[int] = set()
        self.truncations: set[int] = set()
        self.next_ino = ROOT_INO + 1
        self._batch = store.batch(essential=True)
        self._count = 0

    def put(self, key: bytes, record: bytes) -> None:
        """Set a record."""
        self._batch.put(key, record)
        self._count += 1

    def delete(self, key: bytes) -> None:
        """Delete a record."""
        self._batch.delete(key)
        self._count += 1

    def drop(self, key: bytes, value: bytes | Shard, why: str, ino: int | None = None) -> None:
        """Delete a record or a shard, and say why."""
        self.tell(f"{why}: dropped", ino)
        if isinstance(value, Shard):
            self._batch.delete_shard(key, value)
            self._count += 1
        else:
            self.delete(key)

    async def flush(self) -> None:
        """Have everything so far applied and durable.

        Raises:
            NoSpaceError, ReadOnlyError, DeviceError
        """
        if self._count:
            self.store.apply(self._batch)
            self._batch, self._count = self.store.batch(essential=True), 0
            await self.store.sync()

    async def give_way(self) -> None:
        """Between two steps."""
        await trio.lowlevel.checkpoint()
        if self._count >= _CHANGES_PER_BATCH:
            await self.flush()

    async def range(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        """What lies in [start, end), in key order."""
        async for item in self.store.scan(start, end):
            await self.give_way()
            yield item

    def remember(self, ino: int, inode: Inode) -> None:
        """There is this inode."""
        self.inodes[ino] = Known(inode.mode >> 12, inode.nlink, inode.size, inode.parent)
        self.next_ino = max(self.next_ino, ino + 1)

    def make_directory(
        self, ino: int, parent: int, like: Inode | None = None, *, mode: int = 0o700
    ) -> None:
        """An empty directory, with the owner and mode of another one if there is one."""
        now = clock.now_ns()
        inode = like or Inode(
            stat.S_IFDIR | mode, atime_ns=now, mtime_ns=now, ctime_ns=now, btime_ns=now
        )
        inode = inode._replace(nlink=2, size=0, parent=parent, xattrs=0)
        self.put(inode_key(ino), encode_inode(inode))
        self.remember(ino, inode)
