"""Stores become larger and smaller, and lose nothing: also when the power fails on the way."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from shardfs import errors, limits
from shardfs.checking.power_cuts import Operation, PowerCutPoint
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.engine.fsck import check_store
from shardfs.engine.layout import ExtentState, Stream
from shardfs.engine.options import StoreOptions
from shardfs.engine.reserve import reserve_extents
from shardfs.engine.resizing import Resized, grow, trim
from shardfs.engine.shrinking import Progress, Shrinking
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import extent_count_max
from tests.engine.stores import content, formatted, opened, tidy_up

EXTENT = 64 * limits.KIB
NEW_END = 72
Content = dict[bytes, bytes]


def value_of(number: int, size: int = 6 * limits.KIB) -> bytes:
    return b"%08d" % number * (size // 8)


async def fill(store: Store, count: int, *, first: int = 0, keep_every: int = 1) -> Content:
    """Values over many extents; what is left when all but some are deleted."""
    expected = {}
    for number in range(first, first + count):
        expected[b"key %06d" % number] = value_of(number)
        await store.put(b"key %06d" % number, value_of(number))
    for number in range(first, first + count):
        if number % keep_every:
            del expected[b"key %06d" % number]
            await store.delete(b"key %06d" % number)
    await store.sync()
    return expected


async def shrink(store: Store, size_bytes: int) -> Resized:
    """All steps of it."""
    shrinking = Shrinking(store, size_bytes)
    while (progress := await shrinking.step()).result is None:
        assert progress.left_bytes <= progress.total_bytes
    return progress.result


async def require_sound(store: Store, expected: Content) -> None:
    """Content, every structure, and the account of space."""
    assert store.health.reason == ""
    assert await content(store) == expected
    report = await check_store(store, data=True)
    assert report.is_clean, [str(finding) for finding in report.findings]
    require_account(store)


def require_account(store: Store) -> None:
    """The account of space is the one that a fresh open of these extents makes."""
    extents, space = store._extents, store._extents.space
    assert len(extents.all) == store.identity.extent_count
    assert extents.reserve == reserve_extents(store.identity.extent_count)
    assert space.total_bytes == store.identity.extent_count * store.identity.extent_bytes
    for stream in set(Stream) - {Stream.NONE}:
        used = [
            each
            for each in extents.all
            if each.stream is stream and each.state in (ExtentState.OPEN, ExtentState.SEALED)
        ]
        assert space._held[stream] == len(used), stream
    live = sum(each.live_bytes for each in extents.all if each.stream in DATA_STREAMS)
    assert space._live_bytes == live
    assert space.user_bytes() == max(
        0, space.user_bytes_with(store.identity.extent_count, extents.reserve)
    )


# --- growing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
async def test_a_larger_device_is_used(zoned: bool) -> None:
    device = await formatted(4, extent_bytes=EXTENT, zoned=zoned)
    async with opened(device) as store:
        expected = await fill(store, 100, keep_every=2)
        free_before = store.space().free_bytes
        device.medium_bytes *= 3
        assert device.size_bytes == 4 * limits.MIB
        result = await grow(store)
        assert (result.before_bytes, result.device_bytes) == (4 * limits.MIB, 12 * limits.MIB)
        assert result.extent_count == 192
        assert result.free_bytes == store.space().free_bytes
        assert store.space().free_bytes > free_before + 6 * limits.MIB
        expected |= await fill(store, 1100, first=1000)
        assert any(each.live_bytes for each in store._extents.all[100:])
        await require_sound(store, expected)
    async with opened(device) as store:
        assert store.identity.extent_count == 192
        await require_sound(store, expected)
        await tidy_up(store)
        await require_sound(store, expected)


async def test_a_larger_device_that_is_not_grown_mounts_as_before() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await fill(store, 50)
    device.medium_bytes = 9 * limits.MIB
    await device.measure()
    async with opened(device) as store:
        assert store.identity.device_bytes == 4 * limits.MIB
        await require_sound(store, expected)


async def test_growing_by_a_part_of_a_device_and_an_image_file() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        with pytest.raises(errors.UsageError, match="enlarge the device first"):
            await grow(store, 6 * limits.MIB)
        assert device.size_bytes == 4 * limits.MIB
        device.medium_bytes = 8 * limits.MIB
        assert (await grow(store, 6 * limits.MIB + 5)).device_bytes == 6 * limits.MIB
        device.is_image = True
        assert (await grow(store, 10 * limits.MIB)).extent_count == 160
        assert device.size_bytes == 10 * limits.MIB
        await require_sound(store, {})


async def test_growing_is_refused_where_nothing_is_gained() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    device.is_image = True
    async with opened(device) as store:
        with pytest.raises(errors.UsageError, match="nothing to gain"):
            await grow(store)
        with pytest.raises(errors.UsageError, match="nothing to gain"):
            await grow(store, device.size_bytes + EXTENT - 1)
        with pytest.raises(errors.UsageError, match="shardfs shrink"):
            await grow(store, 2 * limits.MIB)
        most = extent_count_max(EXTENT, store.identity.chunk_bytes_max)
        with pytest.raises(errors.LimitError, match=f"{most * EXTENT} bytes can be used"):
            await grow(store, (most + 1) * EXTENT)
        assert device.size_bytes == 4 * limits.MIB
        assert (await grow(store, most * EXTENT)).extent_count == most
        expected = await fill(store, 200)
        await require_sound(store, expected)
    async with opened(device) as store:
        await require_sound(store, expected)


# --- shrinking ----------------------------------------------------------------------------------


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
async def test_everything_moves_to_the_front(zoned: bool) -> None:
    device = await formatted(8, extent_bytes=EXTENT, zoned=zoned, checkpoints_max=3)
    device.is_image = True
    async with opened(device) as store:
        expected = await fill(store, 700, keep_every=2)
        await tidy_up(store)
        expected |= await fill(store, 100, first=5000)
        assert any(each.live_bytes for each in store._extents.all[74:])
        result = await shrink(store, 74 * EXTENT)
        assert (result.extent_count, result.device_bytes) == (74, 74 * EXTENT)
        assert device.size_bytes == 74 * EXTENT
        await require_sound(store, expected)
        expected |= await fill(store, 20, first=9000)
        await tidy_up(store)
        await require_sound(store, expected)
    async with opened(device) as store:
        assert store.identity.extent_count == 74
        await require_sound(store, expected)


async def test_what_is_given_up_is_named_nowhere() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    device.is_image = True
    async with opened(device) as store:
        await fill(store, 10)
        await store.checkpoint()
        await fill(store, 300)
        await store.checkpoint()
        end = max(each.index for each in store._extents.all if each.live_bytes) - 1
        # Data alone: emptying it needs no checkpoint, and the last one has counted it.
        used = [each for each in store._extents.all[end:] if each.live_bytes]
        assert used and all(each.stream in DATA_STREAMS for each in used)
        for number in range(0, 300, 2):
            await store.delete(b"key %06d" % number)
        await shrink(store, end * EXTENT)
        expected = await content(store)
        point = device.power_cut_point()
    assert len(expected) == 150
    for found in (device, device.after_power_cut(point), device.after_kill(point)):
        found.reopen()
        async with opened(found) as store:
            assert store.identity.extent_count == end
            await require_sound(store, expected)


async def test_what_does_not_fit_is_refused_with_the_bytes_short() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    device.is_image = True
    async with opened(device) as store:
        expected = await fill(store, 600)
        with pytest.raises(errors.NoSpaceError) as refusal:
            Shrinking(store, 40 * EXTENT)
        words = str(refusal.value).split()
        short, enough = int(words[0]), int(words[words.index("would") - 1])
        free = store._extents.space.user_bytes_with(40, reserve_extents(40))
        assert short == -free > 0
        with pytest.raises(errors.NoSpaceError):
            Shrinking(store, enough - EXTENT)
        with pytest.raises(errors.DeviceTooSmallError):
            Shrinking(store, 23 * EXTENT)
        with pytest.raises(errors.UsageError, match="shardfs grow"):
            Shrinking(store, 8 * limits.MIB)
        assert not store._extents.free.are_withheld
        assert (await shrink(store, enough)).device_bytes == enough
        await require_sound(store, expected)
        store.reserve(store._extents.space.user_bytes())
        with pytest.raises(errors.NoSpaceError, match="bytes short"):
            Shrinking(store, enough - EXTENT)
        store.release(store._applier.reserved_bytes)


async def test_a_shrink_that_is_given_up_leaves_the_old_size() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await fill(store, 600, keep_every=3)
        user_bytes = store._extents.space.user_bytes()
        shrinking = Shrinking(store, 60 * EXTENT)
        with pytest.raises(errors.DeviceBusyError):
            Shrinking(store, 60 * EXTENT)
        with pytest.raises(errors.DeviceBusyError):
            await grow(store)
        assert store._extents.space.user_bytes() < user_bytes
        await shrinking.step()
        await shrinking.step()
        shrinking.abandon()
        shrinking.abandon()
        assert store._extents.space.user_bytes() >= user_bytes
        await require_sound(store, expected)
        expected |= await fill(store, 300, first=7000)
        await require_sound(store, expected)


async def test_the_store_is_used_while_it_shrinks() -> None:
    device = await formatted(8, extent_bytes=EXTENT, checkpoints_max=3)
    device.is_image = True
    async with opened(device, StoreOptions(commit_interval_s=0.05)) as store:
        # Half of it lies behind the new end, and the room before that is more than enough: where
        # it is little, writers rightly wait for most of the shrink.
        expected = await fill(store, 900)
        for key in list(expected)[:600]:
            del expected[key]
            await store.delete(key)
        await store.sync()
        done = trio.Event()
        used_count = 0

        async def use() -> None:
            nonlocal used_count
            while not done.is_set():
                number = used_count
                key, value = b"key %06d" % (number * 7 % 900), value_of(90_000 + number)
                if number % 3:
                    await store.put(key, value)
                    expected[key] = value
                else:
                    await store.delete(key)
                    expected.pop(key, None)
                used_count += 1
                if number % 5 == 0:
                    assert await store.get(key) == expected.get(key)
                    await store.sync()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            shrinking = Shrinking(store, NEW_END * EXTENT)
            spared = sum(each.index >= NEW_END for each in store._extents.free)
            unused = {each.index for each in store._extents.all[NEW_END:] if not each.live_bytes}
            steps = 0
            while (await shrinking.step()).result is None:
                steps += 1
                used = {each.index for each in store._extents.all[NEW_END:] if each.live_bytes}
                assert len(used & unused) <= spared, "written behind the new end"
            done.set()
        assert steps > 5
        assert used_count > steps, "writers were held up"
        assert store.identity.extent_count == NEW_END
        assert await content(store) == expected
    async with opened(device) as store:
        await require_sound(store, expected)


@pytest.mark.expected_warnings("stays where it is", "can not be moved")
async def test_what_cannot_be_read_is_named_and_stays() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await fill(store, 600)
        tail = next(each for each in reversed(store._extents.all) if each.live_bytes > EXTENT // 2)
        device.rot(store.identity.extent_offset(tail.index) + EXTENT // 2, 8)
        await tidy_up(store)
        async for key, value in store.scan(b"\0", b"\xff"):
            if not isinstance(value, bytes):
                try:
                    await store.read_shard(value, 0, value.length)
                except errors.CorruptionError:
                    del expected[key]
        for key in list(expected)[::2]:
            del expected[key]
            await store.delete(key)
        shrinking = Shrinking(store, (tail.index - 1) * EXTENT)
        with pytest.raises(errors.CorruptionError, match=f"extent {tail.index}"):
            while (await shrinking.step()).result is None:
                pass
        shrinking.abandon()
        assert store.identity.extent_count == 128
        for key, value in expected.items():
            assert await store.get(key) == value


async def test_an_extent_that_comes_back_has_an_epoch_of_its_own() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    async with opened(device) as store:
        for _ in range(3):
            await fill(store, 900, keep_every=1000)
            await store.delete(b"key 000000")
            await store.sync()
            await tidy_up(store)
        # The tail has lived longer than the front.
        last = store._extents.all[-1]
        assert last.state is ExtentState.FREE
        last.epoch = 7 + max(each.epoch for each in store._extents.all)
        highest = {each.index: each.epoch for each in store._extents.all}
        await shrink(store, 40 * EXTENT)
    async with opened(device) as store:
        assert device.size_bytes == 8 * limits.MIB
        await grow(store)
        for extent in store._extents.all[40:]:
            assert extent.epoch > max(highest.values())
        expected = await fill(store, 500)
        await require_sound(store, expected)
    async with opened(device) as store:
        await require_sound(store, expected)


# --- power cuts ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A submitted operation, and what may be found after a cut."""

    point: PowerCutPoint
    allowed: list[Content]


