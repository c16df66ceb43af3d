"""Opening and closing: errors by their own class, cancellation, stores on stores."""

from __future__ import annotations

import pytest
import trio

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.health import HealthState
from shardfs.engine.mkfs import format_device, plan
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from shardfs.errors import (
    CorruptionError,
    DeviceError,
    NotShardfsError,
    ReadOnlyError,
    ShardfsError,
    StoreClosedError,
)
from tests.engine.stores import MANUAL, content, formatted, opened


async def test_an_empty_device_is_refused_with_the_plain_exception() -> None:
    with pytest.raises(NotShardfsError, match="shardfs mkfs"):
        async with Store.open(SimulatedDevice(32 * limits.MIB)):
            raise AssertionError("it opened")


async def test_an_exception_in_the_body_comes_out_as_it_is() -> None:
    device = await formatted()
    with pytest.raises(KeyError):
        async with Store.open(device) as store:
            await store.put(b"k", b"v" * 999)
            raise KeyError
    async with opened(device) as store:
        assert await store.get(b"k") == b"v" * 999, "it was closed in order all the same"


@pytest.mark.expected_warnings("now read-only")
async def test_mkfs_reports_a_device_error_as_such() -> None:
    device = SimulatedDevice(32 * limits.MIB)
    device.fail("flush", skip=1)
    with pytest.raises(DeviceError):
        await format_device(device, plan(device.size_bytes, 512))


@pytest.mark.parametrize("background", [True, False])
async def test_a_cancelled_body_still_closes_in_order(background: bool) -> None:
    device = await formatted(checkpoints_max=3)
    with trio.CancelScope() as scope:
        async with Store.open(device, options=StoreOptions(background=background)) as store:
            await store.put(b"k", b"v" * 9999)
            scope.cancel()
            await trio.sleep(1)
    assert scope.cancelled_caught
    async with opened(device) as store:
        assert await store.get(b"k") == b"v" * 9999


@pytest.mark.parametrize("mib", [32, 64])
async def test_formatting_anew_leaves_nothing_of_the_old_store(mib: int) -> None:
    """Old superblock records lie right behind the fresh ones, with higher sequence numbers."""
    device = await formatted(mib)
    for _ in range(3):
        async with opened(device) as store:
            await store.put(b"old", b"value")
            await store.sync()
    identity = plan(device.size_bytes, 512, label="new")
    await format_device(device, identity)
    async with opened(device) as store:
        assert store.identity == identity
        assert await content(store) == {}


async def test_a_closed_store_takes_nothing() -> None:
    device = await formatted()
    async with opened(device) as store:
        batch = store.batch()
        batch.put(b"k", b"v")
    with pytest.raises(StoreClosedError):
        store.apply(batch)


async def test_a_read_only_open_writes_nothing() -> None:
    device = await formatted()
    async with opened(device) as store:
        await store.put(b"small", b"v")
        await store.put(b"large", b"v" * 50_000)
    before = device.step
    async with Store.open(device, options=StoreOptions(read_only=True)) as store:
        assert store.health.state is HealthState.READ_ONLY
        assert await content(store) == {b"small": b"v", b"large": b"v" * 50_000}
        with pytest.raises(ReadOnlyError):
            await store.put(b"k", b"v")
        await store.sync()
    assert device.step == before


async def test_a_write_protected_device_opens_read_only() -> None:
    device = await formatted()
    device.read_only = True
    async with Store.open(device) as store:
        assert store.health.reason == "the device is write-protected"


async def test_a_device_that_was_cut_off_is_refused() -> None:
    device = await formatted(32)
    image = device.image()
    with pytest.raises(CorruptionError, match="cut off"):
        async with Store.open(SimulatedDevice.from_image(image[: 31 * limits.MIB])):
            pass


@pytest.mark.parametrize("copy", [0, 1])
async def test_one_damaged_superblock_copy_is_survived_and_told(copy: int) -> None:
    device = await formatted(32)
    async with opened(device) as store:
        await store.put(b"k", b"v")
    device.rot(copy * store.identity.extent_bytes, 64)
    async with opened(device) as store:
        assert await store.get(b"k") == b"v"
        assert any("superblock copy is damaged" in note for note in store.notes)
    async with opened(device) as store:
        assert store.notes == (), "opening has repaired it"


async def test_two_damaged_superblock_copies_are_refused() -> None:
    device = await formatted(32)
    for copy in (0, 1):
        device.rot(copy * limits.MIB + 40, 64)
    with pytest.raises((CorruptionError, NotShardfsError)):
        async with Store.open(device):
            pass


@pytest.mark.parametrize("zoned", [False, True])
async def test_opening_again_and_again_uses_nothing_up(zoned: bool) -> None:
    device = await formatted(24, zoned=zoned)
    async with opened(device) as store:
        await store.put(b"k", b"v" * 70_000)
        await store.put(b"l", b"v")
    free = []
    for number in range(40):
        if number % 2:
            device = device.power_cut(device.power_cut_point().everything())
        async with opened(device) as store:
            free.append(store.statistics().extents_free)
            assert await store.get(b"k") == b"v" * 70_000
    assert len(set(free[1:])) == 1, free


@pytest.mark.parametrize("zoned", [False, True])
@pytest.mark.parametrize("keep", [False, True])
async def test_cuts_while_opening_do_no_harm(zoned: bool, keep: bool) -> None:
    device = await formatted(24, zoned=zoned)
    async with opened(device) as store:
        for number in range(5):
            await store.put(b"k%d" % number, b"v" * (number * 9000))
        await store.sync()
        device = device.power_cut()
    expected = {b"k%d" % number: b"v" * (number * 9000) for number in range(5)}
    first = device.step
    points = []
    device.observer = lambda operation: points.append(device.power_cut_point())
    async with opened(device) as store:
        assert await content(store) == expected
    assert len(points) > 4
    for point in points:
        after = device.after_power_cut(point, point.everything() if keep else ())
        async with opened(after) as store:
            assert await content(store) == expected, f"cut at step {point.step - first}"


@pytest.mark.expected_warnings("now read-only", "closing without")
async def test_a_device_that_fails_while_closing_raises_nothing() -> None:
    device = await formatted()
    async with opened(device) as store:
        dependency = await store.put(b"k", b"v" * 5000)
        device.fail("flush")
    assert dependency.failure is not None
    with pytest.raises(ShardfsError):
        await dependency.wait()


@pytest.mark.expected_warnings("now read-only", "closing without")
async def test_reads_go_on_when_writes_have_failed() -> None:
    device = await formatted()
    async with Store.open(device, options=MANUAL) as store:
        await store.put(b"k", b"v" * 5000)
        await store.sync()
        device.fail("write")
        await store.put(b"l", b"w" * 5000)
        with pytest.raises((DeviceError, ReadOnlyError)):
            await store.sync()
        with pytest.raises(ReadOnlyError):
            await store.put(b"m", b"x")
        assert await store.get(b"k") == b"v" * 5000
    device.reopen()
    async with opened(device) as store:
        assert await store.get(b"k") == b"v" * 5000
