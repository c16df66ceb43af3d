"""Makes inodes fit what they have: shards, attributes, access lists; and clears what is nothing.

Role: the first half of files_repair.py.

Not here: names (names_repair.py).
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import Final

from shardfs import clock, limits
from shardfs.engine.pieces import Shard
from shardfs.errors import CorruptionError
from shardfs.fuse import access_lists
from shardfs.fuse.door import behind
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    FACT_KEY,
    INODE_PREFIX,
    NAME_PAGE_PREFIX,
    NAMES_KEY,
    ORPHAN_PREFIX,
    SCRUB_KEY,
    TRUNCATION_PREFIX,
    decode_file_key,
    decode_marker_key,
    inode_key,
    orphan_key,
    truncation_key,
    xattr_key,
)
from shardfs.fuse.records import Inode, decode_access_list, decode_inode, encode_inode
from shardfs.fuse.repair_changes import Changes

_KEY_END: Final = b"\xff" * 16
_KNOWN: Final = (ENTRY_PREFIX, INODE_PREFIX, NAME_PAGE_PREFIX, ORPHAN_PREFIX, TRUNCATION_PREFIX)


@dataclass(slots=True)
class _Gathered:
    """What the range of keys of one inode holds."""

    ino: int
    inode: Inode | None = None
    was_broken: bool = False
    used: int = 0
    end: int = 0
    xattrs: list[bytes] = field(default_factory=list)
    access: access_lists.AccessList | None = None


class InodesRepair:
    """Repairs everything below the prefixes of files and marks.

    Args:
        changes: takes what is changed, and is told of every inode.
    """

    def __init__(self, changes: Changes) -> None:
        self._to = changes

    async def run(self) -> None:
        """Repair all of it.

        Raises:
            NoSpaceError, ReadOnlyError, DeviceError, CorruptionError: it is repaired in part.
        """
        await self._strangers()
        await self._marks()
        await self._inodes_and_data()
        await self._to.flush()

    # --- what is in no known place

    async def _strangers(self) -> None:
        """F9: keys of no known kind."""
        start = b""
        single = (FACT_KEY, NAMES_KEY, SCRUB_KEY)
        for prefix in sorted((*_KNOWN, *single)):
            async for key, value in self._to.range(start, prefix):
                self._to.drop(key, value, f"key {key[:48].hex()} of no known kind")
            start = prefix + b"\0" if prefix in single else behind(prefix)
        async for key, value in self._to.range(start, _KEY_END):
            self._to.drop(key, value, f"key {key[:48].hex()} of no known kind")

    async def _marks(self) -> None:
        for prefix, marks in (
            (ORPHAN_PREFIX, self._to.orphans),
            (TRUNCATION_PREFIX, self._to.truncations),
        ):
            async for key, value in self._to.range(prefix, behind(prefix)):
                try:
                    marks.add(decode_marker_key(key))
                except CorruptionError:
                    self._to.drop(key, value, "a mark of no inode")

    # --- inodes, shards, attributes

    async def _inodes_and_data(self) -> None:
        """F6, F7, F9, F10."""
        file = _Gathered(0)
        async for key, value in self._to.range(INODE_PREFIX, behind(INODE_PREFIX)):
            try:
                about = decode_file_key(key)
            except CorruptionError:
                self._to.drop(key, value, f"key {key[:48].hex()} of no known kind")
                continue
            if about.ino != file.ino:
                self._end(file)
                file = _Gathered(about.ino)
            if about.shard is not None:
                self._take_shard(file, key, about.shard, value)
            elif about.xattr is not None:
                self._take_attribute(file, key, about.xattr, value)
            else:
                self._take_inode(file, key, value)
        self._end(file)
        for ino in self._to.orphans - self._to.inodes.keys():
            self._to.tell("mark of an inode that is not there: dropped", ino)
            self._to.delete(orphan_key(ino))
        for ino in self._to.truncations - self._to.inodes.keys():
            self._to.tell("mark of an inode that is not there: dropped", ino)
            self._to.delete(truncation_key(ino))

    def _take_inode(self, file: _Gathered, key: bytes, value: bytes | Shard) -> None:
        if isinstance(value, Shard):
            self._to.drop(key, value, "a shard in the place of an inode", file.ino)
            return
        try:
            file.inode = decode_inode(value)
        except CorruptionError:
            file.was_broken = True

    def _take_shard(self, file: _Gathered, key: bytes, index: int, value: bytes | Shard) -> None:
        is_possible = index < limits.FILE_BYTES_MAX // limits.SHARD_BYTES
        if not isinstance(value, Shard) or value.length > limits.SHARD_BYTES or not is_possible:
            self._to.drop(key, value, f"shard {index}, which is none", file.ino)
            return
        if file.inode is not None and not file.inode.is_regular:
            self._to.drop(key, value, f"shard {index} of what is no file", file.ino)
            return
        file.used += sum(piece.length for piece in value.pieces)
        file.end = max(file.end, index * limits.SHARD_BYTES + value.length)

    def _take_attribute(
        self, file: _Gathered, key: bytes, name: bytes, value: bytes | Shard
    ) -> None:
        if isinstance(value, Shard):
            self._to.drop(key, value, f"attribute {os.fsdecode(name)}, which is a shard", file.ino)
            return
        if name in access_lists.NAMES:
            try:
                entries = decode_access_list(value)
            except CorruptionError:
                entries = ()
            if not access_lists.is_valid(entries):
                self._to.drop(key, value, "an access list that is none", file.ino)
                return
            if name == access_lists.ACCESS:
                file.access = entries
        file.xattrs.append(name)

    def _end(self, file: _Gathered) -> None:
        """All of an inode's keys have been seen."""
        if not file.ino:
            return
        inode = before = file.inode
        if inode is None:
            inode = self._recalled(file)
        if inode is None:
            for name in file.xattrs:
                self._to.delete(xattr_key(file.ino, name))
            if file.was_broken:
                self._to.delete(inode_key(file.ino))
            return
        if file.ino in self._to.orphans and inode.nlink:
            self._to.tell("mark as removed, though it has links: dropped", file.ino)
            self._to.delete(orphan_key(file.ino))
            self._to.orphans.discard(file.ino)
        if inode.is_regular and file.ino not in self._to.orphans:
            if file.end > inode.size and file.ino not in self._to.truncations:
                self._to.tell(f"size {inode.size} made {file.end}", file.ino)
                inode = inode._replace(size=file.end)
            if file.used != inode.used:
                self._to.tell(f"used bytes {inode.used} made {file.used}", file.ino)
                inode = inode._replace(used=file.used)
        inode = self._with_attributes(file, inode)
        if inode != before:
            self._to.put(inode_key(file.ino), encode_inode(inode))
        self._to.remember(file.ino, inode)

    def _recalled(self, file: _Gathered) -> Inode | None:
        """An inode in place of one that is lost, if there is anything to keep."""
        known = self._to.recall(file.ino)
        if known is not None and known.inode.is_regular and file.end:
            self._to.tell("inode restored from its name page", file.ino)
            return known.inode
        if not file.end:
            return None
        self._to.tell("inode made anew for the data that is left", file.ino)
        now = clock.now_ns()
        return Inode(
            stat.S_IFREG | 0o600,
            size=file.end,
            used=file.used,
            atime_ns=now,
            mtime_ns=now,
            ctime_ns=now,
            btime_ns=now,
        )

    def _with_attributes(self, file: _Gathered, inode: Inode) -> Inode:
        entries = file.access
        if file.ino in self._to.orphans:
            return inode
        if entries is not None and (
            access_lists.is_minimal(entries)
            or access_lists.mode_of(entries, inode.mode) != inode.mode
        ):
            self._to.tell("access list that contradicts the mode: dropped", file.ino)
            self._to.delete(xattr_key(file.ino, access_lists.ACCESS))
            file.xattrs.remove(access_lists.ACCESS)
        if inode.xattrs != len(file.xattrs):
            self._to.tell(f"count of attributes {inode.xattrs} made {len(file.xattrs)}", file.ino)
            inode = inode._replace(xattrs=len(file.xattrs))
        return inode
