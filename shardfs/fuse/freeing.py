"""Deleting inodes that have no name and no user, with all that is theirs.

Role: an inode, its shards, extended attributes and marks, in as few batches as may be: the small
ones several in one batch.

Invariants:
    I1. Inode and orphan mark go in the batch that deletes the last of what is theirs: what a crash
        leaves is found by its mark, and freed by a later mount.
    I2. Memory and batch size do not depend on a file's size.

Not here: which inodes are to be freed, and when (orphans.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from shardfs import limits
from shardfs.engine.pieces import Shard
from shardfs.errors import StaleError
from shardfs.fuse.door import scan_some
from shardfs.fuse.files import SHARD_BYTES, Files
from shardfs.fuse.keys import inode_key, orphan_key, shard_key, truncation_key, xattrs_end


class Freeing:
    """Frees inodes of one store.

    Args:
        files: of the store.
    """

    def __init__(self, files: Files) -> None:
        self._store = files.store
        self._tables = files.tables
        self._truncations = files.truncations

    async def free(self, ino: int) -> None:
        """Delete an inode with its shards, xattrs and marks. Requires: it has no name, no user.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError
        """
        start = inode_key(ino)
        end = xattrs_end(ino)
        while True:
            if await self._has_one_shard(ino):  # a look-up costs a third of a scan
                key = shard_key(ino, 0)
                shard = await self._store.get_shard(key)
                items: list[tuple[bytes, bytes | Shard]] = [(key, shard)] if shard else []
            else:
                items = await scan_some(self._store, start, end, limits.SHARDS_PER_BATCH_MAX)
            last = len(items) < limits.SHARDS_PER_BATCH_MAX
            try:
                await self._tables.run(partial(self._free_now, ino, items, last))
            except StaleError:
                continue
            if last:
                return
            start = items[-1][0]
            await self._store.admit()

    async def free_small(self, inos: Sequence[int]) -> bool:
        """Delete these inodes as `free` does, all in one batch; False if one of them has more than
        one shard, or something has moved meanwhile: nothing was changed then.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError
        """
        doomed = []
        for ino in inos:
            if not await self._has_one_shard(ino):
                return False
            doomed.append((ino, await self._store.get_shard(shard_key(ino, 0))))
        try:
            await self._tables.run(partial(self._free_small_now, doomed))
        except StaleError:
            return False
        return True

    def _free_small_now(self, doomed: Sequence[tuple[int, Shard | None]]) -> None:
        change = self._tables.change()
        for ino, shard in doomed:
            if shard is not None:
                change.batch.delete_shard(shard_key(ino, 0), shard)
            change.delete_inode(ino)
            change.batch.delete(orphan_key(ino))
        change.commit()

    async def _has_one_shard(self, ino: int) -> bool:
        """Besides its inode a file has at most its first shard (files.I2)."""
        if ino in self._truncations:
            return False
        inode = await self._tables.inode(ino)
        return inode is not None and not inode.xattrs and inode.size <= SHARD_BYTES

    def _free_now(self, ino: int, items: Sequence[tuple[bytes, bytes | Shard]], last: bool) -> None:
        change = self._tables.change()
        for key, value in items:
            if isinstance(value, Shard):
                change.batch.delete_shard(key, value)
            elif key != inode_key(ino):
                change.batch.delete(key)
        if last:
            change.delete_inode(ino)
            change.batch.delete(orphan_key(ino))
            if ino in self._truncations:
                change.batch.delete(truncation_key(ino))
        change.commit()
        if last:
            self._truncations.discard(ino)
