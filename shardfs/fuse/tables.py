"""The file system's records as values: cached reads, and changes that are one batch each.

Role: an operation is a plain function that reads `Tables.inode` and `Tables.entry` and ends with
`Change.commit`. Reading something that is not cached raises NotLoaded; `Tables.run` then loads it
and runs the function again from its start. So an operation sees one moment, whatever was awaited
before, and runs without any checkpoint when all it needs is cached.

Invariants:
    I1. What is cached equals what the store holds, but for access times (touched.py): a commit
        changes both before anything else runs, and a load that a commit has overtaken is thrown
        away.
    I2. An operation has no effect before its commit, and none at all when the commit raises.
    I3. Inode numbers rise and are never given out twice: the durable counter is ahead of them.
    I4. The caches are bounded; their values are immutable.
    I5. now_ns rises with every call, so an inode that was changed never equals its former self.

Not here: what the operations are (namespace.py, xattrs.py, files.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Protocol, TypeVar

import trio

from shardfs import clock, limits
from shardfs.engine.lsm.tree import UNREAD
from shardfs.errors import CorruptionError, ReadOnlyError
from shardfs.fuse.change import Change, EntryName, fill
from shardfs.fuse.door import BatchDoor, StoreDoor
from shardfs.fuse.keys import FACT_KEY, ROOT_INO, entry_key, inode_key
from shardfs.fuse.promises import Observer
from shardfs.fuse.recent_cache import RecentCache
from shardfs.fuse.records import (
    Entry,
    Facts,
    Inode,
    decode_entry,
    decode_facts,
    decode_inode,
    encode_facts,
)
from shardfs.fuse.staging import StagedStore
from shardfs.fuse.touched import Touched

T = TypeVar("T")

_DIRECTORY_MODE: Final = 0o040755

_TOUCHED_PER_BATCH: Final = 16


class NotLoaded(Exception):
    """The operation needs a record that is not cached. Only Tables.run catches it."""

    def __init__(self, key: int | EntryName) -> None:
        self.key = key
        super().__init__(key)


class NameWatcher(Protocol):
    """Is told of every change (name_pages.NamePages)."""

    @property
    def is_marked(self) -> bool:
        """The next change has to be told before it is applied."""

    def unmark(self, batch: BatchDoor) -> None:
        """A change is about to be applied with this batch."""

    def changed(
        self, inodes: Mapping[int, Inode | None], entries: Mapping[EntryName, Entry | None]
    ) -> None:
        """A change was applied."""


class _Load:
    """A read of one record that is under way, and whether a commit has overtaken it."""

    __slots__ = ("overtaken", "readers")

    def __init__(self) -> None:
        self.overtaken = False
        self.readers = 0


class Tables:
    """Inodes and directory entries of one store. Create with `open`.

    Args:
        observer: is told of every change of names.
    """

    def __init__(
        self,
        store: StoreDoor,
        facts: Facts,
        *,
        inode_bytes_max: int = limits.INODES_BYTES_MAX,
        entry_bytes_max: int = limits.ENTRIES_BYTES_MAX,
        observer: Observer | None = None,
    ) -> None:
        self.store = StagedStore(store)
        """The store, behind what is staged."""
        self._observer = observer
        self._inodes: RecentCache[int, Inode | None] = RecentCache(inode_bytes_max, _inode_size)
        self._entries: RecentCache[EntryName, Entry | None] = RecentCache(
            entry_bytes_max, _entry_size
        )
        self._loads: dict[int | EntryName, _Load] = {}
        self._next_ino = facts.next_ino
        self._leased_ino = facts.next_ino
        self.inode_count = facts.inodes
        """Inodes that there are, those without a name included."""
        self._last_ns = 0
        self.touched = Touched()
        """Access times that only the cache has."""
        self.name_watcher: NameWatcher | None = None
        self.is_new = False
        """The file system was made by this opening."""

    @classmethod
    async def open(
        cls,
        store: StoreDoor,
        *,
        uid: int = 0,
        gid: int = 0,
        inode_bytes_max: int = limits.INODES_BYTES_MAX,
        entry_bytes_max: int = limits.ENTRIES_BYTES_MAX,
        observer: Observer | None = None,
    ) -> Tables:
        """The tables of a store; an empty store gets a root directory, owned by uid and gid.

        Raises:
            ReadOnlyError: there is no root directory yet and none can be made.
            CorruptionError: the file system's own facts are damaged.
        """
        record = await store.get_record(FACT_KEY)
        if record is not None:
            facts = decode_facts(record)
        else:
            facts = Facts(ROOT_INO + 1)
        tables = cls(
            store,
            facts,
            inode_bytes_max=inode_bytes_max,
            entry_bytes_max=entry_bytes_max,
            observer=observer,
        )
        if record is not None:
            return tables
        if await store.get_record(inode_key(ROOT_INO)) is not None:
            raise CorruptionError("a root directory but no counter of inode numbers", "facts")
        tables.is_new = True
        try:
            tables._make_root(uid, gid)
        except ReadOnlyError as error:
            raise ReadOnlyError("it was never mounted, so it has no root directory") from error
        return tables

    @property
    def next_ino(self) -> int:
        """No inode has this number or a higher one."""
        return self._next_ino

    @property
    def inode_bytes(self) -> int:
        """Memory of cached inodes."""
        return self._inodes.held_bytes

    @property
    def entry_bytes(self) -> int:
        """Memory of cached directory entries."""
        return self._entries.held_bytes

    def limit(self, inode_bytes_max: int, entry_bytes_max: int) -> None:
        """Cache no more than that from now on."""
        self._inodes.limit(inode_bytes_max)
        self._entries.limit(entry_bytes_max)

    def now_ns(self) -> int:
        """The time for a change, nanoseconds since the epoch; later than any it gave before."""
        self._last_ns = max(clock.now_ns(), self._last_ns + 1)
        return self._last_ns

    def find_inode(self, ino: int) -> Inode | None:
        """The inode, or None if there is no such number.

        Raises:
            NotLoaded
        """
        try:
            return self._inodes[ino]
        except KeyError:
            if ino in self.store.inodes:
                return self.store.inodes[ino]
            record = self.store.find_record(inode_key(ino))
        if record is UNREAD:
            raise NotLoaded(ino)
        inode = self._inodes[ino] = self._loaded(ino, record)
        return inode

    def find_entry(self, parent: int, name: bytes) -> Entry | None:
        """The directory's entry of that name, or None.

        Raises:
            NotLoaded
        """
        key = (parent, name)
        try:
            return self._entries[key]
        except KeyError:
            if key in self.store.entries:
                return self.store.entries[key]
            record = self.store.find_record(entry_key(parent, name))
        if record is UNREAD:
            raise NotLoaded(key)
        entry = self._entries[key] = _decode_entry_at(key, record)
        return entry

    def cached_inode(self, ino: int) -> Inode | None:
        """The inode if it is cached; None says nothing."""
        return self._inodes.get(ino)

    def is_loaded(self, ino: int) -> bool:
        """True when find_inode will not raise NotLoaded."""
        return ino in self._inodes

    async def inode(self, ino: int) -> Inode | None:
        """The inode, or None if there is no such number. Checkpoints: not when cached.

        Raises:
            DeviceError, CorruptionError
        """
        try:
            return self._inodes[ino]
        except KeyError:
            return await self.run(partial(self.find_inode, ino))

    async def run(self, operation: Callable[[], T]) -> T:
        """What `operation` returns, having loaded what it asks for.

        Checkpoints: not when everything is cached.

        Raises:
            DeviceError, CorruptionError: something could not be loaded.
            Exception: whatever `operation` raises, except NotLoaded.
        """
        while True:
            try:
                return operation()
            except NotLoaded as missing:
                key = missing.key
            await self.load(key)

    async def load(self, key: int | EntryName) -> None:
        """Bring an inode or an entry into the cache, unless it is there.

        Raises:
            DeviceError, CorruptionError
        """
        if isinstance(key, int):
            if key not in self._inodes:
                record = await self._read(key, inode_key(key))
                if record is not self and key not in self._inodes:
                    self._inodes[key] = self._loaded(key, record)
        elif key not in self._entries:
            record = await self._read(key, entry_key(*key))
            if record is not self and key not in self._entries:
                self._entries[key] = _decode_entry_at(key, record)

    async def _read(self, key: int | EntryName, record_key: bytes) -> object:
        """The record, None if there is none, or `self` if a commit has overtaken the read."""
        load = self._loads.get(key)
        if load is None:
            load = self._loads[key] = _Load()
        load.readers += 1
        try:
            record = await self.store.get_record(record_key)
        finally:
            load.readers -= 1
            if not load.readers and self._loads.get(key) is load:
                del self._loads[key]
        return self if load.overtaken else record

    def _loaded(self, ino: int, record: object) -> Inode | None:
        inode = _decode_inode_at(ino, record)
        if inode is not None and self.touched.times_ns:
            return self.touched.amended(ino, inode)
        return inode

    def touch(self, ino: int, inode: Inode, atime_ns: int) -> None:
        """Move the access time of a cached inode; the store has it some seconds later.

        Raises:
            NoSpaceError, ReadOnlyError: nothing was changed.
        """
        # It may not use the reserve: what frees space needs that.
        self.store.require_room(limits.CHANGE_BYTES_RESERVED)
        inode = inode._replace(atime_ns=atime_ns)
        if self.touched.is_full:
            change = self.change(grows=True)
            change.put_inode(ino, inode)
            change.commit()
            return
        self.touched.add(ino, atime_ns)
        self._inodes[ino] = inode

    async def write_touched(self, ino: int | None = None) -> None:
        """Give the store the access times that it does not have, or that of one inode.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: some may be left.
        """
        inos = self.touched.inos() if ino is None else [ino]
        for at in range(0, len(inos), _TOUCHED_PER_BATCH):
            some = inos[at : at + _TOUCHED_PER_BATCH]
            for each in some:
                try:
                    await self.load(each)
                except CorruptionError:  # who asks for the inode is told
                    self.touched.drop(each)
            await self.store.admit()
            await self.run(partial(self._write_touched, some))
            await trio.lowlevel.checkpoint()

    def _write_touched(self, inos: list[int]) -> None:
        change = self.change(grows=True)
        change.is_told = False  # name pages need not have the last access times
        for ino in inos:
            if ino in self.touched:
                inode = self.find_inode(ino)
                if inode is not None:
                    change.put_inode(ino, inode)
        if change.inodes:
            change.commit()

    def change(self, *, grows: bool = False) -> Change:
        """An empty change.

        Args:
            grows: it makes the file system larger: refused when hardly any space is free. Others
                may use the store's reserve.
        """
        return Change(self, grows)

    def _make_root(self, uid: int, gid: int) -> None:
        now = self.now_ns()
        change = self.change()
        root = Inode(_DIRECTORY_MODE, 2, uid, gid, parent=ROOT_INO)
        root = root._replace(atime_ns=now, mtime_ns=now, ctime_ns=now, btime_ns=now)
        change.put_inode(ROOT_INO, root)
        change.batch.put(FACT_KEY, encode_facts(Facts(self._next_ino, self.inode_count)))
        change.commit()

    def commit(self, change: Change) -> None:
        """Apply or stage a change, and take it into the caches; see Change.commit.

        Raises:
            NoSpaceError, ReadOnlyError, StaleError: nothing was changed.
        """
        if change.grows:
            # As the tree sets aside twice what it holds.
            wanted = limits.CHANGE_BYTES_RESERVED + 2 * change.record_bytes
            self.store.require_room(wanted + self.store.ahead_bytes)
        made_ino = change.made_ino
        inode_count = self.inode_count + bool(made_ino)
        for inode in change.inodes.values():
            inode_count -= inode is None
        leased = self._leased_ino
        if made_ino >= leased:
            leased = made_ino + limits.INODES_PER_LEASE
        facts = None
        if leased != self._leased_ino or inode_count != self.inode_count:
            facts = Facts(leased, inode_count)
        watcher = self.name_watcher
        if watcher is not None and watcher.is_marked and change.is_told:
            watcher.unmark(change.batch)
        if change.is_alone:
            batch = change.batch
            fill(batch, change.inodes, change.entries, change.records, facts)
            self.store.apply(batch)
        else:
            self.store.stage(change, facts)
        if made_ino:
            self._next_ino = made_ino + 1
            self._leased_ino = leased
        self.inode_count = inode_count
        self._adopt(change)

    def settle(self) -> None:
        """Give the store what is staged (staging.py)."""
        self.store.settle()

    def _adopt(self, change: Change) -> None:
        """Take what a change has applied to the store into the caches (I1)."""
        inodes, entries = self._inodes, self._entries
        for ino, inode in change.inodes.items():
            inodes[ino] = inode
        if self.touched.times_ns:
            for ino in change.inodes:
                self.touched.drop(ino)
        for name, entry in change.entries.items():
            entries[name] = entry
        if self._observer is not None:
            self._observer.names_changed(change.entries)
        if self.name_watcher is not None and change.is_told:
            self.name_watcher.changed(change.inodes, change.entries)
        if self._loads:
            changed: list[int | EntryName] = [*change.inodes, *change.entries]
            for key in changed:
                load = self._loads.get(key)
                if load is not None:
                    load.overtaken = True


def _inode_size(_ino: int, inode: Inode | None) -> int:
    return limits.INODE_MEMORY_BYTES + (len(inode.target) if inode is not None else 0)


def _entry_size(name: EntryName, _entry: Entry | None) -> int:
    return limits.ENTRY_MEMORY_BYTES + len(name[1])


def _decode_inode_at(ino: int, record: object) -> Inode | None:
    if record is None:
        return None
    assert isinstance(record, bytes | bytearray | memoryview)
    try:
        return decode_inode(record)
    except CorruptionError as error:
        raise CorruptionError(str(error), f"inode {ino}") from error


def _decode_entry_at(key: EntryName, record: object) -> Entry | None:
    if record is None:
        return None
    assert isinstance(record, bytes | bytearray | memoryview)
    try:
        return decode_entry(record)
    except CorruptionError as error:
        raise CorruptionError(str(error), f"entry {key[1]!r} of directory {key[0]}") from error