class Watch:
    """Collects the moments of a device; the test says what is applied, and what is durable."""

    def __init__(self, device: SimulatedDevice, expected: Content) -> None:
        self._device = device
        self.states = [dict(expected)]
        self.moments: list[Moment] = []
        device.observer = self._observe

    def _observe(self, _operation: Operation) -> None:
        point = self._device.power_cut_point()
        self.moments.append(Moment(point, list(self.states)))

    async def put(self, store: Store, number: int, size: int = 6 * limits.KIB) -> None:
        """One more change, which may be found from here on, and must be when this returns."""
        key, value = b"key %06d" % number, value_of(number + 50_000, size)
        self.states.append({**self.states[-1], key: value})
        await store.sync(await store.put(key, value))
        del self.states[:-1]


async def check_moments(
    device: SimulatedDevice, moments: list[Moment], sizes: set[int], go_on: Callable[[Store], Any]
) -> None:
    """Open what a cut at each moment may leave; then do it again, to the end."""
    rng = random.Random(1)
    found = set()
    for number, moment in enumerate(moments):
        for choice in list(moment.point.choices(4, rng))[: 5 if number % 5 == 0 else 2]:
            after = device.after_power_cut(moment.point, choice)
            async with opened(after) as store:
                found.add(store.identity.extent_count)
                state = await content(store)
                assert state in moment.allowed
                assert store.identity.extent_count in sizes
                if number % 6 == 0:
                    await require_sound(store, state)
            if number % 16 == 0:
                async with opened(after) as store:
                    await go_on(store)
                    await require_sound(store, state)
    assert found == sizes


