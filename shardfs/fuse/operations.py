"""FUSE requests: decode, call, encode; no policy.

Role: each handler turns a request's arguments into one call of the file system and its result into
pyfuse3's types. Exceptions become errno values in errnos.py.

Invariants:
    I1. Every inode told to the kernel by lookup, create, mknod, mkdir, symlink, link and readdir
        (but not "." and "..") raises its lookup count by one, just before the reply.

flush (close) is not implemented on purpose: ENOSYS ends such requests for the mount, one round
trip less per close. An error of a delayed write is reported by the next fsync of each handle.

With the option sync every change, with dirsync every change of names waits until it is durable
before it is answered. The options uid and gid change what is shown and what new files get; an
owner other than those cannot be set then.

Not here: the order of a mount's life (session.py), access times (access_times.py), what attributes
look like (answers.py).
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext

from shardfs.errors import FileError, ShardfsError
from shardfs.fuse import access_lists, answers
from shardfs.fuse.departure import Departure
from shardfs.fuse.durations import Durations, no_durations
from shardfs.fuse.errnos import guarded, unanswered
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.listing import DOT_DOT
from shardfs.fuse.mount_options import AccessTimes, MountOptions
from shardfs.fuse.namespace import NOTHING, Found, Update
from shardfs.fuse.records import Inode
from shardfs.fuse.writeback import without_set_id


class Operations(pyfuse3.Operations):
    """The request handlers of one mount.

    Args:
        file_system: what is mounted.
        options: of the mount.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, file_system: FileSystem, options: MountOptions) -> None:
        super().__init__()
        self.durations: dict[str, Durations] = defaultdict(no_durations)
        self.answers: dict[int, int] = defaultdict(int)
        self.read_bytes = self.written_bytes = 0
        """What requests have read and written."""
        self._file_system = file_system
        self._namespace = file_system.namespace
        self._writeback = file_system.writeback
        self._handles = file_system.handles
        self._xattrs = file_system.xattrs
        self._reading = file_system.reading
        self.departure = Departure(file_system.store.health, options.errors)
        """Whether the mount has to go away because of its device."""
        self._generation = file_system.store.identity.uuid.int & 0xFFFFFFFF
        self.obey(options)

    def have_access_lists(self) -> None:
        """Have the kernel enforce access lists. Requires: it offers to, and no requests yet."""
        self.enable_acl = True
        self._namespace.access_lists = self._xattrs.access_lists = True

    def obey(self, options: MountOptions) -> None:
        """From now on do as these options say; also when a living mount is remounted."""
        self._options = options
        self._names_wait = options.sync or options.dirsync
        """Changes of names are answered when they are durable."""
        self.departure.policy = options.errors
        self._reading.rule = AccessTimes.NEVER if options.read_only else options.access_times
        self._reading.directories = options.directory_access_times

    async def meet(self, error: Exception) -> None:
        """See errnos.Counting."""
        await self.departure.meet(error)

    def init(self) -> None:
        """The kernel has begun to talk to the mount."""
        self._file_system.started.set()

    # --- names

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """What a name stands for; the kernel may remember that it stands for nothing."""
        found = await self._namespace.lookup(parent_inode, name)
        if found is None:
            return answers.nothing()
        return self._told(found)

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """Create a regular file and open it."""
        found = await self._namespace.create(
            parent_inode, name, mode, *self._owner(ctx), umask=ctx.umask
        )
        if self._names_wait:
            await self._file_system.sync_names()
        return self._opened(found, flags, ctx), self._told(found)

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a file of any type but directory and symbolic link."""
        return await self._make(parent_inode, name, mode, ctx, rdev=rdev)

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a directory."""
        return await self._make(parent_inode, name, mode, ctx)

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Create a symbolic link."""
        found = await self._namespace.create(
            parent_inode, name, 0o120777, *self._owner(ctx), target=target
        )
        if self._names_wait:
            await self._file_system.sync_names()
        return self._told(found)

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        """Give a file one more name."""
        found = await self._namespace.link(inode, new_parent_inode, new_name)
        if self._names_wait:
            await self._file_system.sync_names()
        return self._told(found)

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Take away a name."""
        await self._namespace.unlink(parent_inode, name)
        if self._names_wait:
            await self._file_system.sync_names()

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        await self._namespace.rmdir(parent_inode, name)
        if self._names_wait:
            await self._file_system.sync_names()

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        """Move a name; see namespace.rename."""
        await self._namespace.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)
        if self._names_wait:
            await self._file_system.sync_names()

    @unanswered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel takes back lookups."""
        for ino, count in inode_list:
            self._handles.forget(ino, count)

    # --- attributes

    @guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """stat(2)."""
        found = self._namespace.inode_now(inode) or await self._namespace.inode(inode)
        return self._attributes(inode, found)

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """chmod, chown, truncate, utimensat; the current time is filled in by pyfuse3."""
        if (fields.update_uid and self._options.uid not in (None, attr.st_uid)) or (
            fields.update_gid and self._options.gid not in (None, attr.st_gid)
        ):
            raise FileError(errno.EPERM)
        update = Update(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        if update == NOTHING:
            await self._require_owner_or_writer(inode, ctx)
        changed = await self._namespace.set_attributes(inode, update, privileged=ctx.uid == 0)
        await self._settle()
        return self._attributes(inode, changed)

    @guarded
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Where a symbolic link points."""
        link = await self._namespace.inode(inode)
        if not link.is_symlink:
            raise FileError(errno.EINVAL)
        self._reading.notice(inode)
        return link.target

    @guarded
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Never asked: the kernel checks permissions itself (default_permissions)."""
        return True

    # --- open files

    @guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """A handle for a file; with O_TRUNC it is emptied."""
        found = self._namespace.inode_now(inode) or await self._namespace.inode(inode)
        if found.is_directory:
            raise FileError(errno.EISDIR)
        if flags & os.O_TRUNC and found.is_regular:
            update = Update(size=0)
            found = await self._namespace.set_attributes(inode, update, privileged=ctx.uid == 0)
            await self._settle()
        return self._opened(Found(inode, found), flags, ctx)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """The bytes asked for, fewer only at the end of the file."""
        handle = self._handles.file(fh)
        data = await self._writeback.read(handle.ino, off, size)
        if handle.touches:
            self._reading.notice(handle.ino)
        self.read_bytes += len(data)
        return data  # type: ignore[return-value]  # pyfuse3 takes any buffer

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        """Buffer the bytes."""
        handle = self._handles.file(fh)
        await self._writeback.write(handle.ino, off, buf, privileged=handle.privileged)
        self.written_bytes += len(buf)
        return len(buf)

    @guarded
    async def flush(self, fh: int) -> None:
        """close(2): nothing to do, and the kernel need not ask again (see the module)."""
        raise FUSEError(errno.ENOSYS)

    @unanswered
    async def release(self, fh: int) -> None:
        """The last user of a handle has closed it."""
        self._handles.release_file(fh)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        """Make a file durable, its size and its name too, whatever `datasync` says."""
        handle = self._handles.file(fh)
        try:
            await self._writeback.fsync(handle.ino)
        finally:
            errors = self._writeback.error_count(handle.ino)
            is_new, handle.errors_seen = errors != handle.errors_seen, errors
        if is_new:
            raise FileError(errno.EIO)

    # --- directories

    @guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """A handle for a directory."""
        return self._handles.open_directory(self._file_system.list_directory(inode))

    @guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """As many entries with their attributes as the kernel has room for."""
        listing = self._handles.directory(fh)
        self._reading.notice(listing.ino)
        position = start_id
        while True:
            try:
                items = await listing.read(position)
            except ShardfsError:
                if position == start_id:
                    raise
                return  # the kernel has to hear of what was counted; it is told when it goes on
            if not items:
                listing.let_go()
                return
            for item in items:
                name, ino, _, inode, behind = item
                if inode is None:
                    attributes = answers.unreadable(item)
                else:
                    attributes = self._attributes(ino, self._writeback.overlay(ino, inode))
                if not pyfuse3.readdir_reply(token, name, attributes, behind):
                    return
                if behind > DOT_DOT:
                    self._handles.looked_up(ino)
            position = items[-1].next
            if listing.ends_with(items[-1]):
                listing.let_go()
                return

    @unanswered
    async def releasedir(self, fh: int) -> None:
        """A directory was closed."""
        self._handles.release_directory(fh)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Make a directory durable."""
        await self._writeback.fsync(self._handles.directory(fh).ino)

    # --- extended attributes

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """The value of an extended attribute."""
        if self._options.xattrs and self._xattrs.has_none(inode, name):
            # What is asked for before each first write, and hardly ever there.
            self.answers[errno.ENODATA] += 1
            raise FUSEError(errno.ENODATA)
        self._require_xattrs()
        return await self._xattrs.get(inode, name)

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        """Set an extended attribute; pyfuse3 has looked after XATTR_CREATE and XATTR_REPLACE."""
        self._require_xattrs()
        if name in access_lists.NAMES:
            keeps = await self._keeps_set_group_id(inode, ctx)
            await self._xattrs.set_access_list(inode, name, value, keeps_set_group_id=keeps)
        else:
            await self._xattrs.set(inode, name, value)
        await self._settle()

    @guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """The names of the extended attributes."""
        self._require_xattrs()
        return await self._xattrs.names(inode, privileged=ctx.uid == 0)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        """Remove an extended attribute."""
        self._require_xattrs()
        if name in access_lists.NAMES:
            await self._xattrs.set_access_list(inode, name, None)
        else:
            await self._xattrs.remove(inode, name)
        await self._settle()

    # --- the whole

    @guarded
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """How full the file system is."""
        file_system = self._file_system
        return answers.statistics(file_system.store.space(), file_system.tables.inode_count)

    # --- encoding

    async def _make(
        self,
        parent: int,
        name: bytes,
        mode: int,
        ctx: RequestContext,
        *,
        rdev: int = 0,
    ) -> EntryAttributes:
        found = await self._namespace.create(
            parent, name, mode, *self._owner(ctx), rdev=rdev, umask=ctx.umask
        )
        if self._names_wait:
            await self._file_system.sync_names()
        return self._told(found)

    async def _settle(self) -> None:
        """With the option sync: wait until what was changed is durable."""
        if self._options.sync:
            await self._file_system.sync_names()

    def _owner(self, ctx: RequestContext) -> tuple[int, int]:
        """Whom a new file belongs to: (uid, gid)."""
        uid, gid = self._options.uid, self._options.gid
        return ctx.uid if uid is None else uid, ctx.gid if gid is None else gid

    async def _require_owner_or_writer(self, ino: int, ctx: RequestContext) -> None:
        """Who may have set-ID bits taken away by setting nothing (see namespace.Update).

        The kernel asks for that before someone without privileges writes, whoever owns the file.
        But it passes on chown(2) with neither a user nor a group as well, unchecked, from anybody.
        """
        inode = await self._namespace.inode(ino)
        owner = inode.uid if self._options.uid is None else self._options.uid
        if ctx.uid in (0, owner) or without_set_id(inode.mode) == inode.mode:
            return
        if not self._handles.is_open_for_writing(ino):
            raise FileError(errno.EPERM)

    async def _keeps_set_group_id(self, ino: int, ctx: RequestContext) -> bool:
        """Giving a file an access list may leave its set-group-ID bit."""
        if ctx.uid == 0:
            return True
        inode = await self._namespace.inode(ino)
        if not inode.mode & stat.S_ISGID or inode.gid == ctx.gid:
            return True
        return inode.gid in pyfuse3.get_sup_groups(ctx.pid)

    def _require_xattrs(self) -> None:
        """With the option noxattr the kernel is told not to ask again."""
        if not self._options.xattrs:
            raise FUSEError(errno.ENOSYS)

    def _opened(self, found: Found, flags: int, ctx: RequestContext) -> FileInfo:
        number = self._handles.open_file(
            found.ino,
            privileged=ctx.uid == 0,
            touches=not flags & os.O_NOATIME,
            writes=flags & os.O_ACCMODE != os.O_RDONLY,
        )
        keeps = not self._reading.must_see_reads(found.inode, flags)
        return FileInfo(fh=number, keep_cache=keeps)

    def _told(self, found: Found) -> EntryAttributes:
        """Attributes for a reply that tells the kernel of an inode (I1)."""
        self._handles.looked_up(found.ino)
        return self._attributes(found.ino, found.inode)

    def _attributes(self, ino: int, inode: Inode) -> EntryAttributes:
        return answers.attributes_of(ino, inode, self._generation, self._options)
