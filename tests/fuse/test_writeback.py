"""fuse/writeback.py: buffering, order, durability, space and errors."""

from __future__ import annotations

import errno
import random
from typing import Any

import pytest
import trio
import trio.testing

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.engine.pieces import Locator
from shardfs.errors import CorruptionError, DeviceError, FileError, NoSpaceError, ReadOnlyError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import inode_key
from shardfs.fuse.namespace import Update
from shardfs.fuse.records import decode_inode
from tests.fuse.harness import MIB, SHARD_BYTES, Caller, mounted, opened_store, serving, verify


async def content_after(store: ModelStore, path: str) -> bytes | None:
    """What a file holds in a store that was mounted afresh; None if it does not exist."""
    async with serving(store) as file_system:
        try:
            return await Caller(file_system).read(path)
        except FileNotFoundError:
            return None


async def test_fsync_makes_data_size_and_name_durable() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        ino = await Caller(file_system).create("a", data=b"x" * 5_000_000)
        await file_system.writeback.fsync(ino)
        after = store.power_cut(0)
    assert await content_after(after, "a") == b"x" * 5_000_000


async def test_what_is_five_seconds_old_is_durable() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        await Caller(file_system).create("a", data=b"old")
        await trio.sleep(5)
        after = store.power_cut(0)
    assert await content_after(after, "a") == b"old"


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_slow_appends_do_not_put_writing_back_off_for_ever(kind: str) -> None:
    async with mounted(kind) as file_system:
        ino = await Caller(file_system).create("a")
        for number in range(20):
            await file_system.writeback.write(ino, number * 10, b"0123456789")
            await trio.sleep(0.5)
        stored = decode_inode(await file_system.store.get_record(inode_key(ino)) or b"")
        assert stored.size >= 100


async def test_the_durable_size_never_runs_ahead_of_the_data() -> None:
    source = random.Random(1)
    content = bytearray()
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a")
        await file_system.sync()
        for _ in range(30):
            data = bytes([source.randrange(1, 256)]) * source.randrange(1, 2 * MIB)
            await file_system.writeback.write(ino, len(content), data)
            content += data
            if source.random() < 0.3:
                await file_system.writeback.flush(ino)
            if source.random() < 0.2:
                await caller.link("a", f"b{len(content)}")
        await file_system.writeback.flush(ino)
        states = [store.power_cut(number) for number in range(len(store.unsynced) + 1)]
    sizes = set()
    for state in states:
        assert await verify(state) == []
        data = await content_after(state, "a") or b""
        assert data == content[: len(data)]
        sizes.add(len(data))
    assert len(sizes) > 5


async def test_rename_over_a_file_leaves_the_old_or_the_new_content() -> None:
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        await caller.create("a", data=b"old")
        await file_system.sync()
        await caller.create("a.new", data=b"new")
        await caller.rename("a.new", "a")
        file_system.tables.settle()
        states = [store.power_cut(number) for number in range(len(store.unsynced) + 1)]
    found = [await content_after(state, "a") for state in states]
    assert set(found) == {b"old", b"new"}


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_large_sequential_writing_does_not_wait_for_the_clock(kind: str) -> None:
    async with mounted(kind) as file_system:
        ino = await Caller(file_system).create("a")
        for number in range(20):
            await file_system.writeback.write(ino, number * MIB, bytes([number]) * MIB)
            await trio.testing.wait_all_tasks_blocked()
            assert file_system.writeback.dirty_bytes < SHARD_BYTES
        inode = await file_system.namespace.inode(ino)
        assert inode.size == inode.used == 20 * MIB


