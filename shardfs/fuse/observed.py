"""Writeback and namespace that tell an observer what they do to files, and what they promise.

Role: the same as writeback.Writeback and namespace.Namespace, for mounts that are recorded; others
pay nothing for it.

Invariants:
    I1. The observer hears of a change of a file's content in the critical section that makes it
        visible; of a truncation, when it begins and when it has ended (no fsync of the file
        returns in between: it waits for the file's lock).

Not here: what the observer makes of it (promises.py).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from shardfs.fuse.door import StoreDoor
from shardfs.fuse.files import Files
from shardfs.fuse.handles import Handles
from shardfs.fuse.namespace import Namespace
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.promises import Expectation, Observer
from shardfs.fuse.records import Inode
from shardfs.fuse.tables import Tables
from shardfs.fuse.writeback import Writeback


class ObservedWriteback(Writeback):
    """The dirty data of one mount, watched. A friend of Writeback: it overrides an inner step.

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
        super().__init__(
            store,
            tables,
            files,
            orphans,
            dirty_bytes_max=dirty_bytes_max,
            content_changed=observer.content_changed,
        )
        self._observer = observer

    async def truncate(self, ino: int, length: int, amend: Callable[[Inode], Inode]) -> None:
        """See Writeback.truncate."""
        try:
            await super().truncate(ino, length, amend)
        finally:
            self._observer.content_changed(ino)

    async def fsync(self, ino: int) -> None:
        """See Writeback.fsync."""
        expectation = await self.expect(ino)
        await super().fsync(ino)
        expectation.kept()

    async def expect(self, ino: int) -> Expectation:
        """The content that a file has now; none if it is not a regular file."""
        inode = await self._tables.inode(ino)
        is_regular = inode is not None and inode.is_regular
        return await self._observer.expect(ino, self.read if is_regular else None)

    def _write_now(self, ino: int, offset: int, data: bytes, privileged: bool) -> None:
        super()._write_now(ino, offset, data, privileged)
        self._observer.written(ino)


class ObservedNamespace(Namespace):
    """The directory tree of one mount, watched; see Namespace."""

    def __init__(
        self, tables: Tables, writeback: ObservedWriteback, orphans: Orphans, handles: Handles
    ) -> None:
        super().__init__(tables, writeback, orphans, handles)
        self._observed = writeback

    async def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """See Namespace.rename."""
        rename = partial(super().rename, old_parent, old_name, new_parent, new_name, flags)
        old = await self.lookup(old_parent, old_name)
        new = await self.lookup(new_parent, new_name)
        if old is None or new is None or flags:
            await rename()
            return
        expectation = await self._observed.expect(old.ino)
        with expectation.given():
            await rename()
