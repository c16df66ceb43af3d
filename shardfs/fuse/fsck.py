"""Verifies the file system in a store: names, inodes, shards, attributes. Finds, never repairs.

Role: reads every record once, in key order, and says what does not hold. Together with the
engine's own check (engine/fsck.py) this is `shardfs fsck`.

Invariants checked (each finding names its number):
    F1. Every directory entry names an inode that exists, of the type it says.
    F2. An inode's nlink is the number of entries that name it; a directory's is 2 and one more
        for each subdirectory.
    F3. Every inode has a name or is marked as an orphan; an orphan has no name and nlink 0.
    F4. A directory has one entry, in the directory that it names as its parent, and the chain of
        parents ends at the root.
    F5. A directory's size is its number of entries.
    F6. Only regular files have shards; none lies beyond the end of its file, unless a truncation
        is marked as unfinished; `used` is the sum of their pieces.
    F7. An inode counts its extended attributes.
    F8. The next inode number is above every one in use, and the count of inodes is right.
    F9. Every key is of a known kind, every record decodes, marks name inodes that exist.
    F10. An access list is one, says more than a mode, and agrees with its inode's mode.
    F11. Every name page decodes and is the one that its key says. (While they are marked as
        complete they hold every name; if not, that is a note.)

Invariants:
    I1. Memory: a few words for each inode.

Not here: whether the bytes of shards are right (engine/fsck.py).
"""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass

import trio

from shardfs import limits
from shardfs.engine.findings import Finding, Report
from shardfs.engine.fsck import check_store
from shardfs.engine.layout import Bytes
from shardfs.engine.pieces import Shard
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError, ShardfsError
from shardfs.fuse import access_lists
from shardfs.fuse.access_lists import AccessList
from shardfs.fuse.door import StoreDoor, behind, scan_some
from shardfs.fuse.finding_names import name_files
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    FACT_KEY,
    INODE_PREFIX,
    NAME_PAGE_PREFIX,
    NAMES_KEY,
    ORPHAN_PREFIX,
    ROOT_INO,
    SCRUB_KEY,
    TRUNCATION_PREFIX,
    decode_entry_key,
    decode_file_key,
    decode_marker_key,
    decode_name_page_key,
)
from shardfs.fuse.name_page import NAME_PAGES_END, read_pieces
from shardfs.fuse.records import (
    NAMES_PER_INODE_MAX,
    Inode,
    decode_access_list,
    decode_entry,
    decode_facts,
    decode_inode,
    decode_name_page,
)

_KEY_END = b"\xff" * 16
_DIRECTORY_TYPE = stat.S_IFDIR >> 12
_KINDS = frozenset((ENTRY_PREFIX, INODE_PREFIX, NAME_PAGE_PREFIX, ORPHAN_PREFIX, TRUNCATION_PREFIX))
_SINGLE_KEYS = frozenset((FACT_KEY, NAMES_KEY, SCRUB_KEY))


async def check_all(store: Store, *, data: bool = False) -> Report:
    """Verify the store and the file system in it; see check_store and check_files."""
    report = await check_store(store, data=data)
    await check_files(store, report)
    await name_files(store, report)
    return report


async def check_files(store: StoreDoor, report: Report | None = None) -> Report:
    """Verify the file system in a store.

    Args:
        store: nobody may change it meanwhile, and no mount may hold anything back from it.
        report: to add to; a new one if None.
    """
    report = report if report is not None else Report()
    check = _FilesCheck(store, report)
    try:
        await check.run()
    except ShardfsError as error:
        if report.is_clean:
            report.add(Finding("F9", f"the records cannot be read: {error}"))
        report.notes.append("the files could not be checked to the end")
    return report


@dataclass(slots=True)
class _File:
    """What is gathered of the inode whose range of keys is being read."""

    ino: int
    inode: Inode | None
    used: int = 0
    xattrs: int = 0
    access: AccessList | None = None