async def test_writers_wait_at_the_cap() -> None:
    async with (
        opened_store("model") as store,
        serving(store, dirty_bytes_max=2 * MIB) as file_system,
    ):
        caller = Caller(file_system)
        for number in range(40):
            # One byte into each of many shards never makes a shard ready.
            ino = await caller.create(f"f{number}")
            await file_system.writeback.write(ino, 0, b"x" * (MIB // 4))
            assert file_system.writeback.dirty_bytes <= 2 * MIB + MIB // 4
        for number in range(40):
            assert len(await caller.read(f"f{number}")) == MIB // 4


async def test_a_full_disk_says_so_at_write_and_keeps_what_it_took() -> None:
    store = ModelStore(2 * MIB)
    async with serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a")
        written = 0
        with pytest.raises(NoSpaceError):
            for _ in range(100):
                await file_system.writeback.write(ino, written, b"x" * 100_000)
                written += 100_000
        assert written > MIB
        await file_system.writeback.fsync(ino)
        assert await caller.read("a") == b"x" * written
        await caller.unlink("a")
        again = await caller.create("b")
        await file_system.writeback.write(again, 0, b"y" * written)
        await file_system.writeback.fsync(again)


class Flushes:
    """Counts the files that are flushed."""

    def __init__(self, file_system: FileSystem, patch: pytest.MonkeyPatch) -> None:
        self.count = 0
        flusher = file_system.writeback._flusher
        real = flusher._flush_file

        async def counting(*arguments: Any) -> None:
            self.count += 1
            await real(*arguments)

        patch.setattr(flusher, "_flush_file", counting)


async def test_who_finds_the_disk_full_waits_for_a_few_files_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """More is reserved for buffered files than they take: a create that finds nothing else free
    has to flush, but not all of them."""
    async with (
        opened_store("engine", size_bytes=24 * MIB) as store,
        serving(store, tasks=False) as file_system,
    ):
        caller = Caller(file_system)
        count = 0
        flushes = Flushes(file_system, monkeypatch)
        while not flushes.count:
            await caller.create(f"f{count}", data=b"x" * 4096)
            count += 1
        assert count > 500
        assert flushes.count <= 32
        before = flushes.count
        for number in range(40):
            await caller.create(f"g{number}", data=b"x" * 4096)
        assert flushes.count - before <= 40 * 16


async def test_the_less_is_free_the_earlier_is_flushed() -> None:
    """Nobody who comes when the disk is nearly full shall have to wait for seconds' worth of
    buffered files."""
    async with (
        opened_store("engine", size_bytes=24 * MIB) as store,
        serving(store) as file_system,
    ):
        caller = Caller(file_system)
        most, looked_at = 0.0, 0
        for number in range(100_000):
            try:
                await caller.create(f"f{number}", data=b"x" * 4096)
            except NoSpaceError:
                break
            if number % 10 == 0:
                await trio.sleep(0.01)
            space = file_system.store.space()
            if space.free_bytes < space.total_bytes // 8 and number % 50 == 0:
                await trio.sleep(1)
                dirty, looked_at = file_system.writeback._dirty, looked_at + 1
                free_bytes = file_system.store.space().free_bytes
                most = max(most, dirty.reserved_bytes / free_bytes)
        assert looked_at
        assert most <= 0.25


async def test_who_overwrites_a_lot_leaves_space_for_others() -> None:
    """What is set aside for buffered data never is all that is free: the writer is delayed and the
    flusher woken before that, so nobody finds the disk full that is not."""
    async with (
        opened_store("engine", size_bytes=24 * MIB) as store,
        serving(store) as file_system,
    ):
        caller = Caller(file_system)
        inos: list[int] = []
        while file_system.store.space().free_bytes > 2 * MIB:
            inos.append(await caller.create(f"f{len(inos)}", data=b"x" * 65536))
            await file_system.writeback.flush(inos[-1])
        dirty, most = file_system.writeback._dirty, 0.0
        for number in range(3 * len(inos)):
            await file_system.writeback.write(inos[number * 7 % len(inos)], 0, b"y" * 65536)
            await trio.lowlevel.checkpoint()
            reserved = dirty.reserved_bytes
            most = max(most, reserved / (reserved + file_system.store.space().free_bytes))
        assert 0.2 < most < 0.9


async def test_space_is_given_back_by_truncate_and_unlink() -> None:
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"x" * MIB)
        assert store.reserved_bytes >= MIB
        await file_system.namespace.set_attributes(ino, Update(size=0), privileged=True)
        assert store.reserved_bytes == 0
        await file_system.writeback.write(ino, 0, b"x" * MIB)
        await caller.unlink("a")
        assert store.reserved_bytes == 0 and file_system.writeback.dirty_bytes == 0


async def test_times() -> None:
    async with mounted() as file_system:
        ino = await Caller(file_system).create("a")
        created = await file_system.namespace.inode(ino)
        await file_system.writeback.write(ino, 0, b"x")
        written = await file_system.namespace.inode(ino)
        assert written.mtime_ns == written.ctime_ns > created.mtime_ns
        await file_system.writeback.flush(ino)
        assert (await file_system.namespace.inode(ino)).mtime_ns == written.mtime_ns
        await file_system.writeback.write(ino, 0, b"y")
        await file_system.namespace.set_attributes(ino, Update(mtime_ns=5), privileged=True)
        await file_system.writeback.flush(ino)
        assert (await file_system.namespace.inode(ino)).mtime_ns == 5
        await file_system.writeback.write(ino, 0, b"z")
        assert (await file_system.namespace.inode(ino)).mtime_ns > written.mtime_ns


async def test_writing_clears_set_id_bits_unless_privileged() -> None:
    async with mounted() as file_system:
        ino = await Caller(file_system).create("a", 0o106755)
        await file_system.writeback.write(ino, 0, b"x", privileged=True)
        assert (await file_system.namespace.inode(ino)).mode == 0o106755
        await file_system.writeback.write(ino, 0, b"x")
        assert (await file_system.namespace.inode(ino)).mode == 0o100755


async def test_limits() -> None:
    async with mounted() as file_system:
        ino = await Caller(file_system).create("a")
        await file_system.writeback.write(ino, limits.FILE_BYTES_MAX - 1, b"x")
        with pytest.raises(FileError) as raised:
            await file_system.writeback.write(ino, limits.FILE_BYTES_MAX, b"x")
        assert raised.value.errno == errno.EFBIG
        with pytest.raises(FileError) as raised:
            update = Update(size=limits.FILE_BYTES_MAX + 1)
            await file_system.namespace.set_attributes(ino, update, privileged=True)
        assert raised.value.errno == errno.EFBIG


@pytest.mark.expected_warnings("data written to 1 files can not be stored")
async def test_a_failed_device_is_reported_by_fsync_and_reads_go_on() -> None:
    store = ModelStore()
    file_system = await FileSystem.open(store)
    async with trio.open_nursery() as nursery:
        file_system.start(nursery)
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"kept")
        store.fail_device()
        for _ in range(2):
            with pytest.raises((FileError, DeviceError)) as raised:
                await file_system.writeback.fsync(ino)
            assert getattr(raised.value, "errno", 0) == errno.EIO
        with pytest.raises(ReadOnlyError):
            await file_system.writeback.write(ino, 0, b"more")
        assert await caller.read("a") == b"kept"
        nursery.cancel_scope.cancel()
    with pytest.raises(DeviceError):
        await file_system.end()


