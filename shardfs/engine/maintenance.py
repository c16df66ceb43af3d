"""The background work of an open store: commits, checkpoints, merges, reclamation, gathering.

Role: five endless tasks for a store's nursery, one for each kind of work, and the same steps by
hand; says how far each is behind, and lets writers in accordingly (the law is pacing.py's).
Everything here may be cancelled between its steps and leaves nothing half-done.

Invariants:
    I1. An error in the background ends neither the store nor its caller: the store turns
        read-only, with the reason.
    I2. Neither a full device nor a failed read nor rot is an error here: it is tried again later.
    I3. The memtable and the delta log do not outgrow their bounds for long: who adds to them
        is slowed, and then waits (`admit`) for the checkpoint that empties them.
    I4. Nobody is told that the device is full before a step of reclamation that began after he
        asked has freed nothing.

Who waits for whom, each only for what stands to the right of it, so that nobody waits in a circle:
    writer in `admit` -> reclamation, checkpoint -> the lock of merges -> the lock of installing
    -> commit -> scheduler -> device.
No background task admits itself. A checkpoint or merge that has no room gives up (NoSpaceError)
rather than wait for reclamation. Files hold their own locks while they wait in `admit`; nothing
to the right takes those.

Not here: what the steps do (commit.py, checkpoint.py, evacuation.py, reclaim.py,
gathering.py).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import trio

from shardfs import limits
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.commit import Committer
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.extents import Extents
from shardfs.engine.gathering import Gatherer
from shardfs.engine.health import Health
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.lsm.compaction import GARBAGE_SHARE_MAX, GARBAGE_SHARE_SHORT, merge_debt
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pacing import Slices, Throttle, share_between
from shardfs.engine.reclaim import reclaim_dead
from shardfs.engine.scheduler import Scheduler
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError, ShardfsError

_log = logging.getLogger(__name__)

_SCARCE_SHARE = 4
_SCARCE_BYTES_MAX = 1 * limits.MIB
_READY_EXTENTS_MIN = 3
_EVACUATED_AT_ONCE = 4
_EVACUATED_BYTES = 16 * limits.MIB
_READY_SHARE = 64
_READY_FREE_SHARE = 8
_HIDDEN_SHARE_WORTH_MERGING = 128
_GARBAGE_SHARE_TIGHT = 1 / 32
_ROT_INTERVALS = 15
"""Merging that met rot is tried again after so many commit intervals."""


class Maintenance:
    """The background work of one open store.

    Args:
        committer, checkpointer, extents, scheduler, health, tree, evacuator, gatherer: of the
            store.
        interval_s: applied batches are committed after this long.
    """

    def __init__(
        self,
        committer: Committer,
        checkpointer: Checkpointer,
        extents: Extents,
        scheduler: Scheduler,
        health: Health,
        tree: Tree,
        evacuator: Evacuator,
        gatherer: Gatherer,
        interval_s: float,
    ) -> None:
        self._committer = committer
        self._checkpointer = checkpointer
        self._extents = extents
        self._scheduler = scheduler
        self._health = health
        self._tree = tree
        self._evacuator = evacuator
        self._gatherer = gatherer
        self._interval_s = interval_s
        self._commit_due = trio.Event()
        self._checkpoint_due = trio.Event()
        self._merge_due = trio.Event()
        self._space_wanted = trio.Event()
        self._step_ended = trio.Event()
        self._steps_ended = 0
        self._freed_count = 0
        self._waiting = 0
        self._throttle = Throttle()
        self._reclaiming = trio.Lock()
        self._squeezing = trio.Lock()
        self._squeezed_bytes = 0
        self._stuck: dict[int, int] = {}
        self._started = False
        self._number_before = -1
        self._idle_since = 0.0
        self._merges_awaited = 0
        self._merges_from = -math.inf
        self._fruitless_until = -math.inf
        evacuator.slices = Slices(self._space_pace)
        checkpointer.merge_pace = self._merge_pace
        checkpointer.checkpoint_pace = self._checkpoint_pace
        health.on_change(self._end_step)

    def start(self, nursery: trio.Nursery) -> None:
        """Run until the nursery is cancelled."""
        self._started = True
        for work in (self._commit_regularly, self._checkpoint, self._merge, self._keep_ready):
            nursery.start_soon(self._guard, work)
        nursery.start_soon(self._guard, self._gatherer.run)

    def notice(self) -> None:
        """Something was applied or committed: wake who has to do something about it."""
        if self._committer.pending_bytes >= limits.DELTA_BYTES_MAX:
            self._commit_due.set()
        if self._committer.is_due:
            self._checkpoint_due.set()

    # --- debts (see pacing.py) --------------------------------------------------------------

    def log_debt(self) -> float:
        """How far checkpoints are behind: from when one is due to when writers wait for it."""
        return share_between(self._committer.fill, 1.0, 2.0)

    def merge_debt(self) -> float:
        """How far merging is behind; nothing while it cannot be done."""
        if trio.current_time() < self._merges_from:
            return 0.0
        return merge_debt(self._tree.runs)

    def space_debt(self) -> float:
        """How far reclamation is behind: from when it begins to when writers wait for it. Nothing
        when it has just found nothing to gain: there is no use in slowing anybody."""
        ready, wanted = self._extents.ready_user_bytes(), self._ready_wanted()
        if ready >= wanted or trio.current_time() < self._fruitless_until:
            return 0.0
        scarce = self._scarce_bytes(0)
        return share_between(ready, wanted, scarce) if scarce < wanted else 1.0

    def queue_debt(self) -> float:
        """How far the device is behind with what is to be written."""
        return self._scheduler.queued_bytes / limits.QUEUED_BYTES_MAX

    # Work that somebody waits for does not rest; nor does what is done by hand.

    def _checkpoint_pace(self) -> float:
        """A checkpoint should end before the next is due."""
        return min(1.0, self._committer.fill)

    def _merge_pace(self) -> float:
        return 1.0 if self._merges_awaited or not self._started else self.merge_debt()

    def _space_pace(self) -> float:
        return 1.0 if self._waiting or not self._started else self.space_debt()

    def _ready_wanted(self) -> int:
        """Bytes for user data that reclamation keeps ready."""
        # The fuller the device, the less is kept ready: what is ready can hold no garbage, and the
        # more garbage an extent holds when it is emptied the less is moved for it.
        space = self._extents.space
        user_bytes = space.user_bytes()
        wanted = min(space.total_bytes // _READY_SHARE, user_bytes // _READY_FREE_SHARE)
        return min(user_bytes, max(wanted, _READY_EXTENTS_MIN * self._extents.extent_bytes))

    def _scarce_bytes(self, length: int) -> int:
        """Who appends `length` bytes waits while less than this is ready: some more, for others."""
        wanted = length + min(_SCARCE_BYTES_MAX, self._extents.extent_bytes // _SCARCE_SHARE)
        return min(wanted, self._extents.space.user_bytes())

    # --- admission --------------------------------------------------------------------------

    async def admit(self, length: int) -> None:
        """Let a writer in: the more slowly the further the background is behind, and not at all
        while far too much is behind the last checkpoint (I3), or garbage is in the way of `length`
        bytes of new data.

        The slowing takes limits.ADMISSION_DELAY_S_MAX at most. May be cancelled.

        Checkpoints: only then.
        """
        if not self._health.is_writable:
            return
        if self._started:
            space_debt = self.space_debt()
            if space_debt:
                self._space_wanted.set()
            debts = space_debt, self.log_debt(), self.merge_debt(), self.queue_debt()
            await self._throttle.delay(max(debts), length)
            if self._committer.is_overdue:
                await self.checkpoint_if_due()
        # Nobody shall be told that the device is full while garbage can be reclaimed (I4).
        if self._extents.space.user_bytes() < length + self._extents.extent_bytes:
            await self._squeeze()
        while self._extents.ready_user_bytes() < self._scarce_bytes(length):
            if not await self._wait_for_space():
                break

    async def _wait_for_space(self) -> bool:
        """Wait until something has been freed; False: a whole step has freed nothing."""
        if not self._started:
            return bool(await self.reclaim(evacuate=True))
        # A step that runs may have looked before what is garbage now was deleted.
        step = self._steps_ended + 1 + self._reclaiming.locked()
        freed = self._freed_count
        with self.waited_for():
            while self._health.is_writable and self._freed_count == freed:
                if self._steps_ended >= step:
                    return False
                self._space_wanted.set()
                await self._step_ended.wait()
        return self._freed_count > freed

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """While the body runs somebody waits, and reclamation does not rest."""
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1

    @contextmanager
    def merges_awaited(self) -> Iterator[None]:
        """While somebody waits for merges, or nobody for anything, they do not rest."""
        self._merges_awaited += 1
        try:
            yield
        finally:
            self._merges_awaited -= 1

    def _end_step(self) -> None:
        event, self._step_ended = self._step_ended, trio.Event()
        event.set()

    # --- by hand ----------------------------------------------------------------------------

    async def checkpoint_if_due(self) -> bool:
        """False: it is due, and there is no room for it until something is deleted.

        Raises:
            DeviceError, ReadOnlyError: it failed; the old tree is in force.
        """
        try:
            await self._checkpointer.checkpoint(only_if_due=True)
        except NoSpaceError:
            return False
        await self._keep_room_to_merge()
        return True

    async def make_room(self) -> int:
        """Have all space that can come back do so, a step at a time; extents freed.

        Raises: as `reclaim`.
        """
        if self._extents.space.is_short:
            await self._squeeze()
        return await self.reclaim(evacuate=True)

    async def _squeeze(self) -> None:
        """On a device that is about to be called full: merge the tree into one run if what it
        hides may be worth it. Then what is still free no longer depends on what was merged."""
        space = self._extents.space
        worth = space.total_bytes // _HIDDEN_SHARE_WORTH_MERGING
        if self._checkpointer.hidden_bytes_max < worth:
            return
        async with self._squeezing:
            grown = space.tree_share_bytes - self._squeezed_bytes
            if 0 <= grown < worth or self._checkpointer.hidden_bytes_max < worth:
                return  # it was merged a moment ago, and nothing was to be gained
            await self._merge_garbage(worth / max(worth, space.tree_share_bytes))
            self._squeezed_bytes = space.tree_share_bytes

    async def _merge_garbage(self, garbage_share_max: float) -> bool:
        """Merge everything, memory included, if more than a part of it may be garbage."""
        try:
            await self._checkpointer.checkpoint()
        except NoSpaceError:
            return False
        return await self._merge_all(garbage_share_max=garbage_share_max)

    async def _keep_room_to_merge(self) -> None:
        """A checkpoint has made the tree larger: merge all of it while there is room for that."""
        if self._lacks_room_to_merge:
            await self.reclaim()
        if self._lacks_room_to_merge and await self._merge_all(
            garbage_share_max=_GARBAGE_SHARE_TIGHT
        ):
            await self.reclaim()

    @property
    def _lacks_room_to_merge(self) -> bool:
        extents = self._extents
        return extents.space.lacks_room_to_merge(extents.free_count)

    async def reclaim(self, *, evacuate: bool = False) -> int:
        """Free the extents that are wholly dead; how many.

        Args:
            evacuate: if none is, empty some that are mostly garbage first.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: some may not have been freed.
        """
        with self.waited_for():
            return await self._reclaim_step(evacuate=evacuate)

    async def _reclaim_step(self, *, evacuate: bool) -> int:
        async with self._reclaiming:
            try:
                freed = await self._reclaim_dead()
                if evacuate and not freed:
                    freed = await self._empty_some()
                    self._steps_ended += 1
            except NoSpaceError:
                self._steps_ended += evacuate
                raise
            finally:
                self._end_step()
            self._freed_count += freed
            if evacuate and not freed:
                self._fruitless_until = trio.current_time() + self._interval_s / 4
            return freed

    async def _empty_some(self) -> int:
        _ = await self._empty_data() or await self._empty_tree()
        # Also if there was nothing to move: extents may only wait for this to be dead.
        await self._committer.commit()
        return await self._reclaim_dead()

    async def _reclaim_dead(self) -> int:
        return await reclaim_dead(self._extents, self._committer, self._scheduler)

    async def _empty_data(self) -> int:
        """Move what is live out of some extents of data; out of how many."""
        emptied = moved_bytes = 0
        while emptied < _EVACUATED_AT_ONCE and (chosen := self._evacuator.choose()):
            moved_bytes += await self._evacuator.evacuate(chosen)
            emptied += 1
            if self._waiting or self._extents.free_count <= 2 or moved_bytes >= _EVACUATED_BYTES:
                break
        return emptied

    async def _empty_tree(self) -> bool:
        """Make extents of the tree or of its log dead, if there is one worth it."""
        sealed = [each for each in self._extents.all if each.state is ExtentState.SEALED]
        log = [each for each in sealed if each.stream is Stream.META]
        if len(log) > 1:
            await self._checkpointer.checkpoint()
            return True
        runs = [
            each
            for each in sealed
            if each.stream is Stream.RUNS
            and each.live_bytes
            and self._stuck.get(each.index) != each.epoch
        ]
        emptiest = min(runs, key=lambda each: each.live_bytes, default=None)
        if emptiest is None or 2 * emptiest.live_bytes > self._extents.extent_bytes:
            return False
        epoch = emptiest.epoch
        try:
            return await self._checkpointer.empty(emptiest.index)
        except (CorruptionError, DeviceError) as error:
            _require_read_trouble(error)
            self._stuck[emptiest.index] = epoch
            _log.warning("extent %d of the tree can not be emptied: %s", emptiest.index, error)
            return False

    # --- tasks ------------------------------------------------------------------------------

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

    async def _checkpoint(self) -> None:
        while True:
            with trio.move_on_after(self._interval_s / 4):
                await self._checkpoint_due.wait()
            self._checkpoint_due = trio.Event()
            if not self._committer.is_due:
                continue
            try:
                await self._checkpointer.checkpoint(only_if_due=True, paced=True)
                await self._keep_room_to_merge()
                self._merge_due.set()
            except NoSpaceError:
                with trio.move_on_after(self._interval_s):
                    await self._wait_for_space()

    async def _merge(self) -> None:
        while True:
            with trio.move_on_after(self._interval_s / 4):
                await self._merge_due.wait()
            self._merge_due = trio.Event()
            if await self._merge_all():
                await self._tidy_when_idle()

    async def _keep_ready(self) -> None:
        """Give back what is dead, and empty extents while too little is ready to be written."""
        while True:
            with trio.move_on_after(self._interval_s / 4):
                await self._space_wanted.wait()
            self._space_wanted = trio.Event()
            try:
                await self._reclaim_step(evacuate=False)
                while self._waiting or self._extents.ready_user_bytes() < self._ready_wanted():
                    if self._committer.is_overdue:
                        await self.checkpoint_if_due()  # what is moved goes through the log as well
                    if not await self._reclaim_step(evacuate=True):
                        break
                    await trio.lowlevel.checkpoint()
            except NoSpaceError as error:
                _log.warning("reclamation is put off: %s", error)

    async def _tidy_when_idle(self) -> None:
        """When nothing has been applied for a while, what was deleted leaves the tree as well."""
        now = trio.current_time()
        if self._number_before != self._committer.next_number:
            self._number_before, self._idle_since = self._committer.next_number, now
        idle_s = now - self._idle_since
        if idle_s < self._interval_s:
            return
        # The longer nothing happens, the less garbage is worth a merge: none stays for ever, and
        # what is written a second stays bounded.
        if self._checkpointer.garbage_share <= GARBAGE_SHARE_SHORT * self._interval_s / idle_s:
            return
        try:
            with self.merges_awaited():
                if self._checkpointer.has_unwritten:
                    await self._checkpointer.checkpoint()
                if await self._merge_all(garbage_share_max=0.0):
                    await self._committer.commit()
                    await self.reclaim()
        except NoSpaceError as error:
            _log.warning("tidying is put off: %s", error)

    async def _merge_all(self, *, garbage_share_max: float = GARBAGE_SHARE_MAX) -> bool:
        """False: there was no room for it, or something cannot be read: the runs stay, and it is
        not tried again for a while (I2)."""
        if trio.current_time() < self._merges_from:
            return False
        try:
            # What a step has made dead may be the room that the next one needs.
            while await self._checkpointer.compact(garbage_share_max=garbage_share_max) or (
                self._checkpointer.is_merging and await self._reclaim_step(evacuate=False)
            ):
                await trio.lowlevel.checkpoint()
        except NoSpaceError:
            self._put_merging_off(self._interval_s)
            return False
        except (CorruptionError, DeviceError) as error:
            _require_read_trouble(error)
            _log.warning("merging is put off: %s", error)
            is_rot = isinstance(error, CorruptionError)
            self._put_merging_off(self._interval_s * (_ROT_INTERVALS if is_rot else 1))
            return False
        return not self._checkpointer.is_merging

    def _put_merging_off(self, seconds: float) -> None:
        if self._started:
            self._merges_from = trio.current_time() + seconds


def _require_read_trouble(error: CorruptionError | DeviceError) -> None:
    """Rot and failed reads hurt nobody who does not read there; a failed write is another matter.

    Raises:
        DeviceError: it is one of a write or flush.
    """
    if isinstance(error, DeviceError) and error.operation != "read":
        raise error
