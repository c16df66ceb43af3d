"""One step of reclamation after another, and waiting for what they free.

Role: a step frees what is wholly dead, or else empties some extents that are mostly garbage: of
data first, then of the tree and its log. Who needs space asks for a step, or waits for one.

Invariants:
    I1. One step at a time; it may be cancelled between its parts and leaves nothing half-done.
    I2. `wait_for_space` says that nothing is to be had only when a whole step that began after
        the call has freed nothing, though it waited for what was being written or read.
    I3. A step says that it has freed something only if more is free than before; moving what the
        tree has is gone on with only as long as that makes it use fewer bytes of extents.
    I4. Rot and failed reads keep an extent where it is, and are no reason to fail; a failed
        write is.

Not here: which extent of data is chosen, and how it is emptied (evacuation.py); freeing what is
dead (reclaim.py); how fast, and who is slowed meanwhile (debts.py, admission.py).
"""

from __future__ import annotations

import logging

import trio

from shardfs import limits
from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.commit import Committer
from shardfs.engine.debts import Debts
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.extents import Extents
from shardfs.engine.health import Health
from shardfs.engine.layout import Stream
from shardfs.engine.reclaim import reclaim_dead
from shardfs.engine.scheduler import Scheduler
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError

_log = logging.getLogger(__name__)

_EVACUATED_AT_ONCE = 4
_EVACUATED_BYTES = 16 * limits.MIB
_GAIN_OF_RUNS_SHARE_MIN = 8
"""Emptying an extent of the tree has to give at least this part of one."""
_LOOKS_MAX = 100
_LOOK_INTERVAL_S = 0.005


