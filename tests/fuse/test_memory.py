"""The memory of a mount: what is counted, and that caches keep to the bound."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from shardfs import limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.engine import recent_shards
from shardfs.engine.lsm.entry import decode_value, encode_shard
from shardfs.engine.pieces import Locator, Piece, splice
from shardfs.engine.recent_shards import RecentShards
from shardfs.engine.store import Store
from shardfs.fuse.filesystem import FileSystem
from shardfs.fuse.keys import ROOT_INO
from shardfs.fuse.listing import Listing
from shardfs.fuse.memory import dirty_share, resident_bytes
from shardfs.fuse.records import Entry, Inode
from tests.fuse.harness import FILE_MODE, Caller, opened_store, serving

MIB = limits.MIB
_INO = 1 << 40
_TIME_NS = 10**18


class CountingStore(ModelStore):
    """A store that says what it is told to hold, and keeps what it is told of its caches."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[str, int] = {}
        self.caches_bytes_max = -1

    def memory_use(self) -> dict[str, int]:
        return self.held

    def limit_caches(self, bytes_max: int) -> None:
        self.caches_bytes_max = bytes_max


@contextmanager
def allocated() -> Iterator[Callable[[], int]]:
    """How many bytes more Python has allocated since the beginning."""
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    try:
        yield lambda: tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


# --- what is counted ------------------------------------------------------------------------


def is_about(counted: int, really: int) -> bool:
    """On the high side, and not by much (memory.I2)."""
    return really <= counted <= 1.6 * really


async def test_inodes_and_entries_are_counted() -> None:
    file_system = await FileSystem.open(ModelStore())
    tables = file_system.tables
    inode = Inode(FILE_MODE, 1, 1000, 1000, 0, 0, 4096, 4096)
    with allocated() as count:
        for number in range(20_000):
            moment = _TIME_NS + 10 * number
            tables._inodes[_INO + number] = inode._replace(
                atime_ns=moment,
                mtime_ns=moment + 1,
                ctime_ns=moment + 2,
                btime_ns=moment + 3,
                parent=_INO + number,
                size=4096 + number,
            )
        assert is_about(tables.inode_bytes, count())
    with allocated() as count:
        for number in range(20_000):
            name = b"%0*d" % (8 + number % 50, number)
            tables._entries[_INO + number, name] = Entry(_INO + number, 8)
        assert is_about(tables.entry_bytes, count())


async def test_what_the_kernel_knows_is_counted() -> None:
    file_system = await FileSystem.open(ModelStore())
    with allocated() as count:
        for number in range(50_000):
            file_system.handles.looked_up(_INO + number)
        assert is_about(file_system.memory.use()["known_to_kernel"], count())


async def test_names_that_wait_for_their_second_copy_are_counted() -> None:
    file_system = await FileSystem.open(ModelStore())
    pages = file_system.name_pages
    with allocated() as count:
        for number in range(20_000):
            ino = _INO + number
            pages.changed({ino: None}, {(ROOT_INO, b"file-%d" % number): Entry(ino, 8)})
        assert is_about(file_system.memory.use()["names_waiting"], count())
    with allocated() as count:
        for number in range(20_000):  # one file, under ever new names
            pages.changed({_INO: None}, {(ROOT_INO, b"name-%d" % number): Entry(_INO, 8)})
        assert pages.memory_bytes >= 60_000 * limits.WAITING_NAME_MEMORY_BYTES
        assert is_about(20_000 * limits.WAITING_NAME_MEMORY_BYTES, count())


async def test_names_that_were_listed_are_counted() -> None:
    store = ModelStore()
    async with serving(store) as file_system:
        for number in range(limits.DIRECTORY_PAGE_ENTRIES - 1):
            await Caller(file_system).create(f"file-{number}")
        directory = await file_system.tables.inode(ROOT_INO)
        assert directory is not None
        listing = Listing(store, file_system.tables, ROOT_INO)
        await listing._load(directory, 0)  # Python keeps small tuples for the next who needs some
        with allocated() as count:
            file_system._recent_pages.keep(ROOT_INO, await listing._load(directory, 0))
            assert is_about(file_system.memory.use()["listed"], count())


def test_decoded_shards_are_counted() -> None:
    choose = random.Random(1)
    recent = RecentShards(64 * MIB)
    values = {}
    for number in range(100):
        pieces = [
            Piece(4096 * at, 4096, 0, Locator(9, at, 4096 * at, 4096, _INO + at, 17, bytes(8)))
            for at in range(choose.randrange(1, 250))
        ]
        values[b"%d" % number] = encode_shard(tuple(pieces))
    with allocated() as count:
        for key, value in values.items():
            recent.shard_or_record(key, value, 0)
        assert count() <= recent.held_bytes <= 3 * count()


async def test_the_parts_of_a_store_are_counted() -> None:
    async with opened_store("engine") as store, serving(store) as file_system:
        for number in range(300):
            found = await file_system.namespace.create(
                ROOT_INO, b"file-%d" % number, FILE_MODE, 0, 0
            )
            await file_system.writeback.write(found.ino, 0, bytes(4096))
        use = file_system.memory.use()
        assert use["memtables"] > 300 * 100
        assert use["extents"] > 0
        assert use["dirty"] >= 300 * 4096
        assert use["inodes"] >= 300 * limits.INODE_MEMORY_BYTES
        assert use["entries"] >= 300 * limits.ENTRY_MEMORY_BYTES
        assert all(held >= 0 for held in use.values())


