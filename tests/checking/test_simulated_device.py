"""The simulated device keeps its word, and is no kinder than a disk."""

from __future__ import annotations

import errno
import itertools
import random
from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfs.checking.power_cuts import PAGE_BYTES, PowerCutPoint, Survivor
from shardfs.checking.simulated_device import PowerCut, SimulatedDevice, SimulationError
from shardfs.engine.device import Device
from shardfs.errors import DeviceError

SIZE_BYTES = 64 * PAGE_BYTES
ZONE_BYTES = 8 * PAGE_BYTES


def block(letter: str, count: int = 1) -> bytes:
    return letter.encode() * (PAGE_BYTES * count)


def as_device(device: Device) -> Device:
    """Type-checks that the simulation satisfies the protocol."""
    return device


async def test_reads_return_the_last_write_before_and_after_flush() -> None:
    device = as_device(SimulatedDevice(SIZE_BYTES))
    await device.write(PAGE_BYTES, [block("a"), block("b")])
    assert bytes(await device.read(PAGE_BYTES - 2, 4)) == b"\0\0aa"
    assert bytes(await device.read(2 * PAGE_BYTES - 1, 2)) == b"ab"
    await device.flush()
    await device.write(PAGE_BYTES, [block("c")])
    assert bytes(await device.read(2 * PAGE_BYTES - 1, 2)) == b"cb"
    assert bytes(await device.read(0, 0)) == b""
    counts = device.counts
    assert (counts.writes, counts.write_bytes, counts.flushes) == (2, 3 * PAGE_BYTES, 1)
    assert (counts.reads, counts.read_bytes) == (4, 8)


async def test_a_power_cut_keeps_what_was_flushed_and_what_was_chosen() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    await device.flush()
    await device.write(0, [block("b")])
    await device.write(PAGE_BYTES, [block("c")])
    lost = device.power_cut()
    assert (await lost.read(0, 2 * PAGE_BYTES)) == block("a") + block("\0")
    kept = device.power_cut((Survivor(4),))
    assert (await kept.read(0, 2 * PAGE_BYTES)) == block("a") + block("c")
    torn = device.power_cut((Survivor(3, ((1, 2),)),))
    assert (await torn.read(0, 3 * 512)) == b"a" * 512 + b"b" * 512 + b"a" * 512
    assert (await device.read(0, 1)) == b"b", "the device itself goes on"
    assert not kept.power_cut_point().unflushed, "what a cut left is durable"


async def test_a_flush_covers_only_what_completed_before_it_began() -> None:
    overtaken = 0
    for seed in range(20):
        device = SimulatedDevice(SIZE_BYTES, seed=seed, checkpoints_max=8)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.write, 0, [block("a")])
            while device.step < 1:
                await trio.lowlevel.checkpoint()
            in_flight = device.image()[:1] == b"\0"
            await device.flush()
            overtaken += device.image()[:1] == b"\0"
        unflushed = [operation.step for operation in device.power_cut_point().unflushed]
        assert unflushed == ([1] if in_flight else [])
    assert overtaken, "no flush returned while the write was in flight"


async def test_a_write_in_flight_may_survive_or_not() -> None:
    points: list[PowerCutPoint] = []
    device = SimulatedDevice(SIZE_BYTES, observer=lambda _: points.append(device.power_cut_point()))
    await device.write(0, [block("a")])
    await device.flush()
    assert [len(point.unflushed) for point in points] == [1, 1]
    assert device.after_power_cut(points[0]).image() == bytes(SIZE_BYTES)
    assert device.after_power_cut(points[0], points[0].everything()).image() == device.image()


async def test_writes_in_flight_may_not_overlap() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    with pytest.RaisesGroup(SimulationError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.write, 0, [block("a", 2)])
            nursery.start_soon(device.write, PAGE_BYTES, [block("b")])


@pytest.mark.parametrize("offset, length", [(1, PAGE_BYTES), (0, 512), (PAGE_BYTES, 5000)])
async def test_writes_that_are_not_in_blocks_are_the_callers_bug(offset: int, length: int) -> None:
    with pytest.raises(SimulationError, match="not in blocks"):
        await SimulatedDevice(SIZE_BYTES).write(offset, [bytes(length)])


