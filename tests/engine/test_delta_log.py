"""The end of the delta log: damage in front of a later delta is found, and a clean end is cheap."""

from __future__ import annotations

import logging

import pytest

from shardfs import limits
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine import scheduler
from shardfs.engine.fsck import check_store
from shardfs.engine.layout import Stream
from shardfs.engine.options import StoreOptions
from shardfs.engine.store import Store
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
READING = StoreOptions(read_only=True, background=False)
COMMITS = 14


@pytest.fixture(autouse=True)
def _stores_may_complain(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "shardfs")


def log_place(store: Store) -> int:
    """Byte of the device where the next delta goes."""
    extent = store._extents._current.get(Stream.META) or store._extents._spares[0]
    return store.identity.extent_offset(extent.index) + extent.write_pointer


async def commit(store: Store, name: bytes, size: int) -> None:
    """One delta with about `size` bytes of values."""
    batch = store.batch()
    for number in range(-(-size // 4000)):
        batch.put(b"%s %04d" % (name, number), name * (min(size, 4000) // len(name)))
    store.apply(batch)
    await store.sync()


def damaged(image: bytes, start: int, end: int, how: str) -> SimulatedDevice:
    """A device with other bytes in a range: none, as if never written, or one of them flipped."""
    changed = bytearray(image)
    if how == "lost":
        changed[start:end] = bytes(end - start)
    else:
        changed[start + 100] ^= 1
    return SimulatedDevice.from_image(bytes(changed))


@pytest.mark.parametrize("how", ["lost", "rot"])
@pytest.mark.parametrize("size", [100, 11_000, 40_000])
async def test_damage_is_found_wherever_it_is_if_another_delta_follows(size: int, how: str) -> None:
    """Deltas of one part and of several, in a log of several extents; any but the last."""
    device = await formatted(4, extent_bytes=64 * KIB)
    places = []
    async with opened(device) as store:
        for number in range(COMMITS):
            await commit(store, b"%02d" % number, 100)  # a landmark: where the next one begins
            start = log_place(store)
            await commit(store, b"x%02d" % number, size)
            places.append((start, min(log_place(store), start - start % (64 * KIB) + 64 * KIB)))
        await commit(store, b"last", 100)
        image = device.power_cut().image()
        whole = await content(store)
    async with opened(SimulatedDevice.from_image(image)) as store:
        assert not store.damage and await content(store) == whole
    tried = 0
    for number, (start, end) in enumerate(places):
        if not any(image[start:end]):
            continue  # it went into the next extent as a whole
        tried += 1
        async with opened(damaged(image, start, end, how), READING) as store:
            assert f"the delta log ends at {2 * number + 1}, but" in store.damage
            assert (await content(store)).items() <= whole.items()
            report = await check_store(store)
            assert [each.invariant for each in report.findings] == ["E5"]
    assert tried > COMMITS // 2


async def test_a_lost_write_of_the_largest_size_is_seen_past(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert limits.LOG_LOOK_BYTES >= scheduler._GATHERED_BYTES_MAX
    monkeypatch.setattr(limits, "LOG_LOOK_BYTES", 600 * KIB)
    device = await formatted(24, extent_bytes=1024 * KIB)
    async with opened(device) as store:
        await commit(store, b"kept", 100)
        start = log_place(store)
        await commit(store, b"large", 580 * KIB)
        end = log_place(store)
        await commit(store, b"later", 100)
        image = device.power_cut().image()
    assert 580 * KIB < end - start < 600 * KIB
    async with opened(damaged(image, start, end, "lost")) as store:
        assert "the delta log ends at 1, but 2 was durable" in store.damage
        assert store.health.reason == store.damage
        assert list(await content(store)) == [b"kept 0000"]


async def test_a_damaged_rider_does_not_hide_the_damaged_delta_behind_it() -> None:
    device = await formatted(4, extent_bytes=64 * KIB)
    async with opened(device) as store:
        await commit(store, b"kept", 100)
        device.faults.lose_write(
            store.identity.extent_offset(store._extents.all[4].index), 12 * 64 * KIB
        )
        await store.sync(await store.put(b"rides", bytes(5000)))
        assert device.faults.struck
        start = log_place(store)
        await commit(store, b"damaged", 100)
        await commit(store, b"later", 100)
        image = device.power_cut().image()
    async with opened(damaged(image, start, start + 4096, "lost")) as store:
        assert "the delta log ends at 2, but 3 was durable" in store.damage


@pytest.mark.parametrize("extent_kib", [64, 1024])
@pytest.mark.parametrize("cut", [False, True], ids=["closed", "power cut"])
async def test_looking_past_a_clean_end_takes_one_read_at_most(
    extent_kib: int, cut: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = await formatted(64 if extent_kib > 64 else 4, extent_bytes=extent_kib * KIB)
    for number in range(12):
        async with opened(device) as store:
            await commit(store, b"a", (100, 9000, 70_000)[number % 3])
            if number % 5 == 4:
                await store.checkpoint()
            after = device.power_cut()
        image = (after if cut else device).image()
        reads = []
        for look_bytes in (0, 4 * limits.MIB):
            monkeypatch.setattr(limits, "LOG_LOOK_BYTES", look_bytes)
            each = SimulatedDevice.from_image(image)
            async with opened(each, READING):
                reads.append(each.counts.reads)
        assert reads[0] <= reads[1] <= reads[0] + 1
