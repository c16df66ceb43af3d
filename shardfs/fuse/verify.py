"""Checks that the file system's records fit together; reads, never changes.

Role: what fsck asks of the layer above the store. It walks every record once, in key order, and
reports each broken invariant as one line that names the inode or the directory entry.

Checked: records.I3 (everything decodes), namespace.I1 to I3 (links, parents, sizes of
directories, orphans), files.I2 and I3 (nothing beyond the end, used bytes), xattrs.I1 (their
number), tables.I3 (the counter of inode numbers is ahead).

Requires: nobody changes the store meanwhile. Memory is a small tuple for each inode.

Not here: the store's own structures and checksums of data (engine/fsck.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import NamedTuple

from shardfs import limits
from shardfs.engine.pieces import Shard
from shardfs.errors import CorruptionError
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.records import (
    ENTRY_PREFIX,
    FACT_KEY,
    INODE_PREFIX,
    ORPHAN_PREFIX,
    ROOT_INO,
    TRUNCATION_PREFIX,
    Entry,
    Inode,
    decode_entry,
    decode_entry_key,
    decode_facts,
    decode_file_key,
    decode_inode,
    decode_marker_key,
)


class _Known(NamedTuple):
    """What is remembered of an inode."""

    type: int
    nlink: int
    size: int
    parent: int


class _Walk:
    """One verification in progress."""

    def __init__(self, store: StoreDoor) -> None:
        self.store = store
        self.known: dict[int, _Known] = {}
        self.names: dict[int, int] = {}
        self.entries: dict[int, int] = {}
        self.subdirectories: dict[int, int] = {}
        self.orphans: set[int] = set()
        self.truncations: set[int] = set()

    async def run(self) -> AsyncIterator[str]:
        """All findings."""
        for prefix, marked in (
            (ORPHAN_PREFIX, self.orphans),
            (TRUNCATION_PREFIX, self.truncations),
        ):
            async for key, _ in self._below(prefix):
                try:
                    marked.add(decode_marker_key(key))
                except CorruptionError as error:
                    yield str(error)
        async for finding in self._walk_inodes():
            yield finding
        async for finding in self._walk_entries():
            yield finding
        for finding in self._compare():
            yield finding
        async for finding in self._check_facts():
            yield finding

    def _below(self, prefix: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        return self.store.scan(prefix, bytes([prefix[0] + 1]))

    async def _walk_inodes(self) -> AsyncIterator[str]:
        current = _Content(0, None, False)
        async for key, value in self._below(INODE_PREFIX):
            try:
                file_key = decode_file_key(key)
                if file_key.ino != current.ino:
                    for finding in current.check():
                        yield finding
                    current = _Content(file_key.ino, None, file_key.ino in self.truncations)
                if file_key.shard is not None:
                    if not isinstance(value, Shard):
                        raise CorruptionError("a record stands where a shard should")
                    for finding in current.add_shard(file_key.shard, value):
                        yield finding
                elif isinstance(value, Shard):
                    raise CorruptionError("a shard stands where a record should")
                elif file_key.xattr is not None:
                    current.xattrs += 1
                else:
                    inode = decode_inode(value)
                    current = _Content(file_key.ino, inode, file_key.ino in self.truncations)
                    self.known[file_key.ino] = _Known(
                        inode.mode >> 12, inode.nlink, inode.size, inode.parent
                    )
            except CorruptionError as error:
                yield f"{error} (key {bytes(key).hex()})"
        for finding in current.check():
            yield finding

    async def _walk_entries(self) -> AsyncIterator[str]:
        async for key, value in self._below(ENTRY_PREFIX):
            try:
                parent, _, name = decode_entry_key(key)
                if isinstance(value, Shard):
                    raise CorruptionError("a shard stands where a directory entry should")
                entry = decode_entry(value)
            except CorruptionError as error:
                yield f"{error} (key {bytes(key).hex()})"
                continue
            for finding in self._check_entry(parent, name, entry):
                yield finding

    def _check_entry(self, parent: int, name: bytes, entry: Entry) -> Iterator[str]:
        where = f"entry {name!r} of directory {parent}"
        self.names[entry.ino] = self.names.get(entry.ino, 0) + 1
        self.entries[parent] = self.entries.get(parent, 0) + 1
        if entry.is_directory:
            self.subdirectories[parent] = self.subdirectories.get(parent, 0) + 1
        inode = self.known.get(entry.ino)
        if parent not in self.known:
            yield f"{where}: there is no such directory"
        if inode is None:
            yield f"{where}: it names inode {entry.ino}, which does not exist"
        elif inode.type != entry.type:
            yield f"{where}: inode {entry.ino} is of type {inode.type}, not {entry.type}"
        elif entry.is_directory and inode.parent != parent:
            yield f"{where}: directory {entry.ino} names {inode.parent} as its parent"

    def _compare(self) -> Iterator[str]:
        for ino, inode in self.known.items():
            names = self.names.get(ino, 0)
            if inode.parent:
                yield from self._compare_directory(ino, inode, names)
            elif inode.nlink != names:
                yield f"inode {ino} counts {inode.nlink} links but has {names} names"
            if (inode.nlink == 0) != (ino in self.orphans):
                yield f"inode {ino} with {inode.nlink} links: its orphan mark is wrong"
        for ino in sorted((self.orphans | self.truncations) - self.known.keys()):
            yield f"inode {ino} is marked but does not exist"
        if ROOT_INO not in self.known:
            yield "there is no root directory"
        yield from self._find_loops()

    def _compare_directory(self, ino: int, inode: _Known, names: int) -> Iterator[str]:
        expected = 0 if ino == ROOT_INO or inode.nlink == 0 else 1
        if names != expected:
            yield f"directory {ino} has {names} names, not {expected}"
        entries = self.entries.get(ino, 0)
        if inode.size != entries:
            yield f"directory {ino} counts {inode.size} entries but has {entries}"
        links = self.subdirectories.get(ino, 0) + 2 if inode.nlink else 0
        if inode.nlink != links:
            yield f"directory {ino} counts {inode.nlink} links, not {links}"

    def _find_loops(self) -> Iterator[str]:
        rooted = {ROOT_INO}
        for start, inode in self.known.items():
            path: list[int] = []
            ino = start
            while inode.parent and ino not in rooted:
                if ino in path or ino not in self.known:
                    yield f"directory {start} does not lead up to the root"
                    break
                path.append(ino)
                ino = self.known[ino].parent
            rooted.update(path)

    async def _check_facts(self) -> AsyncIterator[str]:
        record = await self.store.get_record(FACT_KEY)
        if record is None:
            yield "the counter of inode numbers is missing"
            return
        try:
            next_ino = decode_facts(record).next_ino
        except CorruptionError as error:
            yield str(error)
            return
        highest = max(self.known, default=0)
        if next_ino <= highest:
            yield f"the counter of inode numbers is {next_ino}, inode {highest} exists"


class _Content:
    """The records of one inode."""

    def __init__(self, ino: int, inode: Inode | None, is_truncated: bool) -> None:
        self.ino = ino
        self.inode = inode
        self.is_truncated = is_truncated
        self.used = 0
        self.xattrs = 0

    def add_shard(self, index: int, shard: Shard) -> Iterator[str]:
        self.used += sum(piece.length for piece in shard.pieces)
        if self.inode is None:
            return
        end = index * limits.SHARD_BYTES + shard.length
        if shard.length > limits.SHARD_BYTES or not self.inode.is_regular:
            yield f"inode {self.ino}: shard {index} has no place there"
        elif end > self.inode.size and not self.is_truncated:
            yield f"inode {self.ino}: shard {index} reaches to {end}, beyond {self.inode.size}"

    def check(self) -> Iterator[str]:
        if not self.ino:
            return
        if self.inode is None:
            yield f"inode {self.ino} is missing, but not its shards and attributes"
            return
        is_being_freed = self.inode.nlink == 0 and self.used < self.inode.used
        if self.inode.used != self.used and not is_being_freed:
            yield f"inode {self.ino} counts {self.inode.used} used bytes, not {self.used}"
        if self.inode.xattrs != self.xattrs and self.inode.nlink:
            yield f"inode {self.ino} counts {self.inode.xattrs} attributes, not {self.xattrs}"


async def verify(store: StoreDoor) -> list[str]:
    """Every broken invariant of the file system in a store, one line each; empty when whole.

    Raises:
        DeviceError, CorruptionError: the store itself cannot be read.
    """
    return [finding async for finding in _Walk(store).run()]
