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
from shardfs.engine.layout import Bytes
from shardfs.engine.pieces import Shard
from shardfs.errors import UNREADABLE, CorruptionError, NoSpaceError, ShardfsError, StaleError
from shardfs.fuse.door import BatchDoor, StoreDoor, behind, scan_some
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    INO_MAX,
    INODE_PREFIX,
    NAME_PAGE_PREFIX,
    NAMES_KEY,
    ROOT_INO,
    decode_entry_key,
    decode_file_key,
    decode_name_page_key,
    inode_key,
    name_page_key,
)
from shardfs.fuse.records import (
    INODES_PER_NAME_PAGE,
    NAMES_PER_INODE_MAX,
    Entry,
    Inode,
    NamedInode,
    decode_entry,
    decode_name_page,
    encode_name_page,
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
_FREE_SHARE_MIN: Final = 16
"""Pages are written only while more than this part of the device is free."""
_INODES_PER_SCAN: Final = 64 * limits.KIB
_ENTRIES_PER_SLICE: Final = 64
_INODES_END: Final = behind(INODE_PREFIX)

Name = tuple[int, bytes]
NameChanges = dict[Name, bool]
"""What was done last to each name: it was given, or taken away."""
Changes = dict[int, NameChanges]
"""By inode."""


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
        self._tables = tables
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
        self._look_through(_Pages(min(self._waiting), max(self._waiting)))
        self._waiting = {}
        self.waiting_count = 0
        self.is_complete = False

    def _look_through(self, pages: _Pages) -> None:
        unsure = self._unsure or pages
        self._unsure = _Pages(min(unsure.first, pages.first), max(unsure.last, pages.last))

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
                if not self._has_room():
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
            if not self._has_room():
                break
            waiting = self._waiting.pop(page, None)
            if waiting is None:
                continue  # given up meanwhile
            self.waiting_count -= waiting.names_count
            try:
                await self._write_page(page, waiting.changes)
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
        while (unsure := self._unsure) is not None and self._has_room():
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
                await self._write_page(page, {}, is_unsure=True)

    def _has_room(self) -> bool:
        space = self._store.space()
        return space.free_bytes * _FREE_SHARE_MIN > space.total_bytes

    async def _write_page(self, page: int, changes: Changes, *, is_unsure: bool = False) -> None:
        """Bring the changes of names into a page.

        Args:
            is_unsure: others were given up; see which of its files are gone.
        """
        key = name_page_key(page)
        while True:
            await trio.lowlevel.checkpoint()
            shard = await self._store.get_shard(key)
            try:
                kept = await self._read(page, shard)
            except UNREADABLE as error:
                _log.warning("a name page cannot be read, and is begun anew: %s", error)
                kept, self.is_complete = {}, False
            wanted = dict(kept)
            for ino, names in changes.items():
                before = kept[ino].names if ino in kept else ()
                await self._put(wanted, ino, _changed_names(before, names))
            if is_unsure:
                for ino in wanted.keys() - changes.keys():
                    await self._put(wanted, ino, kept[ino].names)
            if await self._replace(page, shard, kept, wanted):
                return

    async def _put(self, wanted: dict[int, NamedInode], ino: int, names: tuple[Name, ...]) -> None:
        inode = await self._tables.inode(ino)
        if inode is None or not names:
            wanted.pop(ino, None)
        else:
            wanted[ino] = NamedInode(inode, names[:NAMES_PER_INODE_MAX])

    async def _replace(
        self,
        page: int,
        shard: Shard | None,
        kept: Mapping[int, NamedInode],
        wanted: Mapping[int, NamedInode],
    ) -> bool:
        """Write a page, unless it says the same already; False if its shard has moved."""
        if page == ROOT_INO // INODES_PER_NAME_PAGE:
            wanted = await self._with_root(wanted)
        if _essence(kept) == _essence(wanted):
            return True
        key = name_page_key(page)
        batch = self._store.batch()
        try:
            if wanted:
                data = encode_name_page(page, wanted)
                await self._store.admit(len(data))
                if not self._has_room():
                    raise NoSpaceError("little space is left")
                replaced = shard.pieces if shard is not None else ()
                pieces = self._store.append_pieces(key, 0, (data,), replaced=replaced)
                batch.put_shard(key, pieces, shard)
            elif shard is not None:
                batch.delete_shard(key, shard)
            self._store.apply(batch)
        except StaleError:
            return False
        return True

    async def _with_root(self, wanted: Mapping[int, NamedInode]) -> dict[int, NamedInode]:
        """The root directory, which has no name, is kept beside others."""
        inodes = {ino: each for ino, each in wanted.items() if ino != ROOT_INO}
        root = await self._tables.inode(ROOT_INO)
        return {ROOT_INO: NamedInode(root, ()), **inodes} if inodes and root else inodes

    async def _read(self, page: int, shard: Shard | None) -> dict[int, NamedInode]:
        if shard is None:
            return {}
        number, inodes = decode_name_page(await read_pieces(self._store, shard))
        if number != page:
            raise CorruptionError(f"name page {number} stands where {page} should")
        return inodes

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
                if not self._has_room():
                    return
                try:
                    await self._rewrite_page(page, names)
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

    async def _rewrite_page(self, page: int, names: Mapping[int, list[Name]]) -> None:
        first = page * INODES_PER_NAME_PAGE
        while True:
            await trio.lowlevel.checkpoint()
            shard = await self._store.get_shard(name_page_key(page))
            try:
                kept = await self._read(page, shard)
            except UNREADABLE:
                kept = {-1: NamedInode(Inode(0), ())}  # like no other
            wanted: dict[int, NamedInode] = {}
            for ino in range(first, first + INODES_PER_NAME_PAGE):
                if ino in names:
                    await self._put(wanted, ino, tuple(names[ino]))
            if await self._replace(page, shard, kept, wanted):
                return


def _changed_names(before: tuple[Name, ...], changes: NameChanges) -> tuple[Name, ...]:
    names = dict.fromkeys(before)
    for name, is_there in changes.items():
        if is_there:
            names[name] = None
        else:
            names.pop(name, None)
    return tuple(names)


def _essence(inodes: Mapping[int, NamedInode]) -> dict[int, object]:
    """What makes a page worth writing: not that times have passed."""
    return {
        ino: (names, inode._replace(atime_ns=0, mtime_ns=0, ctime_ns=0, nlink=0, xattrs=0))
        if not inode.is_directory
        else (names, inode.mode, inode.uid, inode.gid, inode.parent)
        for ino, (inode, names) in inodes.items()
    }


async def read_pieces(store: StoreDoor, shard: Shard) -> Bytes:
    """All bytes of a shard without holes.

    Raises:
        DeviceError, CorruptionError: they cannot be read as they were written.
    """
    parts = []
    with store.pinned(shard.pieces):
        for piece in shard.pieces:
            parts.append(await store.read_chunk(piece.locator, piece.skip, piece.length))
    return b"".join(parts)


NAME_PAGES_END: Final = behind(NAME_PAGE_PREFIX)