@pytest.mark.parametrize("zoned", [False, True], ids=["conventional", "zoned"])
@pytest.mark.parametrize("seed", range(2))
async def test_a_cut_at_every_write_of_growing(zoned: bool, seed: int) -> None:
    device = await formatted(
        2, extent_bytes=EXTENT, zoned=zoned, checkpoints_max=3, seed=seed, sector_bytes=512
    )
    async with opened(device) as store:
        watch = Watch(device, await fill(store, 60, keep_every=2))
        device.medium_bytes = 4 * limits.MIB

        async def use() -> None:
            for number in range(6):  # an extent each
                await watch.put(store, number, EXTENT - limits.WHOLE_PAYLOAD_BYTES_MAX)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(use)
            await grow(store)
        await watch.put(store, 3)
        await watch.put(store, 1)

    async def go_on(store: Store) -> None:
        if store.identity.extent_count == 32:
            device = store._parts.device
            assert isinstance(device, SimulatedDevice)
            device.medium_bytes = 4 * limits.MIB
            await grow(store)
        assert store.identity.extent_count == 64

    assert len(watch.moments) >= 10
    await check_moments(device, watch.moments, {32, 64}, go_on)


@pytest.mark.parametrize(("zoned", "is_image"), [(False, True), (True, False)])
async def test_a_cut_at_every_write_of_shrinking(zoned: bool, is_image: bool) -> None:
    device = await formatted(
        3, extent_bytes=EXTENT, zoned=zoned, checkpoints_max=3, seed=3, sector_bytes=512
    )
    device.is_image = is_image
    async with opened(device) as store:
        expected = await fill(store, 270, keep_every=5)
        await store.checkpoint()
        for number in range(60):  # a delta each: the log reaches into the tail as well
            key = b"small %d" % number
            expected[key] = b"small"
            await store.sync(await store.put(key, b"small"))
        streams = {each.stream for each in store._extents.all[30:] if each.write_pointer}
        assert streams >= {Stream.DATA, Stream.RUNS, Stream.META}
        watch = Watch(device, expected)
        shrinking = Shrinking(store, 30 * EXTENT)
        number = 0
        progress: Progress | None = None
        while progress is None or progress.result is None:
            await watch.put(store, number * 3)
            number += 1
            progress = await shrinking.step()
        await watch.put(store, 1)
        assert device.size_bytes == (30 * EXTENT if is_image else 48 * EXTENT)
        await require_sound(store, watch.states[0])

    async def go_on(store: Store) -> None:
        if store.identity.extent_count == 48:
            await shrink(store, 30 * EXTENT)
        assert store.identity.extent_count == 30

    await check_moments(device, watch.moments, {30, 48}, go_on)


