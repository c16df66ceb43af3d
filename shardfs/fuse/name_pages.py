"""Keeps a second copy of the names beside the data, for the day on which the tree is lost.

Role: frames of data tell which inode they belong to, not what it is called. So names and inodes
are also written as *name pages*: ordinary shards, one for 32 inodes, whose frames lie among those
of data. They are written some seconds late, many changes at once, never on the way of a request.

Invariants:
    I1. Nothing reads a name page while the tree is whole: what is wrong in one harms nobody.
    I2. Every name is in a page, or waiting in memory, or NAMES_KEY is not in the store; then all
        pages are compared with the tree after the next mount, in the background.
    I3. Writing pages takes only space that is plentiful; without it, or when too much waits, I2's
        mark stays away.
    I4. No page outlives all its files for long: of changes that were given up (I3), those that
        took files away are seen in the tree, where the pages in question are looked through.
    I5. What waits takes little memory (limits.WAITING_NAMES_MAX), also while nothing can be written
        for want of space.

Ordering: the first change after an open takes the mark away in its own batch; the end of a mount
sets it when nothing waits.

Not here: reading pages without a tree (frame_index.py), extended attributes (not kept).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Final, NamedTuple

import trio

from shardfs import limits
from shardfs.engine.health import HealthState
from shardfs.engine.pieces import Shard
from shardfs.errors import UNREADABLE, CorruptionError, ShardfsError
from shardfs.fuse.door import BatchDoor, StoreDoor, behind, scan_some
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    INO_MAX,
    INODE_PREFIX,
    NAMES_KEY,
    decode_entry_key,
    decode_file_key,
    decode_name_page_key,
    inode_key,
    name_page_key,
)
from shardfs.fuse.name_page import NAME_PAGES_END, Changes, Name, NamePageWriter
from shardfs.fuse.records import (
    INODES_PER_NAME_PAGE,
    Entry,
    Inode,
    decode_entry,
)
from shardfs.fuse.tables import Tables

_log = logging.getLogger(__name__)

INTERVAL_S: Final = 10.0
"""So often pages are written."""
SETTLING_S: Final = limits.DIRTY_AGE_S + 2.0
"""A page waits at least so long, unless many do: until what was written to new files is flushed,
which changes their inodes again."""
_WAITING_MANY: Final = limits.WAITING_NAMES_MAX // 2
"""From there on those that have waited longest are written at once."""
_UNSURE_PAGES_MIN: Final = 1024
"""So many are looked through between others even if many wait: half of those that do."""
_INODES_PER_SCAN: Final = 64 * limits.KIB
_ENTRIES_PER_SLICE: Final = 64
_INODES_END: Final = behind(INODE_PREFIX)


class _Waiting(NamedTuple):
    """A page that is to be written: since when, and for which changes."""

    since: float
    changes: Changes

    @property
    def names_count(self) -> int:
        """Inodes, and names of theirs."""
        return sum(1 + len(names) for names in self.changes.values())


class _Pages(NamedTuple):
    """Page numbers, both ends included."""

    first: int
    last: int


class NamePages:
    """The name pages of one mount.

    Args:
        is_marked: NAMES_KEY is in the store.
        is_complete: every name is in a page (or there is none yet).
    """

    def __init__(
        self, store: StoreDoor, tables: Tables, *, is_marked: bool, is_complete: bool
    ) -> None:
        self._store = store
        self._writer = NamePageWriter(store, tables)
        self.is_marked = is_marked
        self.is_complete = is_complete
        self._waiting: dict[int, _Waiting] = {}
        """By page, those that wait longest first."""
        self.waiting_count = 0
        """Inodes whose page is to be written, and their names that have changed."""
        self._unsure: _Pages | None = None
        """Of these pages changes were given up: they may tell of files that are gone (I4)."""
        self._wake = trio.Event()
        self._full = trio.Event()

    @classmethod
    async def open(cls, store: StoreDoor, tables: Tables) -> NamePages:
        """The pages of a store; from now on `tables` tells them of every change.

        Raises:
            DeviceError, CorruptionError
        """
        is_marked = await store.get_record(NAMES_KEY) is not None
        pages = cls(store, tables, is_marked=is_marked, is_complete=is_marked or tables.is_new)
        tables.name_watcher = pages
        return pages

    def unmark(self, batch: BatchDoor) -> None:
        """A change is about to be applied with this batch (I2)."""
        batch.delete(NAMES_KEY)

    def changed(
        self, inodes: Mapping[int, Inode | None], entries: Mapping[Name, Entry | None]
    ) -> None:
        """A change was applied. Must not await."""
        self.is_marked = False
        if not self._waiting:
            self._wake.set()
        parents = [parent for parent, _ in entries]  # one or two
        for ino in inodes:
            if ino in parents:
                continue  # its times and its count of entries have changed, not its names
            number = ino // INODES_PER_NAME_PAGE
            page = self._waiting.get(number)
            if page is None:
                page = self._waiting[number] = _Waiting(trio.current_time(), {})
            names = page.changes.get(ino)
            if names is None:
                names = page.changes[ino] = {}
                self.waiting_count += 1
            self.waiting_count -= len(names)
            for name, entry in entries.items():
                names[name] = entry is not None and entry.ino == ino
            self.waiting_count += len(names)
        if self.waiting_count >= _WAITING_MANY:
            self._full.set()
            if self.waiting_count > limits.WAITING_NAMES_MAX:
                self._give_up()

    @property
    def memory_bytes(self) -> int:
        """About what is held for the pages that are to be written."""
        return limits.WAITING_NAME_MEMORY_BYTES * self.waiting_count

    def _give_up(self) -> None:
        _log.info("too many names have changed for the name pages; after the next mount")
        pages = [*self._waiting, *(self._unsure or ())]
        self._unsure = _Pages(min(pages), max(pages))
        self._waiting = {}
        self.waiting_count = 0
        self.is_complete = False

    # --- writing

    async def run(self) -> None:
        """The task that writes pages; returns when the store takes no more changes."""
        if not self.is_complete and self._store.health.state is HealthState.HEALTHY:
            await self._logged(self.rebuild)
        while self._store.health.state is HealthState.HEALTHY:
            if not self._waiting and self._unsure is None:
                await self._wake.wait()
            self._wake = trio.Event()
            with trio.move_on_after(INTERVAL_S) as interval:
                await self._full.wait()
                if not self._writer.has_room():
                    await trio.sleep_forever()  # there is no hurry to do nothing
            self._full = trio.Event()
            settled = self._settled() if interval.cancelled_caught else self._longest_waiting()
            await self._logged(partial(self._write_pages, settled))
            await self._logged(self._look_through_unsure)

    async def finish(self) -> None:
        """Write what waits, and mark the pages as complete if they are. The end of a mount."""
        if self._store.health.state is not HealthState.HEALTHY or self.is_marked:
            return
        await self._logged(self.write)
        if self.is_complete and not self._waiting:
            await self._logged(self._mark)

    async def _mark(self) -> None:
        batch = self._store.batch(essential=True)
        batch.put(NAMES_KEY, b"")
        self._store.apply(batch)
        self.is_marked = True

    async def _logged(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except ShardfsError as error:
            _log.info("name pages: %s", error)

    async def write(self) -> None:
        """Write the page of every inode that waits.

        Raises:
            ShardfsError: some are left waiting.
        """
        await self._write_pages(list(self._waiting))

    def _settled(self) -> list[int]:
        latest = trio.current_time() - SETTLING_S
        return [page for page, each in self._waiting.items() if each.since <= latest]

    def _longest_waiting(self) -> list[int]:
        return list(islice(self._waiting, -(-len(self._waiting) // 2)))

    async def _write_pages(self, pages: Iterable[int]) -> None:
        trouble: Exception | None = None
        for page in sorted(pages):
            if not self._writer.has_room():
                break
            waiting = self._waiting.pop(page, None)
            if waiting is None:
                continue  # given up meanwhile
            self.waiting_count -= waiting.names_count
            try:
                await self._update(page, waiting.changes)
            except UNREADABLE as error:  # others may be well
                self._put_back(page, waiting)
                trouble = error
            except BaseException:  # cancelled too
                self._put_back(page, waiting)
                raise
        if trouble is not None:
            raise trouble

    def _put_back(self, page: int, waiting: _Waiting) -> None:
        """Changes wait again, before those that have come since."""
        later = self._waiting.pop(page, None)
        if later is not None:
            self.waiting_count -= later.names_count
            for ino, names in later.changes.items():
                waiting.changes.setdefault(ino, {}).update(names)
        self._waiting[page] = waiting
        self.waiting_count += waiting.names_count

    async def _look_through_unsure(self) -> None:
        """Take what is gone out of pages of which changes were given up; when many others wait,
        out of some of them."""
        seen = 0
        while (unsure := self._unsure) is not None and self._writer.has_room():
            if seen >= _UNSURE_PAGES_MIN and self._full.is_set():
                return
            seen += 1
            start, end = name_page_key(unsure.first), behind(name_page_key(unsure.last))
            found = await scan_some(self._store, start, end, 1)
            if self._unsure != unsure:
                continue  # more were given up meanwhile
            page = decode_name_page_key(found[0][0]) if found else unsure.last
            self._unsure = _Pages(page + 1, unsure.last) if page < unsure.last else None
            if found:
                await self._update(page, {}, is_unsure=True)

    async def _update(self, page: int, changes: Changes, *, is_unsure: bool = False) -> None:
        if not await self._writer.update(page, changes, is_unsure=is_unsure):
            self.is_complete = False

    # --- all of them

    async def rebuild(self) -> None:
        """Make every page say what the tree says.

        Raises:
            ShardfsError: they are not complete.
        """
        first: int | None = 0
        trouble: Exception | None = None
        while first is not None:
            end = first + _INODES_PER_SCAN
            names = await self._names_of(range(first, end))
            pages = {ino // INODES_PER_NAME_PAGE for ino in names}
            pages.update(await self._pages_between(first, end))
            for page in sorted(pages):
                if not self._writer.has_room():
                    return
                try:
                    await self._writer.rewrite(page, names)
                except UNREADABLE as error:  # others may be well
                    trouble = error
            first = await self._next_in_use(end)
        if trouble is not None:
            raise trouble
        self.is_complete = self._unsure is None

    async def _next_in_use(self, ino: int) -> int | None:
        """Where to go on from `ino`: at the page of the first inode there is, or at the first page.

        Numbers are never given out again: between those in use there may be any number that are
        not, more than anybody can count through.
        """
        found = []
        if ino <= INO_MAX:
            inodes = await scan_some(self._store, inode_key(ino), _INODES_END, 1)
            found += [decode_file_key(key).ino for key, _ in inodes]
            page_key = name_page_key(ino // INODES_PER_NAME_PAGE)
            pages = await scan_some(self._store, page_key, NAME_PAGES_END, 1)
            found += [decode_name_page_key(key) * INODES_PER_NAME_PAGE for key, _ in pages]
        return min(found) // INODES_PER_NAME_PAGE * INODES_PER_NAME_PAGE if found else None

    async def _names_of(self, inos: range) -> dict[int, list[Name]]:
        found: dict[int, list[Name]] = {}
        count = 0
        async for key, value in self._store.scan(ENTRY_PREFIX, behind(ENTRY_PREFIX)):
            count += 1
            if count % _ENTRIES_PER_SLICE == 0:
                await trio.lowlevel.checkpoint()
            if isinstance(value, Shard):
                continue
            try:
                ino = decode_entry(value).ino
                parent, _, name = decode_entry_key(key)
            except CorruptionError:
                continue
            if ino in inos:
                found.setdefault(ino, []).append((parent, name))
        return found

    async def _pages_between(self, first: int, end: int) -> list[int]:
        start = name_page_key(first // INODES_PER_NAME_PAGE)
        stop = name_page_key(end // INODES_PER_NAME_PAGE)
        return [decode_name_page_key(key) async for key, _ in self._store.scan(start, stop)]
