"""fuse/access_times.py: which reads move atime, without a kernel."""

from __future__ import annotations

import os

import pytest
import trio

from shardfs import limits
from shardfs.errors import NoSpaceError
from shardfs.fuse.access_times import OLD_NS
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO, inode_key
from shardfs.fuse.mount_options import AccessTimes
from shardfs.fuse.namespace import Update
from shardfs.fuse.records import Inode, decode_inode
from shardfs.fuse.touched import TOUCHED_MAX
from tests.fuse.harness import Caller, mounted


async def set_times(file_system: FileSystem, ino: int, atime_ns: int, mtime_ns: int) -> None:
    update = Update(atime_ns=atime_ns, mtime_ns=mtime_ns)
    await file_system.namespace.set_attributes(ino, update, privileged=True)


async def moves(file_system: FileSystem, ino: int) -> bool:
    """Whether a read moves the file's atime now."""
    before = await file_system.namespace.inode(ino)
    file_system.reading.notice(ino)
    after = await file_system.namespace.inode(ino)
    assert after._replace(atime_ns=0) == before._replace(atime_ns=0), "only atime may change"
    return after.atime_ns != before.atime_ns


async def test_relative() -> None:
    async with mounted() as file_system:
        ino = await Caller(file_system).create("f", data=b"x")
        assert not await moves(file_system, ino), "an unmounted file system leaves atime alone"
        file_system.reading.rule = AccessTimes.RELATIVE
        assert await moves(file_system, ino), "atime is not after mtime"
        assert not await moves(file_system, ino)
        await file_system.writeback.write(ino, 1, b"y")
        assert await moves(file_system, ino), "buffered writes count"
        assert not await moves(file_system, ino)
        await file_system.namespace.set_attributes(ino, Update(mode=0o600), privileged=True)
        assert await moves(file_system, ino), "atime is not after ctime"
        now = file_system.tables.now_ns()
        future = now + 10 * OLD_NS
        await set_times(file_system, ino, future, now)
        assert not await moves(file_system, ino)
        # A day old, and after both other times: the calls of a user cannot set such a ctime.
        await file_system.writeback.flush(ino)
        inode = (await file_system.namespace.inode(ino))._replace(
            atime_ns=now - OLD_NS, mtime_ns=now - 2 * OLD_NS, ctime_ns=now - 2 * OLD_NS
        )
        change = file_system.tables.change()
        change.put_inode(ino, inode)
        change.commit()
        assert await moves(file_system, ino)
        assert not await moves(file_system, ino)


async def test_always_and_never() -> None:
    async with mounted() as file_system:
        ino = await Caller(file_system).create("f")
        file_system.reading.rule = AccessTimes.ALWAYS
        assert await moves(file_system, ino) and await moves(file_system, ino)
        assert await moves(file_system, ROOT_INO)
        file_system.reading.directories = False
        assert not await moves(file_system, ROOT_INO)
        file_system.reading.rule = AccessTimes.NEVER
        assert not await moves(file_system, ino)


async def test_an_open_before_a_read_that_counts() -> None:
    async with mounted() as file_system:
        reading = file_system.reading
        ino = await Caller(file_system).create("f")
        inode = await file_system.namespace.inode(ino)
        assert not reading.must_see_reads(inode, os.O_RDONLY)
        reading.rule = AccessTimes.RELATIVE
        assert reading.must_see_reads(inode, os.O_RDONLY)
        assert reading.must_see_reads(inode, os.O_RDWR)
        assert not reading.must_see_reads(inode, os.O_WRONLY)
        assert not reading.must_see_reads(inode, os.O_RDONLY | os.O_NOATIME)
        reading.notice(ino)
        inode = await file_system.namespace.inode(ino)
        assert not reading.must_see_reads(inode, os.O_RDONLY)
        reading.rule = AccessTimes.ALWAYS
        assert reading.must_see_reads(inode, os.O_RDONLY)


