"""Collects garbage at once, step by step, until nothing is worth it any more.

Role: what background work does when space is wanted, done now, because somebody asks: merges the
tree, empties extents, gives back what is dead. Also says beforehand what that would give and take.
A friend of the store: it uses its parts.

Invariants:
    I1. A step may be cancelled anywhere, and nothing need follow it: it is made of steps that
        background work makes as well, each of which leaves nothing half-done.
    I2. Collecting ends: it takes at most as many steps as there are extents and runs, whatever is
        written meanwhile.

Not here: how extents are emptied (evacuation.py), freed (reclaim.py), runs merged (checkpoint.py);
collecting by itself (maintenance.py).
"""

from __future__ import annotations

from shardfs.engine.layout import ExtentState
from shardfs.engine.lsm.compaction import GARBAGE_SHARE_SHORT
from shardfs.engine.stats import CollectionPlan, CollectionProgress
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError

_FRUITLESS_STEPS_MAX = 3


async def collection_plan(store: Store) -> CollectionPlan:
    """What collecting garbage would give and take as things are; nothing is changed."""
    parts = store._parts
    extents, committer = parts.extents, parts.committer
    merges = await parts.checkpointer.garbage_share() >= GARBAGE_SHARE_SHORT
    dead = extents.dead(
        committer.durable_number, committer.persistent_checkpoint, committer.root.log_extent
    )
    candidates = store._evacuator.candidates()
    doomed = {extent.index for extent in (*dead, *candidates)}
    kept = sum(
        max(0, extent.write_pointer - extent.live_bytes)
        for extent in extents.all
        if extent.state in (ExtentState.OPEN, ExtentState.SEALED) and extent.index not in doomed
    )
    moved = sum(extent.live_bytes for extent in candidates)
    return CollectionPlan(
        dead_extents=len(dead),
        dead_bytes=len(dead) * extents.extent_bytes,
        emptied_extents=len(candidates),
        moved_bytes=moved,
        gained_bytes=len(candidates) * extents.extent_bytes - moved,
        merged_bytes=extents.space.tree_bytes if merges else 0,
        kept_garbage_bytes=kept,
        stuck_extents=sum(extent.is_stuck for extent in extents.all),
    )


class Collection:
    """One collection of garbage in an open, writable store.

    Args:
        store: goes on serving meanwhile; what it does by itself is counted along.
    """

    def __init__(self, store: Store) -> None:
        store.health.require_writable()
        self._store = store
        self._parts = store._parts
        self._stage = "merging"
        self._stopped = ""
        self._has_checkpointed = False
        self._wants_merging_again = False
        self._has_merged_again = False
        self._steps_left = len(store._extents.all) + len(store._tree.runs)
        self._fruitless = 0
        self._merged_bytes = 0
        self._moved_before = store._evacuator.moved_bytes
        self._released_before = store._extents.released_count

    def progress(self) -> CollectionProgress:
        """What has been done so far."""
        extents, evacuator = self._parts.extents, self._store._evacuator
        freed = extents.released_count - self._released_before
        left = 0
        if self._stage != "done":
            left = sum(extent.live_bytes for extent in evacuator.candidates())
        return CollectionProgress(
            stage=self._stage,
            moved_bytes=evacuator.moved_bytes - self._moved_before,
            left_bytes=left,
            merged_bytes=self._merged_bytes,
            freed_extents=freed,
            freed_bytes=freed * extents.extent_bytes,
            stopped=self._stopped,
        )

    async def step(self) -> CollectionProgress:
        """Do some more, if there is anything left worth doing; what has been done so far.

        Raises:
            DeviceError, ReadOnlyError: the store has failed.
        """
        try:
            if self._stage == "merging":
                with self._store._maintenance.debts.merges_awaited():
                    await self._merge()
            elif self._stage == "emptying":
                await self._empty()
        except CorruptionError as error:
            self._stop(str(error))
        except DeviceError as error:
            if error.operation != "read":
                raise
            self._stop(str(error))
        return self.progress()

    def _stop(self, reason: str = "") -> None:
        self._stage, self._stopped = "done", reason

    async def _merge(self) -> None:
        """Write out the memtable, or merge runs once, if that lets go of something."""
        checkpointer, tree = self._parts.checkpointer, self._parts.tree
        try:
            if not self._has_checkpointed:
                await self._parts.committer.commit()
                if await checkpointer.garbage_share() >= GARBAGE_SHARE_SHORT:
                    await checkpointer.checkpoint()
                self._has_checkpointed = True
                return
            before = {run.run_id: run.total_bytes for run in tree.runs}
            self._steps_left -= 1
            if self._steps_left >= 0 and await checkpointer.compact(
                garbage_share_max=GARBAGE_SHARE_SHORT
            ):
                after = {run.run_id: run.total_bytes for run in tree.runs}
                self._merged_bytes += sum(
                    max(0, size - after.get(number, 0)) for number, size in before.items()
                )
                return
        except NoSpaceError:
            self._wants_merging_again = not self._has_merged_again  # when there is more room
        self._stage = "emptying"

    async def _empty(self) -> None:
        """Give back what is dead, or else empty a few extents and give those back."""
        self._steps_left -= 1
        try:
            freed = await self._store.reclaim()
        except NoSpaceError as error:
            self._stop(str(error))
            return
        self._fruitless = 0 if freed else self._fruitless + 1
        is_over = not freed and not self._store._evacuator.candidates()
        if is_over and self._wants_merging_again:
            self._wants_merging_again, self._has_merged_again = False, True
            self._has_checkpointed, self._stage = False, "merging"
        elif is_over or self._fruitless >= _FRUITLESS_STEPS_MAX or self._steps_left < 0:
            self._stop()
