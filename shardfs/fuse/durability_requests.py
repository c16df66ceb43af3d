"""Requests about durability: which files would not survive a power cut now, and waiting for one.

Role: a part of what inspection.py answers, with these requests:

    pending-begin  path           starts a list of the files at or below a path that are not
                                  durable as they are now
    pending-more                  the next page of it: {"files": [...], "end": bool}
    sync-path      path           returns when a file, or all below a directory, is durable

Invariants:
    I1. What is not on the list when it is made would be found after a power cut as it is then, by
        the path asked for. What is on it may be durable all the same: while a commit is on its
        way, all that it may hold counts as pending.
    I2. Asking changes nothing: what is buffered stays so.

Not here: what makes things durable (filesystem.sync, writeback.fsync).
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Iterator
from pathlib import PurePosixPath

import trio

from shardfs.engine.careful_scan import LostRange
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, UsageError
from shardfs.fuse.keys import INODE_PREFIX, ROOT_INO, decode_file_key, entry_key, inode_key
from shardfs.fuse.paths import find_paths
from shardfs.fuse.records import Inode
from shardfs.fuse.requests import Answer, Handlers, Pages, text_of
from shardfs.fuse.resolving import MountedFiles, Resolver, clean_path


class DurabilityRequests:
    """What is durable in one open store, in one conversation.

    Args:
        store: open, for reading at least.
        resolver: finds files in it.
        pages: of the conversation.
        mount: the mount that serves it, if one does; without one everything there is is durable.

    handlers: what answers each request.
    """

    def __init__(
        self, store: Store, resolver: Resolver, pages: Pages, mount: MountedFiles | None
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._pages = pages
        self._mount = mount
        self.handlers: Handlers = {
            "pending-begin": self._begin,
            "pending-more": self._more,
            "sync-path": self._sync,
        }

    async def _begin(self, request: Answer) -> Answer:
        await self._pages.aclose()
        path = clean_path(text_of(request, "path"))
        ino, inode = await self._resolver.resolve(path)
        return await self._pages.begin("files", self._pending(path, ino, inode))

    async def _more(self, _request: Answer) -> Answer:
        return await self._pages.more("files")

    async def _pending(self, path: str, ino: int, inode: Inode) -> AsyncGenerator[Answer, None]:
        if self._mount is None:
            return
        if not inode.is_directory:
            reasons = self._reasons(ino)
            if not await self._is_path_durable(path):
                reasons.append("name")
            if reasons:
                yield self._describe(ino, [f"/{path}"], reasons)
            return
        candidates = {each: reasons for each in self._changed() if (reasons := self._reasons(each))}
        lost: list[LostRange] = []
        paths = await find_paths(self._store, candidates.keys(), lost=lost)
        above = "/" if not path else f"/{path}/"
        for each, reasons in sorted(candidates.items()):
            await trio.lowlevel.checkpoint()
            names = paths.get(each, [])
            is_unknown = bool(lost) and not names  # its name may be in what cannot be read
            if not path or is_unknown or any(f"{name}/".startswith(above) for name in names):
                yield self._describe(each, names, reasons)

    def _changed(self) -> set[int]:
        """Inodes that something may be pending of."""
        assert self._mount is not None
        found = set(self._mount.file_system.writeback.dirty_inos())
        for key in self._store.pending_keys():
            if key.startswith(INODE_PREFIX):
                try:
                    found.add(decode_file_key(key).ino)
                except CorruptionError:
                    continue
        return found

    def _reasons(self, ino: int) -> list[str]:
        """What is pending of an inode. A change of its data, attributes or names changes the inode
        in the same batch, so its record tells for all of them."""
        assert self._mount is not None
        reasons = []
        if self._mount.file_system.writeback.is_dirty(ino):
            reasons.append("data")
        if not self._store.is_durable(inode_key(ino)):
            reasons.append("changes")
        return reasons

    async def _is_path_durable(self, path: str) -> bool:
        ino = ROOT_INO
        for key, name in self._steps(path):
            if not self._store.is_durable(entry_key(ino, name)):
                return False
            ino = (await self._resolver.resolve(key))[0]
        return True

    def _steps(self, path: str) -> Iterator[tuple[str, bytes]]:
        """(path so far, its last name) of each part of a path."""
        parts = PurePosixPath("/", path).parts[1:]
        for count, part in enumerate(parts, 1):
            yield "/".join(parts[:count]), os.fsencode(part)

    def _describe(self, ino: int, names: list[str], reasons: list[str]) -> Answer:
        assert self._mount is not None
        return {
            "ino": ino,
            "paths": names,
            "pending": reasons,
            "buffered_bytes": self._mount.file_system.writeback.dirty_bytes_of(ino),
        }

    async def _sync(self, request: Answer) -> Answer:
        if self._mount is None:
            raise UsageError("only files in a mount can be synced")
        ino, inode = await self._resolver.resolve(text_of(request, "path"))
        if inode.is_directory:
            await self._mount.sync()
        else:
            await self._mount.file_system.writeback.fsync(ino)
        return {"ino": ino}
