"""Changes of names are answered first and reach the store together, in order, and in time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from shardfs.checking.models.store_model import ModelStore
from shardfs.engine.pieces import Shard
from shardfs.errors import FileError, ReadOnlyError
from shardfs.fuse import staging
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ENTRY_PREFIX, ROOT_INO, inode_key
from tests.fuse.harness import Caller, opened_store, serving

FILES = staging.CHANGES_MAX


class RoomyStore(ModelStore):
    """Lets everybody in at once, and has everything in memory."""

    def admits_at_once(self, length: int = 0) -> bool:
        return True

    def find_record(self, key: bytes) -> bytes | None:  # type: ignore[override]  # never UNREAD
        value = self.state.get(key)
        assert not isinstance(value, Shard)
        return value


async def test_many_changes_are_one_batch_that_encodes_each_inode_once() -> None:
    store = RoomyStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        await caller.create("first")
        file_system.tables.settle()
        before = len(store.unsynced)
        for number in range(FILES):
            await caller.create(f"f{number}")
        assert len(store.unsynced) == before, "they are staged"
        await caller.create("one more")
        assert len(store.unsynced) == before + 1, "no more than so many are"
        batch, _ = store.unsynced[-1]
        assert list(batch.changes).count(inode_key(ROOT_INO)) == 1
        assert len(batch.changes) == 2 * FILES + 2, "inodes, names, the directory, the count"


def _settled_by_reading(file_system: FileSystem) -> list[Callable[[], Awaitable[object]]]:
    store = file_system.store

    async def scan() -> None:
        async for _ in store.scan(b"\0", b"\xff"):
            pass

    return [
        lambda: store.get_record(inode_key(ROOT_INO)),
        lambda: store.records(ENTRY_PREFIX, b"\xff", 10),
        scan,
        store.admit,
        store.sync,
        lambda: store.sync_key(inode_key(ROOT_INO)),
    ]


@pytest.mark.parametrize("way", range(6))
async def test_whoever_asks_the_store_sees_what_was_answered(way: int) -> None:
    store = RoomyStore()
    async with serving(store, tasks=False) as file_system:
        ino = await Caller(file_system).create("a")
        found = await file_system.namespace.lookup(ROOT_INO, b"a")
        assert found is not None and found.ino == ino
        assert inode_key(ino) not in store.state, "it is staged"
        await _settled_by_reading(file_system)[way]()
        assert inode_key(ino) in store.state


async def test_what_is_staged_comes_before_what_is_applied_after_it() -> None:
    """A prefix of the batches, as any crash leaves it, never has data of a file without a name."""
    store = RoomyStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        await caller.create("first")
        for number in range(3):
            ino = await caller.create(f"f{number}")
            await file_system.writeback.write(ino, 0, b"data")
            await file_system.writeback.flush(ino)
        for number in range(len(store.unsynced) + 1):
            async with serving(store.power_cut(number), tasks=False) as after:
                for name, found in [
                    (f"f{n}", await after.namespace.lookup(ROOT_INO, b"f%d" % n)) for n in range(3)
                ]:
                    if found is not None:
                        data = await Caller(after).read(name)
                        assert data in (b"", b"data") and len(data) == found.inode.size


async def test_fsync_makes_the_name_durable() -> None:
    store = RoomyStore()
    async with serving(store, tasks=False) as file_system:
        caller = Caller(file_system)
        await caller.create("first")
        ino = await caller.create("a", data=b"data")
        await file_system.writeback.fsync(ino)
        async with serving(store.power_cut(0), tasks=False) as after:
            assert await Caller(after).read("a") == b"data"


@pytest.mark.expected_warnings("a test wants it")
async def test_a_store_that_turns_read_only_still_shows_it() -> None:
    async with opened_store("engine") as store:
        file_system = await FileSystem.open(store)
        caller = Caller(file_system)
        await caller.create("first")
        await caller.create("a")
        store.health.make_read_only("a test wants it", expected=True)
        with pytest.raises(ReadOnlyError):
            await caller.create("b")
        listing = file_system.list_directory(ROOT_INO)
        names = [item.name for item in await listing.read(0)]
        assert b"a" in names and b"b" not in names
        found = await file_system.namespace.lookup(ROOT_INO, b"a")
        assert found is not None
        with pytest.raises(FileError, match="a test wants it"):
            await file_system.writeback.fsync(found.ino)


async def test_nothing_stays_staged_when_nothing_happens() -> None:
    store = RoomyStore()
    async with serving(store) as file_system:
        await Caller(file_system).create("first")
        await Caller(file_system).create("a")
        await trio.sleep(1)
        found = await file_system.namespace.lookup(ROOT_INO, b"a")
        assert found is not None and inode_key(found.ino) in store.state
