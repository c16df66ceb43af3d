"""Setting an extended attribute or an access list to what it was moved the ctime, and wrote.

Seed 4045 of the random calls beside ext4 (test_beside_ext4.py) showed it for an access list: ext4
leaves the file alone then. Programs that set again all that a file has (rsync -X, restorecon) made
every file look changed to a backup that goes by the ctime.
"""

from __future__ import annotations

import errno
import stat

import pytest
import trio

from shardfs.errors import FileError
from shardfs.fuse.access_lists import ACCESS, DEFAULT, GROUP_OWNER, MASK, OTHERS, OWNER, USER
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.namespace import Update
from shardfs.fuse.records import AccessEntry, Inode, encode_access_list
from shardfs.fuse.xattrs import CREATE, REPLACE
from tests.fuse.harness import Caller, mounted

NOBODY = 0xFFFFFFFF
MINIMAL = encode_access_list(
    (
        *(AccessEntry(OWNER, 6, NOBODY), AccessEntry(GROUP_OWNER, 4, NOBODY)),
        AccessEntry(OTHERS, 0, NOBODY),
    )
)
NAMED = encode_access_list(
    (
        *(AccessEntry(OWNER, 6, NOBODY), AccessEntry(USER, 6, 7)),
        *(AccessEntry(GROUP_OWNER, 4, NOBODY), AccessEntry(MASK, 6, NOBODY)),
        AccessEntry(OTHERS, 0, NOBODY),
    )
)


async def test_an_attribute() -> None:
    async with mounted() as file_system:
        ino = await Caller(file_system).create("a")
        xattrs = file_system.xattrs
        for value in (b"", b"value", b"x" * 60_000):
            await xattrs.set(ino, b"user.a", value)
            before = await inode_of(file_system, ino)
            await xattrs.set(ino, b"user.a", value)
            await xattrs.set(ino, b"user.a", value, REPLACE)
            assert await inode_of(file_system, ino) == before
            with pytest.raises(FileError) as raised:
                await xattrs.set(ino, b"user.a", value, CREATE)
            assert raised.value.errno == errno.EEXIST
        await xattrs.set(ino, b"user.a", b"other")
        assert await xattrs.get(ino, b"user.a") == b"other"
        assert (await inode_of(file_system, ino)).ctime_ns > before.ctime_ns


@pytest.mark.parametrize("value", [NAMED, MINIMAL], ids=["named", "minimal"])
@pytest.mark.parametrize("name", [ACCESS, DEFAULT], ids=["access", "default"])
async def test_an_access_list(name: bytes, value: bytes) -> None:
    async with mounted() as file_system:
        with_access_lists(file_system)
        ino = await Caller(file_system).mkdir("a")
        await file_system.xattrs.set_access_list(ino, name, value)
        before = await inode_of(file_system, ino)
        await file_system.xattrs.set_access_list(ino, name, value)
        assert await inode_of(file_system, ino) == before
        await file_system.xattrs.set_access_list(ino, name, None)
        await file_system.xattrs.set_access_list(ino, name, None)
        await file_system.xattrs.set_access_list(ino, name, value)
        stored = not (name == ACCESS and value == MINIMAL)
        assert (await inode_of(file_system, ino)).xattrs == stored


async def test_the_same_list_still_takes_set_group_id_from_a_stranger() -> None:
    async with mounted() as file_system:
        with_access_lists(file_system)
        ino = await Caller(file_system).create("a")
        await file_system.xattrs.set_access_list(ino, ACCESS, NAMED)
        mode = (await inode_of(file_system, ino)).mode
        await file_system.namespace.set_attributes(
            ino, Update(mode=mode | stat.S_ISGID), privileged=True
        )
        await file_system.xattrs.set_access_list(ino, ACCESS, NAMED, keeps_set_group_id=False)
        assert (await inode_of(file_system, ino)).mode == mode


async def test_the_mode_changes_while_the_list_is_compared() -> None:
    """chmod(2) changes a list too: a comparison with the list before it must not be the last."""
    async with mounted() as file_system:
        with_access_lists(file_system)
        ino = await Caller(file_system).create("a")
        await file_system.xattrs.set_access_list(ino, ACCESS, NAMED)
        mode = (await inode_of(file_system, ino)).mode
        store, get_record = file_system.tables.store, file_system.tables.store.get_record
        changed = trio.Event()

        async def get_record_and_let_the_mode_change(key: bytes) -> bytes | None:
            record = await get_record(key)
            if not changed.is_set():
                changed.set()
                await file_system.namespace.set_attributes(
                    ino, Update(mode=mode & ~0o070), privileged=True
                )
            return record

        store.get_record = get_record_and_let_the_mode_change  # type: ignore[method-assign]
        await file_system.xattrs.set_access_list(ino, ACCESS, NAMED)
        assert changed.is_set()
        assert (await inode_of(file_system, ino)).mode == mode
        assert await file_system.xattrs.get(ino, ACCESS) == NAMED


def with_access_lists(file_system: FileSystem) -> None:
    file_system.namespace.access_lists = file_system.xattrs.access_lists = True


async def inode_of(file_system: FileSystem, ino: int) -> Inode:
    return await file_system.namespace.inode(ino)
