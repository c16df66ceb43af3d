"""Dirty data: taken at write(2), given to the engine in good order, durable at fsync.

Role: between write(2) and the engine. Data is buffered, its space reserved; the flusher task gives
it to the engine when it is old, when a shard is written full, or when much is buffered. fsync and
fdatasync flush the file and then have the store make everything applied persistent.

Invariants:
    I1. What write(2) took has its space reserved until the engine has it, or it is truncated away.
    I2. The durable size of a file never grows over bytes that are only buffered here.
    I3. One task at a time flushes or truncates a file (its lock); reads and writes go on.
    I4. Buffered bytes stay below the cap, or writers wait.
    I5. A lost write raises the file's error count, which every open handle reports once (EIO).

Ordering: a shard's new bytes, its record and the inode's size and times are one batch
(files.store_runs). Shards are flushed in ascending order.

Not here: how bytes become chunks (files.py), who holds a file open (handles.py). flush at close
does nothing: an error shows at fsync, as on other Linux file systems.
"""

from __future__ import annotations

import errno
import logging
import stat
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.health import HealthState
from shardfs.engine.layout import Bytes
from shardfs.engine.pieces import Shard
from shardfs.errors import (
    CorruptionError,
    DeviceError,
    FileError,
    LimitError,
    NoSpaceError,
    ReadOnlyError,
    ShardfsError,
    StaleError,
)
from shardfs.fuse.dirty import DirtyRanges
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.files import SHARD_BYTES, Files
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.records import Inode, shard_key
from shardfs.fuse.tables import NotLoaded, Tables

_log = logging.getLogger(__name__)
_RUNS_PER_STEP: Final = 32
_FILES_PER_STEP: Final = 16
_RESERVED_SHARE: Final = 4
_BLOCK_BYTES: Final = limits.BLOCK_BYTES


class DirtyFile:
    """A file with dirty data, or being flushed or truncated."""

    __slots__ = (
        *("ctime_ns", "ino", "lock", "mtime_ns", "ranges"),
        *("failures", "reserved", "since", "users"),
    )

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.ranges = DirtyRanges()
        self.mtime_ns: int | None = None
        """Time of the last write, unless the user has set another since."""
        self.ctime_ns = 0
        self.failures = 0
        """Flushes in a row that have failed."""
        self.reserved = 0
        self.since = 0.0
        """trio's time of the oldest dirty byte."""
        self.lock = trio.Lock()
        self.users = 0


