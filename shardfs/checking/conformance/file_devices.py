"""What a file system under test stands on: the reference store, or an engine on a device.

Role: a Ground is opened again and again; `crash` makes it what a power cut may leave.

Invariants:
    I1. A crash of the reference store leaves a prefix of its batches (store_model.I2); one of a
        device, what power_cuts allows.

Not here: the file system above (file_run.py).
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Final, Protocol

import trio
import xxhash

from shardfs import limits
from shardfs.checking.conformance.case import Coverage
from shardfs.checking.conformance.file_alphabet import SMALL, Setup
from shardfs.checking.conformance.file_space import FileSpace
from shardfs.checking.conformance.sizes import Sizes, fresh_stores, trim
from shardfs.checking.conformance.store_devices import Geometry, formatted
from shardfs.checking.conformance.store_space import ReclamationWatch
from shardfs.checking.models.size_model import SizeModel
from shardfs.checking.models.store_model import ModelStore
from shardfs.checking.power_cuts import Choice, Operation, PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import DeviceError
from shardfs.fuse.door import StoreDoor

EXTENT_BYTES: Final = limits.MOUNT_EXTENT_BYTES_MIN
_MODEL_BYTES: Final = 64 * limits.MIB
_LITTLE_CACHE_BYTES: Final = 32 * limits.KIB
_OVERLAPPING_CHECKPOINTS: Final = 3
FAULT_KINDS: Final = ("read", "write", "flush")


class Ground(Protocol):
    """See the module."""

    def open(self, seed: int) -> AbstractAsyncContextManager[StoreDoor]:
        """The store, for one life; what it leaves open is decided by a seed."""

    def crash(self, kind: str, rng: random.Random) -> int:
        """The power was cut; a digest of what is left."""

    def cut_within(self, requests: int, on_cut: Callable[[], None]) -> bool:
        """Cut the power at a request to come: `on_cut` is called then, and nothing that happens
        later will have happened. False if that cannot be done."""

    def fail(self, kind: str, skip: int, times: int) -> bool:
        """Plan failing requests; False if that cannot be done."""

    async def upkeep(self, name: str, first: int, second: int) -> None:
        """Checkpoint, compact, reclaim and the like; or change the size."""

    @property
    def fresh_bytes(self) -> int:
        """What is free in a fresh store of the size that this one has."""

    def watch(self, coverage: Coverage, is_troubled: Callable[[], bool]) -> None:
        """Tell `coverage` what the store goes through, and ask whether a fault has struck."""

    def check_df(self) -> None:
        """What is free is what it should be, while nothing is being changed."""

    async def check_held(self) -> None:
        """What is live is what the files hold, while nothing is being changed."""

    def check_emptied(self) -> None:
        """Everything was removed, and the store has tidied up."""


def ground(setup: Setup) -> Ground:
    """What a setup asks for. Requires: no trio run is going on."""
    if setup.store == 0:
        return ModelGround(background=bool(setup.background))
    sector_bytes = 4096 if setup.store == 2 else 512
    extents = limits.EXTENT_COUNT_MIN if setup.store in SMALL else 40
    geometry = Geometry(sector_bytes, setup.store == 3, extents, EXTENT_BYTES)
    return DeviceGround(formatted(geometry), setup, geometry)


class ModelGround:
    """The reference store."""

    def __init__(self, *, background: bool) -> None:
        self._store = ModelStore(_MODEL_BYTES)
        self._background = background

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator[StoreDoor]:
        """See Ground.open."""
        async with trio.open_nursery() as nursery:
            if self._background:
                nursery.start_soon(self._commit_regularly)
            yield self._store
            nursery.cancel_scope.cancel()

    async def _commit_regularly(self) -> None:
        with suppress(DeviceError):
            while True:
                await trio.sleep(limits.COMMIT_INTERVAL_S)
                await self._store.sync()

    def crash(self, kind: str, rng: random.Random) -> int:
        """See Ground.crash."""
        unsynced = len(self._store.unsynced)
        survivors = {"lose all": 0, "keep all": unsynced}.get(kind, rng.randint(0, unsynced))
        self._store = self._store.power_cut(survivors)
        return xxhash.xxh3_64_intdigest(repr(list(self._store.state.items())).encode())

    def cut_within(self, requests: int, on_cut: Callable[[], None]) -> bool:
        """See Ground.cut_within."""
        return False

    def fail(self, kind: str, skip: int, times: int) -> bool:
        """See Ground.fail."""
        if kind == "flush":
            self._store.fail_device()
        return kind == "flush"

    async def upkeep(self, name: str, first: int, second: int) -> None:
        """See Ground.upkeep."""
        await self._store.reclaim()

    @property
    def fresh_bytes(self) -> int:
        """See Ground.fresh_bytes."""
        return self._store.total_bytes

    def watch(self, coverage: Coverage, is_troubled: Callable[[], bool]) -> None:
        """See Ground.watch."""

    def check_df(self) -> None:
        """See Ground.check_df."""

    async def check_held(self) -> None:
        """See Ground.check_held."""

    def check_emptied(self) -> None:
        """See Ground.check_emptied."""
        left = self._store.total_bytes - self._store.space().free_bytes
        assert left <= limits.BLOCK_BYTES, f"{left} bytes are taken, by more than the root's name"


class DeviceGround:
    """An engine on a simulated device."""

    _store: Store
    _sizes: Sizes
    _coverage: Coverage
    _is_troubled: Callable[[], bool]

    def __init__(self, formatted: SimulatedDevice, setup: Setup, geometry: Geometry) -> None:
        self._device = formatted.power_cut()
        self._device.is_image = bool(setup.variety & 16) and not geometry.zoned
        self._extent_count = geometry.extent_count
        self._told_extents = geometry.extent_count
        """The store tells its space as one of so many: while it shrinks, of those to come."""
        self._fresh = fresh_stores(EXTENT_BYTES)
        self._space = FileSpace(self._extent_count, EXTENT_BYTES)
        self._has_background = bool(setup.background)
        self._size_at_cut: SizeModel | None = None
        self._cut_point: PowerCutPoint | None = None
        self._checkpoints_max = _OVERLAPPING_CHECKPOINTS if setup.variety & 2 else 1
        self._options = StoreOptions(
            background=bool(setup.background),
            cache_bytes=_LITTLE_CACHE_BYTES if setup.variety & 4 else limits.CACHE_BYTES_DEFAULT,
        )

    @asynccontextmanager
    async def open(self, seed: int) -> AsyncIterator[StoreDoor]:
        """See Ground.open."""
        self._device.reseed(seed, self._checkpoints_max)
        async with Store.open(self._device, options=self._options) as self._store:
            assert not self._store.health.reason, f"it opened {self._store.health.reason}"
            self._sizes.opened(self._store)
            ReclamationWatch(self._store, self._coverage, self._is_troubled)
            yield self._store

    def crash(self, kind: str, rng: random.Random) -> int:
        """See Ground.crash."""
        point = self._cut_point or self._device.power_cut_point()
        if self._size_at_cut is not None:
            self._sizes.model = self._size_at_cut
        else:
            self._sizes.closed()
        self._cut_point = self._size_at_cut = None
        self._device = self._device.after_power_cut(point, _survivors(point, kind, rng))
        return _content_digest(self._device.power_cut_point())

    def cut_within(self, requests: int, on_cut: Callable[[], None]) -> bool:
        """See Ground.cut_within."""
        device, step = self._device, self._device.step + requests

        def observe(operation: Operation) -> None:
            if operation.step >= step:
                device.observer = None
                self._cut_point = device.power_cut_point()
                self._size_at_cut = self._sizes.model.snapshot()
                on_cut()

        device.observer = observe
        return True

    def fail(self, kind: str, skip: int, times: int) -> bool:
        """See Ground.fail."""
        self._device.fail(kind, skip=skip, times=times)
        return True

    async def upkeep(self, name: str, first: int, second: int) -> None:
        """See Ground.upkeep."""
        store = self._store
        match name:
            case "grow":
                await self._sizes.grow(store, self._device, first)
            case "shrink":
                await self._sizes.shrink(store, first, second)
            case "stop-shrink":
                self._sizes.stop(store)
            case "trim":
                await trim(store, quiet=False)
            case "tidy":
                await store.checkpoint()
                while await store._checkpointer.compact(garbage_share_max=0.0):
                    pass
                while await store.reclaim():
                    pass
            case "gather":
                self._coverage.counts["gathered"] += bool(await store.gather())
            case _:
                await getattr(store, name)()

    @property
    def fresh_bytes(self) -> int:
        """See Ground.fresh_bytes."""
        return self._fresh[self._told_extents]

    def watch(self, coverage: Coverage, is_troubled: Callable[[], bool]) -> None:
        """See Ground.watch."""
        self._coverage, self._is_troubled = coverage, is_troubled
        model = SizeModel(self._extent_count)
        self._sizes = Sizes(model, EXTENT_BYTES, self._fresh, coverage, is_troubled, self._resized)

    def _resized(self, extent_count: int) -> None:
        self._told_extents = extent_count
        self._space.resized(extent_count, self._fresh[extent_count])

    def check_df(self) -> None:
        """See Ground.check_df."""
        self._space.check(self._store)

    async def check_held(self) -> None:
        """See Ground.check_held."""
        if not self._has_background:
            await self._space.check_held(self._store)

    def check_emptied(self) -> None:
        """See Ground.check_emptied."""
        self._space.check_emptied(self._store)


def _survivors(point: PowerCutPoint, kind: str, rng: random.Random) -> Choice:
    match kind:
        case "lose all":
            return ()
        case "keep all":
            return point.everything()
        case _:
            return point.random_choice(rng, torn=kind == "torn")


def _content_digest(point: PowerCutPoint) -> int:
    pages = sorted(point.pages.items())
    numbers = repr([number for number, _ in pages]).encode()
    return xxhash.xxh3_64_intdigest(numbers + b"".join(page for _, page in pages))
