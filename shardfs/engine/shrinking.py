"""Makes an open store smaller: moves everything out of the extents behind a new end.

Role: a Shrinking empties those extents by the same means as reclamation, a step at a time, and then
gives them up. The size of an extent stays. The store is in use meanwhile.

Invariants (that of resizing.py, and):
    I1. A store is made smaller only when all extents behind the new end are free persistently,
        and neither the manifest nor the delta log names them.
    I2. From the moment a shrink begins no more data is taken than will fit before the new end,
        and nothing is written behind it; only where less than the reserve is free before it, so
        much of what is free behind it may be written still, and is emptied again.
    I3. What is free behind the end is given up only while so much is free before it that
        reclamation can go on there: first what is dead is freed, and what lives moved together.
        A shrink that fails gives the end back. So none leaves a store without room to make room.

Ordering: room before the end, as reclamation makes it, which changes nothing of the
size -> live data, runs and log out of the tail -> commit -> tail freed, record ->
flush -> checkpoint, manifest, record -> flush -> first superblock copy, new size -> flush ->
second copy -> flush -> [image file cut off]. A power cut before the first copy is whole leaves
the old size with less in its tail; after it, the new size.

Not here: moving data (evacuation.py, checkpoint.py), making a store larger (resizing.py), the
commands (cli/).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import trio

from shardfs import limits
from shardfs.engine.extent import Extent
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.reserve import free_extents_to_go_on, reserve_extents
from shardfs.engine.resizing import Resized, require_resizable, resized, set_bounds
from shardfs.engine.space import DATA_STREAMS, MERGE_FLOOR_EXTENTS
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import Identity
from shardfs.errors import (
    CorruptionError,
    DeviceBusyError,
    DeviceTooSmallError,
    NoSpaceError,
    UsageError,
)

_log = logging.getLogger(__name__)

_ATTEMPTS_MAX = 300
_EVACUATIONS_MAX = 3
_RECLAIMS_FOR_NOTHING_MAX = 3
_RECLAIMS_WITHOUT_GAIN_MAX = 32
_REFUSALS_MAX = 8
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a shrink has come: live bytes that were behind the new end, and still are."""

    total_bytes: int
    left_bytes: int
    result: Resized | None = None
    """Set when it is done."""


