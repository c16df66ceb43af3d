"""fuse/listing.py: every entry once, whatever comes and goes."""

from __future__ import annotations

import random

import pytest

from shardfs import limits
from shardfs.errors import CorruptionError
from shardfs.fuse import keys
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO, inode_key
from shardfs.fuse.listing import Item
from tests.fuse.harness import Caller, mounted


async def fill(file_system: FileSystem, count: int) -> set[bytes]:
    caller = Caller(file_system)
    for number in range(count):
        await caller.create(f"file-{number}")
    return {f"file-{number}".encode() for number in range(count)}


@pytest.mark.parametrize("kind", ["model", "engine"])
@pytest.mark.parametrize("count", [0, 1, limits.DIRECTORY_PAGE_ENTRIES, 700])
async def test_every_entry_once_and_the_dots_first(kind: str, count: int) -> None:
    async with mounted(kind) as file_system:
        names = await fill(file_system, count)
        items = await list_all(file_system, take=50)
        assert [item.name for item in items[:2]] == [b".", b".."]
        assert {item.name for item in items[2:]} == names and len(items) == count + 2
        assert [item.next for item in items] == sorted({item.next for item in items})
        assert all(0 < item.next < 2**63 for item in items)
        assert all(item.inode is not None and item.type == item.inode.mode >> 12 for item in items)


async def list_all(file_system: FileSystem, take: int, directory: int = ROOT_INO) -> list[Item]:
    """List as the kernel does: it takes a few items and asks again from the last it took."""
    listing = file_system.list_directory(directory)
    found: list[Item] = []
    while items := await listing.read(found[-1].next if found else 0):
        found += items[:take]
    return found


async def test_entries_that_stay_are_listed_once_while_others_come_and_go() -> None:
    source = random.Random(11)
    async with mounted() as file_system:
        caller = Caller(file_system)
        names = await fill(file_system, 600)
        stable = {name for name in names if source.random() < 0.5}
        removable = sorted(names - stable)
        listing = file_system.list_directory(ROOT_INO)
        found: list[bytes] = []
        position = 0
        removed: set[bytes] = set()
        while items := await listing.read(position):
            taken = items[: source.randrange(1, 40)]
            assert not removed & {item.name for item in taken}
            found += [item.name for item in taken]
            position = taken[-1].next
            for _ in range(5):
                if removable:
                    removed.add(removable.pop(source.randrange(len(removable))))
                await caller.create(f"new-{source.random()}")
            for name in sorted(removed):
                if await file_system.namespace.lookup(ROOT_INO, name) is not None:
                    await caller.unlink(name.decode())
        assert len(found) == len(set(found))
        assert stable <= set(found)


async def test_names_with_equal_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "entry_hash", lambda name: 1000 + len(name))
    names = {b"%c" % letter for letter in b"abcdefgh"} | {b"longer", b"other1"}
    async with mounted() as file_system:
        caller = Caller(file_system)
        for name in sorted(names):
            await caller.create(name.decode())
        for take in (1, 2, 3, 50):
            items = await list_all(file_system, take)
            assert {item.name for item in items[2:]} == names and len(items) == len(names) + 2
        listing = file_system.list_directory(ROOT_INO)
        items = (await listing.read(0))[:5]
        await caller.unlink(items[2].name.decode())
        rest = await listing.read(items[4].next)
        assert {item.name for item in [*items[2:], *rest]} == names


async def test_a_damaged_inode_does_not_hide_its_name() -> None:
    async with mounted() as file_system:
        caller = Caller(file_system)
        ino = await caller.create("bad")
        await caller.create("good")
        store = file_system.store
        batch = store.batch()
        sound = await store.get_record(inode_key(ino))
        assert sound is not None
        batch.put(inode_key(ino), b"damaged")
        store.apply(batch)
        fresh = await FileSystem.open(store)
        items = (await fresh.list_directory(ROOT_INO).read(0))[2:]
        assert {item.name: item.inode is None for item in items} == {b"bad": True, b"good": False}
        with pytest.raises(CorruptionError, match=f"inode {ino}"):
            await fresh.namespace.inode(ino)
        batch = store.batch()
        batch.put(inode_key(ino), sound)
        store.apply(batch)
