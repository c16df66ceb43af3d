"""Extended attributes: named bytes beside an inode.

Role: get, set, remove and list. Values are records of their own; the inode counts them, so that
asking a file without any costs nothing (the kernel asks for security.capability at writes).

Invariants:
    I1. inode.xattrs is the number of the inode's xattr records; both change in one batch.
    I2. An access list changes with the mode that it stands for in one batch (access_lists.I1).
    I3. Setting what is there already changes nothing, not the ctime either, and writes nothing.
        Linux leaves it open: ext4 does the same, XFS and tmpfs move the ctime. Tools that set
        again all that a file has (rsync -X, restorecon) so need no room and no write.

`user.shardfs.persistent` is no stored attribute: it says whether the file would survive a power cut
now. It is not listed, so that `cp -a`, `rsync -X` and `tar --xattrs`, which go by the list, do not
copy what was true of another file at another moment; setting and removing it is refused.

The namespaces user, trusted and security are taken, and from system the access lists, where the
kernel enforces them (`access_lists`). Elsewhere those are neither given nor taken nor listed: a
list that nobody enforces would be a lie.

Not here: who may read or change an attribute; the kernel checks that.
"""

from __future__ import annotations

import errno
import stat
from functools import partial
from typing import Final

from shardfs import limits
from shardfs.errors import CorruptionError, FileError, LimitError
from shardfs.fuse import access_lists
from shardfs.fuse.access_lists import AccessList
from shardfs.fuse.keys import decode_file_key, xattr_key, xattrs_end
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.records import Inode, decode_access_list, encode_access_list
from shardfs.fuse.tables import Tables
from shardfs.fuse.writeback import Writeback

