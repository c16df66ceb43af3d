"""Gives buffered data to the engine: what is old, what is full, what is too much, and on demand.

Role: the flusher task, and the flushing of one file, a few runs at a time. What cannot be stored is
tried again; what never can is dropped and counted.

Invariants:
    I1. One task at a time flushes or truncates a file (its lock).
    I2. Shards are flushed in ascending order; a shard's new bytes, its record and the inode's size
        and times are one batch (files.store_runs).
    I3. Bytes leave the buffer in the step that has given them to the engine, or lost them.

Not here: what is buffered (dirty_files.py), what the kernel asks for (writeback.py), how bytes
become chunks (files.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from typing import Final

import trio

from shardfs import limits
from shardfs.engine.health import HealthState
from shardfs.engine.lsm.tree import Unread
from shardfs.engine.pacing import Throttle, share_between
from shardfs.engine.pieces import Shard
from shardfs.errors import (
    CorruptionError,
    DeviceError,
    LimitError,
    NoSpaceError,
    ReadOnlyError,
    ShardfsError,
    StaleError,
)
from shardfs.fuse.dirty import DirtyRanges
from shardfs.fuse.dirty_files import DirtyFile, DirtyFiles
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.files import RUNS_PER_STEP, SHARD_BYTES, Files
from shardfs.fuse.keys import shard_key
from shardfs.fuse.orphans import Orphans
from shardfs.fuse.records import Inode
from shardfs.fuse.tables import NotLoaded, Tables

_log = logging.getLogger(__name__)
_FRUITLESS_MAX: Final = 2
_FILES_PER_STEP: Final = 16
_FILES_LOOKED_AT: Final = 256
_FILES_PER_SLICE: Final = 4
_RESERVED_SHARE_FLUSHED: Final = 0.2
_RESERVED_SHARE_MAX: Final = 0.9


class Flusher:
    """Flushes the dirty files of one mount.

    Args:
        dirty_bytes_max: writers wait while more is buffered.
    """

    def __init__(
        self,
        store: StoreDoor,
        tables: Tables,
        files: Files,
        orphans: Orphans,
        dirty: DirtyFiles,
        dirty_bytes_max: int,
    ) -> None:
        self._store = store
        self._tables = tables
        self._files = files
        self._orphans = orphans
        self._dirty = dirty
        self._dirty_bytes_max = dirty_bytes_max
        self._ready: dict[int, None] = {}
        self._wake = trio.Event()
        self._throttle = Throttle()
        self._since_rest = 0
        """Files flushed since other tasks had their turn."""

    def notice(self, ino: int, *, is_ready: bool) -> None:
        """Something was written: wake the task if it has to do something about it.

        Args:
            is_ready: a shard of the file has been written to its end.
        """
        if is_ready:
            self._ready[ino] = None
            self._wake.set()
        if 2 * self._dirty.memory_bytes > self._dirty_bytes_max:
            self._wake.set()

    @property
    def admits_at_once(self) -> bool:
        """Whether `admit` would not make a writer wait: then it need not be called."""
        if self._dirty.memory_bytes >= self._dirty_bytes_max:
            return False
        return not self._reservation_debt()

    async def admit(self, length: int) -> None:
        """Let a writer in: when less is buffered than may be, and the later the more of what is
        free is set aside for it. Who writes much shall not leave everybody without space until it
        has been flushed.

        The second takes limits.ADMISSION_DELAY_S_MAX at most. Checkpoints: only to wait.

        Args:
            length: bytes that will be written.

        Raises:
            ReadOnlyError: nothing will be flushed any more.
        """
        while self._dirty.memory_bytes >= self._dirty_bytes_max:
            self._store.health.require_writable()
            self._wake.set()
            await self._dirty.some_gone()
        debt = self._reservation_debt()
        if debt:
            self._wake.set()
            await self._throttle.delay(debt, length)

    def _reservation_debt(self) -> float:
        """How much of what is free, or would be, is set aside: from when that has to be flushed
        to when hardly anything is left for others."""
        reserved = self._dirty.reserved_bytes
        if not reserved:
            return 0.0
        share = reserved / (reserved + self._store.space().free_bytes)
        return share_between(share, _RESERVED_SHARE_FLUSHED, _RESERVED_SHARE_MAX)

    async def flush(self, ino: int) -> None:
        """Give the file's dirty data to the engine.

        Durable when: the store is synced after this.

        Raises:
            DeviceError, CorruptionError, ReadOnlyError, NoSpaceError
        """
        await self._flush_file(ino, lambda ranges: ranges.shards())

    async def flush_steps(self) -> AsyncGenerator[None, None]:
        """Give all dirty data to the engine; comes back whenever some files have been flushed.

        Trouble with a file is logged and counted.
        """
        if self._tables.touched.times_ns:
            await self._write_touched()
        for number, ino in enumerate(self._dirty.inos(), 1):
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
            self._tables.settle()
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
        for ino in self._dirty.inos():
            if not self._holds_too_much():
                return
            await self._flush_logged(ino, lambda ranges: ranges.shards())

    def _holds_too_much(self) -> bool:
        """More than half of the cap is buffered, or much of what is free is set aside for it: that
        is more than it will take, and a writer that comes when nothing else is free has to wait
        for the difference."""
        return 2 * self._dirty.memory_bytes > self._dirty_bytes_max or self._reservation_debt() > 0

    async def _flush_old(self) -> bool:
        """Flush what has been dirty for DIRTY_AGE_S; False if there was nothing."""
        touched = self._tables.touched.is_old and await self._write_touched()
        latest = trio.current_time() - limits.DIRTY_AGE_S
        old = []
        for number, file in enumerate(self._dirty.files(), 1):
            if number % _FILES_LOOKED_AT == 0:
                await trio.lowlevel.checkpoint()
            if file.since <= latest and file.ranges and not self._orphans.is_held(file.ino):
                old.append(file.ino)
        for ino in old:
            await self._flush_logged(ino, lambda ranges: ranges.shards())
        return touched or bool(old)

    async def _write_touched(self) -> bool:
        """Give the store the access times that it does not have; whether it took them."""
        try:
            await self._tables.write_touched()
        except ShardfsError as error:
            _log.debug("access times stay in memory: %s", error)
            return False
        return True

    async def _flush_logged(self, ino: int, choose: Callable[[DirtyRanges], list[int]]) -> None:
        if not self._dirty.is_dirty(ino):
            return
        try:
            self._store.health.require_writable()
            await self._flush_file(ino, choose)
        except ReadOnlyError as error:
            _log.debug("inode %d stays buffered: %s", ino, error)  # the store has told why
        except ShardfsError as error:
            _log.error("writing back inode %d failed: %s", ino, error)
        self._since_rest += 1
        if self._since_rest >= _FILES_PER_SLICE:
            self._since_rest = 0
            await trio.lowlevel.checkpoint()

    async def _flush_file(self, ino: int, choose: Callable[[DirtyRanges], list[int]]) -> None:
        file = self._dirty.find(ino)
        if file is None:
            return
        await self._dirty.lock(file)
        try:
            started = trio.current_time()
            indexes = choose(file.ranges)
            everything = indexes == file.ranges.shards()
            await self.flush_shards(file, indexes)
            if everything:
                file.since = started  # what is dirty now came later
        finally:
            self._dirty.unlock(file)

    async def flush_shards(self, file: DirtyFile, indexes: list[int]) -> None:
        """Flush these shards of a file. Requires: its lock. Raises: as `flush`."""
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
                        self._dirty.lose(file, index)
                    raise

    async def _flush_step(self, file: DirtyFile, index: int, start: int) -> int:
        """Flush some runs of a shard; returns where the next step starts."""
        key = shard_key(file.ino, index)
        fruitless, is_gathered = 0, False
        while True:
            if not self._tables.is_loaded(file.ino):
                await self._tables.load(file.ino)
            shard = await self._store.get_shard(key)
            fits = is_gathered and self._files.fits(shard, RUNS_PER_STEP)
            if not fits and not self._files.has_room_for(shard, RUNS_PER_STEP):
                await self._gather(file.ino, index)
                is_gathered = True
                await self._tables.load(file.ino)
                shard = await self._store.get_shard(key)
            # The last await: what is ready, and what the log still takes, is for this batch. Many
            # who flush at once come in one after the other.
            length = min(limits.SHARD_BYTES, file.ranges.bytes)
            if not self._store.admits_at_once(length):
                await self._store.admit(length)
                # Reclamation, waited for, may have moved the shard: looking before the wait only
                # would, on a device where each writer waits, be in vain every time.
                found = self._store.find_shard(key)
                shard = shard if isinstance(found, Unread) else found
                if not self._files.fits(shard, RUNS_PER_STEP):
                    continue
            try:
                return self._flush_now(file, index, start, shard)
            except (StaleError, NotLoaded):
                pass  # the shard has moved, or the inode left the cache: look again
            except NoSpaceError:
                # The space was set aside at write(2): others have only taken what was ready.
                fruitless = 0 if await self._store.reclaim() else fruitless + 1
                if fruitless == _FRUITLESS_MAX:
                    raise
            await trio.lowlevel.checkpoint()

    async def make_room_in_record(self, ino: int, index: int) -> None:
        """Return when one more stretch of a shard may be buffered (files.I6).

        Raises:
            NoSpaceError: its holes would have to be filled, and there is no space for that.
            DeviceError, CorruptionError, ReadOnlyError
        """
        file = self._dirty.known(ino)
        async with self._dirty.locked(file):
            await self._files.look_for_room(ino, index)
            if self._files.takes_stretches(ino, index, file.ranges.count(index) + 1):
                return
            await self.flush_shards(file, [index])
            await self._files.gather(ino, index)
            await self._files.look_for_room(ino, index)
            if not self._files.takes_stretches(ino, index, file.ranges.count(index) + 1):
                raise _too_many_pieces(ino, index)

    async def _gather(self, ino: int, index: int) -> None:
        """Rewrite a scattered shard, if that can be done; the next runs may fit all the same.

        Raises:
            NoSpaceError: there is no room now for that, and none in its record for the next runs.
        """
        try:
            await self._files.gather(ino, index)
        except (CorruptionError, DeviceError, NoSpaceError) as error:
            _log.info("shard %d of inode %d stays scattered: %s", index, ino, error)
            if not isinstance(error, NoSpaceError):
                return
        if not self._files.fits(await self._store.get_shard(shard_key(ino, index)), RUNS_PER_STEP):
            raise _too_many_pieces(ino, index)  # what is buffered stays so

    def _flush_now(self, file: DirtyFile, index: int, start: int, shard: Shard | None) -> int:
        runs = file.ranges.runs(index, start, RUNS_PER_STEP)
        if not runs:
            return SHARD_BYTES

        def amend(inode: Inode) -> Inode:
            mtime_ns = inode.mtime_ns if file.mtime_ns is None else file.mtime_ns
            ctime_ns = max(inode.ctime_ns, file.ctime_ns)
            return inode.with_content(inode.size, inode.used, mtime_ns, ctime_ns)

        try:
            self._files.store_runs(file.ino, index, shard, runs, amend)
        except Exception:  # whatever it is, the engine may hold some of these buffers
            file.ranges.seal(index)
            raise
        end = runs[-1].start + runs[-1].length
        self._dirty.remove(file, index, runs[0].start, end)
        return end if len(runs) == RUNS_PER_STEP else SHARD_BYTES  # that was all


def _too_many_pieces(ino: int, index: int) -> NoSpaceError:
    return NoSpaceError(
        f"shard {index} of inode {ino} is in too many pieces, and there is no room to write it "
        "anew: remove something"
    )


def _finished_shards(ranges: DirtyRanges) -> list[int]:
    return [index for index in ranges.shards() if not ranges.is_growing(index)]
