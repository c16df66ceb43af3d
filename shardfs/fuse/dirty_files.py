"""The files with buffered data, and the account of what they hold.

Role: a table of dirty files; of each what is buffered, what space is reserved for it, and how often
data of it was lost. Who flushes or truncates a file has it stay in the table meanwhile.

Invariants:
    I1. A file has at least as much space reserved as its buffered bytes can take in the store.
    I2. `memory_bytes` is the memory of all buffered data.
    I3. A file is in the table while it has buffered data or is being worked on; no longer.

Not here: when data is flushed, and how (flusher.py), what one file's ranges are (dirty.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from shardfs import limits
from shardfs.fuse.dirty import DirtyRanges
from shardfs.fuse.door import StoreDoor
from shardfs.fuse.files import SHARD_BYTES

_log = logging.getLogger(__name__)


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


class DirtyFiles:
    """The dirty files of one mount.

    Args:
        store: where space is reserved.
        content_changed: told of a file whose buffered data was dropped, at once.
    """

    def __init__(self, store: StoreDoor, content_changed: Callable[[int], None]) -> None:
        self.memory_bytes = 0
        """Memory held by dirty data."""
        self.reserved_bytes = 0
        """Space set aside for it: more than it will take."""
        self._store = store
        self._content_changed = content_changed
        self._files: dict[int, DirtyFile] = {}
        self._error_counts: dict[int, int] = {}
        self._progress: trio.Event | None = None
        """Set, and made anew, whenever somebody waits for it."""
        store.health.on_change(self._notify)

    # --- looking

    def find(self, ino: int) -> DirtyFile | None:
        """The file, if it is dirty or being worked on."""
        return self._files.get(ino)

    def files(self) -> list[DirtyFile]:
        """Every file in the table, the longest dirty one first."""
        return list(self._files.values())

    def inos(self) -> list[int]:
        """Their inode numbers, likewise."""
        return list(self._files)

    def is_dirty(self, ino: int) -> bool:
        """Some of the file's data is only buffered."""
        file = self._files.get(ino)
        return file is not None and bool(file.ranges)

    @property
    def count(self) -> int:
        """Files with buffered data."""
        return sum(bool(file.ranges) for file in self._files.values())

    def error_count(self, ino: int) -> int:
        """How often data of this file was lost."""
        return self._error_counts.get(ino, 0)

    async def some_gone(self) -> None:
        """Return when some buffered data has gone, or the store's health has changed."""
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    # --- changing

    def begin(self, file: DirtyFile) -> None:
        """The file becomes dirty: it is the last one in the table."""
        file.since = trio.current_time()
        self._files.pop(file.ino, None)
        self._files[file.ino] = file

    def known(self, ino: int) -> DirtyFile:
        """The file, put into the table if it is not there. Requires: `locked` is next."""
        return self._files.setdefault(ino, DirtyFile(ino))

    @asynccontextmanager
    async def locked(self, file: DirtyFile) -> AsyncIterator[None]:
        """While the body runs nobody else flushes or truncates the file, and it stays in the table.

        Checkpoints: only to wait.
        """
        await self.lock(file)
        try:
            yield
        finally:
            self.unlock(file)

    async def lock(self, file: DirtyFile) -> None:
        """What `locked` does first: for those who do it often. Then `unlock`, whatever happens."""
        file.users += 1
        try:
            file.lock.acquire_nowait()
        except trio.WouldBlock:
            try:
                await file.lock.acquire()
            except BaseException:  # cancelled
                self._leave(file)
                raise

    def unlock(self, file: DirtyFile) -> None:
        """What `locked` does last."""
        file.lock.release()
        self._leave(file)

    def _leave(self, file: DirtyFile) -> None:
        file.users -= 1
        self.retire(file)

    def reserve(self, file: DirtyFile, added_bytes: int, added_segments: int) -> None:
        """Reserve for what a write may add, as far as it is not reserved yet (I1)."""
        segments = file.ranges.segments + added_segments
        wanted = _space_bytes(file.ranges.bytes + added_bytes, segments)
        if wanted > file.reserved:
            self._store.reserve(wanted - file.reserved)
            self.reserved_bytes += wanted - file.reserved
            file.reserved = wanted

    def forget(self, file: DirtyFile, length: int) -> None:
        """Drop dirty bytes at and above `length`."""
        before = file.ranges.memory_bytes
        file.ranges.truncate(length)
        self._settle(file, before)
        self._content_changed(file.ino)

    def remove(self, file: DirtyFile, index: int, start: int, end: int) -> int:
        """Drop a shard's dirty bytes [start, end); how many there were."""
        before = file.ranges.memory_bytes
        removed = file.ranges.remove(index, start, end)
        self._settle(file, before)
        return removed

    def lose(self, file: DirtyFile, index: int) -> None:
        """Drop a shard's dirty bytes that can never be stored, and remember that."""
        lost = self.remove(file, index, 0, SHARD_BYTES)
        file.failures = 0
        self._error_counts[file.ino] = self.error_count(file.ino) + 1
        at = index * SHARD_BYTES
        _log.error("lost %d bytes written to inode %d, from byte %d on", lost, file.ino, at)
        self._content_changed(file.ino)

    def forget_errors(self, ino: int) -> None:
        """Nobody can ask for them any more."""
        self._error_counts.pop(ino, None)

    def retire(self, file: DirtyFile) -> None:
        """Stop knowing a file that has nothing dirty and that nobody is working on."""
        if not file.ranges and not file.users and self._files.get(file.ino) is file:
            del self._files[file.ino]

    def _settle(self, file: DirtyFile, memory_bytes_before: int) -> None:
        """Account for dirty bytes that have gone."""
        self.memory_bytes += file.ranges.memory_bytes - memory_bytes_before
        self._settle_reservation(file)
        self._notify()

    def _settle_reservation(self, file: DirtyFile) -> None:
        """Give back what is no longer needed."""
        ranges = file.ranges
        wanted = _space_bytes(ranges.bytes, ranges.segments)
        if wanted < file.reserved:
            self._store.release(file.reserved - wanted)
            self.reserved_bytes -= file.reserved - wanted
            file.reserved = wanted

    def _notify(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None


def _space_bytes(length: int, segments: int) -> int:
    """What so many separate ranges of buffered data take, with their frames and entries."""
    digests = length // limits.GRANULE_BYTES * limits.GRANULE_SPACE_BYTES
    return length + digests + segments * limits.DIRTY_PART_SPACE_BYTES
