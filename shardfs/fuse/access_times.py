"""Access times: which reads move a file's atime, as mount(8) has it.

Role: the kernel leaves atime to a FUSE server, so the rule is applied here, at the requests that
read: READ, READDIR and READLINK.

Invariants:
    I1. relatime: a read moves atime when it is not after mtime and ctime, or is a day old.
        strictatime: every read does. noatime, O_NOATIME, a read-only mount: none does.
    I2. A read never fails for its atime: on a full or read-only store the old one stays.

Reads that the kernel answers from its page cache are not seen. So while a file's atime is due, an
open for reading drops what the kernel has cached (`must_see_reads`): the first read then comes
here. What is not seen: later reads of the same pages by the same handle with strictatime, and
reads behind a write by a handle that was open before it.

Ordering: a new atime is seen at once and in the store some seconds later, or at the next fsync or
change of the inode (touched.py): a crash may leave an earlier one, never a wrong one.

Not here: times set by the user (namespace.set_attributes).
"""

from __future__ import annotations

import logging
import os
from typing import Final

from shardfs.errors import ShardfsError
from shardfs.fuse.mount_options import AccessTimes
from shardfs.fuse.records import Inode
from shardfs.fuse.tables import Tables
from shardfs.fuse.writeback import Writeback

_log = logging.getLogger(__name__)

OLD_NS: Final = 24 * 3600 * 10**9
"""With relatime an atime older than this is moved by the next read."""


class Reading:
    """Applies a mount's rule for access times."""

    def __init__(self, tables: Tables, writeback: Writeback) -> None:
        self._tables = tables
        self._writeback = writeback
        self.rule = AccessTimes.NEVER
        """Set by the mount; a file system that is not mounted keeps its access times."""
        self.directories = True
        """Reading directories counts as well."""

    def must_see_reads(self, inode: Inode, flags: int) -> bool:
        """An open with these flags is followed by reads that must not stay in the kernel.

        Args:
            inode: as stat(2) sees it.
        """
        if flags & os.O_ACCMODE == os.O_WRONLY or flags & os.O_NOATIME:
            return False
        return self._is_due(inode, self._tables.now_ns())

    def notice(self, ino: int) -> None:
        """A file was read. Never raises; does nothing when the inode is not cached."""
        if self.rule is AccessTimes.NEVER or not self._tables.is_loaded(ino):
            return
        if not self._tables.store.health.is_writable:
            return
        inode = self._tables.find_inode(ino)
        if inode is None or (inode.is_directory and not self.directories):
            return
        now_ns = self._tables.now_ns()
        if self._is_due(self._writeback.overlay(ino, inode), now_ns):
            try:
                self._tables.touch(ino, inode, now_ns)
            except ShardfsError as error:
                _log.debug("inode %d keeps its access time: %s", ino, error)

    def _is_due(self, inode: Inode, now_ns: int) -> bool:
        """I1."""
        if self.rule is not AccessTimes.RELATIVE:
            return self.rule is AccessTimes.ALWAYS
        newest_ns = max(inode.mtime_ns, inode.ctime_ns)
        return inode.atime_ns <= newest_ns or now_ns - inode.atime_ns >= OLD_NS
