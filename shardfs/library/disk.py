"""A disk for programs that know nothing of trio: `shardfs.open`.

Role: the methods of volume.py, done on a thread of their own, and files as open() gives them. May
be used from several threads at once.

Invariants:
    I1. Leaving the context, or `close`, makes everything durable. A program that ends without
        either is as if it had closed; one that is killed, as if the power had failed.

Not here: what the methods do (volume.py), the thread (portal.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import IO, Any, Self

from shardfs.library.files import open_file
from shardfs.library.portal import Portal
from shardfs.library.volume import FileFacts, open_volume


class Disk:
    """The files on an unmounted device or image.

    Paths are absolute, with or without a slash before them. Errors are those of the os module:
    FileNotFoundError, IsADirectoryError, OSError with ENOSPC; EIO where bytes do not match their
    checksum.

    Args:
        device: a block device or an image file.
        writable: changes are taken.
        shared: other programs may read the device at the same time; nobody may write to it.

    Raises:
        ShardfsError: it cannot be opened; the message says why.
    """

    def __init__(
        self, device: str | os.PathLike[str], *, writable: bool = False, shared: bool = False
    ) -> None:
        if writable and shared:
            raise ValueError("writable and shared exclude each other")
        self.device = os.path.abspath(device)
        self.writable = writable
        self._portal = Portal(partial(open_volume, device, writable=writable, shared=shared))
        self._volume = self._portal.volume

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._portal.is_closed else "writable" if self.writable else "read-only"
        return f"<shardfs disk {self.device} ({state})>"

    def close(self) -> None:
        """Make everything durable, and let go of the device. May be called again."""
        self._portal.close()

    @property
    def is_closed(self) -> bool:
        """Nothing can be done any more."""
        return self._portal.is_closed

    @property
    def uuid(self) -> str:
        """Which store it is."""
        return self._volume.uuid

    # --- looking

    def stat(self, path: str, *, follow: bool = True) -> FileFacts:
        """What is known of a path; with `follow`, of what a symbolic link leads to."""
        return self._portal.call(partial(self._volume.stat, path, follow=follow))

    def exists(self, path: str) -> bool:
        """Whether there is something at a path."""
        try:
            self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def listdir(self, path: str = "/") -> list[str]:
        """The names in a directory, in order."""
        return [each.name for each in self.scandir(path)]

    def scandir(self, path: str = "/") -> list[FileFacts]:
        """What is in a directory, in order of names, with all that is known of it."""
        return self._portal.call(self._volume.listdir, path)

    def walk(self, top: str = "/") -> Iterator[tuple[str, list[str], list[str]]]:
        """Each directory below one, from above: its path, directories in it, and what else is."""
        waiting = [top]
        while waiting:
            path = waiting.pop()
            found = self.scandir(path)
            below = [each.name for each in found if each.kind == "directory"]
            others = [each.name for each in found if each.kind != "directory"]
            yield path, below, others
            waiting += [f"{path.rstrip('/')}/{name}" for name in reversed(below)]

    # --- content

    def open(
        self,
        path: str,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a file, as the built-in open() does; text is UTF-8.

        What was written is durable after `sync`, or five seconds later.
        """
        return open_file(self._portal, path, mode, buffering, encoding, errors, newline)

    def read_bytes(self, path: str, start: int = 0, length: int | None = None) -> bytes:
        """The bytes of a file, or `length` of them from `start` on."""
        with self.open(path, "rb", 0) as file:
            file.seek(start)
            data: bytes = file.read(-1 if length is None else length)
            return data

    def write_bytes(self, path: str, data: bytes) -> None:
        """Make a file of these bytes, in place of one that is there."""
        with self.open(path, "wb", 0) as file:
            file.write(data)

    # --- changing

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        self._portal.call(self._volume.mkdir, path)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link at `path`."""
        self._portal.call(self._volume.symlink, target, path)

    def remove(self, path: str) -> None:
        """Take away a file's name."""
        self._portal.call(self._volume.remove, path)

    def rmdir(self, path: str) -> None:
        """Remove an empty directory."""
        self._portal.call(self._volume.rmdir, path)

    def rename(self, old: str, new: str) -> None:
        """Move a name, in place of what the new one stands for; whole or not at all."""
        self._portal.call(self._volume.rename, old, new)

    def sync(self) -> None:
        """Make everything durable that was done before."""
        self._portal.call(self._volume.sync)
