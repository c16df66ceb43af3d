"""What requests cost the device: counts of flushes and reads, which no machine's speed changes."""

from __future__ import annotations

import trio
import trio.testing

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from tests.fuse.harness import MIB, Caller, serving

SIZE_BYTES = 128 * MIB


async def formatted_device() -> SimulatedDevice:
    """An empty store's device."""
    device = SimulatedDevice(SIZE_BYTES)
    await format_device(device, plan(SIZE_BYTES, 512))
    return device


async def test_fsync_of_a_dirty_file_flushes_at_most_twice() -> None:
    device = await formatted_device()
    async with Store.open(device) as store, serving(store) as file_system:
        ino = await Caller(file_system).create("a")
        await file_system.sync()
        for number in range(5):
            await file_system.writeback.write(ino, number * 4096, b"x" * 4096)
            before = device.counts.flushes
            await file_system.writeback.fsync(ino)
            assert device.counts.flushes - before <= 2
        before = device.counts.flushes
        await file_system.writeback.fsync(ino)
        assert device.counts.flushes == before


async def test_tasks_in_fsync_share_their_flushes() -> None:
    device = await formatted_device()
    async with Store.open(device) as store, serving(store) as file_system:
        caller = Caller(file_system)
        inos = [await caller.create(f"f{number}", data=b"x" * 4096) for number in range(64)]
        before = device.counts.flushes
        async with trio.open_nursery() as nursery:
            for ino in inos:
                nursery.start_soon(file_system.writeback.fsync, ino)
        assert device.counts.flushes - before <= 4


async def test_a_cold_read_of_a_small_file_reads_at_most_three_times() -> None:
    device = await formatted_device()
    async with Store.open(device) as store, serving(store) as file_system:
        caller = Caller(file_system)
        for number in range(300):
            await caller.create(f"f{number}", data=bytes([number % 256]) * 4096)
        await file_system.sync()
        await store.checkpoint()
    for number in (7, 150, 299):
        async with Store.open(device) as store:
            file_system = await FileSystem.open(store)
            ino = await Caller(file_system).find(f"f{number}")
            before = device.counts.reads
            found = await file_system.writeback.read(ino, 0, 4096)
            assert bytes(found) == bytes([number % 256]) * 4096
            assert device.counts.reads - before <= 2
        async with Store.open(device) as store:
            file_system = await FileSystem.open(store)
            before = device.counts.reads
            await file_system.namespace.inode(ino)
            await file_system.writeback.read(ino, 0, 4096)
            assert device.counts.reads - before <= 3


async def test_hot_requests_run_without_a_checkpoint() -> None:
    """Checked as the time that the device and other tasks are given: none."""
    device = await formatted_device()
    async with Store.open(device) as store, serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"content")
        with trio.testing.assert_no_checkpoints():
            await file_system.namespace.inode(ino)
            await file_system.namespace.lookup(1, b"a")
            await file_system.writeback.write(ino, 7, b" more")
            await file_system.writeback.read(ino, 0, 100)
            await caller.create("b")
            await caller.rename("b", "c")
            await caller.link("a", "d")
            await caller.unlink("c")
