"""One change of inodes and names in the making.

Role: an operation stages inodes and entries here, reads them through later steps, and commits them
together.

Invariants:
    I1. A change has no effect before its commit, and none at all when the commit raises.

Not here: what a commit does (tables.py), what operations there are (namespace.py, files.py).
"""

from __future__ import annotations

from typing import Protocol

from shardfs.fuse.door import BatchDoor, StoreDoor
from shardfs.fuse.keys import FACT_KEY, entry_key, inode_key
from shardfs.fuse.records import Entry, Facts, Inode, encode_entry, encode_facts, encode_inode

EntryName = tuple[int, bytes]
"""(directory, name)."""


class Owner(Protocol):
    """Whose inodes and names change (tables.Tables)."""

    @property
    def store(self) -> StoreDoor:
        """Where changes go."""

    @property
    def next_ino(self) -> int:
        """No inode has this number or a higher one."""

    def find_inode(self, ino: int) -> Inode | None:
        """The inode as it is now."""

    def commit(self, change: Change) -> None:
        """Apply a change."""


class Change:
    """Staged inodes, entries and records.

    Requires: created, filled and committed within one critical section.

    Args:
        owner: whose inodes and names change.
        grows: it makes the file system larger; others may use the store's reserve.
    """

    __slots__ = (
        *("_batch", "_owner", "entries", "grows", "inodes"),
        *("is_alone", "is_told", "made_ino", "record_bytes", "records"),
    )

    def __init__(self, owner: Owner, grows: bool) -> None:
        self._owner = owner
        self._batch: BatchDoor | None = None
        self.grows = grows
        self.made_ino = 0
        """Number of the inode that it creates; 0: none."""
        self.is_told = True
        """The watcher of names hears of it."""
        self.is_alone = False
        """It is a batch of its own, in the store when the commit returns."""
        self.inodes: dict[int, Inode | None] = {}
        self.entries: dict[EntryName, Entry | None] = {}
        self.records: dict[bytes, bytes] = {}
        self.record_bytes = 0
        """Of records of any length."""

    @property
    def batch(self) -> BatchDoor:
        """Of a change that has shards, or records of any length: such a one is alone."""
        if self._batch is None:
            self._batch = self._owner.store.batch(essential=not self.grows)
            self.is_alone = True
        return self._batch

    def find_inode(self, ino: int) -> Inode | None:
        """The inode as this change leaves it, or None.

        Raises:
            NotLoaded
        """
        if ino in self.inodes:
            return self.inodes[ino]
        return self._owner.find_inode(ino)

    def new_ino(self) -> int:
        """A number for the one inode that this change creates."""
        assert not self.made_ino, "a change creates one inode"
        self.made_ino = self._owner.next_ino
        return self.made_ino

    def put_inode(self, ino: int, inode: Inode) -> None:
        """Stage an inode."""
        self.inodes[ino] = inode

    def delete_inode(self, ino: int) -> None:
        """Stage the end of an inode, unless it has ended: each is counted down once.

        Raises:
            NotLoaded
        """
        if self.find_inode(ino) is not None:
            self.inodes[ino] = None

    def put_entry(self, parent: int, name: bytes, entry: Entry) -> None:
        """Stage a directory entry; the parent's inode is the caller's business."""
        self.entries[parent, name] = entry

    def delete_entry(self, parent: int, name: bytes) -> None:
        """Stage the end of a directory entry."""
        self.entries[parent, name] = None

    def put_record(self, key: bytes, record: bytes) -> None:
        """Stage a record of any length.

        Raises:
            LimitError: extents are too small for it.
        """
        self.batch.put(key, record)
        self.record_bytes += len(record)

    def mark(self, key: bytes) -> None:
        """Stage an empty record."""
        self.records[key] = b""

    def commit(self) -> None:
        """Apply everything staged.

        Durable when: the store is synced.

        Raises:
            NoSpaceError, ReadOnlyError, StaleError: nothing was changed.
        """
        self._owner.commit(self)


def fill(
    batch: BatchDoor,
    inodes: dict[int, Inode | None],
    entries: dict[EntryName, Entry | None],
    records: dict[bytes, bytes],
    facts: Facts | None,
) -> None:
    """Encode changes into a batch."""
    put, delete = batch.put, batch.delete
    for ino, inode in inodes.items():
        if inode is None:
            delete(inode_key(ino))
        else:
            put(inode_key(ino), encode_inode(inode))
    for (parent, name), entry in entries.items():
        if entry is None:
            delete(entry_key(parent, name))
        else:
            put(entry_key(parent, name), encode_entry(entry))
    for key, record in records.items():
        put(key, record)
    if facts is not None:
        put(FACT_KEY, encode_facts(facts))
