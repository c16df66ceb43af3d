"""Who uses an inode: the kernel's lookup counts and open handles.

Role: an inode without a name lives until its last use ends (FORGET and RELEASE); the end of use is
noticed here and passed on to orphans.py.

Invariants:
    I1. An inode is used while its lookup count is positive or a handle of it is open.
    I2. A nameless inode is held while used and queued for freeing as soon as it is not; its dirty
        data is forgotten then.
    I3. Handle numbers are not reused within a mount.

Not here: what is done through a handle (operations.py), how directories are listed (listing.py).
"""

from __future__ import annotations

import errno
import sys
from typing import Final

from shardfs import limits
from shardfs.errors import FileError
from shardfs.fuse.listing import Listing
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.writeback import Writeback

_FIRST_HANDLE: Final = 1
_TABLE_BYTES_MIN: Final = limits.MIB
_SPARSE_BYTES: Final = 64 * limits.LOOKUP_MEMORY_BYTES
"""With so much room for each lookup count the table is made anew, which takes some milliseconds for
one that had millions."""


class FileHandle:
    """An open file.

    Args:
        ino: the file.
        privileged: whoever opened it may write without losing set-user-ID bits.
        errors_seen: the file's error count that this handle has reported.
        touches: reading through it may move the file's access time.
        writes: it was opened for writing.
    """

    __slots__ = ("errors_seen", "ino", "privileged", "touches", "writes")

    def __init__(
        self, ino: int, privileged: bool, errors_seen: int, touches: bool, writes: bool
    ) -> None:
        self.ino = ino
        self.privileged = privileged
        self.errors_seen = errors_seen
        self.touches = touches
        self.writes = writes


class Handles:
    """Lookup counts and open handles of one mount."""

    def __init__(self, writeback: Writeback, orphans: Orphans) -> None:
        self._writeback = writeback
        self._orphans = orphans
        self._lookups: dict[int, int] = {}
        self._opens: dict[int, int] = {}
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, Listing] = {}
        self._next = _FIRST_HANDLE

    def is_used(self, ino: int) -> bool:
        """I1."""
        return ino in self._lookups or ino in self._opens

    @property
    def memory_bytes(self) -> int:
        """About what lookup counts and handles take: the kernel and its users decide how many."""
        lookups_bytes = limits.LOOKUP_MEMORY_BYTES * len(self._lookups)
        handles = len(self._files) + len(self._directories)
        return (
            max(lookups_bytes, sys.getsizeof(self._lookups)) + limits.HANDLE_MEMORY_BYTES * handles
        )

    def looked_up(self, ino: int) -> None:
        """The kernel was told of the inode once more."""
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def forget(self, ino: int, count: int) -> None:
        """The kernel takes back `count` of its lookups."""
        left = self._lookups.get(ino, 0) - count
        if left > 0:
            self._lookups[ino] = left
        else:
            self._lookups.pop(ino, None)
            self._unused(ino)
            table_bytes = sys.getsizeof(self._lookups)
            if table_bytes > _TABLE_BYTES_MIN + _SPARSE_BYTES * len(self._lookups):
                # A dictionary stays as large as it was, whatever leaves it.
                self._lookups = dict(self._lookups)

    def nameless(self, ino: int) -> None:
        """The inode has just lost its last name (its orphan key is in the same batch)."""
        self._orphans.hold(ino)
        self._unused(ino)

    def open_file(
        self, ino: int, *, privileged: bool, touches: bool = True, writes: bool = True
    ) -> int:
        """A handle for a file; see FileHandle."""
        number = self._open(ino)
        errors = self._writeback.error_count(ino)
        self._files[number] = FileHandle(ino, privileged, errors, touches, writes)
        return number

    def is_open_for_writing(self, ino: int) -> bool:
        """Whether anybody may be writing to a file. Takes a look at every open file."""
        return any(handle.ino == ino and handle.writes for handle in self._files.values())

    def file(self, number: int) -> FileHandle:
        """The open file of that number.

        Raises:
            FileError: there is none.
        """
        try:
            return self._files[number]
        except KeyError:
            raise FileError(errno.EBADF, f"no open file {number}") from None

    def release_file(self, number: int) -> None:
        """The last user of a file handle has closed it."""
        handle = self._files.pop(number, None)
        if handle is not None:
            self._close(handle.ino)

    def open_directory(self, listing: Listing) -> int:
        """A handle for a directory."""
        number = self._open(listing.ino)
        self._directories[number] = listing
        return number

    def directory(self, number: int) -> Listing:
        """The open directory of that number.

        Raises:
            FileError: there is none.
        """
        try:
            return self._directories[number]
        except KeyError:
            raise FileError(errno.EBADF, f"no open directory {number}") from None

    def release_directory(self, number: int) -> None:
        """A directory handle was closed."""
        listing = self._directories.pop(number, None)
        if listing is not None:
            self._close(listing.ino)

    def release_all(self) -> None:
        """The mount has ended: nobody uses anything any more."""
        self._lookups.clear()
        self._opens.clear()
        self._files.clear()
        self._directories.clear()
        for ino in self._orphans.held():
            self._unused(ino)

    def _open(self, ino: int) -> int:
        number = self._next
        self._next += 1
        self._opens[ino] = self._opens.get(ino, 0) + 1
        return number

    def _close(self, ino: int) -> None:
        left = self._opens[ino] - 1
        if left:
            self._opens[ino] = left
        else:
            del self._opens[ino]
            self._unused(ino)

    def _unused(self, ino: int) -> None:
        """Act if a nameless inode's last use has ended (I2)."""
        if self._orphans.is_held(ino) and not self.is_used(ino):
            self._writeback.discard(ino)
            self._orphans.queue(ino)
