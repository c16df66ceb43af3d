"""Files without a name: kept while someone uses them, then freed, across crashes too.

Role: an unlinked inode is marked by a durable orphan key in the batch that takes its last name.
While the kernel knows it, or a handle is open, it is *held*; then it is *queued*, and the reaper
task frees it. What a crash left is found by the reaper after mounting.

Invariants:
    I1. An inode without a name has an orphan key until the batch that deletes the inode.
    I2. A held inode is not freed.
    I3. The queue is bounded: those who unlink wait (`admit`) while it is too long.
    I4. An inode that cannot be freed now (the device fails) keeps its orphan key for a later mount.

Not here: who counts users (handles.py) and how an inode is freed (freeing.py).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing, suppress
from itertools import islice
from typing import Final, TypeVar

import trio

from shardfs import limits
from shardfs.engine.pacing import rest_s
from shardfs.errors import CorruptionError, NoSpaceError, ShardfsError
from shardfs.fuse.door import StoreDoor, behind, scan_some
from shardfs.fuse.files import Files
from shardfs.fuse.freeing import Freeing
from shardfs.fuse.keys import ORPHAN_PREFIX, decode_marker_key

_log = logging.getLogger(__name__)
T = TypeVar("T")

_ORPHANS_END: Final = behind(ORPHAN_PREFIX)
_SCAN_COUNT: Final = 256
_ROOM_ATTEMPTS: Final = 2
_FREED_AT_ONCE: Final = 4
_REQUESTS_MANY: Final = 4
"""As many since the last slice are a burst, for which freeing rests."""


class Orphans:
    """The nameless inodes of one mount."""

    def __init__(self, store: StoreDoor, files: Files) -> None:
        self._store = store
        self._files = files
        self._freeing = Freeing(files)
        self._held: set[int] = set()
        self._queue: dict[int, None] = {}
        self._is_searching = False
        self._wake = trio.Event()
        self._progress: trio.Event | None = None
        """Set, and made anew, whenever somebody waits for it."""
        self._arrived = 0
        """How many were ever queued."""
        self.requests: Callable[[], int] = lambda: 0
        """How many requests of any kind there have been; a mount says it."""
        store.health.on_change(self._notify)

    @property
    def queue_length(self) -> int:
        """Inodes that wait to be freed."""
        return len(self._queue)

    def hold(self, ino: int) -> None:
        """The inode has lost its last name but is in use."""
        self._held.add(ino)

    def is_held(self, ino: int) -> bool:
        """The inode is nameless and in use."""
        return ino in self._held

    def queue(self, ino: int) -> None:
        """Nobody uses this nameless inode any more: free it."""
        self._held.discard(ino)
        self._queue[ino] = None
        self._arrived += 1
        self._wake.set()

    def held(self) -> list[int]:
        """All nameless inodes that are in use."""
        return list(self._held)

    @property
    def are_too_many(self) -> bool:
        """So many wait to be freed that no more may come."""
        return len(self._queue) > limits.ORPHANS_QUEUED_MAX

    async def admit(self) -> None:
        """Wait while too many inodes are queued. Checkpoints: only then.

        Raises:
            ReadOnlyError: they cannot be freed any more.
        """
        while self.are_too_many:
            self._store.health.require_writable()
            await self._some_freed()

    async def drained(self) -> None:
        """Wait until nothing is queued or looked for. Checkpoints: only then.

        Raises:
            ReadOnlyError: it cannot be freed any more.
        """
        while self._queue or self._is_searching:
            self._store.health.require_writable()
            await self._some_freed()

    async def with_room(
        self,
        operation: Callable[[], Awaitable[T]],
        flush_steps: Callable[[], AsyncGenerator[None, None]],
    ) -> T:
        """What `operation` gives; if the disk is full, tried again when room was made.

        Args:
            flush_steps: gives what is buffered to the engine, some after some: it takes less than
                was reserved for it at write(2). Nobody waits for more of it than he needs.

        Raises:
            NoSpaceError: there still is none.
        """
        for attempts_left in reversed(range(_ROOM_ATTEMPTS + 1)):
            try:
                return await operation()
            except NoSpaceError:
                if not attempts_left:
                    raise
            async with aclosing(flush_steps()) as steps:
                async for _ in steps:  # whenever some more has been flushed
                    with suppress(NoSpaceError):
                        return await operation()
            await self.make_room()
        raise AssertionError("the last attempt returns or raises")

    async def make_room(self) -> None:
        """Let the space of what was deleted come back, as far as it can."""
        await self.drained()
        await self._store.sync()
        await self._store.reclaim()

    async def run(self) -> None:
        """The reaper task: first what a crash left, then what is queued, for ever."""
        self._is_searching = True
        await self._reap_leftovers()
        self._is_searching = False
        self._notify()
        while True:
            await self.reap_queued(rests=True)
            self._wake = trio.Event()
            if not self._queue:
                await self._wake.wait()

    async def reap_queued(self, *, rests: bool = False) -> None:
        """Free all that is queued now.

        Args:
            rests: leave the processor to requests while they keep coming and nobody waits for
                what was removed; the less, the longer the queue is.
        """
        arrived = asked = 0
        while self._queue:
            inos = list(islice(self._queue, _FREED_AT_ONCE))
            await self._free(inos)
            for ino in inos:
                self._queue.pop(ino, None)
            self._notify()
            seconds = rest_s(len(self._queue) / limits.ORPHANS_QUEUED_MAX)
            is_busy = self._arrived != arrived or self.requests() >= asked + _REQUESTS_MANY
            arrived, asked = self._arrived, self.requests()
            if rests and seconds and is_busy and self._progress is None:
                await trio.sleep(seconds)
            else:
                await trio.lowlevel.checkpoint()

    async def _reap_leftovers(self) -> None:
        start = ORPHAN_PREFIX
        while True:
            try:
                keys = [
                    key for key, _ in await scan_some(self._store, start, _ORPHANS_END, _SCAN_COUNT)
                ]
            except ShardfsError as error:
                _log.error("looking for removed files failed, their space stays taken: %s", error)
                return
            for key in keys:
                try:
                    ino = decode_marker_key(key)
                except CorruptionError as error:
                    _log.error("%s", error)
                    continue
                if ino not in self._held and ino not in self._queue:
                    self._queue[ino] = None
            await self.reap_queued()
            if len(keys) < _SCAN_COUNT:
                break
            start = keys[-1] + b"\0"
        for ino in list(self._files.truncations):
            await self._finish_truncation(ino)

    async def _some_freed(self) -> None:
        """Return when something has been freed, or the store's health has changed."""
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    def _notify(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    async def _free(self, inos: Sequence[int]) -> None:
        """Free these, together if they are small: a batch of its own for each costs twice as much.
        One that cannot be freed keeps no other from it."""
        with suppress(ShardfsError):  # told below
            self._store.health.require_writable()
            if len(inos) > 1 and await self._freeing.free_small(inos):
                return
        for ino in inos:
            try:
                self._store.health.require_writable()
                await self._freeing.free(ino)
            except ShardfsError as error:
                _log.error(
                    "freeing removed inode %d failed, a later mount tries again: %s", ino, error
                )

    async def _finish_truncation(self, ino: int) -> None:
        try:
            await self._files.finish_truncation(ino)
        except ShardfsError as error:
            _log.error("finishing the truncation of inode %d failed: %s", ino, error)
