"""What is said to be durable is: pending files, the virtual attribute, waiting for one file."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from shardfs.errors import FileError
from shardfs.fuse.inspection import Inspection
from shardfs.fuse.xattrs import PERSISTENT
from tests.fuse.test_explanations import ask, conversation

NO = [b"no"]
YES = [b"yes"]


async def pending(inspection: Inspection, path: str = "") -> dict[str, list[str]]:
    """Paths with what is pending of them."""
    await ask(inspection, "pending-begin", path=path)
    page: dict[str, Any] = await ask(inspection, "pending-more")
    assert page["end"]
    return {each["paths"][0]: each["pending"] for each in page["files"]}


async def test_pending_from_the_first_byte_to_the_sync() -> None:
    async with conversation() as (inspection, caller):
        xattrs, writeback = caller.file_system.xattrs, caller.file_system.writeback
        await caller.mkdir("folder")
        await caller.file_system.sync()
        assert await pending(inspection) == {}
        ino = await caller.create("folder/file")
        assert await pending(inspection, "folder/file") == {"/folder/file": ["changes", "name"]}
        assert set(await pending(inspection)) == {"/folder", "/folder/file"}
        await caller.file_system.sync()
        assert [await xattrs.get(ino, PERSISTENT)] == YES
        await writeback.write(ino, 0, b"data")
        assert await pending(inspection, "folder/file") == {"/folder/file": ["data"]}
        assert [await xattrs.get(ino, PERSISTENT)] == NO
        assert writeback.is_dirty(ino), "asking has stored nothing"
        await writeback.flush(ino)
        assert await pending(inspection, "folder/file") == {"/folder/file": ["changes"]}
        assert [await xattrs.get(ino, PERSISTENT)] == NO
        await ask(inspection, "sync-path", path="folder/file")
        assert await pending(inspection) == {}
        assert [await xattrs.get(ino, PERSISTENT)] == YES


async def test_only_what_lies_below_is_listed() -> None:
    async with conversation() as (inspection, caller):
        await caller.mkdir("a")
        await caller.mkdir("ab")
        await caller.file_system.sync()
        for path in ("a/one", "ab/two"):
            ino = await caller.create(path)
            await caller.file_system.writeback.write(ino, 0, b"x")
        assert set(await pending(inspection, "a")) == {"/a", "/a/one"}
        await ask(inspection, "sync-path", path="a/one")
        assert "/a/one" not in await pending(inspection, "a")
        assert "/ab/two" in await pending(inspection), "it was not asked for"
        await ask(inspection, "sync-path", path="ab")
        assert await pending(inspection) == {}


async def test_every_change_of_a_file_makes_it_pending() -> None:
    async with conversation() as (_, caller):
        ino = await caller.create("file", data=b"x" * 5000)
        xattrs, sync = caller.file_system.xattrs, caller.file_system.sync
        await sync()

        async def changed() -> bool:
            answer = await xattrs.get(ino, PERSISTENT)
            await sync()
            assert await xattrs.get(ino, PERSISTENT) == b"yes"
            return answer == b"no"

        await caller.rename("file", "other")
        assert await changed()
        await caller.link("other", "link")
        assert await changed()
        await caller.unlink("link")
        assert await changed()
        await xattrs.set(ino, b"user.a", b"1")
        assert await changed()
        await xattrs.remove(ino, b"user.a")
        assert await changed()
        await caller.file_system.writeback.truncate(ino, 10, lambda inode: inode)
        assert await changed()


async def test_the_attribute_is_neither_listed_nor_set() -> None:
    async with conversation() as (_, caller):
        ino = await caller.create("file", data=b"x")
        xattrs = caller.file_system.xattrs
        await xattrs.set(ino, b"user.a", b"1")
        assert await xattrs.names(ino, privileged=True) == [b"user.a"]
        with pytest.raises(FileError) as caught:
            await xattrs.set(ino, PERSISTENT, b"yes")
        assert caught.value.errno == errno.EPERM
        with pytest.raises(FileError) as caught:
            await xattrs.remove(ino, PERSISTENT)
        assert caught.value.errno == errno.EPERM