class Shrinking:
    """A shrink that is under way: call `step` until it says that it is done.

    Args:
        store: open for writing.
        size_bytes: the new size.

    Between steps the store can be used as always. `abandon` gives the tail back.

    Raises:
        UsageError: it is not larger than that.
        DeviceTooSmallError: a store of that size would have too few extents.
        NoSpaceError: what is live would not fit; the message says how many bytes short.
        DeviceBusyError: it is being made smaller already.
        ReadOnlyError
    """

    def __init__(self, store: Store, size_bytes: int) -> None:
        require_resizable(store)
        self._store = store
        self._extents = store._extents
        self._before = store.identity
        self._size_bytes = size_bytes - size_bytes % limits.BLOCK_BYTES
        self._identity = after = _smaller(store, self._size_bytes)
        self._free_least = free_extents_to_go_on(
            reserve_extents(after.extent_count), after.extent_bytes, after.chunk_bytes_max
        )
        self._attempts: Counter[int] = Counter()
        self._refusals = 0
        self._pauses = 0
        self._is_over = False
        if self._identity.extent_count < self._before.extent_count:
            set_bounds(store, self._identity.extent_count)
            self._extents.withhold(self._identity.extent_count)
        self.total_bytes = self._left_bytes()
        """Live bytes that are to be moved."""

    async def step(self) -> Progress:
        """Empty one extent, or finish.

        Durable when: it says that it is done, the store has the new size.

        Raises:
            CorruptionError: something there cannot be read, and so not be moved.
            NoSpaceError, DeviceBusyError: it could not be moved now.
            DeviceError, ReadOnlyError: it failed; the store has the old size or the new one.
        """
        assert not self._is_over, "it is done, or was abandoned"
        try:
            if self._tail_is_free():
                await self._finish()
                return Progress(self.total_bytes, 0, resized(self._store, self._before))
            extent = self._next_extent()
            await self._make_room()
            if extent is not None:
                await self._empty(extent)
            elif not self._tail_is_free():
                self._require_room()
                await self._wait_for_free()
            self._refusals = 0
        except NoSpaceError as error:
            # What was moved so far gives room for the rest.
            self._refusals += 1
            if self._refusals > _REFUSALS_MAX:
                raise NoSpaceError(
                    f"{self._left_bytes()} bytes short: they are still behind the new end, and "
                    f"{error}; delete something, or take a larger size"
                ) from error
            await self._free_dead()
        left = self._left_bytes()
        self.total_bytes = max(self.total_bytes, left)
        return Progress(self.total_bytes, left)

    def abandon(self) -> None:
        """The store keeps its size, if it is not smaller already. May be called again."""
        if not self._is_over:
            self._is_over = True
            if self._extents.free.are_withheld:
                self._extents.free.hand_back()
                set_bounds(self._store)

    # --- emptying the tail --------------------------------------------------------------------

    def _tail(self) -> Sequence[Extent]:
        return self._extents.all[self._identity.extent_count :]

    def _tail_is_free(self) -> bool:
        return self._extents.free.withheld_count == len(self._tail())

    async def _wait_for_free(self) -> None:
        """Somebody else may be freeing what is left; what could not be reset is not freed before
        the next opening."""
        self._pauses += 1
        if self._pauses > _ATTEMPTS_MAX:
            raise DeviceBusyError(
                f"extents behind the new end of {self._store._parts.device.path} do not become "
                "free; mount again, and try again"
            )
        await trio.sleep(_PAUSE_S)

    def _left_bytes(self) -> int:
        return sum(extent.live_bytes for extent in self._tail())

    def _next_extent(self) -> Extent | None:
        """The extent that was tried least often, of those in use; sealed before it is emptied.

        An open one is one that was spared: it comes last, when there is room elsewhere.
        """
        used = [extent for extent in self._tail() if extent.state is not ExtentState.FREE]
        sealed = [extent for extent in used if extent.state is ExtentState.SEALED]
        extent = min(sealed or used, key=lambda each: self._attempts[each.index], default=None)
        if extent is not None and extent.state is ExtentState.OPEN:
            self._extents.seal(extent)
        return extent

    async def _empty(self, extent: Extent) -> None:
        store, index, epoch = self._store, extent.index, extent.epoch
        self._attempts[index] += 1
        await store.sync()  # what is to be moved has been written
        if extent.stream in DATA_STREAMS and extent.live_bytes:
            with store._maintenance.debts.waited_for():
                await store._evacuator.evacuate(extent)
            if extent.live_bytes and self._attempts[index] >= _EVACUATIONS_MAX:
                raise CorruptionError(
                    f"{extent.live_bytes} bytes of it cannot be read, so they cannot be moved; "
                    "shardfs fsck --data names the files",
                    f"extent {index}",
                )
        elif extent.stream is Stream.RUNS:
            while await store._checkpointer.empty(index):
                await trio.lowlevel.checkpoint()
        elif extent.stream is Stream.META:
            await store.checkpoint()
        await self._free_dead()
        if extent.epoch == epoch and self._attempts[index] > 1:
            if self._attempts[index] > _ATTEMPTS_MAX:
                raise DeviceBusyError(f"extent {index} stays in use; try again later")
            await trio.sleep(_PAUSE_S)  # it is being read

    async def _make_room(self) -> None:
        """Bounded upkeep: what was moved fills memtable, log and runs, and the front of the
        device."""
        store = self._store
        if store._committer.is_due:
            await store.checkpoint()
        while await store.compact():
            await trio.lowlevel.checkpoint()
        await self._reclaim_before_end()
        if self._free_before_end() >= self._free_least:
            self._extents.free.withhold_all()

    async def _reclaim_before_end(self) -> None:
        """Until enough is free there, or nothing is to be gained (I3)."""
        for_nothing = without_gain = 0
        while (before := self._free_before_end()) < self._free_least + MERGE_FLOOR_EXTENTS:
            if (
                for_nothing == _RECLAIMS_FOR_NOTHING_MAX
                or without_gain == _RECLAIMS_WITHOUT_GAIN_MAX
            ):
                return
            try:
                freed = await self._store.reclaim()
            except NoSpaceError:
                freed = 0
                await self._free_dead()
            # Of extents with little garbage several have to be emptied, to as many but one.
            is_gain = self._free_before_end() > before
            for_nothing = 0 if freed or is_gain else for_nothing + 1
            without_gain = 0 if is_gain else without_gain + 1

    def _require_room(self) -> None:
        """Raises NoSpaceError: with the end given up, reclamation would have no room (I3)."""
        short = self._free_least - self._free_before_end()
        if short > 0:
            raise NoSpaceError(
                f"{short * self._extents.extent_bytes} bytes short: too little becomes free before "
                "the new end to go on with there; delete something, or take a larger size"
            )

    async def _free_dead(self) -> None:
        await self._store.sync()
        await self._store.reclaim_dead()

    def _free_before_end(self) -> int:
        free = self._extents.free
        return sum(not free.is_behind_end(extent) for extent in free)

    # --- the end ------------------------------------------------------------------------------

    async def _finish(self) -> None:
        store, committer = self._store, self._store._committer
        if self._tail():
            # The manifest, and the log behind it, shall be younger than the last use (I1).
            last_use = committer.next_number
            while committer.persistent_checkpoint < last_use:
                await store.checkpoint()
            # That has taken some of what was free.
            await self._reclaim_before_end()
            self._require_room()
        with trio.CancelScope(shield=True):
            if self._identity != self._before:
                await committer.change_identity(self._change)
            self._is_over = True
            await store._parts.device.set_length(self._size_bytes)
        _log.info("shrunk to %d extents", self._identity.extent_count)

    def _change(self) -> Identity:
        if self._tail():
            self._extents.shorten(self._identity.extent_count)
        return self._identity


