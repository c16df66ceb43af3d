"""When the tree is merged, and what a checkpoint has to be followed by.

Role: merges as far as it is worth it, and decides what that is: on a device that is about to be
called full, after a checkpoint that leaves little room to merge in, and when nothing happens.

Invariants:
    I1. Merging that finds no room, or rot, or a failed read leaves the runs as they are, is put
        off for a while, and is no error.
    I2. A checkpoint or a merge that has no room gives up rather than wait for reclamation.
    I3. The longer nothing is applied, the less garbage is worth a merge: none stays for ever.

Not here: how runs are merged and written (checkpoint.py, lsm/compaction.py), which are chosen.
"""

from __future__ import annotations

import logging

import trio

from shardfs.engine.checkpoint import Checkpointer
from shardfs.engine.commit import Committer
from shardfs.engine.debts import Debts
from shardfs.engine.extents import Extents
from shardfs.engine.lsm.compaction import GARBAGE_SHARE_MAX, GARBAGE_SHARE_SHORT
from shardfs.engine.reclamation import Reclamation, require_read_trouble
from shardfs.errors import CorruptionError, DeviceError, NoSpaceError

_log = logging.getLogger(__name__)

_HIDDEN_SHARE_WORTH_MERGING = 256
_SQUEEZES_PER_WORTH = 8
"""Where there was no room for it, it is tried again when the tree has grown by such a part."""
_CERTAINTY = 0.5
"""How much garbage there is in the tree is estimated: it may be twice as much."""
_GARBAGE_SHARE_TIGHT = 1 / 32
_ROT_INTERVALS = 15
"""Merging that met rot is tried again after so many commit intervals."""


class Merging:
    """The merges of one open store.

    Args:
        committer, checkpointer, extents: of the store.
        debts: told what is put off, and when somebody waits.
        reclamation: gives back what merges have made dead.
        interval_s: applied batches are committed after this long.
    """

    def __init__(
        self,
        committer: Committer,
        checkpointer: Checkpointer,
        extents: Extents,
        debts: Debts,
        reclamation: Reclamation,
        interval_s: float,
    ) -> None:
        self._committer = committer
        self._checkpointer = checkpointer
        self._extents = extents
        self._debts = debts
        self._reclamation = reclamation
        self._interval_s = interval_s
        self._squeezing = trio.Lock()
        self._squeezed_bytes = self._squeeze_step = 0
        self._number_before = -1
        self._idle_since = 0.0

    async def merge_all(self, *, garbage_share_max: float = GARBAGE_SHARE_MAX) -> bool:
        """Merge until nothing is worth it.

        Args:
            garbage_share_max: merge everything if more than this part of it may be garbage.

        Returns:
            False: there was no room for it, or something cannot be read (I1).

        Raises:
            DeviceError, ReadOnlyError: something could not be written; the old runs are in force.
        """
        if self._debts.merging_is_put_off:
            return False
        try:
            # What a step has made dead may be the room that the next one needs.
            while await self._checkpointer.compact(garbage_share_max=garbage_share_max) or (
                self._checkpointer.is_merging and await self._reclamation.step(evacuate=False)
            ):
                await trio.lowlevel.checkpoint()
        except NoSpaceError:
            self._debts.put_merging_off(1)
            return False
        except (CorruptionError, DeviceError) as error:
            require_read_trouble(error)
            _log.warning("merging is put off: %s", error)
            self._debts.put_merging_off(_ROT_INTERVALS if isinstance(error, CorruptionError) else 1)
            return False
        return not self._checkpointer.is_merging

    async def checkpoint_if_due(self) -> bool:
        """False: it is due, and there is no room for it until something is deleted.

        Raises:
            DeviceError, ReadOnlyError: it failed; the old tree is in force.
        """
        try:
            await self._checkpointer.checkpoint(only_if_due=True)
        except NoSpaceError:
            return False
        await self.keep_room()
        return True

    async def keep_room(self) -> None:
        """A checkpoint has made the tree larger: merge all of it while there is room for that.

        Raises: as `merge_all`.
        """
        if self._lacks_room:
            await self._reclamation.reclaim()
        if self._lacks_room and await self.merge_all(garbage_share_max=_GARBAGE_SHARE_TIGHT):
            await self._reclamation.reclaim()

    @property
    def _lacks_room(self) -> bool:
        extents = self._extents
        return extents.space.lacks_room_to_merge(extents.free_count)

    async def squeeze(self) -> None:
        """On a device that is about to be called full: merge the tree into one run if what it
        hides may be worth it. Then what is still free no longer depends on what was merged.

        Raises: as `merge_all`.
        """
        space = self._extents.space
        worth = space.unreserved_bytes // _HIDDEN_SHARE_WORTH_MERGING
        if self._checkpointer.hidden_bytes_max < worth:
            return
        async with self._squeezing:
            grown = space.tree_share_bytes - self._squeezed_bytes
            if 0 <= grown < self._squeeze_step or self._checkpointer.hidden_bytes_max < worth:
                return  # it was merged a moment ago, or nothing was to be gained
            self._squeeze_step = worth
            # A writer waits. The tree has twice its size set aside: so much comes back.
            with self._debts.merges_awaited():
                if 2 * await self._checkpointer.garbage_bytes() >= worth * _CERTAINTY:
                    share = worth / max(worth, space.tree_share_bytes)
                    if not await self._merge_memory_too(share):
                        self._squeeze_step = worth // _SQUEEZES_PER_WORTH
            self._squeezed_bytes = space.tree_share_bytes

    async def _merge_memory_too(self, garbage_share_max: float) -> bool:
        """False: as `merge_all`."""
        try:
            await self._checkpointer.checkpoint()
        except NoSpaceError:
            return False
        return await self.merge_all(garbage_share_max=garbage_share_max)

    async def tidy_when_idle(self) -> None:
        """When nothing has been applied for a while, what was deleted leaves the tree as well (I3).

        Raises: as `merge_all`.
        """
        now = trio.current_time()
        if self._number_before != self._committer.next_number:
            self._number_before, self._idle_since = self._committer.next_number, now
        idle_s = now - self._idle_since
        if idle_s < self._interval_s:
            return
        # What is written a second stays bounded.
        worth = GARBAGE_SHARE_SHORT * self._interval_s / idle_s
        if await self._checkpointer.garbage_share() <= worth:
            return
        try:
            with self._debts.merges_awaited():
                if self._checkpointer.has_unwritten:
                    await self._checkpointer.checkpoint()
                if await self.merge_all(garbage_share_max=0.0):
                    await self._committer.commit()
                    await self._reclamation.reclaim()
        except NoSpaceError as error:
            _log.warning("tidying is put off: %s", error)
