"""One name page: what it says, compared with what it should say, and written.

Role: a name page is an ordinary shard that holds 32 inodes and their names; see name_pages.py for
what they are for. It is written anew as a whole, and only if something in it has changed that is
worth it.

Invariants:
    I1. A page takes only space that is plentiful.
    I2. A page that cannot be read is begun anew; whoever has it written is told.

Not here: which pages are to be written, and when (name_pages.py), how one is encoded (records.py).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

import trio

from shardfs.engine.layout import Bytes
from shardfs.engine.pieces import Shard
from shardfs.errors import UNREADABLE, CorruptionError, NoSpaceError, StaleError
from shardfs.fuse.door import StoreDoor, behind
from shardfs.fuse.keys import NAME_PAGE_PREFIX, ROOT_INO, name_page_key
from shardfs.fuse.records import (
    INODES_PER_NAME_PAGE,
    NAMES_PER_INODE_MAX,
    Inode,
    NamedInode,
    decode_name_page,
    encode_name_page,
)
from shardfs.fuse.tables import Tables

_log = logging.getLogger(__name__)

NAME_PAGES_END: Final = behind(NAME_PAGE_PREFIX)
_FREE_SHARE_MIN: Final = 16
"""Pages are written only while more than this part of the device is free."""

Name = tuple[int, bytes]
NameChanges = dict[Name, bool]
"""What was done last to each name: it was given, or taken away."""
Changes = dict[int, NameChanges]
"""By inode."""


class NamePageWriter:
    """Writes the name pages of one mount.

    Args:
        store, tables: of the mount.
    """

    def __init__(self, store: StoreDoor, tables: Tables) -> None:
        self._store = store
        self._tables = tables

    def has_room(self) -> bool:
        """Whether pages may be written (I1)."""
        space = self._store.space()
        return space.free_bytes * _FREE_SHARE_MIN > space.total_bytes

    async def update(self, page: int, changes: Changes, *, is_unsure: bool = False) -> bool:
        """Bring changes of names into a page.

        Args:
            is_unsure: others were given up; see which of its files are gone.

        Returns:
            False: it could not be read, and was begun anew.

        Raises:
            DeviceError, CorruptionError, NoSpaceError, ReadOnlyError: it is as it was.
        """
        key = name_page_key(page)
        is_whole = True
        while True:
            await trio.lowlevel.checkpoint()
            shard = await self._store.get_shard(key)
            try:
                kept = await self._read(page, shard)
            except UNREADABLE as error:
                _log.warning("a name page cannot be read, and is begun anew: %s", error)
                kept, is_whole = {}, False
            wanted = dict(kept)
            for ino, names in changes.items():
                before = kept[ino].names if ino in kept else ()
                await self._put(wanted, ino, _changed_names(before, names))
            if is_unsure:
                for ino in wanted.keys() - changes.keys():
                    await self._put(wanted, ino, kept[ino].names)
            if await self._replace(page, shard, kept, wanted):
                return is_whole

    async def rewrite(self, page: int, names: Mapping[int, list[Name]]) -> None:
        """Make a page say what the tree says.

        Args:
            names: of inodes, as the tree has them; all that the page's have.

        Raises: as `update`.
        """
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
                if not self.has_room():
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
