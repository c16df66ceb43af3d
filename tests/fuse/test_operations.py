"""fuse/operations.py without a kernel: every handler guarded, answers encoded, errors told once."""

from __future__ import annotations

import errno
import inspect
import stat

import pyfuse3
import pytest

from shardfs.checking.models.store_model import ModelStore
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.mount_options import MountOptions
from shardfs.fuse.operations import Operations
from tests.fuse.harness import Caller, mounted, serving

CONTEXT = pyfuse3.RequestContext()
NOT_HANDLED = {"init", "stacktrace", "poll"}


def errno_of(error: pytest.ExceptionInfo[pyfuse3.FUSEError]) -> int:
    return error.value.errno


def test_every_handler_is_implemented_and_guarded() -> None:
    names = {
        name
        for name, method in vars(pyfuse3.Operations).items()
        if inspect.isfunction(method) and not name.startswith("_")
    }
    assert len(names) >= 30
    for name in names - NOT_HANDLED:
        method = getattr(Operations, name)
        assert method is not getattr(pyfuse3.Operations, name), f"{name} is not implemented"
        assert hasattr(method, "__wrapped__"), f"{name} is not guarded"


async def test_lookups_are_answered_and_counted() -> None:
    async with mounted() as file_system:
        operations = Operations(file_system, MountOptions())
        nothing = await operations.lookup(ROOT_INO, b"a", CONTEXT)
        assert nothing.st_ino == 0 and nothing.entry_timeout > 10**6
        info, created = await operations.create(ROOT_INO, b"a", 0o100644, 0, CONTEXT)
        found = await operations.lookup(ROOT_INO, b"a", CONTEXT)
        assert found.st_ino == created.st_ino and found.generation == created.generation != 0
        assert found.attr_timeout > 10**6
        await operations.write(info.fh, 0, b"x" * 5000)
        attributes = await operations.getattr(found.st_ino, CONTEXT)
        assert (attributes.st_size, attributes.st_blocks) == (5000, 10)
        assert bytes(await operations.read(info.fh, 4998, 100)) == b"xx"
        await operations.unlink(ROOT_INO, b"a", CONTEXT)
        await operations.release(info.fh)
        await operations.forget([(found.st_ino, 1)])
        assert file_system.handles.is_used(found.st_ino)
        await operations.forget([(found.st_ino, 1)])
        assert not file_system.handles.is_used(found.st_ino)
        await file_system.orphans.drained()
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await operations.getattr(found.st_ino, CONTEXT)
        assert errno_of(raised) == errno.ESTALE


async def test_attributes_are_encoded() -> None:
    async with mounted() as file_system:
        operations = Operations(file_system, MountOptions())
        made = await operations.mknod(ROOT_INO, b"null", stat.S_IFCHR | 0o666, 0x103, CONTEXT)
        assert (made.st_mode, made.st_rdev, made.st_nlink) == (stat.S_IFCHR | 0o666, 0x103, 1)
        link = await operations.symlink(ROOT_INO, b"link", b"target", CONTEXT)
        assert await operations.readlink(link.st_ino, CONTEXT) == b"target"
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await operations.readlink(made.st_ino, CONTEXT)
        assert errno_of(raised) == errno.EINVAL
        space = await operations.statfs(CONTEXT)
        assert space.f_namemax == 255 and 0 < space.f_bfree <= space.f_blocks
        with pytest.raises(pyfuse3.FUSEError) as raised:
            await operations.flush(1)
        assert errno_of(raised) == errno.ENOSYS


async def test_a_lost_write_is_told_to_each_handle_once() -> None:
    async with mounted() as file_system:
        operations = Operations(file_system, MountOptions())
        ino = await Caller(file_system).create("a")
        handles = [await operations.open(ino, 0, CONTEXT) for _ in range(2)]
        file_system.writeback._dirty._error_counts[ino] = 1
        later = await operations.open(ino, 0, CONTEXT)
        for info in handles:
            with pytest.raises(pyfuse3.FUSEError) as raised:
                await operations.fsync(info.fh, True)
            assert errno_of(raised) == errno.EIO
            await operations.fsync(info.fh, True)
        await operations.fsync(later.fh, True)


async def test_a_sync_mount_is_durable_before_it_answers() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        operations = Operations(file_system, MountOptions(sync=True))
        await operations.mkdir(ROOT_INO, b"d", 0o40755, CONTEXT)
        await operations.symlink(ROOT_INO, b"l", b"t", CONTEXT)
        await operations.rename(ROOT_INO, b"d", ROOT_INO, b"e", 0, CONTEXT)
        after = store.power_cut(0)
    found = await FileSystem.open(after)
    assert sorted(await Caller(found).list()) == ["e", "l"]
