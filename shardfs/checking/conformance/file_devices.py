"""What a file system under test stands on: the reference store, or an engine on a device.

Role: a Ground is opened again and again; `crash` makes it what a power cut may leave.

Invariants:
    I1. A crash of the reference store leaves a prefix of its batches (store_model.I2); one of a
        device, what power_cuts allows.

Not here: the file system above (file_run.py).
"""

from __future__ import annotations

import functools
import random
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from typing import Final, Protocol

import trio
import xxhash

from shardfs import limits
from shardfs.checking.conformance.file_alphabet import Setup
from shardfs.checking.models.store_model import ModelStore
from shardfs.checking.power_cuts import Choice, Operation, PowerCutPoint
from shardfs.checking.schedule import Control, Replay, run_once
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
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

    async def upkeep(self, name: str) -> None:
        """Checkpoint, compact or reclaim."""


def ground(setup: Setup) -> Ground:
    """What a setup asks for. Requires: no trio run is going on."""
    if setup.store == 0:
        return ModelGround(background=bool(setup.background))
    sector_bytes = 4096 if setup.store == 2 else 512
    extents = limits.EXTENT_COUNT_MIN if setup.store == 4 else 40
    return DeviceGround(_formatted(extents, sector_bytes, setup.store == 3), setup)


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

    async def upkeep(self, name: str) -> None:
        """See Ground.upkeep."""
        await self._store.reclaim()


class DeviceGround:
    """An engine on a simulated device."""

    _store: Store

    def __init__(self, formatted: SimulatedDevice, setup: Setup) -> None:
        self._device = formatted.power_cut()
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
            yield self._store

    def crash(self, kind: str, rng: random.Random) -> int:
        """See Ground.crash."""
        point = self._cut_point or self._device.power_cut_point()
        self._cut_point = None
        self._device = self._device.after_power_cut(point, _survivors(point, kind, rng))
        return _content_digest(self._device.power_cut_point())

    def cut_within(self, requests: int, on_cut: Callable[[], None]) -> bool:
        """See Ground.cut_within."""
        device, step = self._device, self._device.step + requests

        def observe(operation: Operation) -> None:
            if operation.step >= step:
                device.observer = None
                self._cut_point = device.power_cut_point()
                on_cut()

        device.observer = observe
        return True

    def fail(self, kind: str, skip: int, times: int) -> bool:
        """See Ground.fail."""
        self._device.fail(kind, skip=skip, times=times)
        return True

    async def upkeep(self, name: str) -> None:
        """See Ground.upkeep."""
        await getattr(self._store, name)()


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


@functools.cache
def _formatted(extents: int, sector_bytes: int, zoned: bool) -> SimulatedDevice:
    size_bytes = extents * EXTENT_BYTES
    identity = plan(
        size_bytes, sector_bytes, extent_bytes=EXTENT_BYTES, store_uuid=uuid.UUID(int=0x5EED)
    )
    device = SimulatedDevice(size_bytes, sector_bytes, EXTENT_BYTES if zoned else None)

    async def program(_: Control) -> None:
        await format_device(device, replace(identity, created_ns=0))

    run = run_once(program, Replay(()))
    assert run.finding is None, f"{run.finding}"
    return device
