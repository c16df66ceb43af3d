"""Lets writers in: at once, a little later, or when there is room again.

Role: the only place where a writer waits for background work. How long follows from the debts
(debts.py), along the curve of pacing.py.

Invariants:
    I1. The memtable and the delta log do not outgrow their bounds for long: who adds to them
        is slowed, and then waits for the checkpoint that empties them.
    I2. Nobody is told that the device is full before a step of reclamation that began after he
        asked has freed nothing.
    I3. A writer that is cancelled while it waits leaves nothing behind.
    I4. Who is let in by `admits_at_once` would not have waited: everything was far from its bound
        when it was looked at last, what was let in since is not more than it was far from it, and
        no extent has been taken since.

Who waits for whom, each only for what stands to the right of it, so that nobody waits in a circle:
    writer in `admit` -> reclamation, checkpoint -> the lock of merges -> the lock of installing
    -> commit -> scheduler -> device.
No background task admits itself. A checkpoint or merge that has no room gives up (NoSpaceError)
rather than wait for reclamation. Files hold their own locks while they wait in `admit`; nothing
to the right takes those.

Not here: the work that is waited for (reclamation.py, merging.py, gathering.py), space promised to
buffered data (store.Store.reserve).
"""

from __future__ import annotations

from typing import Final

from shardfs import limits
from shardfs.engine.commit import Committer
from shardfs.engine.debts import Debts
from shardfs.engine.extents import Extents
from shardfs.engine.gathering import Gatherer
from shardfs.engine.health import Health
from shardfs.engine.merging import Merging
from shardfs.engine.pacing import Throttle
from shardfs.engine.reclamation import Reclamation

SHORT_ENTRY_BYTES: Final = 2 * limits.KIB
"""What the entry of a value that is let in at once takes at most, beside its key."""
_PASSES: Final = (32, 8, 2)
"""What so many writers may take is let in at once, if it is there; else less."""
_PASS_BYTES_MAX: Final = 64 * limits.KIB
_PASS_FRAME_BYTES: Final = 2 * limits.KEY_BYTES_MAX
"""What the frame of a writer's data takes beside it, at most."""
_PASS_DEBT_MAX: Final = 0.46
"""Below 0.5, from where writers are slowed (pacing.py)."""
_PASS_EXTENTS_FREE: Final = 4


class Admission:
    """The door for the writers of one open store.

    Args:
        committer, extents, health: of the store.
        debts, reclamation, merging, gatherer: what a writer may have to wait for.
    """

    def __init__(
        self,
        committer: Committer,
        extents: Extents,
        health: Health,
        debts: Debts,
        reclamation: Reclamation,
        merging: Merging,
        gatherer: Gatherer,
    ) -> None:
        self._committer = committer
        self._extents = extents
        self._health = health
        self._debts = debts
        self._reclamation = reclamation
        self._merging = merging
        self._gatherer = gatherer
        self._throttle = Throttle()
        self._change_bytes = self._data_bytes = 0
        """What may come in without being looked at: changes of the tree, and data."""
        self._free_extents = -1
        """How many were free when that was found."""

    def admits_at_once(self, length: int, change_bytes: int) -> bool:
        """Whether a writer may come in without `admit`, which would not make it wait (I4).

        False says nothing: then `admit` finds out.

        Args:
            length: bytes of data that will be appended.
            change_bytes: what its keys and values take at most.
        """
        data_bytes = length + _PASS_FRAME_BYTES
        if (
            change_bytes > self._change_bytes
            or data_bytes > self._data_bytes
            or length > _PASS_BYTES_MAX
            or self._extents.free_count != self._free_extents
        ):
            return False
        self._change_bytes -= change_bytes
        self._data_bytes -= data_bytes
        return True

    async def admit(self, length: int) -> None:
        """Let a writer in: the more slowly the further the background is behind, and not at all
        while far too much is behind the last checkpoint (I1), or garbage is in the way of `length`
        bytes of new data.

        The slowing takes limits.ADMISSION_DELAY_S_MAX at most. May be cancelled.

        Checkpoints: only then.

        Raises:
            DeviceError, ReadOnlyError: what is waited for has failed.
        """
        self._change_bytes = self._data_bytes = 0
        if not self._health.is_writable:
            return
        debt = 1.0
        if not self._debts.by_hand:
            space_debt = self._debts.space()
            if space_debt:
                self._reclamation.want()
            debt = max(space_debt, self._debts.log(), self._debts.merges(), self._debts.queue())
            await self._throttle.delay(debt, length)
            if self._committer.is_overdue:
                with self._debts.merges_awaited():
                    await self._merging.checkpoint_if_due()
        # Nobody shall be told that the device is full while garbage can be reclaimed (I2).
        wanted = length + self._extents.extent_bytes
        if self._extents.space.user_bytes() < wanted:
            await self._merging.squeeze()
        await self._wait_until_ready(length)
        if self._extents.space.user_bytes() < wanted and await self._gatherer.give_back(wanted):
            await self._wait_until_ready(length)
        elif debt <= _PASS_DEBT_MAX and not self._debts.space():
            self._give_passes(wanted)

    def _give_passes(self, wanted: int) -> None:
        """Let the next small writers in at once, if all that they may take is there."""
        extents = self._extents
        for passes in _PASSES:
            change_bytes = passes * limits.RECORD_BYTES_MAX
            data_bytes = passes * _PASS_BYTES_MAX
            room = 2 * data_bytes + _PASS_EXTENTS_FREE * extents.extent_bytes
            if (
                self._committer.takes(change_bytes)
                and extents.space.user_bytes() >= wanted + room
                and extents.ready_user_bytes() >= self._debts.scarce_bytes(0) + room
            ):
                self._change_bytes, self._data_bytes = change_bytes, data_bytes
                self._free_extents = extents.free_count
                return

    async def _wait_until_ready(self, length: int) -> None:
        while self._extents.ready_user_bytes() < self._debts.scarce_bytes(length):
            if not await self._reclamation.wait_for_space():
                return
