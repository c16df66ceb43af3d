"""A device that fails under a file system: callers hear of it, reads go on, nothing hangs."""

from __future__ import annotations

import pytest
import trio

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.errors import DeviceError, ReadOnlyError
from shardfs.fuse.filesystem import FileSystem
from tests.fuse.harness import MIB, Caller


@pytest.mark.expected_warnings("the store is now read-only", "closing without a clean record")
@pytest.mark.parametrize("kind", ["write", "flush"])
async def test_a_device_that_takes_nothing_more(kind: str) -> None:
    device = SimulatedDevice(64 * MIB)
    await format_device(device, plan(64 * MIB, 512))
    async with Store.open(device) as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        async with trio.open_nursery() as nursery:
            file_system.start(nursery)
            ino = await caller.create("a", data=b"x" * 100_000)
            await file_system.writeback.fsync(ino)
            await file_system.writeback.write(ino, 0, b"y" * 5000)
            device.fail(kind, times=10**6)
            for _ in range(3):
                with pytest.raises(DeviceError):
                    await file_system.writeback.fsync(ino)
            with pytest.raises(ReadOnlyError):
                await file_system.writeback.write(ino, 0, b"z")
            with pytest.raises(ReadOnlyError):
                await caller.create("b")
            assert await caller.read("a") == b"y" * 5000 + b"x" * 95_000
            await trio.sleep(20)
            nursery.cancel_scope.cancel()
        with pytest.raises(DeviceError):
            await file_system.end()
    device.reopen()


@pytest.mark.expected_warnings("the store is now read-only", "closing without", "can not be stored")
async def test_data_not_yet_given_to_the_engine_stays_readable() -> None:
    device = SimulatedDevice(64 * MIB)
    await format_device(device, plan(64 * MIB, 512))
    async with Store.open(device) as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        await file_system.sync()
        async with trio.open_nursery() as nursery:
            file_system.start(nursery)
            await caller.create("a", data=b"only buffered")
            store.health.make_read_only("a test wants it")
            await trio.sleep(20)
            assert await caller.read("a") == b"only buffered"
            nursery.cancel_scope.cancel()
        with pytest.raises(ReadOnlyError):
            await file_system.end()
