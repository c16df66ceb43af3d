"""Makes names fit the inodes that there are, puts what has none into /lost+found, and counts anew.

Role: the second half of files_repair.py.

Not here: inodes and their data (inodes_repair.py).
"""

from __future__ import annotations

import os
from typing import Final

from shardfs.engine.pieces import Shard
from shardfs.errors import CorruptionError, DeviceError
from shardfs.fuse.door import behind
from shardfs.fuse.keys import (
    ENTRY_PREFIX,
    FACT_KEY,
    NAME_PAGE_PREFIX,
    NAMES_KEY,
    ROOT_INO,
    decode_entry_key,
    decode_name_page_key,
    entries_start,
    entry_key,
    inode_key,
)
from shardfs.fuse.name_page import NAME_PAGES_END, read_pieces
from shardfs.fuse.records import (
    Entry,
    Facts,
    Inode,
    NamedInode,
    decode_entry,
    decode_facts,
    decode_inode,
    decode_name_page,
    encode_entry,
    encode_facts,
    encode_inode,
)
from shardfs.fuse.repair_changes import DIRECTORY_TYPE, Changes, Known

LOST_AND_FOUND: Final = b"lost+found"


class NamesRepair:
    """Repairs names and counts.

    Args:
        changes: knows every inode that there is.
    """

    def __init__(self, changes: Changes) -> None:
        self._to = changes
        self._entries: dict[int, int] = {}
        self._subdirectories: dict[int, int] = {}
        self._in: dict[int, int] = {}
        """The directory in which each directory stands."""
        self._names_changed = False

    async def run(self) -> None:
        """Repair all of it.

        Raises:
            NoSpaceError, ReadOnlyError, DeviceError, CorruptionError: it is repaired in part.
        """
        await self._root()
        await self._names()
        await self._nameless()
        await self._loops()
        await self._counts()
        await self._facts()
        await self._pages()
        await self._to.flush()

    # --- names

    async def _root(self) -> None:
        """F4: there is a root directory."""
        known = self._to.inodes.get(ROOT_INO)
        if known is not None and known.type == DIRECTORY_TYPE:
            return
        recalled = self._to.recall(ROOT_INO)
        if recalled is not None and recalled.inode.is_directory:
            self._to.make_directory(ROOT_INO, ROOT_INO, recalled.inode)
        else:
            self._to.make_directory(ROOT_INO, ROOT_INO, mode=0o755)
        self._to.tell("root directory made anew", ROOT_INO)
        await self._to.give_way()

    async def _names(self) -> None:
        """F1, F4, F9: entries that name nothing, or the wrong thing, or stand in no directory."""
        async for key, value in self._to.range(ENTRY_PREFIX, behind(ENTRY_PREFIX)):
            try:
                parent, _, name = decode_entry_key(key)
                if isinstance(value, Shard):
                    raise CorruptionError("a shard stands where an entry should")
                entry = decode_entry(value)
            except CorruptionError as error:
                self._to.drop(key, value, f"a directory entry that is none ({error})")
                continue
            self._take_name(key, parent, name, entry)

    def _take_name(self, key: bytes, parent: int, name: bytes, entry: Entry) -> None:
        ino, known = entry.ino, self._to.inodes.get(entry.ino)
        shown = f"name {os.fsdecode(name)!r} in directory {parent}"
        above = self._to.inodes.get(parent)
        if above is None:
            self._revive_directory(parent)
            above = self._to.inodes[parent]
        if known is None:
            recalled = self._to.recall(ino)
            # A file whose data nobody has found is not made of zeros.
            if (
                recalled is not None
                and recalled.inode.mode >> 12 == entry.type
                and not (recalled.inode.is_regular and recalled.inode.size)
            ):
                known = self._revive(ino, recalled.inode)
        if known is None or above.type != DIRECTORY_TYPE or ino in self._to.orphans:
            self._to.tell(f"{shown}: dropped", ino)
            self._to.delete(key)
            self._names_changed = True
            return
        if known.type == DIRECTORY_TYPE:
            if ino in self._in or ino == ROOT_INO:
                self._to.tell(f"{shown}, a second one of a directory: dropped", ino)
                self._to.delete(key)
                self._names_changed = True
                return
            self._in[ino] = parent
            self._subdirectories[parent] = self._subdirectories.get(parent, 0) + 1
        if entry.type != known.type:
            self._to.tell(f"{shown}: its type corrected", ino)
            self._to.put(key, encode_entry(Entry(ino, known.type)))
        known.names += 1
        self._entries[parent] = self._entries.get(parent, 0) + 1

    def _revive(self, ino: int, inode: Inode) -> Known:
        """An inode without data, as its name page has it."""
        self._to.tell("inode restored from its name page", ino)
        if inode.is_directory:
            self._to.make_directory(ino, inode.parent, inode)
        else:
            inode = inode._replace(nlink=1, used=0, xattrs=0)
            self._to.put(inode_key(ino), encode_inode(inode))
            self._to.remember(ino, inode)
        return self._to.inodes[ino]

    def _revive_directory(self, ino: int) -> None:
        """A directory that has entries and is not there."""
        recalled = self._to.recall(ino)
        like = recalled.inode if recalled is not None and recalled.inode.is_directory else None
        self._to.tell("directory made anew for the names in it", ino)
        self._to.make_directory(ino, like.parent if like is not None else ROOT_INO, like)

    # --- what has no name

    async def _nameless(self) -> None:
        """F3: what has no name, and is not marked as removed, goes to /lost+found."""
        for ino, known in list(self._to.inodes.items()):
            await self._to.give_way()
            if known.names or ino == ROOT_INO or ino in self._to.orphans:
                continue
            recalled = self._to.recall(ino)
            if recalled is not None and await self._renamed(ino, known, recalled):
                continue
            await self._to_lost_and_found(ino, known)

    async def _renamed(self, ino: int, known: Known, recalled: NamedInode) -> bool:
        """Give a file the names back that its name page has; False if none is free."""
        for parent, name in recalled.names:
            above = self._to.inodes.get(parent)
            if above is None and parent != ino:
                self._revive_directory(parent)
                above = self._to.inodes[parent]
                await self._renamed_directory(parent)
            if above is None or above.type != DIRECTORY_TYPE:
                continue
            if await self._is_taken(parent, name):
                continue
            await self._link(ino, known, parent, name)
            self._to.tell(f"name {os.fsdecode(name)!r} in directory {parent} restored", ino)
            if known.type == DIRECTORY_TYPE:
                break
        return known.names > 0

    async def _renamed_directory(self, ino: int) -> None:
        """A directory that was made anew gets its own name back, or goes to /lost+found."""
        recalled, known = self._to.recall(ino), self._to.inodes[ino]
        if ino == ROOT_INO or known.names:
            return
        if recalled is None or not await self._renamed(ino, known, recalled):
            await self._to_lost_and_found(ino, known)

    async def _is_taken(self, parent: int, name: bytes) -> bool:
        await self._to.flush()
        return await self._to.store.get_record(entry_key(parent, name)) is not None

    async def _link(self, ino: int, known: Known, parent: int, name: bytes) -> None:
        self._to.put(entry_key(parent, name), encode_entry(Entry(ino, known.type)))
        self._names_changed = True
        known.names += 1
        self._entries[parent] = self._entries.get(parent, 0) + 1
        if known.type == DIRECTORY_TYPE:
            self._in[ino] = parent
            self._subdirectories[parent] = self._subdirectories.get(parent, 0) + 1

    async def _to_lost_and_found(self, ino: int, known: Known) -> None:
        folder = await self._lost_and_found()
        if ino == folder:
            return
        name = b"inode-%d" % ino
        while await self._is_taken(folder, name):
            name += b"~"
        await self._link(ino, known, folder, name)
        self._to.tell(f"put into /lost+found as {name.decode()}", ino)

    async def _lost_and_found(self) -> int:
        """The directory /lost+found, made if need be."""
        name = LOST_AND_FOUND
        while True:
            await self._to.flush()
            record = await self._to.store.get_record(entry_key(ROOT_INO, name))
            if record is None:
                ino = self._to.next_ino
                self._to.make_directory(ino, ROOT_INO)
                await self._link(ino, self._to.inodes[ino], ROOT_INO, name)
                await self._to.flush()
                return ino
            entry = decode_entry(record)
            if entry.is_directory and entry.ino in self._to.inodes:
                return entry.ino
            name += b"~"

    async def _loops(self) -> None:
        """F4: directories that do not lead to the root are cut loose, into /lost+found."""
        rooted = {ROOT_INO}
        for ino in list(self._in):
            chain: list[int] = []
            at = ino
            while at not in rooted and at not in chain:
                chain.append(at)
                at = self._in.get(at, ROOT_INO)
            if at not in rooted:
                await self._cut_loose(at)
            rooted.update(chain)

    async def _cut_loose(self, ino: int) -> None:
        parent = self._in.pop(ino)
        await self._to.flush()
        async for key, value in self._to.range(entries_start(parent), entries_start(parent + 1)):
            if not isinstance(value, Shard) and decode_entry(value).ino == ino:
                self._to.delete(key)
        known = self._to.inodes[ino]
        known.names -= 1
        self._entries[parent] -= 1
        self._subdirectories[parent] -= 1
        await self._to_lost_and_found(ino, known)

    # --- counts

    async def _counts(self) -> None:
        """F2, F4, F5: links, sizes of directories, parents."""
        await self._to.flush()
        for ino, known in self._to.inodes.items():
            await self._to.give_way()
            if ino in self._to.orphans:
                continue
            if known.type != DIRECTORY_TYPE:
                right = (known.names, known.size, 0)
            else:
                links = 2 + self._subdirectories.get(ino, 0)
                parent = ROOT_INO if ino == ROOT_INO else self._in.get(ino, ROOT_INO)
                right = (links, self._entries.get(ino, 0), parent)
            found = (known.nlink, known.size, known.parent)
            if found == right:
                continue
            await self._set_counts(ino, *right)
            self._to.tell(f"links, size, parent {found} made {right}", ino)

    async def _set_counts(self, ino: int, nlink: int, size: int, parent: int) -> None:
        await self._to.flush()
        record = await self._to.store.get_record(inode_key(ino))
        if record is not None:
            inode = decode_inode(record)._replace(nlink=nlink, size=size, parent=parent)
            self._to.put(inode_key(ino), encode_inode(inode))

    async def _facts(self) -> None:
        """F8, F9."""
        record = await self._to.store.get_record(FACT_KEY)
        count = len(self._to.inodes)
        try:
            facts = decode_facts(record) if record is not None else Facts(0, 0)
        except CorruptionError:
            facts = Facts(0, 0)
        right = Facts(max(facts.next_ino, self._to.next_ino), count)
        if facts != right:
            self._to.tell(f"facts {tuple(facts)} made {tuple(right)}", None)
            self._to.put(FACT_KEY, encode_facts(right))

    async def _pages(self) -> None:
        """F11: a page that is none is dropped; the next mount writes it again."""
        is_stale = self._names_changed
        async for key, value in self._to.range(NAME_PAGE_PREFIX, NAME_PAGES_END):
            try:
                page = decode_name_page_key(key)
                if not isinstance(value, Shard):
                    raise CorruptionError("a record stands where a name page should")
                if decode_name_page(await read_pieces(self._to.store, value))[0] != page:
                    raise CorruptionError("it is another page")
            except (CorruptionError, DeviceError):
                self._to.drop(key, value, "a name page that is none")
                is_stale = True
        if is_stale:
            self._to.delete(NAMES_KEY)
