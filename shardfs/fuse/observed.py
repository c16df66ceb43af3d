"""Writeback that tells an observer what it does to files, and what fsync has promised.

Role: the same as writeback.Writeback, for mounts that are recorded; others pay nothing for it.

Invariants:
    I1. The observer hears of a change of a file's content in the critical section that makes it
        visible; of a truncation, when it begins and when it has ended (no fsync of the file
        returns in between: it waits for the file's lock).

Not here: what the observer makes of it (promises.py).
"""

from __future__ import annotations

from collections.abc import Callable

from shardfs.fuse.door import StoreDoor
from shardfs.fuse.files import Files
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.promises import Observer
from shardfs.fuse.records import Inode
from shardfs.fuse.tables import Tables
from shardfs.fuse.writeback import DirtyFile, Writeback


class ObservedWriteback(Writeback):
    """The dirty data of one mount, watched. A friend of Writeback: it overrides inner steps.

    Args:
        observer: is told.
    """

    def __init__(
        self,
        store: StoreDoor,
        tables: Tables,
        files: Files,
        orphans: Orphans,
        *,
        dirty_bytes_max: int,
        observer: Observer,
    ) -> None:
        super().__init__(store, tables, files, orphans, dirty_bytes_max=dirty_bytes_max)
        self._observer = observer

    async def truncate(self, ino: int, length: int, amend: Callable[[Inode], Inode]) -> None:
        """See Writeback.truncate."""
        try:
            await super().truncate(ino, length, amend)
        finally:
            self._observer.content_changed(ino)

    async def fsync(self, ino: int) -> None:
        """See Writeback.fsync."""
        inode = await self._tables.inode(ino)
        is_regular = inode is not None and inode.is_regular
        expectation = await self._observer.expect([ino] if is_regular else [], self.read)
        await super().fsync(ino)
        expectation.kept()

    def _write_now(self, ino: int, offset: int, data: bytes, privileged: bool) -> None:
        super()._write_now(ino, offset, data, privileged)
        self._observer.content_changed(ino)

    def _forget(self, file: DirtyFile, length: int) -> None:
        super()._forget(file, length)
        self._observer.content_changed(file.ino)

    def _lose(self, file: DirtyFile, index: int) -> None:
        super()._lose(file, index)
        self._observer.content_changed(file.ino)
