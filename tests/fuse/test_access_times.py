"""fuse/access_times.py: which reads move atime, without a kernel."""

from __future__ import annotations

import os

import pytest

from shardfs.errors import NoSpaceError
from shardfs.fuse.access_times import OLD_NS
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.mount_options import AccessTimes
from shardfs.fuse.namespace import Update
from shardfs.fuse.records import ROOT_INO
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
