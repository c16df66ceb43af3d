"""Scripted workloads on a small store, each step the script's own.

Role: what the crash tests do to a store before, while and after the power goes. Every change
goes through a Client, which tells the History before the store sees it.

Not here: cutting the power (harness.py).
"""

from __future__ import annotations

import random

import trio

from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.dependency import Dependency
from shardfs.engine.options import StoreOptions
from shardfs.engine.pieces import Piece, splice, truncate
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError
from tests.crash.harness import KIB, History, open_quietly

SIZES = (0, 1, 200, 256, 257, 3000, 4096, 5000, 16 * KIB, 20 * KIB)


def value_of(seed: int, length: int) -> bytes:
    """Distinct, incompressible content."""
    return random.Random(seed).randbytes(length)


class Client:
    """A store, and the history of what was done to it."""

    def __init__(self, store: Store, history: History) -> None:
        self.store = store
        self.history = history

    async def put(self, key: bytes, value: bytes) -> Dependency:
        """Through the key-value door."""
        self.history.begin({key: value})
        try:
            dependency = await self.store.put(key, value)
        except NoSpaceError:
            self.history.refused()
            raise
        self.history.applied(dependency)
        return dependency

    async def delete(self, key: bytes) -> Dependency:
        """Through the key-value door."""
        self.history.begin({key: None})
        dependency = await self.store.delete(key)
        self.history.applied(dependency)
        return dependency

    def records(self, changes: dict[bytes, bytes | None]) -> Dependency:
        """Many records in one batch."""
        batch = self.store.batch()
        for key, value in changes.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        self.history.begin(changes)
        dependency = self.store.apply(batch)
        self.history.applied(dependency)
        return dependency

    async def write_shard(
        self, key: bytes, offset: int, data: bytes, record: tuple[bytes, bytes]
    ) -> Dependency:
        """A part of a shard together with a record, as the file system does it."""
        base = await self.store.get_shard(key)
        pieces: tuple[Piece, ...] = base.pieces if base is not None else ()
        old = self.history.content.get(key, b"")
        content = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]
        batch = self.store.batch()
        locator = self.store.append(key, offset, (data,))
        batch.put_shard(key, splice(pieces, offset, locator, len(data)), base)
        batch.put(*record)
        self.history.begin({key: content, record[0]: record[1]})
        dependency = self.store.apply(batch)
        self.history.applied(dependency)
        return dependency

    async def truncate_shard(self, key: bytes, length: int) -> Dependency:
        """Cuts a shard off."""
        base = await self.store.get_shard(key)
        assert base is not None
        batch = self.store.batch()
        pieces = truncate(base.pieces, length)
        batch.put_shard(key, pieces, base)
        end = pieces[-1].end if pieces else 0
        self.history.begin({key: self.history.content[key][:end]})
        dependency = self.store.apply(batch)
        self.history.applied(dependency)
        return dependency


async def everything(device: SimulatedDevice, history: History, *, rounds: int = 6) -> None:
    """Each operation of the store, checkpoints, merges, reclamation, and two re-openings."""
    async with open_quietly(device) as store:
        client = Client(store, history)
        await _small_changes(client)
        for number in range(rounds):
            await _one_round(client, number)
            await store.checkpoint()
            await store.reclaim()
        while await store.compact():
            await store.reclaim()
    history.all_persistent()
    async with open_quietly(device) as store:
        client = Client(store, history)
        await client.put(b"second", b"life")
        await client.delete(b"k1")
        await store.sync()
        await client.put(b"left to close", value_of(77, 3000))
    history.all_persistent()
    async with open_quietly(device) as store:
        await store.checkpoint()
        await store.reclaim()
        await Client(store, history).put(b"last", b"word")
        await store.sync()


async def large_batches(device: SimulatedDevice, history: History) -> None:
    """Batches that take several delta chunks, and data that takes several flushes."""
    async with open_quietly(device) as store:
        client = Client(store, history)
        for number in range(3):
            changes: dict[bytes, bytes | None] = {
                b"key %d" % index: value_of(number * 100 + index, 1000) for index in range(40)
            }
            client.records(changes | {b"gone": None, b"round": b"%d" % number})
            for index in range(4):
                await client.put(b"data %d" % index, value_of(number * 10 + index, 20 * KIB))
            await store.sync()
        await store.checkpoint()
        await store.reclaim()
        client.records({key: None for key in history.content if not key.startswith(b"data")})
        for index in range(4):
            await client.delete(b"data %d" % index)
        await store.sync()
    history.all_persistent()


async def full_device(device: SimulatedDevice, history: History) -> None:
    """Filled until nothing more is taken, emptied, and filled again."""
    async with open_quietly(device) as store:
        client = Client(store, history)
        for life in range(3):
            await _fill(client, life)
            await store.sync()
            for key in [key for key in history.content if int(key[4:]) % 50 >= 10 * life]:
                await client.delete(key)
            await store.sync()
            await store.checkpoint()
            assert await store.reclaim(), "a full device gives nothing back"
    history.all_persistent()


async def _fill(client: Client, life: int) -> None:
    for number in range(1000):
        try:
            await client.put(b"fill%d" % (1000 * life + number), value_of(number, 15 * KIB))
        except NoSpaceError:
            assert number > 5, "full too early"
            return
        if number % 16 == 0:
            await client.store.sync()
    raise AssertionError("the device never fills up")


