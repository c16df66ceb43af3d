"""fuse/access_lists.py and its users: what lists say, what changes with them, what is inherited."""

from __future__ import annotations

import errno
import stat

import pytest

from shardfs.errors import FileError
from shardfs.fuse import access_lists
from shardfs.fuse.access_lists import (
    ACCESS,
    DEFAULT,
    GROUP,
    GROUP_OWNER,
    MASK,
    OTHERS,
    OWNER,
    USER,
    AccessList,
)
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.namespace import Update
from shardfs.fuse.records import AccessEntry, decode_access_list, encode_access_list
from tests.fuse.harness import DIRECTORY_MODE, FILE_MODE, Caller, mounted

NOBODY = 0xFFFFFFFF


def entries(*triples: tuple[int, int, int]) -> AccessList:
    return tuple(AccessEntry(*triple) for triple in triples)


def minimal(owner: int, group: int, others: int) -> AccessList:
    return entries((OWNER, owner, NOBODY), (GROUP_OWNER, group, NOBODY), (OTHERS, others, NOBODY))


def named(owner: int, user: int, group: int, mask: int, others: int) -> AccessList:
    """A list with one named user, 7."""
    return entries(
        *((OWNER, owner, NOBODY), (USER, user, 7), (GROUP_OWNER, group, NOBODY)),
        *((MASK, mask, NOBODY), (OTHERS, others, NOBODY)),
    )


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([(OWNER, 0), (GROUP_OWNER, 0), (OTHERS, 0)], True),
        ([(OWNER, 0), (GROUP_OWNER, 0), (MASK, 0), (OTHERS, 0)], True),
        ([(OWNER, 0), (USER, 1), (GROUP_OWNER, 0), (OTHERS, 0)], False),
        ([(OWNER, 0), (USER, 1), (USER, 2), (GROUP_OWNER, 0), (MASK, 0), (OTHERS, 0)], True),
        ([(OWNER, 0), (USER, 1), (USER, 1), (GROUP_OWNER, 0), (MASK, 0), (OTHERS, 0)], False),
        ([(OWNER, 0), (GROUP_OWNER, 0), (GROUP, 1), (MASK, 0), (OTHERS, 0)], True),
        ([(GROUP_OWNER, 0), (OWNER, 0), (OTHERS, 0)], False),
        ([(OWNER, 0), (GROUP_OWNER, 0)], False),
        ([(OWNER, 0), (3, 0), (GROUP_OWNER, 0), (OTHERS, 0)], False),
        ([], False),
    ],
)
def test_what_is_a_list(tags: list[tuple[int, int]], expected: bool) -> None:
    assert access_lists.is_valid(entries(*((tag, 7, of) for tag, of in tags))) is expected


def test_permissions_beyond_seven_are_none() -> None:
    assert not access_lists.is_valid(minimal(8, 0, 0))


def test_encoding_is_the_kernels() -> None:
    value = bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000000ffffffff")
    assert decode_access_list(value) == minimal(7, 5, 0)
    assert encode_access_list(minimal(7, 5, 0)) == value


def test_list_and_mode() -> None:
    assert access_lists.mode_of(minimal(7, 5, 1), 0o104000) == 0o104751
    assert access_lists.mode_of(named(6, 7, 7, 4, 0), 0o777) == 0o640
    assert access_lists.with_mode(named(7, 7, 7, 7, 7), 0o4751) == named(7, 7, 7, 5, 1)
    assert access_lists.with_mode(minimal(0, 0, 0), 0o751) == minimal(7, 5, 1)


def test_what_is_inherited() -> None:
    default = named(7, 6, 5, 7, 4)
    assert access_lists.inherited(default, 0o100640) == (named(6, 6, 5, 4, 0), 0o100640)
    assert access_lists.inherited(default, 0o40777) == (named(7, 6, 5, 7, 4), 0o40774)
    assert access_lists.inherited(minimal(6, 6, 6), 0o100604) == (None, 0o100604)