# --- trimming -----------------------------------------------------------------------------------


async def test_everything_free_is_discarded_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await fill(store, 200, keep_every=2)
        await store.put(b"pending", b"y" * 4000)
        expected[b"pending"] = b"y" * 4000
        discarded = set()
        real_discard = device.discard

        async def discard(offset: int, length: int) -> None:
            discarded.add(offset)
            await real_discard(offset, length)

        monkeypatch.setattr(device, "discard", discard)
        assert await trim(store) == store._extents.free_bytes
        free = {store.identity.extent_offset(each.index) for each in store._extents.free}
        assert free == discarded
        await require_sound(store, expected)
        point = device.power_cut_point()
    for choice in point.choices(20, random.Random(5)):
        async with opened(device.after_power_cut(point, choice)) as store:
            await require_sound(store, expected)


async def test_an_extent_is_not_written_while_it_is_discarded() -> None:
    device = await formatted(4, extent_bytes=EXTENT, checkpoints_max=4)
    async with opened(device, StoreOptions(commit_interval_s=0.01)) as store:
        expected = await fill(store, 100, keep_every=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trim, store)
            nursery.start_soon(trim, store)
            expected |= await fill(store, 150, first=1000, keep_every=2)
        assert await content(store) == expected
    async with opened(device) as store:
        await require_sound(store, expected)
