"""Every statement of the fault model (the header of checking/faults.py), on a real store."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.layout import Stream
from shardfs.engine.store import Store
from shardfs.errors import CorruptionError, DeviceError, ReadOnlyError, ShardfsError
from tests.engine.stores import MANUAL, content, formatted

EXTENT_BYTES = 64 * limits.KIB
SMALL = b"small" * 10
LARGE = bytes(range(256)) * 40
BOTH = {b"large": LARGE, b"small": SMALL}


@pytest.fixture(autouse=True)
def _stores_may_complain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")


async def device_with_content() -> SimulatedDevice:
    """Two keys, durable, in a checkpoint or behind it."""
    device = await formatted(2, extent_bytes=EXTENT_BYTES)
    async with open_store(device) as store:
        await store.put(b"small", SMALL)
        await store.put(b"large", LARGE)
    device.close()
    device.reopen()
    return device


@asynccontextmanager
async def open_store(device: SimulatedDevice) -> AsyncIterator[Store]:
    async with Store.open(device, options=MANUAL) as store:
        yield store


def place_of(store: Store, stream: Stream) -> int:
    """Byte of the device where the next frame of a stream goes, if its extent is open."""
    extent = store._extents._current[stream]
    return store.identity.extent_offset(extent.index) + extent.write_pointer


async def put_faulty(device: SimulatedDevice, key: bytes, fault: str) -> None:
    """Puts LARGE under a key; its data write is lost, or goes astray."""
    async with open_store(device) as store:
        start = place_of(store, Stream.DATA)
        if fault == "lost":
            device.faults.lose_write(start, EXTENT_BYTES // 4)
        else:
            device.faults.misdirect_write(20 * EXTENT_BYTES, start, EXTENT_BYTES // 4)
        await store.sync(await store.put(key, LARGE))
        assert device.faults.struck == {f"write {fault}": 1}
        with pytest.raises(CorruptionError):
            await store.get(key)
        assert await content_but(store, key) == BOTH


async def content_but(store: Store, key: bytes) -> dict[bytes, bytes | None]:
    return {each: await store.get(each) for each in BOTH if each != key}


@pytest.mark.parametrize("fault", ["lost", "misdirected"])
async def test_a_data_write_that_is_not_where_it_should_be_is_found(fault: str) -> None:
    device = await device_with_content()
    await put_faulty(device, b"astray", fault)
    async with open_store(device.power_cut()) as store:
        assert not store.health.reason
        with pytest.raises(CorruptionError):
            await store.get(b"astray")
        assert await content_but(store, b"astray") == BOTH


async def test_a_lost_rider_of_the_very_last_delta_is_as_if_cut_off() -> None:
    """Out of scope, and so is said: the batch is gone, and what came before it is there."""
    device = await device_with_content()
    async with open_store(device) as store:
        device.faults.lose_write(place_of(store, Stream.DATA), EXTENT_BYTES // 4)
        await store.sync(await store.put(b"large", LARGE[::-1]))
        after = device.power_cut()
        await store.sync(await store.put(b"later", SMALL))
        with_a_later_delta = device.power_cut()
    async with open_store(after) as store:
        assert await content(store) == BOTH
    async with open_store(with_a_later_delta) as store:
        assert not store.health.reason
        assert (await store.get(b"small"), await store.get(b"later")) == (SMALL, SMALL)
        with pytest.raises(CorruptionError):
            await store.get(b"large")


@pytest.mark.parametrize("copy", [0, 1])
async def test_a_record_lost_in_one_superblock_copy_is_in_the_other(copy: int) -> None:
    device = await device_with_content()
    async with open_store(device) as store:
        device.faults.lose_write(copy * EXTENT_BYTES, EXTENT_BYTES, times=None)
        for number in range(5):
            await store.sync(await store.put(b"%d" % number, LARGE))
            await store.checkpoint()
        after = device.power_cut()
        after.faults.come_back()
    assert device.faults.struck["write lost"] > 3
    fresh = SimulatedDevice.from_image(after.image())
    async with open_store(fresh) as store:
        assert not store.health.reason
        assert (await content(store)).keys() == {b"large", b"small", *(b"%d" % n for n in range(5))}


async def test_the_very_last_delta_can_be_lost_unseen_and_any_other_is_found() -> None:
    device = await device_with_content()
    async with open_store(device) as store:
        device.faults.lose_write(place_of(store, Stream.META), limits.BLOCK_BYTES)
        await store.sync(await store.put(b"a", SMALL))
        cut_before_a_record = device.power_cut()
        await store.sync(await store.put(b"b", SMALL))
        cut_with_a_later_delta = device.power_cut()
        await store._scheduler.settle(await store._committer.write_record())
        cut_behind_a_record = device.power_cut()
    async with open_store(cut_before_a_record) as store:
        assert await content(store) == BOTH and not store.health.reason
    for found in (cut_with_a_later_delta, cut_behind_a_record):
        async with open_store(found) as store:
            assert "the device has lost or damaged data" in store.health.reason
            assert await content(store) == BOTH
            with pytest.raises(ReadOnlyError):
                await store.put(b"c", SMALL)


@pytest.mark.parametrize("what", ["lost", "rot"])
async def test_a_run_or_manifest_that_is_not_there_is_found(what: str) -> None:
    device = await device_with_content()
    async with open_store(device) as store:
        await store.checkpoint()
        start = place_of(store, Stream.RUNS)
        if what == "lost":
            device.faults.lose_write(start, EXTENT_BYTES // 2)
        await store.put(b"another", SMALL)
        await store.checkpoint()
    if what == "rot":
        device.rot(start + 100, 4000)
    before = device.power_cut().image()
    with pytest.raises(CorruptionError):
        async with open_store(device):
            pass
    assert device.power_cut().image() == before, "a store that does not open is left as it is"


@pytest.mark.parametrize("skip", range(12))
async def test_a_read_that_fails_once_or_flips_while_opening(skip: int) -> None:
    device = await device_with_content()
    for plan in (device.faults.fail, device.faults.flip_read):
        copy = device.power_cut()
        plan = getattr(copy.faults, plan.__name__)
        if plan.__name__ == "fail":
            plan("read", skip=skip)
        else:
            plan(skip=skip)
        try:
            async with open_store(copy) as store:
                for key in (b"large", b"small"):
                    try:
                        assert await store.get(key) == BOTH[key]
                    except (DeviceError, CorruptionError):
                        assert await store.get(key) == BOTH[key], "the next try is right"
        except ShardfsError:
            assert sum(copy.faults.struck.values()) == 1
        async with open_store(copy.power_cut()) as store:
            assert await content(store) == BOTH


async def test_one_superblock_copy_that_cannot_be_read_is_enough() -> None:
    for copy in (0, 1):
        device = await device_with_content()
        device.fail("read", copy * EXTENT_BYTES, EXTENT_BYTES, times=None)
        async with open_store(device) as store:
            assert await content(store) == BOTH


async def test_a_lasting_read_error_in_the_delta_log_keeps_the_store_shut_and_unchanged() -> None:
    device = await device_with_content()
    async with open_store(device.power_cut()) as store:
        log = store._committer.root.log_extent or store._extents._current[Stream.META].index
    device.fail("read", log * EXTENT_BYTES, EXTENT_BYTES, times=None)
    before = device.image()
    with pytest.raises(DeviceError):
        async with open_store(device):
            pass
    assert device.image() == before


@pytest.mark.parametrize(
    ("skip", "closing"), list(itertools.product((0, 1, 2, 3, 5, 8), (True, False)))
)
async def test_a_vanished_device_hangs_nobody_and_comes_back_with_everything(
    skip: int, closing: bool
) -> None:
    """Issue class 4: shards lost when a disk is removed and later returned."""
    device = await device_with_content()
    failed = []

    async def write(store: Store, number: int) -> None:
        try:
            await store.sync(await store.put(b"new %d" % number, LARGE))
        except (DeviceError, ReadOnlyError) as error:
            failed.append(error)
        else:
            durable.append(b"new %d" % number)

    durable: list[bytes] = []
    with trio.fail_after(60):
        async with open_store(device) as store:
            device.faults.vanish(skip)
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(write, store, number)
            await write(store, 5)
            assert failed and store.health.reason
            with pytest.raises(DeviceError):
                await store.get(b"large")
            with pytest.raises(ReadOnlyError):
                await store.put(b"x", b"y")
    assert device.faults.gone
    if closing:
        device.close()
        device.reopen()
    else:
        device = device.power_cut()
    async with open_store(device) as store:
        found = await content(store)
        assert not store.health.reason
        assert found.keys() >= {*BOTH, *durable}
        assert all(found[key] == BOTH.get(key, LARGE) for key in found)
        await store.sync(await store.put(b"x", b"y"))


async def test_a_path_that_was_down_and_came_back_costs_errors_and_no_more() -> None:
    device = await device_with_content()
    async with open_store(device) as store:
        await store.put(b"new", LARGE)
        device.faults.vanish(times=2)
        for _ in range(2):
            with pytest.raises(DeviceError):
                await store.get(b"large")
        assert await store.get(b"large") == LARGE
        await store.sync()
    async with open_store(device.power_cut()) as store:
        assert (await content(store)).keys() == {*BOTH, b"new"}


@pytest.mark.parametrize("kind", ["write", "flush", "reset"])
@pytest.mark.parametrize("skip", range(4))
async def test_a_request_that_fails_turns_the_store_read_only(kind: str, skip: int) -> None:
    device = await device_with_content()
    async with open_store(device) as store:
        device.fail(kind, skip=skip)
        durable = dict(BOTH)
        for number in range(6):
            try:
                await store.sync(await store.put(b"large", LARGE + b"%d" % number))
                durable[b"large"] = LARGE + b"%d" % number
                await store.checkpoint()
                await store.reclaim()
            except (DeviceError, ReadOnlyError):
                break
    async with open_store(device.power_cut()) as store:
        assert not store.health.reason
        found = await content(store)
        assert found[b"small"] == SMALL
        assert found[b"large"][: len(LARGE)] == LARGE
        assert found[b"large"] >= durable[b"large"]