async def test_ranges_beyond_the_device_and_closed_and_read_only_devices_are_errors() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    with pytest.raises(DeviceError) as caught:
        await device.read(SIZE_BYTES - 1, 2)
    assert caught.value.errno == errno.EINVAL
    device.close()
    device.close()
    with pytest.raises(DeviceError) as caught:
        await device.read(0, 1)
    assert caught.value.errno == errno.EBADF
    device.reopen()
    await device.read(0, 1)
    with pytest.raises(DeviceError) as caught:
        await SimulatedDevice(SIZE_BYTES, read_only=True).flush()
    assert caught.value.errno == errno.EROFS


# --- zones ----------------------------------------------------------------------------------------


async def test_zones_take_writes_at_the_pointer_only() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    await device.write(ZONE_BYTES, [block("a", 2)])
    assert device.write_pointer(ZONE_BYTES + 5) == 2 * PAGE_BYTES
    assert device.write_pointer(0) == 0
    for offset in (ZONE_BYTES, ZONE_BYTES + 3 * PAGE_BYTES, PAGE_BYTES):
        with pytest.raises(SimulationError, match="write pointer"):
            await device.write(offset, [block("b")])
    with pytest.raises(SimulationError, match="crosses"):
        await device.write(ZONE_BYTES + 2 * PAGE_BYTES, [block("b", 7)])
    await device.write(ZONE_BYTES + 2 * PAGE_BYTES, [block("b", 6)])
    assert device.write_pointer(ZONE_BYTES) == ZONE_BYTES


async def test_a_reset_moves_the_pointer_back_and_hides_the_data() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    await device.write(0, [block("a")])
    await device.flush()
    await device.reset(0, ZONE_BYTES)
    assert device.write_pointer(0) == 0
    assert await device.read(0, 1) == b"\0"
    assert device.power_cut().write_pointer(0) == PAGE_BYTES, "an unflushed reset may be lost"
    await device.write(0, [block("b", 2)])
    assert device.power_cut((Survivor(3),)).write_pointer(0) == 0
    await device.flush()
    assert device.power_cut().write_pointer(0) == 2 * PAGE_BYTES
    with pytest.raises(SimulationError, match="not one zone"):
        await device.reset(0, PAGE_BYTES)


async def test_conventional_devices_take_resets_and_do_nothing() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    await device.reset(0, ZONE_BYTES)
    assert device.write_pointer(0) is None
    assert await device.read(0, 1) == b"a"
    assert device.counts.resets == 1


async def test_one_operation_at_a_time_in_a_zone() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    async with trio.open_nursery() as nursery:  # different zones: fine
        nursery.start_soon(device.write, 0, [block("a")])
        nursery.start_soon(device.write, ZONE_BYTES, [block("b")])
    with pytest.RaisesGroup(SimulationError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.write, PAGE_BYTES, [block("a")])
            nursery.start_soon(device.reset, 0, ZONE_BYTES)


async def test_strict_reads_stop_at_the_pointer() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES, strict_reads=True)
    await device.write(0, [block("a", 8)])
    await device.write(ZONE_BYTES, [block("b")])
    assert await device.read(ZONE_BYTES - 1, PAGE_BYTES + 1) == b"a" + block("b")
    with pytest.raises(SimulationError, match="written to"):
        await device.read(ZONE_BYTES, PAGE_BYTES + 1)
    lenient = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    assert await lenient.read(0, 5) == bytes(5)


# --- power cuts -----------------------------------------------------------------------------------


async def scripted(device: SimulatedDevice) -> None:
    for zone, letter in itertools.product(range(2), "abc"):
        pointer = device.write_pointer(zone * ZONE_BYTES) or 0
        await device.write(zone * ZONE_BYTES + pointer, [block(letter)])


async def test_few_unflushed_writes_give_every_subset_and_every_write_torn() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    for index in range(4):
        await device.write(index * PAGE_BYTES, [block("abcd"[index])])
    choices = list(device.power_cut_point().choices(16, random.Random(1)))
    assert len(set(choices)) == len(choices)
    assert choices[:2] == [(), tuple(Survivor(step) for step in (1, 2, 3, 4))]
    whole = {choice for choice in choices if all(each.units is None for each in choice)}
    assert len(whole) == 16
    torn = {each.step for choice in choices for each in choice if each.units is not None}
    assert torn == {1, 2, 3, 4}


async def test_many_unflushed_writes_give_seeded_samples() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    for index in range(30):
        await device.write(index * PAGE_BYTES, [block("a")])
    point = device.power_cut_point()
    choices = list(point.choices(100, random.Random(7)))
    assert len(set(choices)) == len(choices) >= 100
    assert choices[:2] == [(), point.everything()]
    assert choices == list(point.choices(100, random.Random(7)))
    assert choices != list(point.choices(100, random.Random(8)))


