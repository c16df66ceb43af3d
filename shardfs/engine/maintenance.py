"""The background work of an open store: commits, checkpoints, merges, reclamation.

Role: two endless tasks for a store's nursery, and the same steps by hand. Everything here may
be cancelled between its steps and leaves nothing half-done.

Invariants:
    I1. An error in the background ends neither the store nor its caller: the store turns
        read-only, with the reason.
    I2. Neither a full device nor a failed read is an error here: it is tried again later.
    I3. The memtable and the delta log do not outgrow their bounds for long: who adds to them
        waits (`admit`) for the checkpoint that empties them.

Not here: what the steps do (commit.py, checkpoint.py, reclaim.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from shardfs import limits
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.commit import Committer
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.extents import Extents
from shardfs.engine.health import Health
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.reclaim import reclaim_dead
from shardfs.engine.scheduler import Scheduler
from shardfs.errors import DeviceError, NoSpaceError, ShardfsError

_log = logging.getLogger(__name__)

_SCARCE_EXTENTS = 2
_EVACUATED_AT_ONCE = 4
_READY_SHARE = 64
_READY_FREE_SHARE = 8


class Maintenance:
    """The background work of one open store.

    Args:
        committer, checkpointer, extents, scheduler, health, evacuator: of the store.
        interval_s: applied batches are committed after this long.
    """

    def __init__(
        self,
        committer: Committer,
        checkpointer: Checkpointer,
        extents: Extents,
        scheduler: Scheduler,
        health: Health,
        evacuator: Evacuator,
        interval_s: float,
    ) -> None:
        self._committer = committer
        self._checkpointer = checkpointer
        self._extents = extents
        self._scheduler = scheduler
        self._health = health
        self._evacuator = evacuator
        self._interval_s = interval_s
        self._commit_due = trio.Event()
        self._checkpoint_due = trio.Event()
        self._reclaiming = trio.Lock()
        self._started = False
        self._number_before = -1
        self._idle_since = 0.0

    def start(self, nursery: trio.Nursery) -> None:
        """Run until the nursery is cancelled."""
        self._started = True
        nursery.start_soon(self._guard, self._commit_regularly)
        nursery.start_soon(self._guard, self._maintain)

    def notice(self) -> None:
        """Something was applied or committed: wake who has to do something about it."""
        if self._committer.pending_bytes >= limits.DELTA_BYTES_MAX:
            self._commit_due.set()
        if self._committer.is_due:
            self._checkpoint_due.set()

    async def admit(self, length: int) -> None:
        """Wait while far too much is behind the last checkpoint (I3), or garbage is in the way of
        `length` bytes of new data.

        Checkpoints: only then.
        """
        if not self._health.is_writable:
            return
        if self._started and self._committer.is_overdue:
            await self.checkpoint_if_due()
        wanted = length + _SCARCE_EXTENTS * self._extents.extent_bytes
        # Nobody shall be told that the device is full while garbage can be reclaimed.
        if self._extents.space.user_bytes() < wanted:
            await self._merge()
        while self._extents.ready_user_bytes() < min(wanted, self._extents.space.user_bytes()):
            if not await self.reclaim(evacuate=True):
                break

    async def checkpoint_if_due(self) -> bool:
        """False: it is due, and there is no room for it until something is deleted.

        Raises:
            DeviceError, ReadOnlyError: it failed; the old tree is in force.
        """
        try:
            await self._checkpointer.checkpoint(only_if_due=True)
        except NoSpaceError:
            return False
        return True

    async def reclaim(self, *, evacuate: bool = False) -> int:
        """Free the extents that are wholly dead; how many.

        Args:
            evacuate: if none is, empty some that are mostly garbage first.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: some may not have been freed.
        """
        async with self._reclaiming:
            freed = await reclaim_dead(self._extents, self._committer, self._scheduler)
            if freed or not evacuate:
                return freed
            if not (await self._empty_data() or await self._empty_tree()):
                return 0
            await self._committer.commit()
            return await reclaim_dead(self._extents, self._committer, self._scheduler)

    async def _empty_data(self) -> int:
        """Move what is live out of some extents of data; out of how many."""
        emptied = 0
        while emptied < _EVACUATED_AT_ONCE and (chosen := self._evacuator.choose()):
            await self._evacuator.evacuate(chosen)
            emptied += 1
            if self._extents.free_count <= _SCARCE_EXTENTS:
                break
        return emptied

    async def _empty_tree(self) -> bool:
        """Make extents of the tree or of its log dead, if there is one worth it."""
        sealed = [each for each in self._extents.all if each.state is ExtentState.SEALED]
        log = [each for each in sealed if each.stream is Stream.META]
        if len(log) > 1:
            await self._checkpointer.checkpoint()
            return True
        runs = [each for each in sealed if each.stream is Stream.RUNS and each.live_bytes]
        emptiest = min(runs, key=lambda each: each.live_bytes, default=None)
        if emptiest is None or 2 * emptiest.live_bytes > self._extents.extent_bytes:
            return False
        return await self._checkpointer.empty(emptiest.index)

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except ShardfsError as error:
            self._health.make_read_only(str(error))
        except Exception:
            _log.exception("a background task of the store failed")
            self._health.make_read_only("an unexpected error in the background; see the log")

    async def _commit_regularly(self) -> None:
        while True:
            with trio.move_on_after(self._interval_s):
                await self._commit_due.wait()
            self._commit_due = trio.Event()
            await self._committer.commit()
            self.notice()

    async def _maintain(self) -> None:
        while True:
            with trio.move_on_after(self._interval_s / 4):
                await self._checkpoint_due.wait()
            self._checkpoint_due = trio.Event()
            if not (await self.checkpoint_if_due() and await self._merge()):
                await trio.sleep(self._interval_s)
            await self.reclaim()
            await self._keep_ready()
            await self._tidy_when_idle()

    async def _tidy_when_idle(self) -> None:
        """When nothing has been applied for a while, what was deleted leaves the tree as well."""
        now = trio.current_time()
        if self._number_before != self._committer.next_number:
            self._number_before, self._idle_since = self._committer.next_number, now
        if now < self._idle_since + self._interval_s or not self._checkpointer.hides_much:
            return
        try:
            await self._checkpointer.checkpoint()
            while await self._checkpointer.compact(thorough=True):
                await trio.lowlevel.checkpoint()
            await self._committer.commit()
            await self.reclaim()
        except NoSpaceError as error:
            _log.warning("tidying is put off: %s", error)

    async def _keep_ready(self) -> None:
        """Empty extents while less than a part of the device is ready to be written."""
        # The fuller the device, the less is kept ready: what is ready can hold no garbage, and the
        # more garbage an extent holds when it is emptied the less is moved for it.
        space = self._extents.space
        wanted = min(space.total_bytes // _READY_SHARE, space.user_bytes() // _READY_FREE_SHARE)
        try:
            while self._extents.ready_user_bytes() < wanted:
                if not await self.reclaim(evacuate=True):
                    break
                await trio.lowlevel.checkpoint()
        except NoSpaceError as error:
            _log.warning("reclamation is put off: %s", error)

    async def _merge(self) -> bool:
        """False: there was no room for it, or a read failed, which may not happen again."""
        try:
            while await self._checkpointer.compact():
                await trio.lowlevel.checkpoint()
        except NoSpaceError:
            return False
        except DeviceError as error:
            if error.operation != "read":
                raise
            _log.warning("merging is put off: %s", error)
            return False
        return True
