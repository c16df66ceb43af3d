"""Extended attributes: named bytes beside an inode.

Role: get, set, remove and list. Values are records of their own; the inode counts them, so that
asking a file without any costs nothing (the kernel asks for security.capability at writes).

Invariants:
    I1. inode.xattrs is the number of the inode's xattr records; both change in one batch.

Only the namespaces user, trusted and security are taken. system.posix_acl_* is refused, because
an access list that nobody enforces would be a lie.

Not here: who may read or change an attribute; the kernel checks that.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import Final

from shardfs import limits
from shardfs.errors import FileError
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.records import Inode, decode_file_key, xattr_key, xattrs_end
from shardfs.fuse.tables import Tables
from shardfs.fuse.writeback import Writeback

CREATE: Final = 1
REPLACE: Final = 2

_NAMESPACES: Final = (b"user.", b"trusted.", b"security.")
_LIST_BYTES_MAX: Final = 64 * limits.KIB


class Xattrs:
    """The extended attributes of one mount."""

    def __init__(self, tables: Tables, writeback: Writeback, orphans: Orphans) -> None:
        self._tables = tables
        self._store = tables.store
        self._writeback = writeback
        self._orphans = orphans

    async def get(self, ino: int, name: bytes) -> bytes:
        """The attribute's value. Checkpoints: not when the inode is cached and has none.

        Raises:
            FileError: ENODATA: it has no such attribute.
        """
        _require_name(name)
        inode = await self._inode(ino)
        value = await self._store.get_record(xattr_key(ino, name)) if inode.xattrs else None
        if value is None:
            raise FileError(errno.ENODATA)
        return value

    async def names(self, ino: int, *, privileged: bool) -> list[bytes]:
        """The attributes' names, ascending.

        Args:
            privileged: may see the names in the namespace trusted.
        """
        if not (await self._inode(ino)).xattrs:
            return []
        found = []
        async for key, _ in self._store.scan(xattr_key(ino, b""), xattrs_end(ino)):
            name = decode_file_key(key).xattr
            assert name is not None
            if privileged or not name.startswith(b"trusted."):
                found.append(name)
        return found

    async def set(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Give an attribute a value.

        Args:
            flags: CREATE: it must not exist. REPLACE: it must exist.

        Durable when: the store is synced.

        Raises:
            FileError, NoSpaceError, ReadOnlyError: nothing was changed.
        """
        _require_name(name)
        if len(value) > limits.XATTR_BYTES_MAX:
            raise FileError(errno.E2BIG)
        await self._store.admit()
        while True:
            inode = await self._inode(ino)
            key = xattr_key(ino, name)
            old = await self._store.get_record(key) if inode.xattrs else None
            if old is not None and flags & CREATE:
                raise FileError(errno.EEXIST)
            if old is None and flags & REPLACE:
                raise FileError(errno.ENODATA)
            if old is None and inode.xattrs:
                listed = sum([len(each) + 1 for each in await self.names(ino, privileged=True)])
                if listed + len(name) + 1 > _LIST_BYTES_MAX:
                    raise FileError(errno.ENOSPC, "the list of names would be too long")
            count = inode.xattrs + (old is None)
            operation = partial(self._change_now, ino, inode, key, value, count)
            run = partial(self._tables.run, operation)
            if await self._orphans.with_room(run, self._writeback.flush_steps):
                return

    async def remove(self, ino: int, name: bytes) -> None:
        """Take an attribute away.

        Durable when: the store is synced.

        Raises:
            FileError: ENODATA: it has no such attribute.
        """
        _require_name(name)
        await self._store.admit()
        while True:
            inode = await self._inode(ino)
            key = xattr_key(ino, name)
            if not inode.xattrs or await self._store.get_record(key) is None:
                raise FileError(errno.ENODATA)
            operation = partial(self._change_now, ino, inode, key, None, inode.xattrs - 1)
            if await self._tables.run(operation):
                return

    def _change_now(
        self, ino: int, seen: Inode, key: bytes, value: bytes | None, count: int
    ) -> bool:
        """Change an attribute and its inode, unless the inode is not as seen any more."""
        change = self._tables.change(grows=value is not None)
        if change.find_inode(ino) != seen:
            return False
        if value is None:
            change.batch.delete(key)
        else:
            change.batch.put(key, value)
        change.put_inode(ino, seen._replace(xattrs=count, ctime_ns=self._tables.now_ns()))
        change.commit()
        return True

    async def _inode(self, ino: int) -> Inode:
        inode = await self._tables.inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        return inode


def _require_name(name: bytes) -> None:
    if not name.startswith(_NAMESPACES):
        raise FileError(errno.EOPNOTSUPP)
    if len(name) > limits.XATTR_NAME_BYTES_MAX:
        raise FileError(errno.ERANGE)
    if name.endswith(b".") and name.count(b".") == 1:
        raise FileError(errno.EINVAL)
