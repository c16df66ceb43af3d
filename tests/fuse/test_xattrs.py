"""fuse/xattrs.py: values, flags, names and limits."""

from __future__ import annotations

import errno

import pytest

from shardfs import limits
from shardfs.errors import FileError
from shardfs.fuse.xattrs import CREATE, REPLACE, Xattrs
from tests.engine.stores import formatted, opened
from tests.fuse.harness import Caller, mounted, serving


async def errno_of(xattrs: Xattrs, method: str, *arguments: object) -> int:
    with pytest.raises(FileError) as raised:
        await getattr(xattrs, method)(*arguments)
    return raised.value.errno


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_values_and_names(kind: str) -> None:
    async with mounted(kind) as file_system:
        xattrs = file_system.xattrs
        ino = await Caller(file_system).create("a", data=b"content")
        assert await xattrs.names(ino, privileged=True) == []
        before = await file_system.namespace.inode(ino)
        await xattrs.set(ino, b"user.b", b"")
        await xattrs.set(ino, b"user.a", b"x" * limits.XATTR_BYTES_MAX)
        await xattrs.set(ino, b"trusted.t", b"1")
        await xattrs.set(ino, b"user.b", b"\0\xff")
        assert await xattrs.get(ino, b"user.b") == b"\0\xff"
        assert await xattrs.get(ino, b"user.a") == b"x" * limits.XATTR_BYTES_MAX
        assert await xattrs.names(ino, privileged=True) == [b"trusted.t", b"user.a", b"user.b"]
        assert await xattrs.names(ino, privileged=False) == [b"user.a", b"user.b"]
        inode = await file_system.namespace.inode(ino)
        assert inode.xattrs == 3 and inode.ctime_ns > before.ctime_ns
        assert inode.mtime_ns == before.mtime_ns
        await xattrs.remove(ino, b"user.a")
        assert await errno_of(xattrs, "get", ino, b"user.a") == errno.ENODATA
        assert await errno_of(xattrs, "remove", ino, b"user.a") == errno.ENODATA
        assert await Caller(file_system).read("a") == b"content"


async def test_a_value_that_a_device_with_small_extents_cannot_hold_is_too_large() -> None:
    device = await formatted(16, extent_bytes=128 * limits.KIB)
    async with opened(device) as store, serving(store) as file_system:
        ino = await Caller(file_system).create("a")
        await file_system.xattrs.set(ino, b"user.a", b"x" * 8 * limits.KIB)
        most = b"x" * limits.XATTR_BYTES_MAX
        assert await errno_of(file_system.xattrs, "set", ino, b"user.a", most) == errno.E2BIG
        assert len(await file_system.xattrs.get(ino, b"user.a")) == 8 * limits.KIB


async def test_flags_and_limits() -> None:
    async with mounted() as file_system:
        xattrs = file_system.xattrs
        ino = await Caller(file_system).create("a")
        assert await errno_of(xattrs, "set", ino, b"user.a", b"", REPLACE) == errno.ENODATA
        await xattrs.set(ino, b"user.a", b"1", CREATE)
        assert await errno_of(xattrs, "set", ino, b"user.a", b"", CREATE) == errno.EEXIST
        await xattrs.set(ino, b"user.a", b"2", REPLACE)
        assert await xattrs.get(ino, b"user.a") == b"2"
        too_long = b"x" * (limits.XATTR_BYTES_MAX + 1)
        assert await errno_of(xattrs, "set", ino, b"user.a", too_long) == errno.E2BIG
        assert await errno_of(xattrs, "set", ino, b"user." + b"x" * 251, b"") == errno.ERANGE
        assert await errno_of(xattrs, "set", ino, b"user.", b"") == errno.EINVAL
        for name in (b"system.posix_acl_access", b"nothing"):
            assert await errno_of(xattrs, "set", ino, name, b"") == errno.EOPNOTSUPP
            assert await errno_of(xattrs, "get", ino, name) == errno.EOPNOTSUPP


async def test_the_list_of_names_is_bounded() -> None:
    async with mounted() as file_system:
        xattrs = file_system.xattrs
        ino = await Caller(file_system).create("a")
        with pytest.raises(FileError) as raised:
            for number in range(1000):
                await xattrs.set(ino, b"user.%0250d" % number, b"")
        assert raised.value.errno == errno.ENOSPC
        names = await xattrs.names(ino, privileged=True)
        assert sum(len(name) + 1 for name in names) <= 64 * 1024
