"""How far each kind of background work is behind, and who waits for it.

Role: the debts that the law of pacing.py is applied to, and the pace of each kind of work: as
urgent as its debt, or as can be while somebody waits for it. Also remembers what is put off:
work that cannot be done at the moment slows nobody.

Invariants:
    I1. A debt is 0 while the work need not be done, 1 once writers must wait for it, and rises
        in between with what is left to do.
    I2. While somebody waits for any of the work none of it rests: what is waited for may itself
        wait for another kind. Nor does what is done by hand.
    I3. Nothing here awaits or changes the store: a debt can be asked for at any moment.

Not here: what follows from a debt (pacing.py, admission.py), the work (reclamation.py, merging.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from shardfs import limits
from shardfs.engine.commit import Committer
from shardfs.engine.extents import Extents
from shardfs.engine.lsm.compaction import merge_debt
from shardfs.engine.lsm.merge import Run
from shardfs.engine.lsm.tree import Tree
from shardfs.engine.pacing import share_between
from shardfs.engine.scheduler import Scheduler

_SCARCE_SHARE = 4
_SCARCE_BYTES_MAX = 1 * limits.MIB
_READY_EXTENTS_MIN = 3
_READY_SHARE = 64
_READY_FREE_SHARE = 8


class Debts:
    """The debts of one open store.

    Args:
        committer, extents, scheduler, tree: of the store.
        interval_s: applied batches are committed after this long.
    """

    def __init__(
        self,
        committer: Committer,
        extents: Extents,
        scheduler: Scheduler,
        tree: Tree,
        interval_s: float,
    ) -> None:
        self._committer = committer
        self._extents = extents
        self._scheduler = scheduler
        self._tree = tree
        self._interval_s = interval_s
        self._runs_weighed: tuple[Run, ...] = ()
        self._merge_debt = 0.0
        self._merges_awaited = 0
        self._merges_from = -math.inf
        self._fruitless_until = -math.inf
        self.waiting = 0
        """How many wait for space."""
        self.by_hand = True
        """Nobody but the caller does the work: no background task runs."""

    # --- debts ------------------------------------------------------------------------------

    def log(self) -> float:
        """How far checkpoints are behind: from when one is due to when writers wait for it."""
        return share_between(self._committer.fill, 1.0, 2.0)

    def merges(self) -> float:
        """How far merging is behind; nothing while it cannot be done."""
        if self.merging_is_put_off:
            return 0.0
        runs = self._tree.runs
        if runs is not self._runs_weighed:  # each writer asks, and they change with a merge
            self._runs_weighed, self._merge_debt = runs, merge_debt(runs)
        return self._merge_debt

    def space(self) -> float:
        """How far reclamation is behind: from when it begins to when writers wait for it. Nothing
        when it has just found nothing to gain: there is no use in slowing anybody."""
        ready, wanted = self._extents.ready_user_bytes(), self.ready_wanted()
        if ready >= wanted or trio.current_time() < self._fruitless_until:
            return 0.0
        scarce = self.scarce_bytes(0)
        return share_between(ready, wanted, scarce) if scarce < wanted else 1.0

    def queue(self) -> float:
        """How far the device is behind with what is to be written."""
        return self._scheduler.queued_bytes / limits.QUEUED_BYTES_MAX

    # --- paces ------------------------------------------------------------------------------

    def checkpoint_pace(self) -> float:
        """How urgent a checkpoint is, once begun: it should end before the next is due."""
        return 1.0 if self._is_awaited else min(1.0, self._committer.fill)

    def merge_pace(self) -> float:
        """How urgent merging is."""
        return 1.0 if self._is_awaited else self.merges()

    def space_pace(self) -> float:
        """How urgent reclamation is."""
        return 1.0 if self._is_awaited else self.space()

    @property
    def _is_awaited(self) -> bool:
        return bool(self.waiting or self._merges_awaited or self.by_hand)

    # --- space ------------------------------------------------------------------------------

    def ready_wanted(self) -> int:
        """Bytes for user data that reclamation keeps ready."""
        # The fuller the device, the less is kept ready: what is ready can hold no garbage, and the
        # more garbage an extent holds when it is emptied the less is moved for it.
        space = self._extents.space
        user_bytes = space.user_bytes()
        wanted = min(space.total_bytes // _READY_SHARE, user_bytes // _READY_FREE_SHARE)
        return min(user_bytes, max(wanted, _READY_EXTENTS_MIN * self._extents.extent_bytes))

    def scarce_bytes(self, length: int) -> int:
        """Who appends `length` bytes waits while less than this is ready: some more, for others."""
        wanted = length + min(_SCARCE_BYTES_MAX, self._extents.extent_bytes // _SCARCE_SHARE)
        # Changes that a full device takes all the same may have left less than was set aside.
        space = self._extents.space
        return min(wanted, max(space.user_bytes(), space.reserved_bytes))

    # --- who waits, what is put off ---------------------------------------------------------

    @contextmanager
    def waited_for(self) -> Iterator[None]:
        """While the body runs somebody waits, and reclamation does not rest."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @contextmanager
    def merges_awaited(self) -> Iterator[None]:
        """While somebody waits for merges, or nobody for anything, they do not rest."""
        self._merges_awaited += 1
        try:
            yield
        finally:
            self._merges_awaited -= 1

    def found_nothing_to_reclaim(self) -> None:
        """A step of reclamation has freed nothing: the next would not either, for a while."""
        self._fruitless_until = trio.current_time() + self._interval_s / 4

    @property
    def merging_is_put_off(self) -> bool:
        """Merging was not possible a moment ago."""
        return trio.current_time() < self._merges_from

    def put_merging_off(self, intervals: int) -> None:
        """Merging is not possible: try again after so many commit intervals."""
        if not self.by_hand:
            self._merges_from = trio.current_time() + self._interval_s * intervals