async def test_zones_lose_only_what_came_last() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    await scripted(device)
    states = set()
    for choice in device.power_cut_point().choices(16, random.Random(1)):
        after = device.power_cut(choice)
        state = []
        for zone in range(2):
            pointer = after.write_pointer(zone * ZONE_BYTES)
            assert pointer is not None
            content = await after.read(zone * ZONE_BYTES, ZONE_BYTES)
            assert content == (block("a") + block("b") + block("c"))[:pointer].ljust(
                ZONE_BYTES, b"\0"
            )
            state.append(pointer // PAGE_BYTES)
        states.add(tuple(state))
    assert states == set(itertools.product(range(4), range(4)))


async def test_zones_tear_at_blocks() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    await device.write(0, [block("a", 3)])
    pointers = {
        device.power_cut(choice).write_pointer(0)
        for seed in range(20)
        for choice in device.power_cut_point().choices(4, random.Random(seed))
    }
    assert pointers == {0, PAGE_BYTES, 2 * PAGE_BYTES, 3 * PAGE_BYTES}


async def test_a_killed_process_leaves_its_writes_readable_and_unflushed() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    await device.flush()
    await device.write(0, [block("b")])
    point = device.power_cut_point()
    await device.flush()
    killed = device.after_kill(point)
    assert await killed.read(0, 1) == b"b"
    assert killed.power_cut().image()[:1] == b"a"
    await killed.write(PAGE_BYTES, [block("c")])
    assert [each.step for each in killed.power_cut_point().unflushed] == [3, 4]
    await killed.flush()
    assert killed.power_cut().image()[:1] == b"b"


@pytest.mark.parametrize("cut_step", [1, 2, 3])
async def test_cut_at_stops_everything(cut_step: int) -> None:
    device = SimulatedDevice(SIZE_BYTES)
    device.cut_at(cut_step)
    with pytest.raises(PowerCut):
        await device.write(0, [block("a")])
        await device.flush()
        await device.write(0, [block("b")])
    with pytest.raises(PowerCut):
        await device.read(0, 1)
    point = device.power_cut_point()
    outcomes = {bytes(device.power_cut(choice).image()[:1]) for choice in point.choices(4, RNG)}
    assert outcomes >= {1: {b"\0", b"a"}, 2: {b"\0", b"a"}, 3: {b"a", b"b"}}[cut_step]


RNG = random.Random(0)


async def test_discards_are_unflushed_zeros_or_nothing() -> None:
    results = set()
    for seed in range(10):
        device = SimulatedDevice(SIZE_BYTES, seed=seed)
        await device.write(0, [block("a")])
        await device.flush()
        await device.discard(0, PAGE_BYTES)
        results.add(((await device.read(0, 1)), (await device.power_cut().read(0, 1))))
    assert results == {(b"\0", b"a"), (b"a", b"a")}


# --- faults ---------------------------------------------------------------------------------------


async def test_faults_strike_where_and_as_often_as_told() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    device.fail("read", PAGE_BYTES, PAGE_BYTES, errno=errno.ENODATA, skip=1, times=2)
    outcomes = []
    for offset in (0, PAGE_BYTES, 2 * PAGE_BYTES, PAGE_BYTES, PAGE_BYTES, PAGE_BYTES):
        try:
            await device.read(offset, PAGE_BYTES)
            outcomes.append(0)
        except DeviceError as error:
            outcomes.append(error.errno)
    assert outcomes == [0, 0, 0, errno.ENODATA, errno.ENODATA, 0]


async def test_a_failed_write_leaves_any_of_its_sectors() -> None:
    mixed = set()
    for seed in range(5):
        device = SimulatedDevice(SIZE_BYTES, seed=seed)
        device.fail("write")
        with pytest.raises(DeviceError):
            await device.write(0, [block("a")])
        content = await device.read(0, PAGE_BYTES)
        mixed.add(content)
        assert device.power_cut().image() == bytes(SIZE_BYTES)
        await device.flush()
        assert device.power_cut().image() == device.image()
    assert len(mixed) > 2


async def test_a_failed_write_leaves_a_zone_as_it_was() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    device.fail("write")
    with pytest.raises(DeviceError):
        await device.write(0, [block("a")])
    assert device.write_pointer(0) == 0
    await device.write(0, [block("a")])


async def test_after_a_failed_flush_nothing_is_written_or_flushed() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    device.fail("flush")
    calls: list[Callable[[], Awaitable[None]]] = [
        device.flush,
        device.flush,
        lambda: device.write(0, [block("b")]),
    ]
    for call in calls:
        with pytest.raises(DeviceError):
            await call()
    assert await device.read(0, 1) == b"a"
    assert await device.power_cut().read(0, 1) == b"\0"


async def test_rot_flips_bits_for_good() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    await device.flush()
    device.rot(3, 2)
    assert await device.read(2, 4) == b"aqqa"
    assert await device.power_cut().read(2, 4) == b"aqqa"


async def test_images_go_out_and_in() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(5 * PAGE_BYTES, [block("a")])
    copy = SimulatedDevice.from_image(device.image())
    assert copy.image() == device.image()
    assert copy.power_cut().image() == device.image()


# --- against a naive model ------------------------------------------------------------------------

Calls = list[tuple[str, int, int]]
calls_strategy = st.lists(
    st.tuples(
        st.sampled_from(["write", "write", "write", "flush", "pause"]),
        st.integers(0, 7),
        st.integers(1, 3),
    ),
    max_size=30,
)


@settings(max_examples=60)
@given(calls_strategy, st.integers(0, 2**16), st.integers(1, 4))
async def test_each_sector_of_a_crash_state_is_a_version_no_older_than_the_last_flush(
    calls: Calls, seed: int, checkpoints_max: int
) -> None:
    """The naive model keeps, for each sector, the versions a cut may leave."""
    device = SimulatedDevice(SIZE_BYTES, seed=seed, checkpoints_max=checkpoints_max)
    possible: dict[int, list[bytes]] = {}
    version = 0
    for kind, page, count in calls:
        if kind == "flush":
            await device.flush()
            possible = {sector: versions[-1:] for sector, versions in possible.items()}
        elif kind == "write":
            version += 1
            data = version.to_bytes(4, "little") * (count * PAGE_BYTES // 4)
            await device.write(page * PAGE_BYTES, [data[:100], data[100:]])
            for sector in range(page * 8, (page + count) * 8):
                possible.setdefault(sector, [bytes(4)]).append(data[:4])
    for sector, versions in possible.items():
        assert await device.read(sector * 512, 4) == versions[-1]
    rng = random.Random(seed)
    for choice in device.power_cut_point().choices(12, rng):
        image = device.power_cut(choice).image()
        for sector in range(SIZE_BYTES // 512):
            content = image[sector * 512 : (sector + 1) * 512]
            assert content == content[:4] * 128, "no sector is mixed"
            assert content[:4] in possible.get(sector, [bytes(4)])


@settings(max_examples=40)
@given(calls_strategy, st.integers(0, 2**16))
async def test_zones_after_a_cut_are_a_state_they_have_been_in(calls: Calls, seed: int) -> None:
    """Each zone is as it was after one of its own operations since the last flush, or torn."""
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES, seed=seed)
    history: dict[int, list[bytes]] = {zone: [b""] for zone in range(8)}
    version = 0
    for kind, zone, count in calls:
        content = history[zone][-1]
        if kind == "flush":
            await device.flush()
            history = {each: states[-1:] for each, states in history.items()}
        elif kind == "pause" or len(content) + count * PAGE_BYTES > ZONE_BYTES:
            await device.reset(zone * ZONE_BYTES, ZONE_BYTES)
            history[zone].append(b"")
        else:
            version += 1
            data = version.to_bytes(4, "little") * (count * PAGE_BYTES // 4)
            await device.write(zone * ZONE_BYTES + len(content), [data])
            history[zone].append(content + data)
    for choice in device.power_cut_point().choices(12, random.Random(seed)):
        after = device.power_cut(choice)
        for zone, states in history.items():
            pointer = after.write_pointer(zone * ZONE_BYTES)
            content = await after.read(zone * ZONE_BYTES, ZONE_BYTES)
            assert pointer is not None and content[pointer:].count(0) == ZONE_BYTES - pointer
            assert any(content[:pointer] == state[:pointer] for state in states)


async def test_a_seed_makes_a_life() -> None:
    async def live(seed: int) -> bytes:
        device = SimulatedDevice(SIZE_BYTES, seed=seed)
        for index in range(8):
            await device.write(index * PAGE_BYTES, [block("a")])
            await device.discard(index * PAGE_BYTES, PAGE_BYTES)
        return device.image()

    assert await live(3) == await live(3)
    assert await live(3) != await live(4)
