"""fuse/files.py: reading, holes, truncation and freeing, in time and memory that fit."""

from __future__ import annotations

import random

import pytest

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import orphan_key, shard_key, truncation_key
from shardfs.fuse.namespace import Update
from tests.fuse.harness import MIB, SHARD_BYTES, Caller, mounted, serving, verify

TERABYTE = 1 << 40


async def truncate(file_system: FileSystem, ino: int, size: int) -> None:
    await file_system.namespace.set_attributes(ino, Update(size=size), privileged=True)


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_data_comes_back_from_the_store(kind: str) -> None:
    content = random.Random(3).randbytes(2 * SHARD_BYTES + 12345)
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=content)
        await file_system.writeback.flush(ino)
        assert not file_system.writeback.is_dirty(ino)
        assert await caller.read("a") == content
        for offset, length in [(0, 1), (SHARD_BYTES - 1, 2), (MIB - 5, 3 * MIB), (12345, 0)]:
            assert await caller.read("a", offset, length) == content[offset : offset + length]
        assert await caller.read("a", len(content), 10) == b""
        inode = await file_system.namespace.inode(ino)
        assert (inode.size, inode.used) == (len(content), len(content))


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_holes_read_as_zeros_and_take_no_space(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a")
        await file_system.writeback.write(ino, 3 * SHARD_BYTES + 100, b"end")
        await file_system.writeback.write(ino, 200, b"begin")
        for _ in range(2):
            assert await caller.read("a", 198, 10) == b"\0\0begin\0\0\0"
            assert await caller.read("a", SHARD_BYTES - 3, 6) == bytes(6)
            assert await caller.read("a", 3 * SHARD_BYTES + 98) == b"\0\0end"
            await file_system.writeback.flush(ino)
        inode = await file_system.namespace.inode(ino)
        assert inode.size == 3 * SHARD_BYTES + 103 and inode.used == 8


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_what_was_cut_off_does_not_come_back(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"x" * (SHARD_BYTES + 1000))
        for flush in (False, True):
            if flush:
                await file_system.writeback.flush(ino)
            await truncate(file_system, ino, SHARD_BYTES + 10)
            await truncate(file_system, ino, 500)
            await truncate(file_system, ino, SHARD_BYTES + 1000)
            assert await caller.read("a", 0, 500) == b"x" * 500
            assert await caller.read("a", 500) == bytes(SHARD_BYTES + 500)
            await file_system.writeback.write(ino, 0, b"x" * (SHARD_BYTES + 1000))


async def test_a_sparse_file_of_a_terabyte_is_truncated_by_its_shards() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a")
        count = 3 * limits.SHARDS_PER_BATCH_MAX + 7
        for number in range(count):
            await file_system.writeback.write(ino, number * (TERABYTE // count), b"data")
        await truncate(file_system, ino, 2 * TERABYTE)
        await file_system.writeback.flush(ino)
        batches = len(store.unsynced)
        await truncate(file_system, ino, 2)
        assert len(store.unsynced) - batches <= 6
        inode = await file_system.namespace.inode(ino)
        assert (inode.size, inode.used) == (2, 2)
        assert await caller.read("a") == b"da"
        await truncate(file_system, ino, limits.FILE_BYTES_MAX)
        await caller.unlink("a")
        await file_system.orphans.drained()


async def test_an_interrupted_truncation_is_finished_before_the_file_grows() -> None:
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        ino = await Caller(file_system).create("a")
        count = 2 * limits.SHARDS_PER_BATCH_MAX + 5
        for number in range(count):
            await file_system.writeback.write(ino, number * SHARD_BYTES, b"old data")
        await file_system.sync()
        await truncate(file_system, ino, 4)
        total = len(store.unsynced)
        assert total >= 3
        states = [store.power_cut(survivors) for survivors in range(total + 1)]
    assert truncation_key(ino) in states[1].state
    for number, state in enumerate(states):
        assert await verify(state) == []
        async with serving(state, tasks=number % 2 == 0) as file_system:
            caller = Caller(file_system)
            inode = await file_system.namespace.inode(ino)
            if inode.size > 4:
                assert number == 0
                continue
            await file_system.writeback.write(ino, 3 * SHARD_BYTES + 6, b"!")
            assert await caller.read("a", 3 * SHARD_BYTES) == b"\0" * 6 + b"!"
            await truncate(file_system, ino, count * SHARD_BYTES)
            assert await caller.read("a", 5 * SHARD_BYTES, 10) == bytes(10)
            await file_system.sync()
            assert truncation_key(ino) not in state.state


async def test_freeing_a_large_file_survives_a_power_cut_anywhere() -> None:
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a")
        await file_system.xattrs.set(ino, b"user.a", b"value")
        for number in range(2 * limits.SHARDS_PER_BATCH_MAX + 5):
            await file_system.writeback.write(ino, number * SHARD_BYTES, b"data")
        await file_system.sync()
        await caller.unlink("a")
        await file_system.orphans.reap_queued()
        total = len(store.unsynced)
        assert total >= 4
        states = [store.power_cut(survivors) for survivors in range(total + 1)]
    for number, state in enumerate(states):
        assert (orphan_key(ino) in state.state) == (1 <= number < total)
        assert await verify(state) == []
        async with serving(state) as file_system:
            await file_system.orphans.drained()
        if number:
            assert state.used_bytes == 0
            assert not [key for key in state.state if key[:9] == b"F" + ino.to_bytes(8, "big")]


async def test_a_shard_written_in_many_small_pieces_is_gathered() -> None:
    source = random.Random(5)
    async with mounted() as file_system:
        caller = Caller(file_system)
        content = bytearray(source.randbytes(SHARD_BYTES))
        ino = await caller.create("a", data=bytes(content))
        await file_system.writeback.flush(ino)
        for _ in range(400):
            at = source.randrange(SHARD_BYTES - 4096)
            content[at : at + 4096] = data = source.randbytes(4096)
            await file_system.writeback.write(ino, at, data)
            if source.random() < 0.2:
                await file_system.writeback.flush(ino)
        await file_system.writeback.flush(ino)
        assert await caller.read("a") == content
        shard = await file_system.store.get_shard(shard_key(ino, 0))
        assert shard is not None and len(shard.pieces) <= limits.PIECES_PER_SHARD_MAX


async def test_a_shard_of_isolated_bytes_keeps_within_its_record() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a")
        expected = bytearray(SHARD_BYTES)
        for at in range(0, SHARD_BYTES, 5000):
            expected[at] = 1 + at % 255
            await file_system.writeback.write(ino, at, bytes([expected[at]]))
        await file_system.writeback.flush(ino)
        data = await caller.read("a")
        assert data == expected[: len(data)] and len(data) > SHARD_BYTES - 5000


async def test_damage_is_named_by_inode_and_bytes() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"x" * 10_000)
        await file_system.writeback.flush(ino)
        store.chunks.clear()
        with pytest.raises(CorruptionError, match=rf"inode {ino} bytes 100 to 199"):
            await caller.read("a", 100, 100)


async def test_a_large_read_asks_for_all_its_pieces_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = SimulatedDevice(64 * MIB)
    await format_device(device, plan(64 * MIB, 512))
    content = bytearray(random.Random(5).randbytes(MIB))
    content[400_000:500_000] = bytes(100_000)
    under_way: list[int] = []
    most: list[int] = []
    read = device.read

    async def watched(offset: int, length: int) -> bytes:
        under_way.append(offset)
        most.append(len(under_way))
        try:
            return await read(offset, length)
        finally:
            under_way.remove(offset)

    async with Store.open(device) as store, serving(store) as file_system:
        ino = await Caller(file_system).create("a")
        for start, end in ((500_000, 700_000), (0, 400_000), (700_000, MIB)):
            await file_system.writeback.write(ino, start, bytes(content[start:end]))
            await file_system.sync()
        shard = await store.get_shard(shard_key(ino, 0))
        assert shard is not None and len(shard.pieces) >= 3
        monkeypatch.setattr(device, "read", watched)
        assert await file_system.writeback.read(ino, 0, MIB) == content
        assert max(most) >= 3
        last = shard.pieces[-1].locator
        device.rot(store.identity.extent_offset(last.extent) + last.offset + 5000)
        with pytest.raises(CorruptionError, match=f"inode {ino} bytes 0 to {MIB - 1}"):
            await file_system.writeback.read(ino, 0, MIB)
        assert await file_system.writeback.read(ino, 0, 300_000) == content[:300_000]
