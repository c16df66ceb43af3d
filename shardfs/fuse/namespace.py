"""Names and inodes: lookup, create, link, unlink, rename, attributes; each change is one batch.

Role: what POSIX says of names. Every operation is a plain function over Tables (see there), so it
sees one moment and applies wholly or not at all.

Invariants:
    I1. An inode's nlink is the number of entries that name it; a directory's is 2 and one more
        for each subdirectory. A directory's size is its number of entries.
    I2. A directory has one entry, in the directory its inode names as parent; no loops.
    I3. An inode without entries has an orphan key in the same batch (orphans.I1).
    I4. A removed directory takes no new entries.

Ordering: before a rename replaces a file, the new content is given to the engine, so that a crash
leaves the old content or the new one, never an empty file.

Not here: permission checks (the kernel makes them: default_permissions), file content, xattrs;
what access lists say (access_lists.py).
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Mapping
from functools import partial
from typing import Final, NamedTuple

from shardfs import limits
from shardfs.errors import CorruptionError, FileError, NoSpaceError
from shardfs.fuse import access_lists
from shardfs.fuse.access_lists import ACCESS, DEFAULT, AccessList
from shardfs.fuse.change import Change
from shardfs.fuse.handles import Handles
from shardfs.fuse.keys import ROOT_INO, is_name, orphan_key, xattr_key
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.records import Entry, Inode, clamp_time_ns, decode_access_list, encode_access_list
from shardfs.fuse.rename import EXCHANGE, Renaming, apply_rename, plan_rename
from shardfs.fuse.tables import NotLoaded, Tables
from shardfs.fuse.writeback import Writeback, without_set_id

_PERMISSION_BITS: Final = 0o7777


class Found(NamedTuple):
    """An inode and its number."""

    ino: int
    inode: Inode


class Update(NamedTuple):
    """Attributes to set; None leaves one as it is. Times in nanoseconds, size in bytes.

    With nothing to set it takes a file's set-user-ID and set-group-ID bits away: so the kernel asks
    for that when someone without privileges writes through a handle that root has opened. (Who may
    ask is operations.py's business.)
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


NOTHING: Final = Update()


class Namespace:
    """The directory tree of one mount."""

    def __init__(
        self, tables: Tables, writeback: Writeback, orphans: Orphans, handles: Handles
    ) -> None:
        self._tables = tables
        self._writeback = writeback
        self._orphans = orphans
        self._handles = handles
        self.access_lists = False
        """Whether new files inherit access lists: the kernel enforces them."""

    # --- looking

    async def inode(self, ino: int) -> Inode:
        """The inode, buffered writes included. Checkpoints: not when cached.

        Raises:
            FileError: there is no such inode.
        """
        inode = self._tables.cached_inode(ino) or await self._tables.inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        return self._writeback.overlay(ino, inode)

    def inode_now(self, ino: int) -> Inode | None:
        """The same if it is cached; None says nothing. For requests that come often."""
        inode = self._tables.cached_inode(ino)
        return None if inode is None else self._writeback.overlay(ino, inode)

    async def lookup(self, parent: int, name: bytes) -> Found | None:
        """What a name stands for, or None. Checkpoints: not when cached.

        Raises:
            FileError: the name is too long, or there is no such directory.
        """
        try:
            found = self._lookup_now(parent, name)
        except NotLoaded as missing:
            await self._tables.load(missing.key)
            found = await self._tables.run(partial(self._lookup_now, parent, name))
        if found is None:
            return None
        ino, inode = found
        seen = self._writeback.overlay(ino, inode)
        return found if seen is inode else Found(ino, seen)

    def _lookup_now(self, parent: int, name: bytes) -> Found | None:
        if len(name) > limits.NAME_BYTES_MAX:
            raise FileError(errno.ENAMETOOLONG)
        if name in (b".", b".."):
            directory = self._tables.find_inode(parent)
            if directory is None or (directory.nlink == 0 and not self._handles.is_used(parent)):
                raise FileError(errno.ESTALE)
            if name == b"." or not directory.is_directory:
                return Found(parent, directory)
            above = self._tables.find_inode(directory.parent)
            return above and Found(directory.parent, above)
        entry = self._tables.find_entry(parent, name)
        if entry is None:
            return None
        inode = self._tables.find_inode(entry.ino)
        if inode is None:
            where = f"entry {name!r} of directory {parent}"
            raise CorruptionError(f"it names inode {entry.ino}, which does not exist", where)
        return Found(entry.ino, inode)

    # --- creating

    async def create(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        *,
        rdev: int = 0,
        target: bytes = b"",
        umask: int = 0,
    ) -> Found:
        """A new inode under a new name, with what its directory's default list gives it.

        Args:
            mode: type and permission bits.
            umask: permission bits to take away, unless the directory has a default list.
            rdev: device number, for device files.
            target: where a symbolic link points.

        Durable when: the store is synced.

        Raises:
            FileError, NoSpaceError, ReadOnlyError: nothing was changed.
        """
        if len(target) > limits.SYMLINK_BYTES_MAX:
            raise FileError(errno.ENAMETOOLONG)
        lists: Mapping[bytes, AccessList] = {}
        default = None
        if self.access_lists:
            above = self._tables.cached_inode(parent)
            if above is None or above.xattrs:
                default = await self._access_list(parent, DEFAULT)
        if default is None or target:
            mode &= ~umask
        else:
            lists, mode = _inherited(default, mode)
        if not self._tables.store.admits_at_once():
            await self._tables.store.admit()
        arguments = (parent, name, mode, uid, gid, rdev, target, lists)
        try:
            return self._create_now(*arguments)
        except (NotLoaded, NoSpaceError):
            return await self._grow(partial(self._create_now, *arguments))

    def _create_now(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int,
        target: bytes,
        lists: Mapping[bytes, AccessList],
    ) -> Found:
        change = self._tables.change(grows=True)
        change.is_alone = len(target) > limits.NAME_BYTES_MAX
        directory = self._directory(change, parent)
        self._require_free(parent, name)
        now = self._tables.now_ns()
        is_directory = stat.S_ISDIR(mode)
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            mode |= stat.S_ISGID if is_directory else 0
        ino = change.new_ino()
        nlink, above = (2, parent) if is_directory else (1, 0)
        owner, times = (uid, gid), (now, now, now, now)
        inode = Inode(
            *(mode, nlink, *owner, rdev, len(lists), len(target), 0, *times, above, target)
        )
        change.put_inode(ino, inode)
        for attribute, entries in lists.items():
            change.put_record(xattr_key(ino, attribute), encode_access_list(entries))
        change.put_entry(parent, name, Entry(ino, mode >> 12))
        change.put_inode(parent, directory.with_entries(1, int(is_directory), now))
        change.commit()
        return Found(ino, inode)

    async def link(self, ino: int, parent: int, name: bytes) -> Found:
        """One more name for a file.

        Durable when: the store is synced.

        Raises:
            FileError, NoSpaceError, ReadOnlyError: nothing was changed.
        """
        await self._tables.store.admit()
        found = await self._grow(partial(self._link_now, ino, parent, name))
        return Found(ino, self._writeback.overlay(*found))

    def _link_now(self, ino: int, parent: int, name: bytes) -> Found:
        change = self._tables.change(grows=True)
        inode = change.find_inode(ino)
        directory = self._directory(change, parent)
        if inode is None or inode.nlink == 0:
            raise FileError(errno.ENOENT)
        if inode.is_directory:
            raise FileError(errno.EPERM)
        self._require_free(parent, name)
        if inode.nlink >= limits.LINKS_MAX:
            raise FileError(errno.EMLINK)
        now = self._tables.now_ns()
        inode = inode.with_names(inode.nlink + 1, inode.parent, now)
        change.put_inode(ino, inode)
        change.put_entry(parent, name, Entry(ino, inode.mode >> 12))
        change.put_inode(parent, directory.with_entries(1, 0, now))
        change.commit()
        return Found(ino, inode)

    # --- removing

    async def unlink(self, parent: int, name: bytes) -> None:
        """Take away a name of something that is not a directory.

        Durable when: the store is synced.

        Raises:
            FileError, ReadOnlyError: nothing was changed.
        """
        await self._remove(parent, name, is_directory=False)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory.

        Durable when: the store is synced.

        Raises:
            FileError, ReadOnlyError: nothing was changed.
        """
        await self._remove(parent, name, is_directory=True)

    async def _remove(self, parent: int, name: bytes, *, is_directory: bool) -> None:
        if self._orphans.are_too_many:
            await self._orphans.admit()
        if not self._tables.store.admits_at_once():
            await self._tables.store.admit()
        try:
            removed = self._remove_now(parent, name, is_directory)
        except NotLoaded:
            removed = await self._tables.run(partial(self._remove_now, parent, name, is_directory))
        if removed.inode.nlink == 0:
            self._handles.nameless(removed.ino)

    def _remove_now(self, parent: int, name: bytes, is_directory: bool) -> Found:
        if is_directory and name in (b".", b".."):
            raise FileError(errno.EINVAL if name == b"." else errno.ENOTEMPTY)
        change = self._tables.change()
        directory = self._directory(change, parent)
        found = self._lookup_now(parent, name)
        if found is None:
            raise FileError(errno.ENOENT)
        ino, inode = found
        if inode.is_directory != is_directory:
            raise FileError(errno.ENOTDIR if is_directory else errno.EISDIR)
        if is_directory and inode.size:
            raise FileError(errno.ENOTEMPTY)
        now = self._tables.now_ns()
        nlink = 0 if is_directory else inode.nlink - 1
        inode = inode.with_names(nlink, inode.parent, now)
        change.put_inode(ino, inode)
        change.delete_entry(parent, name)
        change.put_inode(parent, directory.with_entries(-1, -int(is_directory), now))
        if inode.nlink == 0:
            change.mark(orphan_key(ino))
        change.commit()
        return Found(ino, inode)

    # --- renaming

    async def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int = 0
    ) -> None:
        """Move a name, replacing what the new name stands for.

        Args:
            flags: rename.NOREPLACE or rename.EXCHANGE.

        Durable when: the store is synced; after a crash it has happened wholly or not at all.

        Raises:
            FileError, ReadOnlyError: nothing was changed.
            NoSpaceError: as `rename.apply_rename`.
            DeviceError, CorruptionError, NoSpaceError: the file's content could not be stored.
        """
        renaming = Renaming(old_parent, old_name, new_parent, new_name, flags)
        for name in (old_name, new_name):
            _require_name(name)
        if self._orphans.are_too_many:
            await self._orphans.admit()
        if not self._tables.store.admits_at_once():
            await self._tables.store.admit()
        try:
            plan = plan_rename(self._tables, renaming)
            if plan.replaced is None:
                apply_rename(self._tables, renaming, plan)
                return
        except NotLoaded:
            plan = await self._tables.run(partial(plan_rename, self._tables, renaming))
        if plan.replaced is not None and flags != EXCHANGE and self._writeback.is_dirty(plan.moved):
            await self._writeback.flush(plan.moved)
        nameless = await self._tables.run(partial(apply_rename, self._tables, renaming))
        if nameless is not None:
            self._handles.nameless(nameless)

    # --- attributes

    async def set_attributes(self, ino: int, update: Update, *, privileged: bool) -> Inode:
        """Set some attributes.

        Args:
            privileged: the caller may change content without losing set-user-ID bits.

        Durable when: the store is synced.

        Returns:
            The inode as it is then.

        Raises:
            FileError, ReadOnlyError, NoSpaceError, DeviceError, CorruptionError
        """
        amend = partial(_amend, self._tables, update, privileged)
        if not self._tables.store.admits_at_once():
            await self._tables.store.admit()
        if update.size is not None:
            inode = await self.inode(ino)
            if inode.is_directory:
                raise FileError(errno.EISDIR)
            if not inode.is_regular:
                raise FileError(errno.EINVAL)
            await self._writeback.truncate(ino, update.size, amend)
        else:
            known = self._tables.cached_inode(ino)
            if known is not None and (update.mode is None or not known.xattrs):
                self._amend_now(ino, amend, None, None)
            else:
                await self._amend(ino, amend, changes_mode=update.mode is not None)
            if update.mtime_ns is not None:
                self._writeback.set_times(ino)
        return self.inode_now(ino) or await self.inode(ino)

    async def _amend(self, ino: int, amend: partial[Inode], *, changes_mode: bool) -> None:
        """Change an inode, and its access list with the mode."""
        while True:
            seen = await self._tables.inode(ino) if changes_mode else None
            if seen is not None and not seen.xattrs:
                seen = None  # it has no list
            entries = None if seen is None else await self._access_list(ino, ACCESS)
            if await self._tables.run(partial(self._amend_now, ino, amend, seen, entries)):
                return

    def _amend_now(
        self, ino: int, amend: partial[Inode], seen: Inode | None, entries: AccessList | None
    ) -> bool:
        """Change an inode, unless its access list may not be as seen any more."""
        change = self._tables.change()
        inode = change.find_inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        if seen is not None and inode != seen:
            return False
        amended = amend(inode)
        change.put_inode(ino, amended)
        if entries is not None:
            value = encode_access_list(access_lists.with_mode(entries, amended.mode))
            change.batch.put(xattr_key(ino, ACCESS), value)
        change.commit()
        return True

    # --- shared steps

    async def _access_list(self, ino: int, name: bytes) -> AccessList | None:
        """An inode's access list or default list, if it has one. Checkpoints: seldom."""
        inode = self._tables.cached_inode(ino) or await self._tables.inode(ino)
        if inode is None or not inode.xattrs:
            return None
        value = await self._tables.store.get_record(xattr_key(ino, name))
        return None if value is None else decode_access_list(value)

    async def _grow(self, operation: partial[Found]) -> Found:
        """Run an operation that needs space; on a full disk wait once for what is being freed."""
        return await self._orphans.with_room(
            partial(self._tables.run, operation), self._writeback.flush_steps
        )

    def _directory(self, change: Change, ino: int) -> Inode:
        """A directory that takes changes (I4)."""
        directory = change.find_inode(ino)
        if directory is None or directory.nlink == 0:
            raise FileError(errno.ENOENT)
        if not directory.is_directory:
            raise FileError(errno.ENOTDIR)
        return directory

    def _require_free(self, parent: int, name: bytes) -> None:
        _require_name(name)
        if self._tables.find_entry(parent, name) is not None:
            raise FileError(errno.EEXIST)


def _require_name(name: bytes) -> None:
    if len(name) > limits.NAME_BYTES_MAX:
        raise FileError(errno.ENAMETOOLONG)
    if not is_name(name):
        raise FileError(errno.EEXIST if name in (b".", b"..") else errno.EINVAL)


def _inherited(default: AccessList, mode: int) -> tuple[Mapping[bytes, AccessList], int]:
    """What a new inode gets in a directory with a default list: lists, and its mode."""
    lists = {DEFAULT: default} if stat.S_ISDIR(mode) else {}
    own, mode = access_lists.inherited(default, mode)
    return lists if own is None else {**lists, ACCESS: own}, mode


def _amend(tables: Tables, update: Update, privileged: bool, inode: Inode) -> Inode:
    """The inode with an update applied, times and set-ID bits as Linux has them."""
    now = tables.now_ns()
    mode, mtime_ns = inode.mode, inode.mtime_ns
    if update.mode is not None:
        mode = stat.S_IFMT(mode) | update.mode & _PERMISSION_BITS
    elif inode.is_directory:
        pass
    elif update == NOTHING or update.uid is not None or update.gid is not None:
        mode = without_set_id(mode)
    if update.size is not None:
        mtime_ns = now
        mode = mode if privileged else without_set_id(mode)
    uid = inode.uid if update.uid is None else update.uid
    gid = inode.gid if update.gid is None else update.gid
    atime_ns = inode.atime_ns if update.atime_ns is None else clamp_time_ns(update.atime_ns)
    mtime_ns = mtime_ns if update.mtime_ns is None else clamp_time_ns(update.mtime_ns)
    times = atime_ns, mtime_ns, now, inode.btime_ns
    return Inode(mode, inode.nlink, uid, gid, *inode[4:8], *times, inode.parent, inode.target)


assert ROOT_INO == 1, "the kernel's number for the root of a mount"
