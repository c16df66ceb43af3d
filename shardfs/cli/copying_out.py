"""Writes files of a store into a directory of this machine, with all that belongs to them.

Role: what `shardfs cp-out` does with one entry of a directory: content without its holes, mode,
times, owner where that is allowed, extended attributes, hard links.

Invariants:
    I1. A name never holds a byte that is not the file's: what cannot be read whole is taken away
        again, or kept as NAME.damaged, with holes where bytes are missing.
    I2. Nothing that exists is overwritten, and no symbolic link at the destination is followed.

Not here: going through directories (cli/cp_out.py).
"""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from shardfs import limits
from shardfs.cli.pages import rest_of
from shardfs.errors import UNREADABLE, RemoteError, UsageError
from shardfs.fuse.shard_requests import READ_BYTES_MAX
from shardfs.fuse.targets import Questions

DAMAGED_SUFFIX: Final = ".damaged"
_SMALLEST_READ: Final = 4096


@dataclass
class Copied:
    """What has been copied, and what could not be.

    damaged: parts of files that cannot be read: path, start, length, error.
    failed: what was not copied for another reason: path, error.
    """

    files: int = 0
    directories: int = 0
    others: int = 0
    links: int = 0
    bytes: int = 0
    damaged: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Everything was copied."""
        return not self.damaged and not self.failed


class Copier:
    """Copies entries out of one store.

    Args:
        conversation: with the store.
        changed: called when something has been copied.
    """

    def __init__(self, conversation: Questions, changed: Callable[[], None]) -> None:
        self._conversation = conversation
        self._changed = changed
        self._linked: dict[int, str] = {}
        self.copied = Copied()

    async def copy(self, entry: dict[str, Any], path: str, to: str) -> None:
        """Copy whatever is no directory.

        Args:
            entry: its attributes.
            path: in the store, for messages.
            to: the new name.

        Raises:
            OSError: it cannot be made there.
        """
        known = self._linked.get(entry["ino"])
        if known is not None:
            os.link(known, to, follow_symlinks=False)
            self.copied.links += 1
            return
        kind = stat.S_IFMT(entry["mode"])
        if kind == stat.S_IFREG:
            to = await self._copy_file(entry, path, to)
        elif kind == stat.S_IFLNK:
            os.symlink(entry["target"], to)
            self.copied.others += 1
        else:
            os.mknod(to, entry["mode"], entry["rdev"])
            self.copied.others += 1
        if entry["nlink"] > 1:
            self._linked[entry["ino"]] = to
        await self.dress(entry, path, to)
        self._changed()

    async def dress(self, entry: dict[str, Any], path: str, to: str) -> None:
        """Give a copy its extended attributes, owner, mode and times."""
        inode = await self._conversation.answer({"request": "inode", "ino": entry["ino"]})
        for lost in inode["xattrs_lost"]:
            self.fail(path, f"extended attributes are lost: {lost}")
        for name, value in inode["xattrs"].items():
            try:
                os.setxattr(to, name, base64.b64decode(value), follow_symlinks=False)
            except OSError as error:
                self.fail(path, f"attribute {name} cannot be set: {error.strerror}")
        if os.geteuid() == 0:
            os.chown(to, entry["uid"], entry["gid"], follow_symlinks=False)
        if not stat.S_ISLNK(entry["mode"]):
            os.chmod(to, stat.S_IMODE(entry["mode"]))
        os.utime(to, ns=(entry["atime_ns"], entry["mtime_ns"]), follow_symlinks=False)

    def fail(self, path: str, error: str) -> None:
        """Something was not copied."""
        self.copied.failed.append({"path": path, "error": error})

    async def _copy_file(self, entry: dict[str, Any], path: str, to: str) -> str:
        """Copy a file; the name that it has got (I1)."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(to, flags, 0o600)
        damage = len(self.copied.damaged)
        try:
            begin = {"request": "pieces-begin", "ino": entry["ino"]}
            size = (await self._conversation.answer(begin))["size"]
            os.ftruncate(descriptor, size)
            pieces = rest_of(self._conversation, "pieces-more", "pieces")
            for piece in [each async for each in pieces]:
                start, end = piece["start"], min(size, piece["start"] + piece["length"])
                if start >= end:
                    continue
                if "lost" in piece:
                    self._note_damage(path, start, end - start, piece["lost"])
                    continue
                while start < end:
                    length = min(READ_BYTES_MAX, end - start)
                    await self._copy_range(descriptor, entry["ino"], path, start, length)
                    start += length
        except BaseException:  # whatever ended it, half a file is not the file
            os.unlink(to)
            raise
        finally:
            os.close(descriptor)
        if len(self.copied.damaged) > damage:
            os.rename(to, to + DAMAGED_SUFFIX)
            return to + DAMAGED_SUFFIX
        self.copied.files += 1
        return to

    async def _copy_range(
        self, descriptor: int, ino: int, path: str, start: int, length: int
    ) -> None:
        """Copy some bytes; where they cannot be read, in ever smaller parts."""
        try:
            data = await self._read(ino, start, length)
        except (*UNREADABLE, RemoteError) as error:
            if length <= _SMALLEST_READ:
                self._note_damage(path, start, length, str(error))
                return
            half = max(_SMALLEST_READ, length // 2 // _SMALLEST_READ * _SMALLEST_READ)
            await self._copy_range(descriptor, ino, path, start, half)
            await self._copy_range(descriptor, ino, path, start + half, length - half)
            return
        os.pwrite(descriptor, data, start)
        self.copied.bytes += len(data)
        self._changed()

    async def _read(self, ino: int, start: int, length: int) -> bytes:
        data = b""
        while len(data) < length:
            index, inside = divmod(start + len(data), limits.SHARD_BYTES)
            wanted = min(length - len(data), limits.SHARD_BYTES - inside)
            request = {"request": "read", "ino": ino, "index": index, "start": inside}
            answer = await self._conversation.answer({**request, "length": wanted})
            part = base64.b64decode(answer["data"])
            if not part:
                raise UsageError(f"inode {ino} became shorter while it was copied")
            data += part
        return data

    def _note_damage(self, path: str, start: int, length: int, error: str) -> None:
        last = self.copied.damaged[-1] if self.copied.damaged else None
        if last is not None and last["path"] == path and last["start"] + last["length"] == start:
            last["length"] += length
            return
        self.copied.damaged.append({"path": path, "start": start, "length": length, "error": error})
