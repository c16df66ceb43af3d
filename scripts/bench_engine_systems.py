"""One key-value store does the rows of scripts/bench --engine, in a process of its own.

Role: shardfs.engine.Store, RocksDB with blob files (rocksdict), LMDB and SQLite behind the same
few calls. Prints one line of JSON: row -> [how many, seconds], and bytes written for each byte put.

    SYSTEM FOLDER VALUE_BYTES COUNT DURABLE_COUNT

Each of COUNT puts is a call of its own that is not waited to be durable; then one sync. Each of
DURABLE_COUNT puts has a sync of its own. Bytes written are what the process gave to write calls
until the store of the first puts was closed, its log and the merges that it made included.

Not here: rounds and tables (bench_engine.py).
"""

from __future__ import annotations

import gc
import json
import random
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import trio

MIB = 1024 * 1024
VARIANTS = 64
MAP_BYTES = 16 * 1024 * MIB
BLOB_BYTES_MIN = 1024
TABLE = "create table if not exists pairs (key blob primary key, value blob) without rowid"


class Pairs(Protocol):
    """What is asked of a store."""

    async def put(self, key: bytes, value: bytes) -> None:
        """Set a key."""

    async def put_durably(self, key: bytes, value: bytes) -> None:
        """Set a key; it survives a power cut."""

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key."""

    async def delete(self, key: bytes) -> None:
        """Remove a key."""

    async def scan(self) -> int:
        """Read everything in the order of keys; how many."""

    async def sync(self) -> None:
        """Everything put before survives a power cut."""


class Shardfs:
    """shardfs.engine.Store on an image file."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.put, self.get, self.delete = store.put, store.get, store.delete

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, size_bytes: int) -> Any:
        """A fresh one."""
        from shardfs.cli.heap import short_pauses
        from shardfs.engine.block_device import open_device
        from shardfs.engine.images import create_image
        from shardfs.engine.mkfs import format_device, plan
        from shardfs.engine.store import Store

        path = folder / "disk.img"
        create_image(path, max(512 * MIB, 2 * size_bytes))
        device = open_device(path)
        try:
            await format_device(device, plan(device.size_bytes, device.sector_bytes))
            with short_pauses():
                async with Store.open(device) as store:
                    yield cls(store)
        finally:
            device.close()

    async def put_durably(self, key: bytes, value: bytes) -> None:
        """See Pairs."""
        await self._store.sync(await self._store.put(key, value))

    async def scan(self) -> int:
        """See Pairs."""
        count = 0
        async for _, shard in self._store.scan(b"", b"\xff" * 32):
            await self._store.read_shard(shard, 0, shard.length)
            count += 1
        return count

    async def sync(self) -> None:
        """See Pairs."""
        await self._store.sync()


class RocksDB:
    """RocksDB through rocksdict: large values in blob files, the log on."""

    def __init__(self, database: Any, durably: Any) -> None:
        self._database, self._durably = database, durably

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, size_bytes: int) -> Any:
        """A fresh one."""
        import rocksdict

        options = rocksdict.Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_enable_blob_files(True)
        options.set_min_blob_size(BLOB_BYTES_MIN)
        durably = rocksdict.WriteOptions()
        durably.sync = True
        database = rocksdict.Rdict(str(folder / "rocksdb"), options)
        try:
            yield cls(database, durably)
        finally:
            database.flush(True)
            database.close()

    async def put(self, key: bytes, value: bytes) -> None:
        """See Pairs."""
        self._database[key] = value

    async def put_durably(self, key: bytes, value: bytes) -> None:
        """See Pairs."""
        self._database.put(key, value, write_opt=self._durably)

    async def get(self, key: bytes) -> bytes | None:
        """See Pairs."""
        value: bytes | None = self._database.get(key)
        return value

    async def delete(self, key: bytes) -> None:
        """See Pairs."""
        del self._database[key]

    async def scan(self) -> int:
        """See Pairs."""
        return sum(1 for _, value in self._database.items() if value)

    async def sync(self) -> None:
        """See Pairs."""
        self._database.flush_wal(True)


class Lmdb:
    """LMDB, a transaction for each call."""

    def __init__(self, environment: Any) -> None:
        self._environment = environment

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, size_bytes: int) -> Any:
        """A fresh one."""
        import lmdb

        environment = lmdb.open(str(folder / "lmdb"), map_size=MAP_BYTES, sync=False)
        try:
            yield cls(environment)
        finally:
            environment.sync(True)
            environment.close()

    async def put(self, key: bytes, value: bytes) -> None:
        """See Pairs."""
        with self._environment.begin(write=True) as transaction:
            transaction.put(key, value)

    async def put_durably(self, key: bytes, value: bytes) -> None:
        """See Pairs."""
        await self.put(key, value)
        self._environment.sync(True)

    async def get(self, key: bytes) -> bytes | None:
        """See Pairs."""
        with self._environment.begin() as transaction:
            value: bytes | None = transaction.get(key)
            return value

    async def delete(self, key: bytes) -> None:
        """See Pairs."""
        with self._environment.begin(write=True) as transaction:
            transaction.delete(key)

    async def scan(self) -> int:
        """See Pairs."""
        with self._environment.begin() as transaction:
            return sum(1 for _, value in transaction.cursor() if value)

    async def sync(self) -> None:
        """See Pairs."""
        self._environment.sync(True)