async def test_a_million_scattered_bytes_stay_within_the_cap() -> None:
    async with (
        opened_store("model") as store,
        serving(store, dirty_bytes_max=MIB) as file_system,
    ):
        ino = await Caller(file_system).create("a")
        for number in range(3000):
            await file_system.writeback.write(ino, number * 1000, b"x")
            assert file_system.writeback.dirty_bytes <= MIB + 4096
        assert (await Caller(file_system).read("a")).count(b"x") == 3000


@pytest.mark.expected_warnings("the store is now read-only", "data written to")
async def test_writers_that_wait_hear_of_a_failure() -> None:
    store = ModelStore()
    file_system = await FileSystem.open(store, dirty_bytes_max=MIB)
    caller = Caller(file_system)
    ino = await caller.create("a", data=b"x" * MIB)
    failures = []

    async def write() -> None:
        try:
            await file_system.writeback.write(ino, MIB, b"y")
        except ReadOnlyError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        assert not failures
        store.health.make_read_only("a test wants it")
    assert len(failures) == 1
    await file_system.end()


@pytest.mark.expected_warnings("lost .* bytes written to inode", "writing back inode")
async def test_data_that_can_never_be_stored_is_counted_as_lost() -> None:
    class RottenStore(ModelStore):
        async def read_chunk(self, locator: Locator, start: int, length: int) -> bytes:
            raise CorruptionError("rotten")

    store = RottenStore()
    async with serving(store) as file_system:
        ino = await Caller(file_system).create("a")
        with pytest.raises(CorruptionError):
            for number in range(3000):
                await file_system.writeback.write(ino, number * 100, b"x")
        await file_system.writeback.flush_all()
        assert file_system.writeback.error_count(ino) == 0, "what was taken could be stored"
        for number in range(3000):  # as if it had been taken all the same
            file_system.writeback._write_now(ino, number * 100, b"x", False)
        # The shard cannot be gathered, yet what fits into its record is stored.
        await file_system.writeback.flush_all()
        assert file_system.writeback.error_count(ino) == 1
        assert store.used_bytes > 1000
        assert store.reserved_bytes == 0 and not file_system.writeback.is_dirty(ino)


async def test_reads_and_writes_beside_flushes_see_what_was_written() -> None:
    source = random.Random(9)
    size = 2 * SHARD_BYTES
    async with mounted() as file_system:
        ino = await Caller(file_system).create("a", data=bytes(size))
        blocks = [0] * (size // 4096)
        done = False

        async def write() -> None:
            nonlocal done
            for number in range(1, 256):
                at = source.randrange(len(blocks))
                await file_system.writeback.write(ino, at * 4096, bytes([number]) * 4096)
                blocks[at] = number
                await trio.lowlevel.checkpoint()
            done = True

        async def flush() -> None:
            while not done:
                await file_system.writeback.flush(ino)
                await trio.lowlevel.checkpoint()

        async def read() -> None:
            while not done:
                at = source.randrange(len(blocks))
                before = blocks[at]
                data = bytes(await file_system.writeback.read(ino, at * 4096, 4096))
                assert data[:1] * 4096 == data and before <= data[0] <= 255
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for task in (write, flush, flush, read, read):
                nursery.start_soon(task)
        data = await Caller(file_system).read("a")
        assert [data[at * 4096] for at in range(len(blocks))] == blocks
