"""fuse/tables.py: cached reads, overtaken loads, inode numbers."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from shardfs import clock, limits
from shardfs.checking.models.store_model import ModelStore
from shardfs.errors import CorruptionError, ReadOnlyError
from shardfs.fuse.keys import FACT_KEY
from shardfs.fuse.recent_cache import RecentCache
from shardfs.fuse.records import Inode, decode_facts
from shardfs.fuse.tables import Tables

FILE = Inode(0o100644)


def put(tables: Tables, ino: int, inode: Inode) -> None:
    change = tables.change()
    change.put_inode(ino, inode)
    change.commit()


def test_the_cache_keeps_what_is_used() -> None:
    cache: RecentCache[int, int] = RecentCache(10, lambda _key, _value: 1)
    for number in range(100):
        cache[number] = number
        assert cache[max(0, number - 2)] == max(0, number - 2)
        assert len(cache) <= 10
        assert cache.held_bytes <= 11
    assert 0 not in cache and 99 in cache
    cache[99] = -1
    assert cache[99] == -1


def test_a_full_cache_lets_go_of_a_few_values_at_a_time() -> None:
    """Dropping tens of thousands in one go would hold every request up."""
    gone = 0

    class Value:
        def __del__(self) -> None:
            nonlocal gone
            gone += 1

    cache: RecentCache[int, Value] = RecentCache(1000, lambda _key, _value: 1)
    for number in range(10_000):
        before = gone
        cache[number] = Value()
        assert gone - before <= 4
        assert number + 1 - gone <= 1001
        assert number + 1 - gone <= cache.held_bytes + 1
    assert gone >= 9000


async def test_cached_reads_do_not_checkpoint() -> None:
    store = ModelStore()
    tables = await Tables.open(store)
    put(tables, 5, FILE)
    with trio.testing.assert_no_checkpoints():
        assert await tables.inode(5) == FILE
    tables.settle()
    fresh = await Tables.open(store)
    assert await fresh.inode(5) == FILE
    assert await fresh.inode(6) is None
    with trio.testing.assert_no_checkpoints():
        assert await fresh.inode(6) is None


async def test_a_load_that_a_commit_overtakes_does_not_bring_back_the_past() -> None:
    class SlowStore(ModelStore):
        async def get_record(self, key: bytes) -> bytes | None:
            record = await super().get_record(key)
            await trio.sleep(1)
            return record

    store = SlowStore()
    # Caches so small that the commit's own value is soon dropped.
    tables = await Tables.open(store, inode_bytes_max=2 * limits.INODE_MEMORY_BYTES)
    put(tables, 5, FILE)
    put(tables, 6, FILE)
    put(tables, 7, FILE)
    tables.settle()
    found = []

    async def read() -> None:
        found.append(await tables.inode(5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(0.5)
        put(tables, 5, FILE._replace(uid=9))
        put(tables, 6, FILE)
        put(tables, 7, FILE)
    assert found == [FILE._replace(uid=9)]
    assert await tables.inode(5) == FILE._replace(uid=9)


async def test_inode_numbers_stay_behind_the_durable_counter() -> None:
    store = ModelStore()
    tables = await Tables.open(store)
    for expected in range(2, 2 + 2 * limits.INODES_PER_LEASE):
        change = tables.change(grows=True)
        ino = change.new_ino()
        assert ino == expected
        change.put_inode(ino, FILE)
        change.commit()
        tables.settle()
        record = store.state[FACT_KEY]
        assert isinstance(record, bytes)
        facts = decode_facts(record)
        assert facts.next_ino > ino and facts.inodes == ino == tables.inode_count


async def test_a_refused_change_changes_nothing() -> None:
    store = ModelStore()
    tables = await Tables.open(store)
    store.health.make_read_only("a test wants it", expected=True)
    change = tables.change(grows=True)
    ino = change.new_ino()
    change.put_inode(ino, FILE)
    with pytest.raises(ReadOnlyError):
        change.commit()
    assert tables.change().new_ino() == ino
    assert await tables.inode(ino) is None


async def test_time_rises_even_when_the_clock_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = await Tables.open(ModelStore())
    monkeypatch.setattr(clock, "now_ns", lambda: 5)
    times = [tables.now_ns() for _ in range(3)]
    assert times == sorted(set(times))


async def test_stores_without_a_file_system() -> None:
    store = ModelStore()
    store.health.make_read_only("a test wants it", expected=True)
    with pytest.raises(ReadOnlyError, match="never mounted"):
        await Tables.open(store)
    store = ModelStore()
    await Tables.open(store, uid=3, gid=4)
    root = await (await Tables.open(store)).inode(1)
    assert root is not None and (root.uid, root.gid, root.nlink) == (3, 4, 2)
    del store.state[FACT_KEY]
    with pytest.raises(CorruptionError):
        await Tables.open(store)