class Reclamation:
    """Reclamation in one open store.

    Args:
        committer, checkpointer, extents, scheduler, health, evacuator: of the store.
        debts: told who waits, and when there is nothing to gain.
    """

    def __init__(
        self,
        committer: Committer,
        checkpointer: Checkpointer,
        extents: Extents,
        scheduler: Scheduler,
        health: Health,
        evacuator: Evacuator,
        debts: Debts,
    ) -> None:
        self._committer = committer
        self._checkpointer = checkpointer
        self._extents = extents
        self._scheduler = scheduler
        self._health = health
        self._evacuator = evacuator
        self._debts = debts
        self._running = trio.Lock()
        self._wanted = trio.Event()
        self._step_ended = trio.Event()
        self._steps_ended = 0
        self._freed_count = 0
        self._packed_tree = (0, 0)
        """Bytes the tree's extents had used, and bytes of the tree, when moving a part of it has
        last given nothing."""
        evacuator.before_batch = self._keep_log_short
        health.on_change(self._end_step)

    async def reclaim(self, *, evacuate: bool = False) -> int:
        """Free the extents that are wholly dead; how many.

        Args:
            evacuate: if none is, empty some that are mostly garbage first.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: some may not have been freed.
        """
        with self._debts.waited_for():
            return await self.step(evacuate=evacuate)

    async def step(self, *, evacuate: bool) -> int:
        """The same, at the pace of the debt. Raises: as `reclaim`."""
        async with self._running:
            try:
                freed = await self._reclaim_dead()
                if evacuate and not freed:
                    freed = await self._empty_some() or await self._free_what_was_in_use()
                    self._steps_ended += 1
            except NoSpaceError:
                self._steps_ended += evacuate
                raise
            finally:
                self._end_step()
            self._freed_count += freed
            if evacuate and not freed:
                self._debts.found_nothing_to_reclaim()
            return freed

    # --- waiting ----------------------------------------------------------------------------

    def want(self) -> None:
        """Wake the background task: more space should be ready."""
        self._wanted.set()

    async def wanted(self, timeout_s: float) -> None:
        """Return when somebody wants space, or after this long."""
        with trio.move_on_after(timeout_s):
            await self._wanted.wait()
        self._wanted = trio.Event()

    async def wait_for_space(self) -> bool:
        """Wait until something has been freed; False: a whole step has freed nothing (I2)."""
        if self._debts.by_hand:
            try:
                return bool(await self.reclaim(evacuate=True))
            except NoSpaceError:
                return False  # whoever waits may be about to delete something
        # A step that runs may have looked before what is garbage now was deleted.
        step = self._steps_ended + 1 + self._running.locked()
        freed = self._freed_count
        with self._debts.waited_for():
            while self._health.is_writable and self._freed_count == freed:
                if self._steps_ended >= step:
                    return False
                self.want()
                await self._step_ended.wait()
        return self._freed_count > freed

    def _end_step(self) -> None:
        event, self._step_ended = self._step_ended, trio.Event()
        event.set()

    # --- the parts of a step ----------------------------------------------------------------

    async def _reclaim_dead(self) -> int:
        return await reclaim_dead(self._extents, self._committer, self._scheduler)

    async def _empty_some(self) -> int:
        released = self._extents.released_count
        if not (await self._empty_data() or await self._empty_log()):
            return await self._empty_runs()
        await self._commit_and_reclaim()
        return self._extents.released_count - released

    async def _free_what_was_in_use(self) -> int:
        """An extent is not dead while it is read, nor can it be emptied while something of it waits
        to be written: what was given up just now may be all that there is to be had."""
        if not (self._scheduler.queued_bytes or self._extents.has_pinned_garbage):
            return 0
        await self._scheduler.write_out()
        # Not for longer: whoever reads on, entry by entry, may himself wait for space.
        for _ in range(_LOOKS_MAX):
            if not self._extents.has_pinned_garbage:
                break
            await trio.sleep(_LOOK_INTERVAL_S)
        return await self._reclaim_dead() or await self._empty_some()

    async def _commit_and_reclaim(self) -> int:
        # Also if there was nothing to move: extents may only wait for this to be dead.
        await self._committer.commit()
        return await self._reclaim_dead()

    async def _empty_data(self) -> int:
        """Move what is live out of some extents of data; out of how many."""
        emptied = moved_bytes = 0
        while emptied < _EVACUATED_AT_ONCE and (chosen := await self._evacuator.choose()):
            moved_bytes += await self._evacuator.evacuate(chosen)
            if chosen.is_stuck:
                continue  # it gives nothing, and is not chosen again
            emptied += 1
            is_short = self._debts.waiting or self._extents.free_count <= 2
            if is_short or moved_bytes >= _EVACUATED_BYTES:
                break
        return emptied

    async def _keep_log_short(self) -> None:
        """What is moved goes through the log as well: it shall not outgrow the reserve."""
        if not self._committer.is_overdue:
            return
        await self._checkpointer.checkpoint(only_if_due=True)
        await self._reclaim_dead()
        if self._debts.merging_is_put_off:
            return
        # Moving a few bytes of each of many shards with long entries makes run after run.
        try:
            while await self._checkpointer.compact():
                await self._reclaim_dead()
        except (CorruptionError, DeviceError) as error:
            require_read_trouble(error)

    async def _empty_log(self) -> bool:
        """Make extents of the delta log dead, if there is one worth it."""
        log = self._extents.sealed(Stream.META)
        if len(log) > 1:
            await self._checkpointer.checkpoint()
        return len(log) > 1

    async def _empty_runs(self) -> int:
        """Move what the tree has in some extents, if that is worth it; how many extents it gives.

        What is moved fills an extent of its own: emptying one may give less than one, and is gone
        on with as long as each gives a part (I3).
        """
        space = self._extents.space
        packed_used, packed_bytes = self._packed_tree
        if self._used_by_runs() <= packed_used and space.tree_bytes >= packed_bytes:
            return await self._commit_and_reclaim()
        held = space.held_extents(Stream.RUNS)
        while True:
            used = self._used_by_runs()
            is_moved = await self._empty_emptiest_of_runs()
            freed = await self._commit_and_reclaim()
            if not is_moved or space.held_extents(Stream.RUNS) < held:
                return freed
            gained = used - self._used_by_runs()
            if gained < self._extents.extent_bytes // _GAIN_OF_RUNS_SHARE_MIN:
                # A segment that lies in two extents is moved as a whole, and may lie in two again.
                self._packed_tree = used, space.tree_bytes
                return 0

    def _used_by_runs(self) -> int:
        """Bytes of the tree's extents, less what the open one still takes."""
        extents = self._extents
        held_bytes = extents.space.held_extents(Stream.RUNS) * extents.extent_bytes
        return held_bytes - extents.room(Stream.RUNS)

    async def _empty_emptiest_of_runs(self) -> bool:
        runs = [
            each
            for each in self._extents.sealed(Stream.RUNS)
            if each.live_bytes and not each.is_stuck
        ]
        emptiest = min(runs, key=lambda each: each.live_bytes, default=None)
        if emptiest is None or 2 * emptiest.live_bytes > self._extents.extent_bytes:
            return False
        epoch = emptiest.epoch
        is_moved = False
        try:
            while await self._checkpointer.empty(emptiest.index):  # one run after the other
                is_moved = True
            return is_moved
        except (CorruptionError, DeviceError) as error:
            require_read_trouble(error)
            if emptiest.epoch == epoch:
                self._extents.set_stuck(emptiest)
            _log.warning("extent %d of the tree can not be emptied: %s", emptiest.index, error)
            return False


def require_read_trouble(error: CorruptionError | DeviceError) -> None:
    """Rot and failed reads hurt nobody who does not read there; a failed write is another matter.

    Raises:
        DeviceError: it is one of a write or flush.
    """
    if isinstance(error, DeviceError) and error.operation != "read":
        raise error