PERSISTENT: Final = b"user.shardfs.persistent"
"""Virtual: b"yes" or b"no"."""
CAPABILITY: Final = b"security.capability"
"""The kernel asks for it before the first write to a file."""
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
        self.access_lists = False
        """Whether the kernel asks for access lists and enforces them."""

    async def get(self, ino: int, name: bytes) -> bytes:
        """The attribute's value. Checkpoints: not when the inode is cached and has none.

        Raises:
            FileError: ENODATA: it has no such attribute.
        """
        self._require_name(name)
        inode = await self._inode(ino)
        if name == PERSISTENT:
            return b"yes" if self._writeback.is_persistent(ino) else b"no"
        value = await self._store.get_record(xattr_key(ino, name)) if inode.xattrs else None
        if value is None:
            raise FileError(errno.ENODATA)
        return value

    def has_none(self, ino: int, name: bytes) -> bool:
        """Whether `get` would say ENODATA because the file, which is cached, has no attributes at
        all. For the attributes that the kernel asks for of its own accord."""
        inode = self._tables.cached_inode(ino)
        return name == CAPABILITY and inode is not None and not inode.xattrs

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
            if self._is_shown(name, privileged):
                found.append(name)
        return found

    async def set(self, ino: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """Give an attribute a value; for access lists see set_access_list.

        Args:
            flags: CREATE: it must not exist. REPLACE: it must exist.

        Durable when: the store is synced.

        Raises:
            FileError, NoSpaceError, ReadOnlyError: nothing was changed.
        """
        self._require_name(name)
        _require_stored(name)
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
            if old == value:
                return
            after = inode._replace(xattrs=inode.xattrs + (old is None))
            if await self._change(ino, inode, key, value, after):
                return

    async def set_access_list(
        self, ino: int, name: bytes, value: bytes | None, *, keeps_set_group_id: bool = True
    ) -> None:
        """Give a file an access list, or a directory a default list; the mode follows.

        Args:
            name: access_lists.ACCESS or DEFAULT.
            value: the list as the kernel encodes it; None: take it away, if there is one.
            keeps_set_group_id: who does it belongs to the file's group, or is privileged.

        Durable when: the store is synced.

        Raises:
            FileError, NoSpaceError, ReadOnlyError: nothing was changed. EINVAL: it is no list.
        """
        self._require_name(name)
        entries = None if value is None else _read_access_list(value)
        await self._store.admit()
        key = xattr_key(ino, name)
        while True:
            inode = await self._inode(ino)
            mode = inode.mode
            kept = entries
            if name == access_lists.ACCESS and entries is not None:
                if access_lists.is_minimal(entries):
                    kept = None
                mode = access_lists.mode_of(entries, mode)
                mode &= ~(0 if keeps_set_group_id else stat.S_ISGID)
            elif name == access_lists.DEFAULT and kept is not None and not inode.is_directory:
                raise FileError(errno.EACCES)
            old = await self._store.get_record(key) if inode.xattrs else None
            record = None if kept is None else encode_access_list(kept)
            count = inode.xattrs + (record is not None) - (old is not None)
            after = inode._replace(mode=mode, xattrs=count)
            if (after, record) == (inode, old):
                if await self._inode(ino) == inode:
                    return
            elif await self._change(ino, inode, key, record, after):
                return

    async def remove(self, ino: int, name: bytes) -> None:
        """Take an attribute away.

        Durable when: the store is synced.

        Raises:
            FileError: ENODATA: it has no such attribute.
        """
        self._require_name(name)
        _require_stored(name)
        await self._store.admit()
        while True:
            inode = await self._inode(ino)
            key = xattr_key(ino, name)
            if not inode.xattrs or await self._store.get_record(key) is None:
                raise FileError(errno.ENODATA)
            after = inode._replace(xattrs=inode.xattrs - 1)
            if await self._change(ino, inode, key, None, after):
                return

    async def _change(
        self, ino: int, seen: Inode, key: bytes, value: bytes | None, after: Inode
    ) -> bool:
        """See _change_now; what needs space waits once for what is being freed."""
        operation = partial(self._change_now, ino, seen, key, value, after)
        run = partial(self._tables.run, operation)
        if value is None:
            return await run()
        return await self._orphans.with_room(run, self._writeback.flush_steps)

    def _change_now(
        self, ino: int, seen: Inode, key: bytes, value: bytes | None, after: Inode
    ) -> bool:
        """Change an attribute and its inode, unless the inode is not as seen any more."""
        change = self._tables.change(grows=value is not None)
        if change.find_inode(ino) != seen:
            return False
        if value is None:
            change.batch.delete(key)
        else:
            try:
                change.put_record(key, value)
            except LimitError as error:  # extents are small
                raise FileError(errno.E2BIG) from error
        change.put_inode(ino, after._replace(ctime_ns=self._tables.now_ns()))
        change.commit()
        return True

    async def _inode(self, ino: int) -> Inode:
        inode = await self._tables.inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        return inode

    def _is_shown(self, name: bytes, privileged: bool) -> bool:
        """The attribute may be listed."""
        if name in access_lists.NAMES:
            return self.access_lists
        if name == PERSISTENT:
            return False  # an earlier version has stored one
        return privileged or not name.startswith(b"trusted.")

    def _require_name(self, name: bytes) -> None:
        if name in access_lists.NAMES and self.access_lists:
            return
        if not name.startswith(_NAMESPACES):
            raise FileError(errno.EOPNOTSUPP)
        if len(name) > limits.XATTR_NAME_BYTES_MAX:
            raise FileError(errno.ERANGE)
        if name.endswith(b".") and name.count(b".") == 1:
            raise FileError(errno.EINVAL)


def _require_stored(name: bytes) -> None:
    if name == PERSISTENT:
        raise FileError(errno.EPERM, "the attribute says what is; it cannot be set")


def _read_access_list(value: bytes) -> AccessList:
    try:
        entries = decode_access_list(value)
    except CorruptionError:
        raise FileError(errno.EINVAL) from None
    if not access_lists.is_valid(entries):
        raise FileError(errno.EINVAL)
    return entries
