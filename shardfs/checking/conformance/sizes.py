"""Stores that become larger and smaller, beside the model of their size.

Role: grows, shrinks and trims the open store of one sequence, on a simulated device, in any world
that has one. Sizes are whole numbers of extents, few, so that a store comes back to one it had.

What is checked:
    S1. What a crash or an error leaves is a size that models.size_model allows.
    S2. A shrink is refused when what is live would not fit, and at no other time.
    S3. One that was not refused comes to its end, unless a fault explains that it cannot.
    S4. While it goes on, nothing is written behind the new end but to what is spared.
    S5. A store has as much free as a fresh one of its size, less what is live: the world's model
        of space is told the size, and knows.

Not here: which operations do this when (store_operations.py, file_run.py), moving
(engine/resizing.py, engine/shrinking.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.store_devices import Geometry, formatted
from shardfs.checking.models.size_model import SizeModel
from shardfs.checking.schedule import Control, Replay, run_once
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine import resizing
from shardfs.engine.options import StoreOptions
from shardfs.engine.shrinking import Shrinking
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import Identity
from shardfs.errors import (
    CorruptionError,
    DeviceBusyError,
    DeviceError,
    NoSpaceError,
    ReadOnlyError,
    ShardfsError,
)

_STEP_EXTENTS: Final = 8
_COUNTS: Final = range(limits.EXTENT_COUNT_MIN, 65, _STEP_EXTENTS)
_LARGER_MAX: Final = 3
_STEPS_MAX: Final = 400
_ROUNDING_BYTES: Final = 2


@functools.cache
def fresh_bytes(extent_bytes: int, extent_count: int) -> int:
    """What is free in a fresh store of this size. Requires: no trio run goes on."""
    device = formatted(Geometry(512, False, extent_count, extent_bytes)).power_cut()
    free = []

    async def program(_: Control) -> None:
        async with Store.open(device, options=StoreOptions(background=False)) as store:
            free.append(store.space().free_bytes)

    run = run_once(program, Replay(()))
    assert run.finding is None, f"{run.finding}"
    return free[0]


@functools.cache
def fresh_stores(extent_bytes: int) -> Mapping[int, int]:
    """What is free in a fresh store, by its number of extents; for every size that a store of one
    of them may come to. Requires: no trio run goes on."""
    return {count: fresh_bytes(extent_bytes, count) for count in _COUNTS}


@dataclass(slots=True)
class _UnderWay:
    """A shrink.

    Args:
        end: the extents that there will be.
        unused: those behind the end in which nothing lived when it began.
        spared: how many of them may be written to all the same.
    """

    shrinking: Shrinking
    end: int
    unused: frozenset[int] = frozenset()
    spared: int = 0


@dataclass(slots=True)
class Sizes:
    """The size of one sequence's store.

    Args:
        model: of the size.
        extent_bytes: of each extent.
        fresh: see `fresh_stores`.
        coverage: told.
        is_troubled: a fault has struck, so that what is live may stay where it is.
        resized: told from when on what is free is as in a store of so many extents.
    """

    model: SizeModel
    extent_bytes: int
    fresh: Mapping[int, int]
    coverage: Coverage
    is_troubled: Callable[[], bool]
    resized: Callable[[int], None]
    at_change: Callable[[], None] | None = None
    """Called once, when the superblock is about to say another size."""
    _under_way: _UnderWay | None = field(default=None)

    def opened(self, store: Store, *, lost: bool = False) -> None:
        """A life begins (S1).

        Args:
            lost: bytes of the device are not what they were: any size may be found.
        """
        self._under_way = None
        found = store.identity.extent_count
        if lost:
            self.model.changed(found)
        else:
            self.model.opened(found)
        self.resized(found)
        self.at_change = None
        change = store._committer.change_identity

        async def watched(identity: Callable[[], Identity]) -> None:
            called, self.at_change = self.at_change, None
            if called is not None:
                called()
            await change(identity)

        vars(store._committer)["change_identity"] = watched

    def closed(self) -> None:
        """The store was closed in good order: a shrink under way was given up."""
        if self._under_way is not None:
            self.model.refused()

    async def grow(self, store: Store, device: SimulatedDevice, steps: int) -> None:
        """The device becomes larger, or its image file, and then the store."""
        before = self.model.extent_count
        sizes = [count for count in self.fresh if count > before][:_LARGER_MAX]
        if not sizes:
            return
        count = sizes[steps % len(sizes)]
        if not device.is_image:
            device.medium_bytes = max(device.medium_bytes, count * self.extent_bytes)
        if self._under_way is None:
            self.model.begin(count)
        try:
            result = await resizing.grow(store, count * self.extent_bytes)
        except DeviceBusyError as error:
            assert self._under_way is not None, f"{error}, and it is not"
            return
        except ShardfsError as error:
            self._failed(store, error)
            raise
        assert self._under_way is None, "it has grown while it was made smaller"
        assert (result.extent_count, result.device_bytes) == (count, count * self.extent_bytes)
        self.model.changed(count)
        self.resized(count)
        self.coverage.counts["resize grown"] += 1

    async def shrink(self, store: Store, extents: int, steps: int) -> None:
        """A shrink begins, or goes on: so many steps of it (0: to its end). What is not at its end
        goes on beside the operations to come."""
        if self._under_way is None:
            self._begin(store, extents)
        for _ in range(min(steps or _STEPS_MAX, _STEPS_MAX)):
            if self._under_way is None:
                return
            await self._step(store, self._under_way)
        assert steps or not self._under_way, f"a shrink is not at its end in {_STEPS_MAX} steps"

    def stop(self, store: Store) -> None:
        """A shrink that is under way is given up."""
        if self._under_way is not None:
            self._end(store)
            self.coverage.counts["resize given up"] += 1

    def _begin(self, store: Store, extents: int) -> None:
        before = self.model.extent_count
        sizes = [count for count in self.fresh if count < before]
        if not sizes:
            return
        count = sizes[extents % len(sizes)]
        left = store.space().free_bytes - self.fresh[before] + self.fresh[count]
        tail = store._extents.all[count:]
        unused = frozenset(each.index for each in tail if not each.live_bytes)
        try:
            shrinking = Shrinking(store, count * self.extent_bytes)
        except NoSpaceError as error:
            assert left < _ROUNDING_BYTES, f"{error}, with {left} bytes to spare"  # S2
            self.coverage.counts["resize refused"] += 1
            return
        spared = sum(each.index >= count for each in store._extents.free)
        assert left >= -_ROUNDING_BYTES, f"{-left} bytes do not fit, and it has begun"  # S2
        self._under_way = _UnderWay(shrinking, count, unused, spared)
        self.model.begin(count)
        self.resized(count)
        self.coverage.counts["resize begun"] += 1

    async def _step(self, store: Store, under_way: _UnderWay) -> None:
        try:
            progress = await under_way.shrinking.step()
        except (NoSpaceError, DeviceBusyError, CorruptionError) as error:
            self._end(store)
            assert self.is_troubled(), f"a shrink that was not refused fails: {error}"  # S3
            self.coverage.counts["resize failed"] += 1
            return
        except ShardfsError as error:
            under_way.shrinking.abandon()
            self._under_way = None
            self._failed(store, error)
            raise
        assert progress.left_bytes <= progress.total_bytes
        if progress.result is None:
            self._check_end_is_kept(store, under_way)
            return
        assert progress.result.extent_count == under_way.end
        self._under_way = None
        self.model.changed(under_way.end)
        self.coverage.counts["resize shrunk"] += 1

    def _check_end_is_kept(self, store: Store, under_way: _UnderWay) -> None:
        tail = store._extents.all[under_way.end :]
        used = sum(1 for each in tail if each.live_bytes and each.index in under_way.unused)
        assert used <= under_way.spared, f"{used} extents behind the new end are written to"  # S4

    def _end(self, store: Store) -> None:
        """A shrink is over and has not come to its end."""
        under_way = self._under_way
        assert under_way is not None
        under_way.shrinking.abandon()
        self._under_way = None
        self.model.refused()
        self.resized(store.identity.extent_count)

    def _failed(self, store: Store, error: ShardfsError) -> None:
        """A change of the size has met an error."""
        if isinstance(error, DeviceError | ReadOnlyError):
            self.model.failed(store.identity.extent_count)
        else:
            self.model.refused()
        if self._under_way is None:
            self.resized(store.identity.extent_count)


async def trim(store: Store, *, quiet: bool) -> None:
    """The device is told of everything that is free; if it is quiet, of all of that."""
    taken = await resizing.trim(store)
    free = store._extents.free_bytes
    assert not quiet or taken == free, f"{taken} bytes are trimmed, {free} are free"