class _FilesCheck:
    """One run of the check."""

    def __init__(self, store: StoreDoor, report: Report) -> None:
        self._store = store
        self._report = report
        self._links: dict[int, int] = {}
        self._types: dict[int, int] = {}
        self._parents: dict[int, int] = {}
        self._entries: dict[int, int] = {}
        self._subdirectories: dict[int, int] = {}
        self._orphans: set[int] = set()
        self._truncations: set[int] = set()
        self._next_ino = 0
        self._inode_count = 0
        self._ino_max = 0
        self._directories: set[int] = set()
        self._many_names = False

    async def run(self) -> None:
        """Every check: marks, then names, then what they name."""
        facts = await self._store.get_record(FACT_KEY)
        if facts is None and not await self._is_empty():
            self._find("F9", "there are records but no facts of a file system", FACT_KEY)
        elif facts is not None:
            self._next_ino, self._inode_count = decode_facts(facts)
        await self._read_marks()
        await self._read_names()
        await self._read_files()
        self._check_names()
        await self._check_name_pages()

    async def _is_empty(self) -> bool:
        return not await scan_some(self._store, b"", _KEY_END, 1)

    async def _range(self, start: bytes, end: bytes) -> AsyncIterator[tuple[bytes, bytes | Shard]]:
        async for item in self._store.scan(start, end):
            await trio.lowlevel.checkpoint()
            yield item

    async def _read_marks(self) -> None:
        for prefix, marks in (
            (ORPHAN_PREFIX, self._orphans),
            (TRUNCATION_PREFIX, self._truncations),
        ):
            async for key, _ in self._range(prefix, behind(prefix)):
                try:
                    marks.add(decode_marker_key(key))
                except CorruptionError as error:
                    self._find("F9", str(error), key)
        start = b""
        for prefix in sorted((*_KINDS, *_SINGLE_KEYS)):
            async for key, _ in self._range(start, prefix):
                self._find("F9", "a key of no known kind", key)
            start = prefix + b"\0" if prefix in _SINGLE_KEYS else behind(prefix)
        async for key, _ in self._range(start, _KEY_END):
            self._find("F9", "a key of no known kind", key)

    async def _read_names(self) -> None:
        async for key, value in self._range(ENTRY_PREFIX, behind(ENTRY_PREFIX)):
            self._report.count("names")
            try:
                parent, _, _ = decode_entry_key(key)
                entry = decode_entry(_record(value))
            except CorruptionError as error:
                self._find("F9", str(error), key)
                continue
            ino = entry.ino
            self._links[ino] = self._links.get(ino, 0) + 1
            self._many_names = self._many_names or self._links[ino] > NAMES_PER_INODE_MAX
            self._entries[parent] = self._entries.get(parent, 0) + 1
            if self._types.setdefault(ino, entry.type) != entry.type:
                self._find("F1", "its names disagree on its type", ino=ino)
            if entry.is_directory:
                self._subdirectories[parent] = self._subdirectories.get(parent, 0) + 1
                if ino in self._parents:
                    self._find("F4", "a directory with two names", ino=ino)
                self._parents[ino] = parent

    async def _read_files(self) -> None:
        file = _File(0, None)
        async for key, value in self._range(INODE_PREFIX, behind(INODE_PREFIX)):
            try:
                about = decode_file_key(key)
                if about.ino != file.ino:
                    self._end_file(file)
                    file = _File(about.ino, None)
                if about.shard is not None:
                    self._check_shard(file, key, about.shard, value)
                elif about.xattr is not None:
                    file.xattrs += 1
                    self._check_attribute(file, key, about.xattr, _record(value))
                else:
                    file.inode = decode_inode(_record(value))
            except CorruptionError as error:
                self._find("F9", str(error), key)
        self._end_file(file)

    def _check_shard(self, file: _File, key: bytes, index: int, value: bytes | Shard) -> None:
        """F6, for one shard."""
        if not isinstance(value, Shard):
            self._find("F9", "a record stands where a shard should", key)
            return
        file.used += sum(piece.length for piece in value.pieces)
        if file.inode is None:
            return
        if not file.inode.is_regular:
            self._find("F6", "it is no regular file, and has a shard", key)
        end = min(value.length, limits.SHARD_BYTES) + index * limits.SHARD_BYTES
        if value.length > limits.SHARD_BYTES:
            self._find("F6", f"a shard of {value.length} bytes", key)
        elif end > file.inode.size and file.ino not in self._truncations | self._orphans:
            message = f"data up to byte {end}, but the file ends at {file.inode.size}"
            self._find("F6", message, key)

    def _check_attribute(self, file: _File, key: bytes, name: bytes, value: bytes) -> None:
        """F10, for one attribute."""
        if name not in access_lists.NAMES:
            return
        entries = decode_access_list(value)
        if not access_lists.is_valid(entries):
            self._find("F10", "it is no access list", key)
        elif name == access_lists.ACCESS:
            file.access = entries

    def _end_file(self, file: _File) -> None:
        """Everything about one inode, when all of its keys have been seen."""
        if file.ino == 0:
            return
        ino, inode = file.ino, file.inode
        self._ino_max = max(self._ino_max, ino)
        if inode is None:
            self._find("F9", "shards or attributes without an inode", ino=ino)
            return
        self._report.count("inodes")
        self._report.count("file_bytes", inode.size if inode.is_regular else 0)
        names = self._links.pop(ino, 0)
        orphan = ino in self._orphans
        self._orphans.discard(ino)
        self._truncations.discard(ino)
        if names and self._types[ino] != inode.mode >> 12:
            self._find("F1", "its names say another type than its inode", ino=ino)
        if inode.is_directory:
            self._directories.add(ino)
            self._check_directory(ino, inode, orphan)
        elif inode.nlink != names:
            self._find("F2", f"it counts {inode.nlink} links and has {names} names", ino=ino)
        if orphan and (names or inode.nlink):
            self._find("F3", f"marked as removed, but it has {names} names", ino=ino)
        elif not orphan and not names and ino != ROOT_INO:
            self._find("F3", "it has no name and is not marked as removed", ino=ino)
        if orphan:
            return  # it is being freed, in several batches if it is large
        if file.used != inode.used:
            self._find("F6", f"it counts {inode.used} bytes, shards hold {file.used}", ino=ino)
        if file.xattrs != inode.xattrs:
            message = f"it counts {inode.xattrs} extended attributes and has {file.xattrs}"
            self._find("F7", message, ino=ino)
        entries = file.access
        if entries is None:
            return
        if (
            access_lists.is_minimal(entries)
            or access_lists.mode_of(entries, inode.mode) != inode.mode
        ):
            message = f"its access list does not agree with its mode {inode.mode:o}"
            self._find("F10", message, ino=ino)

    def _check_directory(self, ino: int, inode: Inode, orphan: bool) -> None:
        """F2, F4 and F5 for a directory."""
        entries = self._entries.pop(ino, 0)
        links = 0 if orphan else 2 + self._subdirectories.get(ino, 0)
        if inode.nlink != links:
            self._find("F2", f"it counts {inode.nlink} links, {links} are right", ino=ino)
        if inode.size != entries:
            self._find("F5", f"it counts {inode.size} entries and has {entries}", ino=ino)
        parent = ROOT_INO if ino == ROOT_INO else self._parents.get(ino, inode.parent)
        if inode.parent != parent:
            message = f"it names {inode.parent} as its parent and stands in {parent}"
            self._find("F4", message, ino=ino)

    def _check_names(self) -> None:
        """F1, F4, F8, F9: what only shows when everything has been seen."""
        for ino in self._links:
            self._find("F1", "a directory entry names it, but it does not exist", ino=ino)
        for ino in self._entries:
            self._find("F4", "it holds entries, but is no directory", ino=ino)
        for ino in (*self._orphans, *self._truncations):
            self._find("F9", "marked, but it does not exist", ino=ino)
        if self._next_ino and self._next_ino <= self._ino_max:
            message = f"the next inode number is {self._next_ino}, and {self._ino_max} is in use"
            self._find("F8", message)
        found = self._report.counts.get("inodes", 0)
        if self._next_ino and self._inode_count != found:
            self._find("F8", f"{self._inode_count} inodes are counted, and there are {found}")
        if self._next_ino and ROOT_INO not in self._directories:
            self._find("F4", "there is no root directory", ino=ROOT_INO)
        rooted = {ROOT_INO}
        for ino in self._directories:
            chain: list[int] = []
            at: int | None = ino
            while at is not None and at not in rooted and len(chain) <= len(self._directories):
                chain.append(at)
                at = self._parents.get(at)
            if at in rooted:
                rooted.update(chain)
            elif at is not None:
                self._find("F4", "its chain of parents is a loop", ino=ino)

    async def _check_name_pages(self) -> None:
        """F11."""
        names = 0
        is_whole = True
        async for key, value in self._range(NAME_PAGE_PREFIX, NAME_PAGES_END):
            try:
                page = decode_name_page_key(key)
                if not isinstance(value, Shard):
                    raise CorruptionError("a record stands where a name page should")
                content = await _readable(self._store, value)
                if content is None:
                    is_whole = False  # E11, if anybody asks
                    continue
                number, inodes = decode_name_page(content)
                if number != page:
                    raise CorruptionError(f"it is name page {number}")
            except CorruptionError as error:
                is_whole = False
                self._find("F11", str(error), key)
                continue
            names += sum(len(each.names) for each in inodes.values())
        total = self._report.counts.get("names", 0)
        if not is_whole or self._many_names or await self._store.get_record(NAMES_KEY) is None:
            return
        if names != total:
            self._report.notes.append(f"{names} names are in name pages, and there are {total}")

    def _find(
        self, invariant: str, message: str, key: bytes | None = None, *, ino: int | None = None
    ) -> None:
        if ino is not None:
            self._report.add(Finding(invariant, message, f"inode {ino}"))
        else:
            where = f"key {key[:48].hex()}" if key is not None else "file system"
            self._report.add(Finding(invariant, message, where, key))


def _record(value: bytes | Shard) -> bytes:
    if isinstance(value, Shard):
        raise CorruptionError("a shard stands where a record should")
    return value


async def _readable(store: StoreDoor, shard: Shard) -> Bytes | None:
    """The bytes of a shard; None if they cannot be read as they were written."""
    try:
        return await read_pieces(store, shard)
    except (CorruptionError, DeviceError):
        return None
