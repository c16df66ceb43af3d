"""Ways that save a writer or a reader a wait: each does what the long way would have done."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.dependency import PERSISTENT, Dependency
from shardfs.engine.health import Health
from shardfs.engine.lsm.entry import TOMBSTONE
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.options import StoreOptions
from shardfs.engine.scheduler import Scheduler
from tests.engine.stores import formatted, opened

BLOCK = limits.BLOCK_BYTES
EXTENT_BYTES = 64 * BLOCK


# --- writes that the device takes at once ---------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
async def test_writes_taken_at_once_keep_their_order(seed: int) -> None:
    rng = random.Random(seed)
    device = SimulatedDevice(4 * EXTENT_BYTES, zoned_bytes=EXTENT_BYTES, seed=seed)
    device.takes_at_once = True
    issued: list[Dependency] = []
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        pointers = [0] * 4
        submitted: list[tuple[Dependency, Dependency]] = []

        def submit() -> None:
            extent = rng.randrange(4)
            # Long ones are not taken at once: short ones behind them have to wait.
            blocks = rng.choice((1, 2, 17))
            if (pointers[extent] + blocks) * BLOCK > EXTENT_BYTES:
                return
            before = rng.choice(submitted)[1] if submitted and rng.random() < 0.4 else PERSISTENT
            persistent = Dependency()

            def written() -> None:
                assert before.is_persistent(), "issued before what it waits for was persistent"
                assert not persistent.is_persistent(), "persistent before any flush"
                issued.append(persistent)

            offset = extent * EXTENT_BYTES + pointers[extent] * BLOCK
            pointers[extent] += blocks
            length = blocks * BLOCK
            scheduler.submit(extent, offset, (bytes(length),), length, before, persistent, written)
            submitted.append((before, persistent))

        for _ in range(40):
            submit()
            if rng.random() < 0.2:
                await scheduler.flush()
        for _, persistent in submitted:
            await scheduler.settle(persistent)
    assert len(issued) == len(submitted)
    assert scheduler.queued_bytes == 0


async def test_a_short_write_is_issued_within_submit() -> None:
    device = SimulatedDevice(EXTENT_BYTES)
    device.takes_at_once = True
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, Health(), nursery)
        persistent = Dependency()
        written: list[None] = []
        scheduler.submit(
            *(0, 0, (b"x" * BLOCK,), BLOCK, PERSISTENT, persistent),
            lambda: written.append(None),
        )
        assert written and device.counts.writes == 1
        assert not persistent.is_persistent()
        await scheduler.settle(persistent)
        assert device.counts.flushes == 1


@pytest.mark.expected_warnings("the store is now read-only")
async def test_what_cannot_be_taken_at_once_is_tried_and_reported_as_ever() -> None:
    device = SimulatedDevice(EXTENT_BYTES)
    device.takes_at_once = True
    device.fail("write")
    health = Health()
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(device, health, nursery)
        persistent = Dependency()
        scheduler.submit(0, 0, (b"x" * BLOCK,), BLOCK, PERSISTENT, persistent, lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        assert persistent.failure is not None and not health.is_writable


# --- writers who are let in at once ---------------------------------------------------------------


async def test_writers_far_from_every_bound_come_in_at_once() -> None:
    device = await formatted(256)
    async with opened(device, StoreOptions()) as store:
        assert not store.admits_at_once(), "nobody has looked yet"
        await store.admit()
        at_once = 0
        while store.admits_at_once():
            at_once += 1
        assert 4 <= at_once <= 64, "a few; then the bounds are looked at again"
        await store.admit()
        assert not store.admits_at_once(limits.MIB), "much is never taken at once"
        assert store.admits_at_once()
        # Whoever takes an extent changes what is ready.
        for number in range(5):
            await store.put(b"%d" % number, bytes(limits.MIB))
        assert not store.admits_at_once()


async def test_nobody_comes_in_at_once_where_little_is_left_or_work_is_done_by_hand() -> None:
    device = await formatted(4, extent_bytes=128 * limits.KIB)
    async with opened(device, StoreOptions()) as store:
        await store.admit()
        assert not store.admits_at_once()
    device = await formatted(256)
    async with opened(device) as store:
        await store.admit()
        assert not store.admits_at_once()


# --- looking up without waiting -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
async def test_what_is_found_without_waiting_is_what_get_gives(seed: int) -> None:
    rng = random.Random(seed)
    device = await formatted()
    keys = [b"key%03d" % number for number in range(200)]
    async with opened(device) as store:
        tree = store._tree
        for _ in range(6):
            for key in rng.sample(keys, 60):
                if rng.random() < 0.3:
                    await store.delete(key)
                else:
                    await store.put(key, rng.randbytes(30))
            await rng.choice((store.sync, store.checkpoint))()
        known = 0
        for key in keys:
            found = tree.find(key)
            value = await tree.get(key)
            assert found is None or found == (TOMBSTONE if value is None else value)
            # A block that has been read is cached: now nothing is left to wait for.
            assert tree.find(key) == (TOMBSTONE if value is None else value)
            known += found is not None
        assert known > 100


def test_the_memtable_accounts_for_what_it_holds() -> None:
    rng = random.Random(1)
    table = Memtable()
    for _ in range(300):
        keys = [b"%03d" % rng.randrange(400) for _ in range(rng.randrange(5))]
        table.update({key: rng.randbytes(rng.randrange(1, 60)) for key in keys})
    twin = Memtable()
    for key, value in table.entries.items():
        twin.set(key, value)
    assert (table.bytes_held, table.run_bytes) == (twin.bytes_held, twin.run_bytes)
    assert list(table.ordered()) == sorted(table.entries)