class Sqlite:
    """SQLite with a write-ahead log, a transaction for each call."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, folder: Path, size_bytes: int) -> Any:
        """A fresh one."""
        connection = sqlite3.connect(folder / "sqlite.db", isolation_level=None)
        connection.execute("pragma journal_mode = wal")
        connection.execute("pragma synchronous = off")
        connection.execute(TABLE)
        try:
            yield cls(connection)
        finally:
            connection.close()

    async def put(self, key: bytes, value: bytes) -> None:
        """See Pairs."""
        self._connection.execute("insert or replace into pairs values (?, ?)", (key, value))

    async def put_durably(self, key: bytes, value: bytes) -> None:
        """See Pairs."""
        self._connection.execute("pragma synchronous = full")
        await self.put(key, value)

    async def get(self, key: bytes) -> bytes | None:
        """See Pairs."""
        found = self._connection.execute("select value from pairs where key = ?", (key,)).fetchone()
        return found[0] if found else None

    async def delete(self, key: bytes) -> None:
        """See Pairs."""
        self._connection.execute("delete from pairs where key = ?", (key,))

    async def scan(self) -> int:
        """See Pairs."""
        return sum(1 for _ in self._connection.execute("select * from pairs order by key"))

    async def sync(self) -> None:
        """See Pairs."""
        self._connection.execute("pragma synchronous = full")
        self._connection.execute("pragma wal_checkpoint(full)")
        self._connection.execute("pragma synchronous = off")


SYSTEMS: dict[str, Callable[[Path, int], AbstractAsyncContextManager[Pairs]]] = {
    "shardfs": Shardfs.open,
    "RocksDB": RocksDB.open,
    "LMDB": Lmdb.open,
    "SQLite": Sqlite.open,
}


def values(value_bytes: int) -> Iterator[bytes]:
    """Incompressible values, no two alike."""
    variants = [random.Random(seed).randbytes(value_bytes) for seed in range(VARIANTS)]
    number = 0
    while True:
        stamp = number.to_bytes(8, "little")
        yield stamp + variants[number % VARIANTS][8:]
        number += 1


def written_bytes() -> int:
    """What this process has given to write calls so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


async def measure(name: str, folder: Path, value_bytes: int, count: int, durable: int) -> Any:
    """All rows of one system for values of one size."""
    rows: dict[str, tuple[int, float]] = {}

    async def row(what: str, number: int, work: Callable[[], Awaitable[Any]]) -> None:
        gc.collect()
        started = time.perf_counter()
        await work()
        rows[what] = (number, time.perf_counter() - started)

    source = random.Random(9)
    keys = [source.randbytes(16) for _ in range(count)]
    data = values(value_bytes)
    prepared = [next(data) for _ in range(count)]
    folder.joinpath("first").mkdir()
    before = written_bytes()
    async with SYSTEMS[name](folder / "first", count * value_bytes) as store:
        synced_s = time.perf_counter()

        async def put_all() -> None:
            for key, value in zip(keys, prepared, strict=True):
                await store.put(key, value)

        async def get_all() -> None:
            for key in source.sample(keys, count):
                value = await store.get(key)
                assert value is not None and len(value) == value_bytes

        async def delete_all() -> None:
            for key in keys:
                await store.delete(key)

        async def scan() -> None:
            assert await store.scan() == count

        await row("put", count, put_all)
        await store.sync()
        rows["put, then one sync"] = (count, time.perf_counter() - synced_s)
        await row("get", count, get_all)
        await row("scan", count, scan)
    written = (written_bytes() - before) / (count * value_bytes)
    folder.joinpath("second").mkdir()
    async with SYSTEMS[name](folder / "second", count * value_bytes) as store:

        async def put_durably() -> None:
            for key, value in zip(keys[:durable], prepared, strict=False):
                await store.put_durably(key, value)

        await put_all()
        await row("delete", count, delete_all)
        await row("durable put", durable, put_durably)
    return {"rows": rows, "written": written}


def main() -> None:
    """Measure one system."""
    name, folder, *numbers = sys.argv[1:]
    value_bytes, count, durable = map(int, numbers)
    print(json.dumps(trio.run(measure, name, Path(folder), value_bytes, count, durable)))


if __name__ == "__main__":
    main()