async def test_no_read_fails_for_its_atime(monkeypatch: pytest.MonkeyPatch) -> None:
    async with mounted() as file_system:
        ino = await Caller(file_system).create("f")
        file_system.reading.rule = AccessTimes.ALWAYS

        def refuse(length: int) -> None:
            raise NoSpaceError("full")

        with monkeypatch.context() as full:
            full.setattr(file_system.store, "require_room", refuse)
            assert not await moves(file_system, ino)
        assert await moves(file_system, ino)
        file_system.reading.notice(987_654)
        file_system.store.health.make_read_only("a test", expected=True)
        assert not await moves(file_system, ino)


async def stored(file_system: FileSystem, ino: int) -> Inode:
    """The inode as the store has it."""
    record = await file_system.store.get_record(inode_key(ino))
    assert record is not None
    return decode_inode(record)


async def read(file_system: FileSystem, ino: int) -> tuple[Inode, Inode]:
    """Read a file so that its atime moves: the inode before and after, as everybody sees it."""
    file_system.reading.rule = AccessTimes.ALWAYS
    before = await file_system.namespace.inode(ino)
    file_system.reading.notice(ino)
    return before, await file_system.namespace.inode(ino)


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_a_moved_time_reaches_the_store_with_what_comes_next(kind: str) -> None:
    async with mounted(kind, tasks=False) as file_system:
        caller = Caller(file_system)
        synced, changed, together = [await caller.create(f"f{number}") for number in range(3)]
        await file_system.sync()
        for ino, name in ((synced, "fsync"), (changed, "chmod"), (together, "sync")):
            assert file_system.writeback.is_persistent(ino)
            before, after = await read(file_system, ino)
            assert before.atime_ns < after.atime_ns and await stored(file_system, ino) == before
            assert not file_system.writeback.is_persistent(ino), "a crash would undo it"
            file_system.tables.limit(0, 0)
            assert await file_system.namespace.inode(ino) == after, "it has left the cache"
            if name == "fsync":
                await file_system.writeback.fsync(ino)
                assert file_system.writeback.is_persistent(ino)
            elif name == "chmod":
                update = Update(mode=0o600)
                await file_system.namespace.set_attributes(ino, update, privileged=True)
            else:
                await file_system.sync()
            assert (await stored(file_system, ino)).atime_ns == after.atime_ns
            assert ino not in file_system.tables.touched


async def test_moved_times_are_in_the_store_after_some_seconds_in_few_batches() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        inos = [await caller.create(f"f{number}") for number in range(100)]
        await file_system.sync()
        seen = [(await read(file_system, ino))[1] for ino in inos]
        batches = 0
        apply = file_system.store.apply

        def count(batch: object) -> object:
            nonlocal batches
            batches += 1
            return apply(batch)

        file_system.store.apply = count  # type: ignore[method-assign,assignment]  # in front of it
        await trio.sleep(limits.DIRTY_AGE_S + 2 * limits.FLUSHER_INTERVAL_S)
        assert [await stored(file_system, ino) for ino in inos] == seen
        assert batches <= 10 and all(map(file_system.writeback.is_persistent, inos))


async def test_a_removed_file_takes_its_moved_time_along() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        ino = await caller.create("f")
        await read(file_system, ino)
        await caller.unlink("f")
        await file_system.orphans.drained()
        assert ino not in file_system.tables.touched
        await trio.sleep(limits.DIRTY_AGE_S + 2 * limits.FLUSHER_INTERVAL_S)
        assert await file_system.store.get_record(inode_key(ino)) is None


async def test_no_more_than_so_many_times_wait() -> None:
    async with mounted(tasks=False) as file_system:
        ino = await Caller(file_system).create("f")
        for number in range(TOUCHED_MAX):
            file_system.tables.touched.add(1_000_000 + number, 1)
        before, after = await read(file_system, ino)
        assert before.atime_ns < after.atime_ns and await stored(file_system, ino) == after
        for number in range(TOUCHED_MAX):
            file_system.tables.touched.drop(1_000_000 + number)
