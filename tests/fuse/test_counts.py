"""What requests cost the device: counts of flushes and reads, which no machine's speed changes."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from tests.fuse.harness import MIB, Caller, serving

SIZE_BYTES = 128 * MIB


async def formatted_device(size_bytes: int = SIZE_BYTES) -> SimulatedDevice:
    """An empty store's device."""
    device = SimulatedDevice(size_bytes)
    await format_device(device, plan(size_bytes, 512))
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


async def test_listing_a_cold_directory_reads_neighbouring_blocks_at_once() -> None:
    """A thousand names and a thousand inodes, the files of another directory between each two."""
    device = await store_with_many_files(1000, 16, others=1)
    async with Store.open(device) as store:
        file_system = await FileSystem.open(store)
        listing = file_system.list_directory(ROOT_INO)
        before, position, names = device.counts.reads, 0, set()
        while items := await listing.read(position):
            assert all(item.inode is not None for item in items)
            names |= {item.name for item in items if not item.is_dot}
            position = items[-1].next
        assert len(names) == 1001
        assert device.counts.reads - before <= 6


async def test_large_reads_are_one_read_of_the_device_but_at_an_extents_end() -> None:
    device = await formatted_device()
    data = bytes(range(256)) * (8 * MIB // 256)
    async with Store.open(device) as store, serving(store) as file_system:
        ino = await Caller(file_system).create("large", data=data)
        await file_system.sync()
        length = store.identity.chunk_bytes_max
        counts = []
        for offset in range(0, len(data), length):
            before = device.counts.reads
            found = await file_system.writeback.read(ino, offset, length)
            assert found == data[:length]
            counts.append(device.counts.reads - before)
        per_extent = store.identity.extent_bytes // length
        assert max(counts) == 2, "one chunk, or two where an extent ends between them"
        assert counts.count(2) <= len(counts) // (per_extent - 1) + 1


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


async def store_with_many_files(count: int, data_bytes: int, *, others: int = 0) -> SimulatedDevice:
    """So many files of this size, all of them in runs, closed in order; behind each so many in
    another directory."""
    device = await formatted_device(512 * MIB)
    async with Store.open(device) as store, serving(store) as file_system:
        namespace, writeback = file_system.namespace, file_system.writeback
        data = bytes(data_bytes)
        parents = [ROOT_INO]
        if others:
            aside = await namespace.create(ROOT_INO, b"aside", 0o40755, 0, 0)
            parents += [aside.ino] * others
        for number in range(count * len(parents)):
            parent = parents[number % len(parents)]
            found = await namespace.create(parent, b"%d" % number, 0o100644, 0, 0)
            await writeback.write(found.ino, 0, data)
            if number % 5000 == 0:
                await file_system.sync()
        await file_system.sync()
        await store.checkpoint()
        while await store.compact():
            pass
    return device


@pytest.mark.parametrize("count", [10_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_opening_many_files_reads_as_much_whatever_they_hold(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    real = SimulatedDevice.read
    for data_bytes in (16, 1024):
        device = await store_with_many_files(count, data_bytes)
        lengths = []

        async def read(device: SimulatedDevice, offset: int, length: int) -> bytes:
            # The superblock's log is as long as it happens to be, two extents at most.
            if offset >= limits.SUPERBLOCK_EXTENTS * limits.MIB:
                lengths.append(length)  # noqa: B023
            return await real(device, offset, length)

        with monkeypatch.context() as patched:
            patched.setattr(SimulatedDevice, "read", read)
            async with Store.open(device) as store:
                assert store.identity.extent_bytes == limits.MIB
        figures.append(sum(lengths))
    small, large = figures
    assert abs(large - small) < 0.25 * small, figures
    assert large < 2 * MIB, figures


async def test_a_read_at_a_random_place_of_a_large_file_reads_as_much_as_it_wants() -> None:
    device = await formatted_device()
    data = bytes(range(256)) * (8 * MIB // 256)
    async with Store.open(device) as store, serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("large", data=data)
        await file_system.sync()
        for offset in (0, 4096, 3 * MIB + 8192, 7 * MIB):
            reads, read_bytes = device.counts.reads, device.counts.read_bytes
            assert await file_system.writeback.read(ino, offset, 4096) == data[:4096]
            assert device.counts.reads - reads == 1
            assert device.counts.read_bytes - read_bytes == 4096
