"""Dirty data: taken at write(2), given to the engine in good order, durable at fsync.

Role: between write(2) and the engine. Data is buffered, its space reserved; the flusher gives it to
the engine by and by. fsync and fdatasync flush the file and then have the store make everything
applied persistent.

Invariants:
    I1. What write(2) took has its space reserved until the engine has it, or it is truncated away.
    I2. The durable size of a file never grows over bytes that are only buffered here.
    I3. One task at a time flushes or truncates a file (its lock); reads and writes go on.
    I4. Buffered bytes stay below the cap, or writers wait.
    I5. A lost write raises the file's error count, which every open handle reports once (EIO).

Ordering: a shard's new bytes, its record and the inode's size and times are one batch
(files.store_runs). Shards are flushed in ascending order.

Not here: the account of what is buffered (dirty_files.py), when it is flushed and how (flusher.py),
who holds a file open (handles.py). flush at close does nothing: an error shows at fsync, as on
other Linux file systems.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from functools import partial
from typing import Final

from shardfs import limits
from shardfs.engine.layout import Bytes
from shardfs.errors import FileError, NoSpaceError, ReadOnlyError
from shardfs.fuse.dirty import split
from shardfs.fuse.dirty_files import DirtyFile, DirtyFiles
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.files import SHARD_BYTES, Files
from shardfs.fuse.flusher import Flusher
from shardfs.fuse.keys import inode_key
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.records import Inode
from shardfs.fuse.tables import NotLoaded, Tables

_BLOCK_BYTES: Final = limits.BLOCK_BYTES


def _tell_nobody(ino: int) -> None:
    """What is done where nobody asks to be told."""


class Writeback:
    """The dirty data of one mount.

    Args:
        dirty_bytes_max: writers wait while more is buffered.
        content_changed: told of a file whose buffered data was dropped, at once.
    """

    def __init__(
        self,
        store: StoreDoor,
        tables: Tables,
        files: Files,
        orphans: Orphans,
        *,
        dirty_bytes_max: int = limits.DIRTY_BYTES_MAX,
        content_changed: Callable[[int], None] = _tell_nobody,
    ) -> None:
        self._store = store
        self._tables = tables
        self._files = files
        self._orphans = orphans
        self._dirty = DirtyFiles(store, content_changed)
        self._flusher = Flusher(store, tables, files, orphans, self._dirty, dirty_bytes_max)

    # --- looking

    def overlay(self, ino: int, inode: Inode) -> Inode:
        """The inode as stat(2) sees it, with what is buffered."""
        file = self._dirty.find(ino)
        if file is None:
            return inode
        size = max(inode.size, file.ranges.end)
        used_max = max(inode.used, -(-size // _BLOCK_BYTES) * _BLOCK_BYTES)
        return inode.with_content(
            size,
            min(inode.used + file.ranges.bytes, used_max),
            inode.mtime_ns if file.mtime_ns is None else file.mtime_ns,
            max(inode.ctime_ns, file.ctime_ns),
        )

    def is_dirty(self, ino: int) -> bool:
        """Some of the file's data is only buffered."""
        return self._dirty.is_dirty(ino)

    def is_persistent(self, ino: int) -> bool:
        """The file would survive a power cut now as it is: data, attributes and names.

        All of those change the inode in the same batch, so its record tells for all. False also
        while a commit is on its way that may hold it.
        """
        is_pending = self.is_dirty(ino) or ino in self._tables.touched
        return not is_pending and self._store.is_durable(inode_key(ino))

    def dirty_inos(self) -> list[int]:
        """Files with buffered data, and those that are being worked on."""
        return self._dirty.inos()

    def dirty_bytes_of(self, ino: int) -> int:
        """Buffered bytes of a file."""
        file = self._dirty.find(ino)
        return file.ranges.bytes if file is not None else 0

    @property
    def dirty_bytes(self) -> int:
        """Memory held by dirty data."""
        return self._dirty.memory_bytes

    @property
    def dirty_count(self) -> int:
        """Files with buffered data."""
        return self._dirty.count

    def error_count(self, ino: int) -> int:
        """How often data of this file was lost; see I5."""
        return self._dirty.error_count(ino)

    async def read(self, ino: int, offset: int, length: int) -> Bytes:
        """The file's bytes [offset, offset + length), as far as the file goes.

        Checkpoints: not when everything is cached.

        Raises:
            DeviceError, CorruptionError, FileError
        """
        inode = self._tables.cached_inode(ino) or await self._tables.inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        file = self._dirty.find(ino)
        if file is None:
            length = min(length, inode.size - offset)
            return await self._files.read(ino, offset, length) if length > 0 else b""
        length = min(length, max(inode.size, file.ranges.end) - offset)
        if length <= 0:
            return b""
        # Dirty bytes first: while stored ones are read, others may move from here to there.
        buffered = file.ranges.read(offset, length)
        if sum(len(data) for _, data in buffered) == length:
            return buffered[0][1] if len(buffered) == 1 else b"".join(d for _, d in buffered)
        stored = await self._files.read(ino, offset, length)
        if not buffered:
            return stored
        merged = bytearray(stored)
        for at, data in buffered:
            merged[at - offset : at - offset + len(data)] = data
        return merged

    # --- changing

    async def write(self, ino: int, offset: int, data: bytes, *, privileged: bool = False) -> None:
        """Buffer `data` at byte `offset` of a regular file.

        Args:
            privileged: the writer may keep the file's set-user-ID and set-group-ID bits.

        Durable when: `fsync` returned, or five seconds have passed.

        Checkpoints: not when the inode is cached and there is room; see `Flusher.admit`, and
            `Flusher.make_room_in_record`.

        Raises:
            NoSpaceError, ReadOnlyError, FileError: nothing was taken.
        """
        if offset + len(data) > limits.FILE_BYTES_MAX:
            raise FileError(errno.EFBIG)
        if not self._flusher.admits_at_once:
            await self._flusher.admit(len(data))
        if ino in self._files.truncations:
            await self._files.finish_truncation(ino)
        if self._files.stretches_left:
            for index, _, _ in split(offset, len(data)):
                if not self._takes_one_more(ino, index):
                    make_room = partial(self._flusher.make_room_in_record, ino, index)
                    await self._orphans.with_room(make_room, self.flush_steps)
        try:
            self._write_now(ino, offset, data, privileged)
        except (NotLoaded, NoSpaceError):
            operation = partial(self._write_now, ino, offset, data, privileged)
            await self._orphans.with_room(partial(self._tables.run, operation), self.flush_steps)

    def _takes_one_more(self, ino: int, index: int) -> bool:
        """Whether one more stretch of a shard may be buffered (files.I6)."""
        file = self._dirty.find(ino)
        count = file.ranges.count(index) if file is not None else 0
        return self._files.takes_stretches(ino, index, count + 1)

    def _write_now(self, ino: int, offset: int, data: bytes, privileged: bool) -> None:
        self._store.health.require_writable()
        inode = self._tables.find_inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        file = self._dirty.find(ino) or DirtyFile(ino)
        ranges = file.ranges
        if inode.mode & 0o6000 and not privileged:
            self._clear_set_id_bits(ino, inode)
        self._dirty.reserve(file, ranges.cost(offset, len(data)), 2 + len(data) // SHARD_BYTES)
        if not ranges:
            self._dirty.begin(file)
        before = ranges.memory_bytes
        is_ready = ranges.write(offset, data)
        self._dirty.memory_bytes += ranges.memory_bytes - before
        if ranges.segments >= self._files.stretches_few:
            for index, _, _ in split(offset, len(data)):
                self._files.note_stretches(ino, index, ranges.count(index))
        self._flusher.notice(ino, is_ready=is_ready)
        file.mtime_ns = file.ctime_ns = self._tables.now_ns()

    def _clear_set_id_bits(self, ino: int, inode: Inode) -> None:
        mode = without_set_id(inode.mode)
        if mode != inode.mode:
            change = self._tables.change()
            change.put_inode(ino, inode._replace(mode=mode, ctime_ns=self._tables.now_ns()))
            change.commit()

    async def truncate(self, ino: int, length: int, amend: Callable[[Inode], Inode]) -> None:
        """Set a regular file's size, bytes; what is added is a hole.

        Args:
            amend: gives the inode its new times and mode.

        Durable when: the store is synced.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError, FileError
        """
        if length > limits.FILE_BYTES_MAX:
            raise FileError(errno.EFBIG)
        self._store.health.require_writable()
        file = self._dirty.known(ino)
        async with self._dirty.locked(file):
            kept = [index for index in file.ranges.shards() if index * SHARD_BYTES < length]
            await self._flusher.flush_shards(file, kept)
            cut = partial(self._dirty.forget, file, length)
            await self._files.truncate(ino, length, amend, committed=cut)
            file.mtime_ns = None

    def set_times(self, ino: int) -> None:
        """The user has set the file's times in its inode: do not override them when flushing."""
        file = self._dirty.find(ino)
        if file is not None:
            file.mtime_ns = None

    def discard(self, ino: int) -> None:
        """Forget a file's dirty data: nobody can ever read it."""
        file = self._dirty.find(ino)
        if file is not None:
            self._dirty.forget(file, 0)
            self._dirty.retire(file)
        self._dirty.forget_errors(ino)

    # --- flushing

    async def run(self) -> None:
        """The flusher task; returns when the store takes no more changes."""
        await self._flusher.run()

    async def flush(self, ino: int) -> None:
        """Give the file's dirty data to the engine.

        Durable when: the store is synced after this.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError
        """
        await self._flusher.flush(ino)
        if ino in self._tables.touched.times_ns:
            with suppress(NoSpaceError):  # an access time is not worth an error
                await self._tables.write_touched(ino)

    async def flush_all(self) -> None:
        """Give all dirty data to the engine; trouble with a file is logged and counted."""
        async for _ in self.flush_steps():
            pass

    def flush_steps(self) -> AsyncGenerator[None, None]:
        """The same, some files after some: comes back whenever so many have been flushed."""
        return self._flusher.flush_steps()

    async def fsync(self, ino: int) -> None:
        """Return when the file's data, size and names are persistent.

        Raises:
            DeviceError, CorruptionError, NoSpaceError, FileError
        """
        try:
            await self.flush(ino)
            await self._store.sync_key(inode_key(ino))
        except ReadOnlyError as error:
            raise FileError(errno.EIO, f"fsync of inode {ino}: {error}") from error


def without_set_id(mode: int) -> int:
    """The mode after someone without privileges has changed the content or the owner."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode
