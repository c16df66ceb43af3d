"""Finds files by path or number, for questions about them.

Role: what requests about files begin with: a path or an inode number becomes an inode. In a mount,
what is buffered of a file is handed to the store first, where a question is about its shards.

Invariants:
    I1. Nothing is changed, but that buffered data goes to the store earlier than it would have.

Not here: finding the names of an inode (paths.py), what is asked (inspection.py).
"""

from __future__ import annotations

import os
import stat
from pathlib import PurePosixPath
from typing import Protocol

from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, UsageError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO, entry_key, inode_key, is_name
from shardfs.fuse.records import Entry, Inode, decode_entry, decode_inode
from shardfs.fuse.requests import Answer, number_of, text_of


class MountedFiles(Protocol):
    """What is asked of a mount (session.Mount fits)."""

    @property
    def mountpoint(self) -> str:
        """Absolute path."""

    @property
    def file_system(self) -> FileSystem:
        """What it serves."""

    async def sync(self) -> None:
        """Make everything durable."""

    def request_figures(self) -> Answer:
        """How many requests the kernel has sent, and how they were waited for."""


class Resolver:
    """Finds files in one open store.

    Args:
        store: open, for reading at least.
        mount: the mount that serves it, if one does.
    """

    def __init__(self, store: Store, mount: MountedFiles | None) -> None:
        self._store = store
        self._mount = mount

    async def asked_for(self, request: Answer) -> tuple[int, Inode]:
        """The inode that a request names by "ino" or "path".

        Raises:
            UsageError: there is none.
        """
        if "ino" not in request:
            return await self.resolve(text_of(request, "path"))
        ino = number_of(request, "ino")
        inode = await self.inode(ino)
        if inode is None:
            raise UsageError(f"there is no inode {ino}")
        return ino, inode

    async def resolve(self, path: str) -> tuple[int, Inode]:
        """The inode at a path, without following symbolic links.

        Raises:
            UsageError: there is none.
        """
        ino = ROOT_INO
        for part in PurePosixPath("/", path).parts[1:]:
            name = os.fsencode(part)
            entry = await self._entry(ino, name) if is_name(name) else None
            if entry is None:
                raise UsageError(f"there is no /{path.lstrip('/')} in the file system")
            ino = entry.ino
        inode = await self.inode(ino)
        if inode is None and ino == ROOT_INO:
            return ino, Inode(stat.S_IFDIR | 0o755, parent=ROOT_INO)  # formatted, never mounted
        if inode is None:
            raise CorruptionError(f"/{path} names inode {ino}, which does not exist")
        return ino, inode

    async def inode(self, ino: int) -> Inode | None:
        """The inode of a number, if there is one."""
        record = await self._store.get_record(inode_key(ino))
        return None if record is None else decode_inode(record)

    async def hand_over(self, ino: int) -> None:
        """What the mount holds of a file goes to the store."""
        if self._mount is not None:
            await self._mount.file_system.writeback.flush(ino)

    async def hand_over_all(self) -> None:
        """What the mount holds of any file goes to the store."""
        if self._mount is not None:
            await self._mount.file_system.writeback.flush_all()

    async def _entry(self, parent: int, name: bytes) -> Entry | None:
        record = await self._store.get_record(entry_key(parent, name))
        return None if record is None else decode_entry(record)


def clean_path(path: str) -> str:
    """A path below the root as answers have it: no slash before or behind."""
    return str(PurePosixPath("/", path)).lstrip("/")
