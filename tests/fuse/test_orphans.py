"""fuse/orphans.py and handles.py: a nameless file lives until its last use ends."""

from __future__ import annotations

import pytest
import trio

from shardfs.checking.models.store_model import ModelStore
from shardfs.errors import FileError
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import inode_key, orphan_key
from tests.fuse.harness import Caller, mounted, serving


async def exists(file_system: FileSystem, ino: int) -> bool:
    await file_system.orphans.drained()
    return await file_system.store.get_record(inode_key(ino)) is not None


@pytest.mark.parametrize("kind", ["model", "engine"])
async def test_an_open_file_stays_readable_until_forgotten_and_closed(kind: str) -> None:
    async with mounted(kind) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"content")
        handles = file_system.handles
        handles.looked_up(ino)
        handles.looked_up(ino)
        number = handles.open_file(ino, privileged=True)
        await caller.unlink("a")
        assert (await file_system.namespace.inode(ino)).nlink == 0
        await file_system.writeback.write(ino, 7, b" more")
        await file_system.writeback.flush(ino)
        assert bytes(await file_system.writeback.read(ino, 0, 99)) == b"content more"
        handles.forget(ino, 1)
        assert await exists(file_system, ino)
        handles.release_file(number)
        assert await exists(file_system, ino)
        handles.forget(ino, 1)
        assert not await exists(file_system, ino)
        with pytest.raises(FileError):
            await file_system.namespace.inode(ino)


async def test_a_replaced_file_stays_readable() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        old = await caller.create("a", data=b"old")
        await caller.create("b", data=b"new")
        number = file_system.handles.open_file(old, privileged=True)
        await caller.rename("b", "a")
        assert bytes(await file_system.writeback.read(old, 0, 9)) == b"old"
        file_system.handles.release_file(number)
        assert not await exists(file_system, old)


async def test_a_file_with_another_name_is_not_freed() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"content")
        await caller.link("a", "b")
        await caller.unlink("a")
        assert await exists(file_system, ino) and await caller.read("b") == b"content"


async def test_unlinked_and_unknown_is_freed_at_once_with_everything() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        caller = Caller(file_system)
        before = dict(store.state)
        ino = await caller.create("a", data=b"content")
        await file_system.xattrs.set(ino, b"user.a", b"value")
        await file_system.writeback.flush(ino)
        await caller.unlink("a")
        assert not await exists(file_system, ino)
        assert store.state.keys() == before.keys() and store.used_bytes == 0


async def test_what_a_crash_leaves_is_freed_after_mounting() -> None:
    store = ModelStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        inos = [await caller.create(f"f{number}", data=b"data") for number in range(300)]
        await file_system.sync()
        for number, ino in enumerate(inos):
            file_system.handles.looked_up(ino)
            await caller.unlink(f"f{number}")
        await file_system.store.sync()
        after = store.power_cut(0)
    assert orphan_key(inos[0]) in after.state and after.used_bytes == 1200
    async with serving(after) as file_system:
        pass
    async with serving(after) as file_system:
        for ino in inos:
            assert not await exists(file_system, ino)
    assert after.used_bytes == 0


async def test_the_end_of_a_mount_frees_what_was_held() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        caller = Caller(file_system)
        ino = await caller.create("a", data=b"data")
        file_system.handles.looked_up(ino)
        file_system.handles.open_file(ino, privileged=True)
        await caller.unlink("a")
    assert inode_key(ino) not in store.durable and orphan_key(ino) not in store.durable


async def test_unknown_handles_are_refused() -> None:
    async with mounted() as file_system:
        handles = file_system.handles
        with pytest.raises(FileError):
            handles.file(7)
        with pytest.raises(FileError):
            handles.directory(7)
        handles.release_file(7)
        handles.release_directory(7)
        handles.forget(12345, 3)


async def test_freeing_rests_during_a_burst_of_requests_unless_somebody_waits() -> None:
    async with mounted() as file_system:
        caller, orphans = Caller(file_system), file_system.orphans
        names = [f"f{number}" for number in range(400)]
        for name in names:
            await caller.create(name)
        requests = 0
        orphans.requests = lambda: requests
        for name in names:
            await caller.unlink(name)
        for _ in range(20):
            requests += 100
            await trio.sleep(0.001)
        assert 300 < orphans.queue_length < 400, "a few at a time"
        await trio.sleep(0.1)
        assert orphans.queue_length == 0, "the burst has ended"
        for name in names:
            await caller.create(name)
            await caller.unlink(name)
        requests += 100
        await orphans.drained()
        assert orphans.queue_length == 0
