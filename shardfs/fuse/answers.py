"""What the kernel is told of an inode, and of the whole: the engine's figures in pyfuse3's types.

Role: encoding only, without a look at anything else.

Invariants:
    I1. Names and attributes stay valid in the kernel's cache for ever: nobody else changes them.
        Of an inode that cannot be read they are asked for again.

Not here: lookup counts (operations.py).
"""

from __future__ import annotations

from typing import Final

from pyfuse3 import EntryAttributes, StatvfsData

from shardfs import limits
from shardfs.fuse.door import SpaceDoor
from shardfs.fuse.listing import Item
from shardfs.fuse.mount_options import MountOptions
from shardfs.fuse.records import Inode

_TIMEOUT_S: Final = 365 * 86400.0
_STAT_BLOCK_BYTES: Final = 512
_INODE_BYTES_ASSUMED: Final = 512
"""For statfs, which wants to know how many more files there could be: what an empty one takes in
the tree, doubled because the tree has twice its size."""


def attributes_of(
    ino: int, inode: Inode, generation: int, options: MountOptions
) -> EntryAttributes:
    """Attributes of an inode.

    Args:
        generation: of the store; inode numbers are not used again.
        options: may say whom all files belong to.
    """
    attributes = EntryAttributes()
    attributes.st_ino = ino
    attributes.generation = generation
    attributes.entry_timeout = _TIMEOUT_S
    attributes.attr_timeout = _TIMEOUT_S
    mode, nlink, uid, gid, rdev, _, size, used, atime_ns, mtime_ns, ctime_ns = inode[:11]
    attributes.st_mode = mode
    attributes.st_nlink = nlink
    attributes.st_uid = uid if options.uid is None else options.uid
    attributes.st_gid = gid if options.gid is None else options.gid
    attributes.st_rdev = rdev
    attributes.st_size = size
    attributes.st_blksize = limits.BLOCK_BYTES
    attributes.st_blocks = -(-used // _STAT_BLOCK_BYTES)
    attributes.st_atime_ns = atime_ns
    attributes.st_mtime_ns = mtime_ns
    attributes.st_ctime_ns = ctime_ns
    return attributes


def nothing() -> EntryAttributes:
    """There is no such name, and that stays so."""
    attributes = EntryAttributes()
    attributes.st_ino = 0
    attributes.entry_timeout = _TIMEOUT_S
    return attributes


def unreadable(item: Item) -> EntryAttributes:
    """For an inode that cannot be read: name and type are all there is, stat(2) shall ask again."""
    attributes = EntryAttributes()
    attributes.st_ino = item.ino
    attributes.st_mode = item.type << 12
    attributes.attr_timeout = attributes.entry_timeout = 0
    return attributes


def statistics(space: SpaceDoor, inode_count: int) -> StatvfsData:
    """How full the file system is; see statvfs(3)."""
    answer = StatvfsData()
    answer.f_bsize = answer.f_frsize = limits.BLOCK_BYTES
    answer.f_blocks = space.total_bytes // limits.BLOCK_BYTES
    answer.f_bfree = answer.f_bavail = space.free_bytes // limits.BLOCK_BYTES
    answer.f_ffree = answer.f_favail = space.free_bytes // _INODE_BYTES_ASSUMED
    answer.f_files = inode_count + answer.f_ffree
    answer.f_namemax = limits.NAME_BYTES_MAX
    return answer