async def put(file_system: FileSystem, ino: int, name: bytes, value: AccessList | None) -> None:
    encoded = None if value is None else encode_access_list(value)
    await file_system.xattrs.set_access_list(ino, name, encoded)


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_lists_change_with_the_mode(kind: str) -> None:
    async with mounted(kind) as file_system:
        namespace, xattrs = file_system.namespace, file_system.xattrs
        namespace.access_lists = xattrs.access_lists = True
        ino = await Caller(file_system).create("a")
        await put(file_system, ino, ACCESS, named(7, 6, 0, 6, 0))
        inode = await namespace.inode(ino)
        assert (inode.mode, inode.xattrs) == (0o100760, 1)
        assert await xattrs.names(ino, privileged=False) == [ACCESS]
        await namespace.set_attributes(ino, Update(mode=0o4544), privileged=True)
        assert decode_access_list(await xattrs.get(ino, ACCESS)) == named(5, 6, 0, 4, 4)
        assert (await namespace.inode(ino)).mode == 0o104544
        await put(file_system, ino, ACCESS, minimal(6, 4, 4))
        inode = await namespace.inode(ino)
        assert (inode.mode, inode.xattrs) == (0o104644, 0)
        await put(file_system, ino, ACCESS, None)
        await put(file_system, ino, DEFAULT, None)
        assert (await namespace.inode(ino)).xattrs == 0
        with pytest.raises(FileError) as raised:
            await put(file_system, ino, DEFAULT, minimal(6, 4, 4))
        assert raised.value.errno == errno.EACCES
        with pytest.raises(FileError) as raised:
            await xattrs.set_access_list(ino, ACCESS, b"\2\0\0\0")
        assert raised.value.errno == errno.EINVAL


async def test_set_group_id_goes_with_a_list_of_an_outsider() -> None:
    async with mounted() as file_system:
        file_system.xattrs.access_lists = True
        ino = await Caller(file_system).create("a", 0o102755)
        for keeps, expected in ((True, 0o102755), (False, 0o100755)):
            await file_system.xattrs.set_access_list(
                ino, ACCESS, encode_access_list(minimal(7, 5, 5)), keeps_set_group_id=keeps
            )
            assert (await file_system.namespace.inode(ino)).mode == expected


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_new_inodes_inherit(kind: str) -> None:
    async with mounted(kind) as file_system:
        namespace, xattrs = file_system.namespace, file_system.xattrs
        namespace.access_lists = xattrs.access_lists = True
        parent = await Caller(file_system).mkdir("d")
        default = named(7, 6, 5, 7, 0)
        await put(file_system, parent, DEFAULT, default)
        file = await namespace.create(parent, b"f", 0o100666, 0, 0, umask=0o077)
        assert (file.inode.mode, file.inode.xattrs) == (0o100660, 1)
        assert decode_access_list(await xattrs.get(file.ino, ACCESS)) == named(6, 6, 5, 6, 0)
        inner = await namespace.create(parent, b"i", 0o40777, 0, 0, umask=0o077)
        assert (inner.inode.mode, inner.inode.xattrs) == (0o40770, 2)
        assert decode_access_list(await xattrs.get(inner.ino, DEFAULT)) == default
        link = await namespace.create(parent, b"l", 0o120777, 0, 0, target=b"f")
        assert (link.inode.mode, link.inode.xattrs) == (0o120777, 0)
        plain = await namespace.create(ROOT_INO, b"p", 0o100666, 0, 0, umask=0o027)
        assert (plain.inode.mode, plain.inode.xattrs) == (0o100640, 0)
        namespace.access_lists = False
        without = await namespace.create(parent, b"w", 0o100666, 0, 0, umask=0o077)
        assert (without.inode.mode, without.inode.xattrs) == (0o100600, 0)


async def test_without_them_lists_are_unseen() -> None:
    async with mounted() as file_system:
        xattrs = file_system.xattrs
        xattrs.access_lists = True
        ino = await Caller(file_system).create("a", FILE_MODE)
        await put(file_system, ino, ACCESS, named(7, 6, 0, 6, 0))
        xattrs.access_lists = False
        assert await xattrs.names(ino, privileged=True) == []
        for call in (xattrs.get(ino, ACCESS), xattrs.set_access_list(ino, ACCESS, None)):
            with pytest.raises(FileError) as raised:
                await call
            assert raised.value.errno == errno.EOPNOTSUPP
        await file_system.namespace.set_attributes(ino, Update(mode=0o600), privileged=True)
        xattrs.access_lists = True
        assert decode_access_list(await xattrs.get(ino, ACCESS)) == named(6, 6, 0, 0, 0)


async def test_each_change_is_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So no crash leaves a mode without its list, or a new file without what it inherits."""
    async with mounted() as file_system:
        namespace = file_system.namespace
        namespace.access_lists = file_system.xattrs.access_lists = True
        parent = await Caller(file_system).create("d", DIRECTORY_MODE)
        store, batches = file_system.store, 0
        apply = store.apply

        def counting(batch: object) -> object:
            nonlocal batches
            batches += 1
            return apply(batch)

        monkeypatch.setattr(store, "apply", counting)
        await put(file_system, parent, ACCESS, named(7, 6, 0, 6, 0))
        await put(file_system, parent, DEFAULT, named(7, 6, 0, 6, 0))
        inner = await namespace.create(parent, b"i", 0o40777, 0, 0)
        assert inner.inode.xattrs == 2
        await namespace.set_attributes(parent, Update(mode=0o700), privileged=True)
        assert stat.S_IMODE((await namespace.inode(parent)).mode) == 0o700
        assert batches == 4