# --- the bound ------------------------------------------------------------------------------


@pytest.mark.parametrize("bytes_max", [limits.MEMORY_BYTES_MIN, limits.MEMORY_BYTES_MAX])
async def test_caches_get_what_the_rest_leaves(bytes_max: int) -> None:
    """memory.I1, while what cannot be smaller grows from nothing to more than there is."""
    store = CountingStore()
    file_system = await FileSystem.open(store, memory_bytes_max=bytes_max)
    memory, tables = file_system.memory, file_system.tables
    given = []
    for fixed in range(0, bytes_max + MIB, 8 * MIB):
        store.held = {"indexes": fixed, "memtables": MIB, "blocks": 50 * MIB}
        memory.share_out()
        halves = 2 * (tables._inodes._half_bytes + tables._entries._half_bytes)
        caches = store.caches_bytes_max + halves
        in_all = fixed + MIB + dirty_share(limits.DIRTY_BYTES_MAX, bytes_max) + caches
        in_all += limits.REQUEST_MEMORY_BYTES
        assert in_all <= bytes_max or caches <= limits.CACHES_BYTES_MIN
        given.append(caches)
    assert given == sorted(given, reverse=True)
    assert given[0] > bytes_max // 4
    assert given[-1] > limits.CACHES_BYTES_MIN - 8


async def test_a_gigabyte_overwritten_at_random_stays_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the bound that there is by default: else reads at random decode a hundred pieces."""
    values = {b"%d" % number: overwritten_shard(number) for number in range(256)}
    known = set(values.values())
    decoded = 0

    def counting(value: bytes, generation: int = 0) -> object:
        nonlocal decoded
        decoded += value in known
        return decode_value(value, generation)

    monkeypatch.setattr(recent_shards, "decode_value", counting)
    async with opened_store("engine") as store, serving(store) as file_system:
        file_system.memory.share_out()
        assert isinstance(store, Store)
        for _ in range(3):
            for key, value in values.items():
                store._recent.shard_or_record(key, value, 0)
    assert decoded == len(values)


def overwritten_shard(number: int) -> bytes:
    """The value of a shard of 4 MiB of which 31 blocks were overwritten."""
    blocks, pieces = limits.CHUNK_BYTES_MAX // limits.BLOCK_BYTES, tuple[Piece, ...]()
    for at in range(0, limits.SHARD_BYTES, limits.CHUNK_BYTES_MAX):
        whole = Locator(9, 1, at, limits.CHUNK_BYTES_MAX, number << 20 | at, 17, bytes(8 * blocks))
        pieces = splice(pieces, at, whole, whole.length)
    for each in random.Random(number).sample(range(4 * blocks), 31):
        small = Locator(9, 1, 0, limits.BLOCK_BYTES, number << 20 | each + 1, 17, bytes(8))
        pieces = splice(pieces, each * limits.BLOCK_BYTES, small, small.length)
    return encode_shard(pieces)


async def test_caches_shrink_at_once_when_they_are_told_to() -> None:
    file_system = await FileSystem.open(ModelStore())
    tables = file_system.tables
    for number in range(5000):
        tables._inodes[_INO + number] = Inode(FILE_MODE, target=b"x" * (number % 100))
        tables._entries[_INO, b"%d" % number] = Entry(_INO + number, 8)
    for bytes_max in (MIB, MIB // 2, 100_000, 1000):
        tables.limit(bytes_max, bytes_max)
        assert tables.inode_bytes <= bytes_max
        assert tables.entry_bytes <= bytes_max


async def test_files_are_served_with_hardly_any_cache() -> None:
    """What does not fit is loaded again; the bound holds all the time."""
    bytes_max = 20 * limits.INODE_MEMORY_BYTES
    async with opened_store("engine") as store, serving(store) as file_system:
        store.limit_caches(bytes_max)
        file_system.tables.limit(bytes_max, bytes_max)
        names = [b"file-%d" % number for number in range(200)]
        for name in names:
            found = await file_system.namespace.create(ROOT_INO, name, FILE_MODE, 0, 0)
            await file_system.writeback.write(found.ino, 0, name)
            assert file_system.tables.inode_bytes <= bytes_max + 2 * limits.INODE_MEMORY_BYTES
            assert file_system.tables.entry_bytes <= bytes_max + 2 * limits.INODE_MEMORY_BYTES
        await file_system.sync()
        for name in names:
            again = await file_system.namespace.lookup(ROOT_INO, name)
            assert again is not None
            assert bytes(await file_system.writeback.read(again.ino, 0, 100)) == name
            use = file_system.memory.use()
            assert use["blocks"] + use["decoded"] <= bytes_max


def test_the_memory_of_this_process_is_known() -> None:
    assert 10 * MIB < resident_bytes() < 64 * limits.GIB
