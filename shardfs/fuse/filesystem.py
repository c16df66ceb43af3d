"""The file system of one store, put together: what a mount serves and a test drives.

Role: builds tables, files, orphans, writeback, handles, namespace and xattrs in their order, and
owns their tasks. Knows no pyfuse3, so checks run it without a kernel.

Ordering at the end: no more requests; nobody uses anything any more; what is orphaned is freed;
what is buffered goes to the engine; the store makes it durable.

Not here: mounting and signals (session.py).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from shardfs import limits
from shardfs.errors import ShardfsError
from shardfs.fuse.access_times import Reading
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.files import Files
from shardfs.fuse.handles import Handles
from shardfs.fuse.listing import Listing, RecentPages
from shardfs.fuse.memory import Memory, dirty_share
from shardfs.fuse.name_pages import NamePages
from shardfs.fuse.namespace import Namespace
from shardfs.fuse.observed import ObservedNamespace, ObservedWriteback
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.promises import Expectation, Observer
from shardfs.fuse.tables import Tables
from shardfs.fuse.writeback import Writeback
from shardfs.fuse.xattrs import Xattrs

_log = logging.getLogger(__name__)

FREEING_AT_END_S: Final = 30.0
"""Ending a mount frees orphans for this long; the rest is freed after the next mount."""


class FileSystem:
    """A store as a file system. Create with `open`."""

    def __init__(
        self,
        tables: Tables,
        files: Files,
        name_pages: NamePages,
        *,
        dirty_bytes_max: int,
        memory_bytes_max: int = limits.MEMORY_BYTES_MAX,
        observer: Observer | None = None,
    ) -> None:
        dirty_bytes_max = dirty_share(dirty_bytes_max, memory_bytes_max)
        store = self.store = tables.store
        self.tables = tables
        self.name_pages = name_pages
        self.files = files
        self.orphans = Orphans(store, files)
        self._observer = observer
        parts = (store, tables, files, self.orphans)
        self.writeback = (
            Writeback(*parts, dirty_bytes_max=dirty_bytes_max)
            if observer is None
            else ObservedWriteback(*parts, dirty_bytes_max=dirty_bytes_max, observer=observer)
        )
        self.handles = Handles(self.writeback, self.orphans)
        self.namespace = (
            ObservedNamespace(tables, self.writeback, self.orphans, self.handles)
            if isinstance(self.writeback, ObservedWriteback)
            else Namespace(tables, self.writeback, self.orphans, self.handles)
        )
        self._recent_pages = RecentPages()
        self.memory = Memory(
            store,
            tables,
            self.writeback,
            self.handles,
            name_pages,
            self._recent_pages,
            bytes_max=memory_bytes_max,
            dirty_bytes_max=dirty_bytes_max,
        )
        self.xattrs = Xattrs(tables, self.writeback, self.orphans)
        self.reading = Reading(tables, self.writeback)
        self.started = trio.Event()
        """Set when a kernel has begun to send requests."""

    @classmethod
    async def open(
        cls,
        store: StoreDoor,
        *,
        uid: int = 0,
        gid: int = 0,
        dirty_bytes_max: int = limits.DIRTY_BYTES_MAX,
        memory_bytes_max: int = limits.MEMORY_BYTES_MAX,
        observer: Observer | None = None,
    ) -> FileSystem:
        """The file system of a store; an empty store gets a root directory of uid and gid.

        Args:
            dirty_bytes_max: writers wait while more is buffered, or a quarter of memory_bytes_max.
            memory_bytes_max: bound of all that grows with use; see memory.py.
            observer: is told of changes and promises; see promises.py.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError
        """
        tables = await Tables.open(store, uid=uid, gid=gid, observer=observer)
        files = await Files.open(tables.store, tables)
        pages = await NamePages.open(tables.store, tables)
        return cls(
            tables,
            files,
            pages,
            dirty_bytes_max=dirty_bytes_max,
            memory_bytes_max=memory_bytes_max,
            observer=observer,
        )

    def list_directory(self, ino: int) -> Listing:
        """A view of a directory's entries."""
        return Listing(self.store, self.tables, ino, self._recent_pages)

    def start(self, nursery: trio.Nursery) -> None:
        """Start the background tasks, which run until they are cancelled."""
        nursery.start_soon(self._supervise, "flusher", self.writeback.run)
        nursery.start_soon(self._supervise, "reaper", self.orphans.run)
        nursery.start_soon(self._supervise, "writer of name pages", self.name_pages.run)

    async def sync(self) -> None:
        """Make everything durable, buffered data included.

        Raises:
            DeviceError, ReadOnlyError
        """
        expectation = await self._expect(contents=True)
        await self.writeback.flush_all()
        await self.store.sync()
        if expectation and not self.store.health.reason and not self.writeback.dirty_count:
            expectation.kept()

    async def sync_names(self) -> None:
        """Make every change of names and attributes durable.

        Raises:
            DeviceError, ReadOnlyError
        """
        expectation = await self._expect(contents=False)
        await self.store.sync()
        if expectation:
            expectation.kept()

    async def end(self) -> None:
        """Bring everything to the store, durable. Requires: no more requests, tasks cancelled.

        Raises:
            DeviceError: something could not be made durable; the log says what.
        """
        self.handles.release_all()
        self.tables.settle()
        with trio.move_on_after(FREEING_AT_END_S):
            await self.orphans.reap_queued()
        try:
            await self.writeback.flush_all()
            await self.name_pages.finish()
            await self.sync()
        finally:
            if self.writeback.dirty_count:
                _log.error(
                    "data written to %d files can not be stored: %s",
                    self.writeback.dirty_count,
                    self.store.health.reason or "see above",
                )

    async def _expect(self, *, contents: bool) -> Expectation | None:
        if self._observer is None:
            return None
        return await self._observer.expect(None, self.writeback.read if contents else None)

    async def _supervise(self, name: str, task: Callable[[], Awaitable[None]]) -> None:
        """Run a background task; a bug in it makes the store read-only, not the mount end."""
        try:
            await task()
        except ShardfsError as error:
            self.store.health.make_read_only(f"the {name} failed: {error}")
        except Exception as error:
            _log.error("the %s met a bug", name, exc_info=error)
            self.store.health.make_read_only(f"the {name} met a bug: {error!r}")