class Writeback:
    """The dirty data of one mount.

    Args:
        dirty_bytes_max: writers wait while more is buffered.
    """

    def __init__(
        self,
        store: StoreDoor,
        tables: Tables,
        files: Files,
        orphans: Orphans,
        *,
        dirty_bytes_max: int = limits.DIRTY_BYTES_MAX,
    ) -> None:
        self.dirty_bytes = 0
        """Memory held by dirty data."""
        self._dirty_bytes_max = dirty_bytes_max
        self._reserved_bytes = 0
        self._store = store
        self._tables = tables
        self._files = files
        self._orphans = orphans
        self._dirty: dict[int, DirtyFile] = {}
        self._ready: dict[int, None] = {}
        self._error_counts: dict[int, int] = {}
        self._wake = trio.Event()
        self._progress = trio.Event()
        store.health.on_change(self._notify)

    # --- looking

    def overlay(self, ino: int, inode: Inode) -> Inode:
        """The inode as stat(2) sees it, with what is buffered."""
        file = self._dirty.get(ino)
        if file is None:
            return inode
        size = max(inode.size, file.ranges.end)
        used_max = max(inode.used, -(-size // _BLOCK_BYTES) * _BLOCK_BYTES)
        return inode._replace(
            size=size,
            used=min(inode.used + file.ranges.bytes, used_max),
            mtime_ns=inode.mtime_ns if file.mtime_ns is None else file.mtime_ns,
            ctime_ns=max(inode.ctime_ns, file.ctime_ns),
        )

    def is_dirty(self, ino: int) -> bool:
        """Some of the file's data is only buffered."""
        file = self._dirty.get(ino)
        return file is not None and bool(file.ranges)

    @property
    def dirty_count(self) -> int:
        """Files with buffered data."""
        return sum(bool(file.ranges) for file in self._dirty.values())

    def error_count(self, ino: int) -> int:
        """How often data of this file was lost; see I5."""
        return self._error_counts.get(ino, 0)

    async def read(self, ino: int, offset: int, length: int) -> Bytes:
        """The file's bytes [offset, offset + length), as far as the file goes.

        Checkpoints: not when everything is cached.

        Raises:
            DeviceError, CorruptionError, FileError
        """
        inode = await self._tables.inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        file = self._dirty.get(ino)
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

        Checkpoints: not when the inode is cached and there is room.

        Raises:
            NoSpaceError, ReadOnlyError, FileError: nothing was taken.
        """
        if offset + len(data) > limits.FILE_BYTES_MAX:
            raise FileError(errno.EFBIG)
        if self.dirty_bytes >= self._dirty_bytes_max:
            await self._wait_for_room()
        if ino in self._files.truncations:
            await self._files.finish_truncation(ino)
        operation = partial(self._write_now, ino, offset, data, privileged)
        await self._orphans.with_room(partial(self._tables.run, operation), self.flush_steps)

    def _write_now(self, ino: int, offset: int, data: bytes, privileged: bool) -> None:
        self._store.health.require_writable()
        inode = self._tables.find_inode(ino)
        if inode is None:
            raise FileError(errno.ESTALE)
        file = self._dirty.get(ino) or DirtyFile(ino)
        ranges = file.ranges
        if inode.mode & 0o6000 and not privileged:
            self._clear_set_id_bits(ino, inode)
        self._reserve(file, ranges.cost(offset, len(data)), 2 + len(data) // SHARD_BYTES)
        if not ranges:
            file.since = trio.current_time()
            self._dirty.pop(ino, None)
            self._dirty[ino] = file
        before = ranges.memory_bytes
        if ranges.write(offset, data):
            self._ready[ino] = None
            self._wake.set()
        self.dirty_bytes += ranges.memory_bytes - before
        if 2 * self.dirty_bytes > self._dirty_bytes_max:
            self._wake.set()
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
        file = self._dirty.setdefault(ino, DirtyFile(ino))
        file.users += 1
        try:
            async with file.lock:
                kept = [index for index in file.ranges.shards() if index * SHARD_BYTES < length]
                await self._flush_shards(file, kept)
                cut = partial(self._forget, file, length)
                await self._files.truncate(ino, length, amend, committed=cut)
                file.mtime_ns = None
        finally:
            file.users -= 1
            self._retire(file)

    def set_times(self, ino: int) -> None:
        """The user has set the file's times in its inode: do not override them when flushing."""
        file = self._dirty.get(ino)
        if file is not None:
            file.mtime_ns = None

    def discard(self, ino: int) -> None:
        """Forget a file's dirty data: nobody can ever read it."""
        file = self._dirty.get(ino)
        if file is not None:
            self._forget(file, 0)
            self._retire(file)
        self._error_counts.pop(ino, None)

    # --- flushing

    async def fsync(self, ino: int) -> None:
        """Return when the file's data, size and names are persistent.

        Raises:
            DeviceError, CorruptionError, NoSpaceError, FileError
        """
        try:
            await self.flush(ino)
            await self._store.sync()
        except ReadOnlyError as error:
            raise FileError(errno.EIO, f"fsync of inode {ino}: {error}") from error

    async def flush(self, ino: int) -> None:
        """Give the file's dirty data to the engine.

        Durable when: the store is synced after this.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError
        """
        await self._flush_file(ino, lambda ranges: ranges.shards())

    async def flush_all(self) -> None:
        """Give all dirty data to the engine; trouble with a file is logged and counted."""
        async for _ in self.flush_steps():
            pass

    async def flush_steps(self) -> AsyncGenerator[None, None]:
        """The same, some files after some: comes back whenever that many have been flushed."""
        for number, ino in enumerate(list(self._dirty), 1):
            await self._flush_logged(ino, lambda ranges: ranges.shards())
            if number % _FILES_PER_STEP == 0:
                yield
        yield

    async def run(self) -> None:
        """The flusher task: give to the engine what is old, ready or too much.

        Returns when the store takes no more changes; what is buffered then stays readable.
        """
        while self._store.health.state is HealthState.HEALTHY:
            with trio.move_on_after(limits.FLUSHER_INTERVAL_S):
                await self._wake.wait()
            self._wake = trio.Event()
            while self._ready:
                ino = next(iter(self._ready))
                del self._ready[ino]
                await self._flush_logged(ino, _finished_shards)
            await self._relieve()
            if await self._flush_old():
                try:
                    await self._store.sync()
                except ShardfsError as error:
                    _log.error("written data could not be made durable: %s", error)

    async def _relieve(self) -> None:
        """Flush the oldest files while too much is buffered."""
        if not self._holds_too_much():
            return
        for ino in list(self._dirty):
            if not self._holds_too_much():
                return
            await self._flush_logged(ino, lambda ranges: ranges.shards())

    def _holds_too_much(self) -> bool:
        """More than half of the cap is buffered; or more is reserved for it than a part of what is
        free: that is more than it will take, and whoever comes when all is reserved has to wait
        for the difference."""
        return (
            2 * self.dirty_bytes > self._dirty_bytes_max
            or self._reserved_bytes * _RESERVED_SHARE > self._store.space().free_bytes
        )

    async def _flush_old(self) -> bool:
        """Flush what has been dirty for DIRTY_AGE_S; False if there was nothing."""
        latest = trio.current_time() - limits.DIRTY_AGE_S
        old = []
        for ino, file in self._dirty.items():
            if file.since <= latest and file.ranges and not self._orphans.is_held(ino):
                old.append(ino)
        for ino in old:
            await self._flush_logged(ino, lambda ranges: ranges.shards())
        return bool(old)

    async def _flush_logged(self, ino: int, choose: Callable[[DirtyRanges], list[int]]) -> None:
        if not self.is_dirty(ino):
            return
        try:
            self._store.health.require_writable()
            await self._flush_file(ino, choose)
        except ReadOnlyError as error:
            _log.debug("inode %d stays buffered: %s", ino, error)  # the store has told why
        except ShardfsError as error:
            _log.error("writing back inode %d failed: %s", ino, error)
        await trio.lowlevel.checkpoint()

    async def _flush_file(self, ino: int, choose: Callable[[DirtyRanges], list[int]]) -> None:
        file = self._dirty.get(ino)
        if file is None:
            return
        file.users += 1
        try:
            async with file.lock:
                started = trio.current_time()
                indexes = choose(file.ranges)
                everything = indexes == file.ranges.shards()
                await self._flush_shards(file, indexes)
                if everything:
                    file.since = started  # what is dirty now came later
        finally:
            file.users -= 1
            self._retire(file)

    async def _flush_shards(self, file: DirtyFile, indexes: list[int]) -> None:
        """Requires: the file's lock."""
        for index in indexes:
            start = 0
            while start < SHARD_BYTES:
                try:
                    start = await self._flush_step(file, index, start)
                    file.failures = 0
                except (CorruptionError, DeviceError, LimitError) as error:
                    file.failures += 1
                    may_pass = isinstance(error, DeviceError)
                    is_last = file.failures >= limits.FLUSH_ATTEMPTS_MAX or not may_pass
                    if is_last and self._store.health.state is HealthState.HEALTHY:
                        self._lose(file, index)
                    raise

    async def _flush_step(self, file: DirtyFile, index: int, start: int) -> int:
        """Flush some runs of a shard; returns where the next step starts."""
        key = shard_key(file.ino, index)
        while True:
            await self._store.admit(min(limits.SHARD_BYTES, file.ranges.bytes))
            await self._tables.load(file.ino)
            shard = await self._store.get_shard(key)
            if not self._files.has_room_for(shard, _RUNS_PER_STEP):
                await self._gather(file.ino, index)
                shard = await self._store.get_shard(key)
            try:
                return self._flush_now(file, index, start, shard)
            except (StaleError, NotLoaded):
                pass  # the shard has moved, or the inode left the cache: look again
            await trio.lowlevel.checkpoint()

    async def _gather(self, ino: int, index: int) -> None:
        """Rewrite a scattered shard, if that can be done; the next runs may fit all the same."""
        try:
            await self._files.gather(ino, index)
        except (CorruptionError, DeviceError, NoSpaceError) as error:
            _log.info("shard %d of inode %d stays scattered: %s", index, ino, error)

    def _flush_now(self, file: DirtyFile, index: int, start: int, shard: Shard | None) -> int:
        runs = file.ranges.runs(index, start, _RUNS_PER_STEP)
        if not runs:
            return SHARD_BYTES

        def amend(inode: Inode) -> Inode:
            mtime_ns = inode.mtime_ns if file.mtime_ns is None else file.mtime_ns
            return inode._replace(mtime_ns=mtime_ns, ctime_ns=max(inode.ctime_ns, file.ctime_ns))

        try:
            self._files.store_runs(file.ino, index, shard, runs, amend)
        except Exception:
            file.ranges.seal(index)  # the engine may hold some of these buffers
            raise
        end = runs[-1].start + runs[-1].length
        self._remove(file, index, runs[0].start, end)
        return end

    # --- bookkeeping

    async def _wait_for_room(self) -> None:
        while self.dirty_bytes >= self._dirty_bytes_max:
            self._store.health.require_writable()
            self._wake.set()
            await self._progress.wait()

    def _notify(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()

    def _reserve(self, file: DirtyFile, added_bytes: int, added_segments: int) -> None:
        """Reserve for what a write may add, as far as it is not reserved yet (I1)."""
        segments = file.ranges.segments + added_segments
        wanted = file.ranges.bytes + added_bytes + segments * limits.DIRTY_PART_SPACE_BYTES
        if wanted > file.reserved:
            self._store.reserve(wanted - file.reserved)
            self._reserved_bytes += wanted - file.reserved
            file.reserved = wanted

    def _settle_reservation(self, file: DirtyFile) -> None:
        """Give back what is no longer needed."""
        ranges = file.ranges
        wanted = ranges.bytes + ranges.segments * limits.DIRTY_PART_SPACE_BYTES
        if wanted < file.reserved:
            self._store.release(file.reserved - wanted)
            self._reserved_bytes -= file.reserved - wanted
            file.reserved = wanted

    def _forget(self, file: DirtyFile, length: int) -> None:
        """Drop dirty bytes at and above `length`."""
        before = file.ranges.memory_bytes
        file.ranges.truncate(length)
        self._settle(file, before)

    def _remove(self, file: DirtyFile, index: int, start: int, end: int) -> int:
        """Drop a shard's dirty bytes [start, end); how many there were."""
        before = file.ranges.memory_bytes
        removed = file.ranges.remove(index, start, end)
        self._settle(file, before)
        return removed

    def _settle(self, file: DirtyFile, memory_bytes_before: int) -> None:
        """Account for dirty bytes that have gone."""
        self.dirty_bytes += file.ranges.memory_bytes - memory_bytes_before
        self._settle_reservation(file)
        self._notify()

    def _lose(self, file: DirtyFile, index: int) -> None:
        """Drop a shard's dirty bytes that can never be stored, and remember that (I5)."""
        lost = self._remove(file, index, 0, SHARD_BYTES)
        file.failures = 0
        self._error_counts[file.ino] = self.error_count(file.ino) + 1
        at = index * SHARD_BYTES
        _log.error("lost %d bytes written to inode %d, from byte %d on", lost, file.ino, at)

    def _retire(self, file: DirtyFile) -> None:
        """Stop knowing a file that has nothing dirty and that nobody is working on."""
        if not file.ranges and not file.users and self._dirty.get(file.ino) is file:
            del self._dirty[file.ino]


def without_set_id(mode: int) -> int:
    """The mode after someone without privileges has changed the content or the owner."""
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return mode


def _finished_shards(ranges: DirtyRanges) -> list[int]:
    return [index for index in ranges.shards() if not ranges.is_growing(index)]
