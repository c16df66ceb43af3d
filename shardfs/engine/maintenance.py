"""The background work of an open store: commits, checkpoints, merges, reclamation, gathering.

Role: five endless tasks for a store's nursery, one for each kind of work; composes what they and
writers need of each other. Everything here may be cancelled between its steps and leaves nothing
half-done.

Invariants:
    I1. An error in the background ends neither the store nor its caller: the store turns
        read-only, with the reason.
    I2. Neither a full device nor a failed read nor rot is an error here: it is tried again later.

Who waits for whom: see admission.py.

Not here: what the steps do (commit.py, checkpoint.py, merging.py, reclamation.py, gathering.py);
how far each is behind (debts.py), letting writers in (admission.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from shardfs import limits
from shardfs.engine.admission import Admission
from shardfs.engine.debts import Debts
from shardfs.engine.evacuation import Evacuator
from shardfs.engine.gathering import Gatherer
from shardfs.engine.merging import Merging
from shardfs.engine.opening import Parts
from shardfs.engine.pacing import Slices
from shardfs.engine.reclamation import Reclamation
from shardfs.errors import NoSpaceError, ShardfsError

_log = logging.getLogger(__name__)


class Maintenance:
    """The background work of one open store.

    Args:
        parts: of the store, as it was opened.
        evacuator, gatherer: likewise, made for it.
        interval_s: applied batches are committed after this long.
    """

    def __init__(
        self, parts: Parts, evacuator: Evacuator, gatherer: Gatherer, interval_s: float
    ) -> None:
        committer, checkpointer = parts.committer, parts.checkpointer
        extents, scheduler, health = parts.extents, parts.scheduler, parts.health
        self._committer = committer
        self._checkpointer = checkpointer
        self._extents = extents
        self._health = health
        self._gatherer = gatherer
        self._interval_s = interval_s
        self._commit_due = trio.Event()
        self._checkpoint_due = trio.Event()
        self._merge_due = trio.Event()
        self.debts = Debts(committer, extents, scheduler, parts.tree, interval_s)
        self.reclamation = Reclamation(
            committer, checkpointer, extents, scheduler, health, evacuator, self.debts
        )
        self.merging = Merging(
            committer, checkpointer, extents, self.debts, self.reclamation, interval_s
        )
        self.admission = Admission(
            committer, extents, health, self.debts, self.reclamation, self.merging, gatherer
        )
        evacuator.slices = Slices(self.debts.space_pace)
        checkpointer.merge_pace = self.debts.merge_pace
        checkpointer.checkpoint_pace = self.debts.checkpoint_pace

    def start(self, nursery: trio.Nursery) -> None:
        """Run until the nursery is cancelled."""
        self.debts.by_hand = False
        for work in (self._commit_regularly, self._checkpoint, self._merge, self._keep_ready):
            nursery.start_soon(self._guard, work)
        nursery.start_soon(self._guard, self._gatherer.run)

    def notice(self) -> None:
        """Something was applied or committed: wake who has to do something about it."""
        if self._committer.pending_bytes >= limits.DELTA_BYTES_MAX:
            self._commit_due.set()
        if self._committer.is_due:
            self._checkpoint_due.set()

    async def make_room(self) -> int:
        """Have all space that can come back do so, a step at a time; extents freed.

        Raises:
            DeviceError, ReadOnlyError, NoSpaceError: some may not have been freed.
        """
        if self._extents.space.is_short:
            await self.merging.squeeze()
        freed = await self.reclamation.reclaim(evacuate=True)
        if not freed:
            await self._gatherer.give_back(2 * self._extents.extent_bytes)
        return freed

    # --- tasks ------------------------------------------------------------------------------

    async def _guard(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await work()
        except ShardfsError as error:
            self._health.make_read_only(str(error))
        except Exception:  # a bug ends neither the store nor its caller
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
                await self.merging.keep_room()
                self._merge_due.set()
            except NoSpaceError:
                with trio.move_on_after(self._interval_s):
                    await self.reclamation.wait_for_space()

    async def _merge(self) -> None:
        while True:
            with trio.move_on_after(self._interval_s / 4):
                await self._merge_due.wait()
            self._merge_due = trio.Event()
            if await self.merging.merge_all():
                await self.merging.tidy_when_idle()

    async def _keep_ready(self) -> None:
        """Give back what is dead, and empty extents while too little is ready to be written."""
        debts, reclamation = self.debts, self.reclamation
        while True:
            await reclamation.wanted(self._interval_s / 4)
            try:
                await reclamation.step(evacuate=False)
                while debts.waiting or self._extents.ready_user_bytes() < debts.ready_wanted():
                    if self._committer.is_overdue:
                        # What is moved goes through the log as well.
                        await self.merging.checkpoint_if_due()
                    if not await reclamation.step(evacuate=True):
                        break
                    await trio.lowlevel.checkpoint()
            except NoSpaceError as error:
                _log.warning("reclamation is put off: %s", error)
