"""The floor of the benchmarks: a pyfuse3 file system that does nothing but keep dictionaries.

Role: what a Python server behind pyfuse3 can reach at best, so that a figure of shardfs can be
divided by it: what is missing to 1 is shardfs' own work. It saves the same round trips by the
same means (answer to INIT, waiting awake, lifetimes of names and attributes, names that are not
there, no flush, page cache kept over opens, entries listed with attributes, read-ahead). Names,
attributes of both kinds and contents live in memory, access lists as bytes; fsync promises nothing.
With --fsync-to each fsync writes 8 KiB to a device and flushes it, at once and on the one thread:
the least that any server must do for a file of 4 KiB, and so the bound of durable puts.

Not here: durability, checks, limits, rename flags other than none, and for setxattr.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import os
import stat
import time
from collections.abc import Sequence
from typing import Final

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext

from shardfs.cli.heap import keep_pauses_short
from shardfs.fuse.handshake import Handshake, fuse_descriptor
from shardfs.fuse.mount_options import MountOptions, read_options
from shardfs.fuse.polling import Polling, standing_in
from shardfs.fuse.session import fuse_options, raise_read_ahead

TIMEOUT_S: Final = 365 * 86400.0
BLOCK_BYTES: Final = 4096
SYNCED_BYTES: Final = 2 * BLOCK_BYTES
SYNCED_MAX: Final = 4096
"""Places of the device that fsync writes to, one after the other."""


class Node:
    """A file of any type."""

    __slots__ = (
        "atime_ns", "children", "ctime_ns", "data", "gid", "ino", "lookups", "mode", "mtime_ns",
        "nlink", "rdev", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, ino: int, mode: int, uid: int, gid: int) -> None:
        self.ino, self.mode, self.uid, self.gid = ino, mode, uid, gid
        self.nlink = 2 if stat.S_ISDIR(mode) else 1
        self.rdev = self.lookups = 0
        self.target = b""
        self.data = bytearray()
        self.children: dict[bytes, Node] = {}
        self.xattrs: dict[bytes, bytes] = {}
        self.atime_ns = self.mtime_ns = self.ctime_ns = time.time_ns()

    def touch(self) -> None:
        """Its content or its names have changed."""
        self.mtime_ns = self.ctime_ns = time.time_ns()


class Floor(pyfuse3.Operations):
    """The request handlers.

    Args:
        xattrs: answer getxattr as if there could be attributes; else end such requests.
        device: open for writing; where fsync writes to. None: nowhere.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, xattrs: bool, device: int | None) -> None:
        super().__init__()
        self._device = device
        self._synced = 0
        self._no_attribute = errno.ENODATA if xattrs else errno.ENOSYS
        root = Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755, os.getuid(), os.getgid())
        self._nodes = {root.ino: root}
        self._inos = itertools.count(root.ino + 1)
        self._listings: dict[int, list[tuple[bytes, Node]]] = {}
        self._handles = itertools.count(1)
        self.started = trio.Event()

    def init(self) -> None:
        self.started.set()

    # --- names

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self._nodes[parent_inode].children.get(name)
        if node is None:
            nothing = EntryAttributes()
            nothing.st_ino = 0
            nothing.entry_timeout = TIMEOUT_S
            return nothing
        return self._told(node)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node = self._make(parent_inode, name, mode, ctx)
        return FileInfo(fh=node.ino, keep_cache=True), self._told(node)

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._make(parent_inode, name, mode, ctx)
        node.rdev = rdev
        return self._told(node)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._make(parent_inode, name, stat.S_IFDIR | mode, ctx)
        self._nodes[parent_inode].nlink += 1
        return self._told(node)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._make(parent_inode, name, stat.S_IFLNK | 0o777, ctx)
        node.target = target
        return self._told(node)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        node, parent = self._nodes[inode], self._nodes[new_parent_inode]
        if new_name in parent.children:
            raise FUSEError(errno.EEXIST)
        parent.children[new_name] = node
        parent.touch()
        node.nlink += 1
        node.ctime_ns = parent.ctime_ns
        return self._told(node)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._remove(self._nodes[parent_inode], name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        parent = self._nodes[parent_inode]
        if parent.children[name].children:
            raise FUSEError(errno.ENOTEMPTY)
        self._remove(parent, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        if flags:
            raise FUSEError(errno.EINVAL)
        old, new = self._nodes[parent_inode_old], self._nodes[parent_inode_new]
        node, there = old.children[name_old], new.children.get(name_new)
        if there is node:
            return
        if there is not None:
            if there.children:
                raise FUSEError(errno.ENOTEMPTY)
            self._remove(new, name_new)
        del old.children[name_old]
        new.children[name_new] = node
        if stat.S_ISDIR(node.mode):
            old.nlink -= 1
            new.nlink += 1
        old.touch()
        new.touch()
        node.ctime_ns = new.ctime_ns

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            node = self._nodes[ino]
            node.lookups -= count
            self._drop_unused(node)

    # --- attributes

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._attributes(self._nodes[inode])

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._nodes[inode]
        if fields.update_mode:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(attr.st_mode)
        if fields.update_uid:
            node.uid = attr.st_uid
        if fields.update_gid:
            node.gid = attr.st_gid
        if fields.update_size:
            missing = attr.st_size - len(node.data)
            if missing > 0:
                node.data.extend(bytes(missing))
            else:
                del node.data[attr.st_size :]
            node.touch()
        if fields.update_atime:
            node.atime_ns = attr.st_atime_ns
        if fields.update_mtime:
            node.mtime_ns = attr.st_mtime_ns
        node.ctime_ns = time.time_ns()
        return self._attributes(node)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._nodes[inode].target

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        value = self._nodes[inode].xattrs.get(name)
        if value is None:
            raise FUSEError(self._no_attribute)
        return value

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        if self._no_attribute == errno.ENOSYS:
            raise FUSEError(errno.ENOSYS)
        self._nodes[inode].xattrs[name] = value

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        if self._nodes[inode].xattrs.pop(name, None) is None:
            raise FUSEError(self._no_attribute)

    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        if self._no_attribute == errno.ENOSYS:
            raise FUSEError(errno.ENOSYS)
        return tuple(self._nodes[inode].xattrs)

    # --- open files: the handle of a file is its inode number

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            node = self._nodes[inode]
            node.data.clear()
            node.touch()
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, and has sent it before anything else can happen to the file.
        return memoryview(self._nodes[fh].data)[off : off + size]  # type: ignore[return-value]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self._nodes[fh]
        missing = off - len(node.data)
        if missing > 0:
            node.data.extend(bytes(missing))
        node.data[off : off + len(buf)] = buf
        node.touch()
        return len(buf)

    async def flush(self, fh: int) -> None:
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        if self._device is not None:
            self._synced = (self._synced + 1) % SYNCED_MAX
            os.pwrite(self._device, bytes(SYNCED_BYTES), self._synced * SYNCED_BYTES)
            os.fdatasync(self._device)

    # --- directories

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        handle = next(self._handles)
        self._listings[handle] = list(self._nodes[inode].children.items())
        return handle

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        listing = self._listings[fh]
        for position in range(start_id, len(listing)):
            name, node = listing[position]
            if not pyfuse3.readdir_reply(token, name, self._attributes(node), position + 1):
                return
            node.lookups += 1

    async def releasedir(self, fh: int) -> None:
        del self._listings[fh]

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        pass

    # --- the whole

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        answer = pyfuse3.StatvfsData()
        answer.f_bsize = answer.f_frsize = BLOCK_BYTES
        answer.f_blocks = answer.f_bfree = answer.f_bavail = 1 << 28
        answer.f_files = answer.f_ffree = answer.f_favail = 1 << 28
        answer.f_namemax = 255
        return answer

    # --- below the handlers

    def _make(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> Node:
        parent = self._nodes[parent_inode]
        if name in parent.children:
            raise FUSEError(errno.EEXIST)
        # With access lists the kernel leaves the umask to the server.
        mode = mode & ~ctx.umask if self.enable_acl else mode
        node = Node(next(self._inos), mode, ctx.uid, ctx.gid)
        self._nodes[node.ino] = parent.children[name] = node
        parent.touch()
        return node

    def _remove(self, parent: Node, name: bytes) -> None:
        node = parent.children.pop(name)
        parent.touch()
        node.ctime_ns = parent.ctime_ns
        if stat.S_ISDIR(node.mode):
            parent.nlink -= 1
            node.nlink = 0
        else:
            node.nlink -= 1
        self._drop_unused(node)

    def _drop_unused(self, node: Node) -> None:
        if not node.nlink and node.lookups <= 0:
            self._nodes.pop(node.ino, None)

    def _told(self, node: Node) -> EntryAttributes:
        node.lookups += 1
        return self._attributes(node)

    def _attributes(self, node: Node) -> EntryAttributes:
        attributes = EntryAttributes()
        attributes.st_ino = node.ino
        attributes.generation = 0
        attributes.entry_timeout = attributes.attr_timeout = TIMEOUT_S
        attributes.st_mode = node.mode
        attributes.st_nlink = node.nlink
        attributes.st_uid = node.uid
        attributes.st_gid = node.gid
        attributes.st_rdev = node.rdev
        attributes.st_size = len(node.target or node.data)
        attributes.st_blksize = BLOCK_BYTES
        attributes.st_blocks = -(-len(node.data) // 512)
        attributes.st_atime_ns = node.atime_ns
        attributes.st_mtime_ns = node.mtime_ns
        attributes.st_ctime_ns = node.ctime_ns
        return attributes


async def serve(mountpoint: str, options: MountOptions, device: int | None) -> None:
    """Mount, answer until it is unmounted; the same steps as session.serve_store."""
    floor = Floor(options.xattrs, device)
    words = fuse_options("floor", options) - {"subtype=shardfs"} | {"subtype=floor"}
    pyfuse3.init(floor, mountpoint, words)
    handshake = Handshake.begin(fuse_descriptor())
    floor.enable_acl = options.access_lists and options.xattrs and handshake.offers_access_lists

    async def announce() -> None:
        await floor.started.wait()
        await trio.lowlevel.checkpoint()
        raise_read_ahead(mountpoint)

    try:
        with standing_in(Polling(options.poll_us, handshake)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(announce)
                nursery.start_soon(keep_pauses_short)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
    finally:
        handshake.close()
        pyfuse3.close(unmount=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", dest="options", default="defaults", help="as of shardfs mount")
    parser.add_argument("--fsync-to", metavar="DEVICE", help="overwritten by each fsync")
    parser.add_argument("mountpoint")
    arguments = parser.parse_args()
    device = os.open(arguments.fsync_to, os.O_RDWR) if arguments.fsync_to else None
    options = read_options([arguments.options]).options
    trio.run(serve, os.path.abspath(arguments.mountpoint), options, device)


if __name__ == "__main__":
    main()
