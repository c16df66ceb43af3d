"""An open file of a disk, as Python's io module wants it.

Role: a raw file for io.BufferedReader and its kin, and what the words of open() mean.

Invariants:
    I1. The file stays what it was while it is open, whatever happens to its name.
    I2. Closing returns when the disk has what was written; `fsync` when it is durable.

Not here: buffering and decoding (io).
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final, NoReturn, cast

from shardfs.library.portal import Portal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

BUFFER_BYTES: Final = 1 << 20
_KNOWN: Final = frozenset("rwxa+bt")


class RawDiskFile(io.RawIOBase):
    """A file of a disk that is open.

    Args:
        portal: to the disk.
        path: as the user wrote it.
        mode: like that of open(): r, w, x or a, perhaps with +.
    """

    def __init__(self, portal: Portal, path: str, mode: str) -> None:
        self._portal = portal
        self._number = -1
        self.name = path
        self.mode = mode
        self._reads = "r" in mode or "+" in mode
        self._writes = "r" not in mode or "+" in mode
        self._appends = "a" in mode
        opening = partial(
            portal.volume.open,
            path,
            create="r" not in mode,
            exclusive="x" in mode,
            truncate="w" in mode,
        )
        self._number = portal.call(opening)
        self._ino = portal.volume.ino_of(self._number)
        self._position = self._size() if self._appends else 0

    def readable(self) -> bool:
        """See io.IOBase."""
        return self._reads

    def writable(self) -> bool:
        """See io.IOBase."""
        return self._writes

    def seekable(self) -> bool:
        """See io.IOBase."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer from the place where the file is; bytes read, 0 at the end."""
        self._require(self._reads, "not open for reading")
        view = memoryview(buffer).cast("B")
        data = self._portal.call(self._portal.volume.read, self._ino, self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: ReadableBuffer) -> int:
        """Write bytes at the place where the file is, or at its end; how many."""
        self._require(self._writes, "not open for writing")
        view = memoryview(data).cast("B")
        if self._appends:
            self._position = self._size()
        self._portal.call(self._portal.volume.write, self._ino, self._position, view)
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place; see io.IOBase."""
        starts: dict[int, Callable[[], int]] = {
            os.SEEK_SET: lambda: 0,
            os.SEEK_CUR: lambda: self._position,
            os.SEEK_END: self._size,
        }
        self._require(True, "")
        if whence not in starts:
            raise ValueError(f"unknown whence {whence}")
        position = starts[whence]() + offset
        if position < 0:
            raise ValueError(f"negative position {position}")
        self._position = position
        return position

    def truncate(self, size: int | None = None) -> int:
        """Set the size, bytes; by default to the place where the file is."""
        self._require(self._writes, "not open for writing")
        size = self._position if size is None else size
        self._portal.call(self._portal.volume.truncate, self._ino, size)
        return size

    def fsync(self) -> None:
        """Make it durable: data, size and name."""
        self._require(True, "")
        self._portal.call(self._portal.volume.fsync, self._ino)

    def close(self) -> None:
        """End it; a disk that is closed already has done so."""
        if self.closed:
            return
        super().close()
        if self._number >= 0 and not self._portal.is_closed:
            self._portal.call(self._portal.volume.release, self._number)

    def fileno(self) -> NoReturn:
        """There is none: the file is no file of the operating system's."""
        raise io.UnsupportedOperation("fileno")

    def _size(self) -> int:
        return self._portal.call(self._portal.volume.size_of, self._ino)

    def _require(self, allowed: bool, text: str) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not allowed:
            raise io.UnsupportedOperation(text)


def open_file(
    portal: Portal,
    path: str,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> IO[Any]:
    """Open a file of a disk; the arguments are those of the built-in open(), text is UTF-8.

    Raises:
        OSError, ValueError: as open() does.
    """
    is_binary = "b" in mode
    kinds = [letter for letter in mode if letter in "rwxa"]
    if set(mode) - _KNOWN or len(set(mode)) < len(mode) or len(kinds) != 1:
        raise ValueError(f"invalid mode: {mode!r}")
    if is_binary and ("t" in mode or encoding or errors or newline):
        raise ValueError("a binary file has no encoding, errors and newline, and is no text")
    if buffering == 0 and not is_binary:
        raise ValueError("text must be buffered")
    raw = RawDiskFile(portal, path, kinds[0] + ("+" if "+" in mode else ""))
    if buffering == 0:
        return cast(IO[Any], raw)  # as typeshed has it for open()
    size = BUFFER_BYTES if buffering in (-1, 1) else buffering
    buffered: io.BufferedReader | io.BufferedWriter | io.BufferedRandom
    if raw.readable() and raw.writable():
        buffered = io.BufferedRandom(raw, size)
    elif raw.writable():
        buffered = io.BufferedWriter(raw, size)
    else:
        buffered = io.BufferedReader(raw, size)
    if is_binary:
        return buffered
    return io.TextIOWrapper(
        buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1
    )