def _smaller(store: Store, wanted: int) -> Identity:
    """The identity of a store that has shrunk to `wanted` bytes."""
    before = store.identity
    if wanted >= max(before.device_bytes, store._parts.device.size_bytes):
        raise UsageError(
            f"the store has {before.device_bytes} bytes, not more than {wanted}; to make it "
            "larger use: shardfs grow"
        )
    count = wanted // before.extent_bytes
    if count >= before.extent_count:
        # No extent is given up: what is behind the last one, or was left when a shrink was cut.
        return replace(before, device_bytes=min(before.device_bytes, wanted))
    if count < limits.EXTENT_COUNT_MIN:
        least = limits.EXTENT_COUNT_MIN * before.extent_bytes
        raise DeviceTooSmallError(
            f"a store with extents of {before.extent_bytes} bytes has at least {least} bytes"
        )
    short = _short_bytes(store, count)
    if short > 0:
        fits = count
        while fits < before.extent_count and (lacking := _short_bytes(store, fits)) > 0:
            fits += max(1, lacking // before.extent_bytes)
        advice = f"{fits * before.extent_bytes} would do"
        if fits >= before.extent_count:
            advice = "it can not be made smaller unless something is deleted"
        raise NoSpaceError(
            f"{short} bytes short: what is live, with the reserve, does not fit into {wanted} "
            f"bytes; {advice}"
        )
    return replace(before, device_bytes=wanted, extent_count=count)


def _short_bytes(store: Store, count: int) -> int:
    """What is live or promised, beyond what would fit into so many extents."""
    free = store._extents.space.user_bytes_with(count, reserve_extents(count))
    return store._applier.reserved_bytes - free