async def parts_overwritten(device: SimulatedDevice, history: History) -> None:
    """On a device that is three quarters full, parts of large chunks are overwritten, and extents
    in which parts are left are emptied meanwhile."""
    rng = random.Random(14)
    async with open_quietly(device) as store:
        client = Client(store, history)
        fresh = store.space().free_bytes
        keys: list[bytes] = []
        while 4 * store.space().free_bytes > fresh:
            keys.append(b"parts %d" % len(keys))
            await client.put(keys[-1], value_of(len(keys), 14 * KIB))
        await store.sync()
        for number in range(len(keys)):
            await store.admit(3 * KIB)
            length = rng.randrange(1, 3 * KIB)
            start = rng.randrange(14 * KIB - length)
            data = value_of(number, length)
            await client.write_shard(rng.choice(keys), start, data, (b"last", b"%d" % number))
            if number % 9 == 0:
                await store.sync()
            if number % 20 == 0:
                await store.reclaim()
        assert 8 * store.space().free_bytes > fresh, "what was overwritten takes space"
        await client.delete(keys[0])
        await store.sync()
    history.all_persistent()


async def in_the_background(device: SimulatedDevice, history: History) -> None:
    """The store's own tasks commit, checkpoint, merge and reclaim."""
    async with Store.open(device, options=StoreOptions(commit_interval_s=1.0)) as store:
        client = Client(store, history)
        for number in range(8):
            await client.put(b"k%d" % (number % 3), value_of(number, 5000))
            client.records({b"a": b"%d" % number, b"b%d" % number: value_of(number, 2000)})
            await trio.sleep(0.4)
        await store.checkpoint()
        await trio.sleep(2)
    history.all_persistent()


async def _small_changes(client: Client) -> None:
    first = await client.put(b"k0", b"zero")
    await client.put(b"k1", value_of(1, 3000))
    await client.store.sync(first)
    client.records({b"r1": b"one", b"r2": b"two", b"r3": value_of(2, 500)})
    await client.put(b"k0", value_of(3, 300))
    client.records({b"r1": None, b"r2": b"two again"})
    await client.store.sync()
    await client.delete(b"k0")
    await client.delete(b"never there")
    await client.store.sync()


async def _one_round(client: Client, number: int) -> None:
    """Overwrites most of what the round before wrote, so that extents die."""
    for index, size in enumerate(SIZES):
        await client.put(b"v%d" % index, value_of(1000 * number + index, size))
        if index == 5:
            await client.store.sync()
    record = (b"inode", b"mtime %d" % number)
    await client.write_shard(b"shard", 4096 * number, value_of(number, 6000), record)
    await client.write_shard(b"shard", 1000, value_of(number + 50, 10), record)
    await client.store.sync()
    if number % 3 == 2:
        await client.truncate_shard(b"shard", 5000)
    client.records({b"r%d" % number: b"x" * number * 30, b"r%d" % (number - 1): None})


async def merges(device: SimulatedDevice, history: History) -> None:
    """Merges of several steps, with changes, removals and checkpoints between the steps."""
    async with open_quietly(device) as store:
        client = Client(store, history)
        for life in range(5):
            for part in range(2):
                first = 4 * part + life
                client.records(
                    {b"m%03d" % number: value_of(life, 3900) for number in range(first, first + 4)}
                )
            client.records({b"m%03d" % number: None for number in range(0, 20, life + 2)})
            client.records({b"gone%d" % life: b"x", b"gone%d" % (life - 1): None})
            await store.checkpoint()
            if life % 3 == 0:
                await store.compact()
            client.records({b"m%03d" % (2 * life): None})
        while await store.compact():
            client.records({b"between steps": value_of(store.statistics().runs, 100)})
            await store.checkpoint()
        await store.reclaim()
    history.all_persistent()


async def small(device: SimulatedDevice, history: History) -> None:
    """A short life, for cuts within cuts."""
    async with open_quietly(device) as store:
        client = Client(store, history)
        await client.put(b"a", b"1")
        await client.put(b"b", value_of(1, 3000))
        await store.sync()
        client.records({b"a": b"2", b"c": b"3"})
        await client.put(b"b", value_of(2, 5000))
        await store.sync()
        await store.checkpoint()
        await client.delete(b"a")
        await store.sync()
        await store.reclaim()
        await client.put(b"d", value_of(3, 300))
    history.all_persistent()


async def many_tasks(device: SimulatedDevice, history: History, *, tasks: int = 4) -> None:
    """Tasks that apply and sync at the same time, with maintenance beside them."""

    async def work(client: Client, name: int) -> None:
        for number in range(6):
            key = b"t%d" % name
            record = (b"i%d" % name, b"%d" % number)
            await client.write_shard(key, 3000 * number, value_of(number, 4000), record)
            dependency = client.records({b"x%d" % name: b"%d" % number, b"y%d" % name: b""})
            if (number + name) % 2:
                await client.store.sync(dependency)
            else:
                await trio.lowlevel.checkpoint()

    async def maintain(store: Store) -> None:
        for _ in range(3):
            await store.checkpoint()
            await store.compact()
            await store.reclaim()

    async with open_quietly(device) as store:
        client = Client(store, history)
        async with trio.open_nursery() as nursery:
            for name in range(tasks):
                nursery.start_soon(work, client, name)
            nursery.start_soon(maintain, store)
    history.all_persistent()
