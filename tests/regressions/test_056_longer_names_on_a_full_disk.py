"""Renaming files to longer names on a disk full of small files wedged it: read-only, for good.

A rename may use the reserve, so that it works on a full disk; a longer name makes the tree larger
for good. 11,377 such renames on a disk of 8 MiB with 20,594 empty files left no extent free: the
next commit had no room, and neither had anything after a new mount. Found by an experiment.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.health import HealthState
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError
from shardfs.fuse.filesystem import FileSystem
from tests.fuse.harness import Caller, serving

EXTENT = 128 * limits.KIB
SIZE_BYTES = 40 * EXTENT
RENAMES_LEAST = 500


@asynccontextmanager
async def mounted(device: SimulatedDevice) -> AsyncIterator[FileSystem]:
    async with (
        Store.open(device, options=StoreOptions()) as store,
        serving(store) as file_system,
    ):
        yield file_system


def longer(number: int) -> str:
    return f"{number:x<{limits.NAME_BYTES_MAX}}"


async def test_it_is_refused_before_nothing_can_be_deleted() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await format_device(device, plan(SIZE_BYTES, 512, extent_bytes=EXTENT))
    files = renamed = 0
    async with mounted(device) as file_system:
        caller = Caller(file_system)
        with pytest.raises(NoSpaceError):
            while True:
                await caller.create(f"{files}")
                files += 1
        with pytest.raises(NoSpaceError):
            while renamed < files:
                await caller.rename(f"{renamed}", longer(renamed))
                renamed += 1
        assert RENAMES_LEAST < renamed < files
        await caller.rename(longer(0), "0")  # a shorter one is not refused
        await caller.rename("0", f"{renamed}")  # nor one that replaces
        await file_system.sync()
        assert file_system.store.health.state is HealthState.HEALTHY
    async with mounted(device) as file_system:
        caller = Caller(file_system)
        for number in range(1, files):
            await caller.unlink(longer(number) if number < renamed else f"{number}")
        await file_system.orphans.drained()
        for number in range(files // 2):
            await caller.create(f"again {number}")
        await file_system.sync()
