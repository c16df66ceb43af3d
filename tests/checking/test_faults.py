"""Each fault of the fault plan does what it says to the device."""

from __future__ import annotations

import errno

import pytest
import trio

from shardfs.checking.power_cuts import PAGE_BYTES
from shardfs.checking.simulated_device import SimulatedDevice
from shardfs.errors import DeviceError

SIZE_BYTES = 64 * PAGE_BYTES
ZONE_BYTES = 8 * PAGE_BYTES


def block(letter: str, count: int = 1) -> bytes:
    return letter.encode() * (PAGE_BYTES * count)


async def test_a_lasting_fault_stays_across_power_cuts_and_writes() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    device.fail("read", PAGE_BYTES, PAGE_BYTES, times=None)
    for each in (device, device.power_cut(), device.power_cut().power_cut()):
        await each.write(PAGE_BYTES, [block("a")])
        for _ in range(3):
            with pytest.raises(DeviceError):
                await each.read(0, 2 * PAGE_BYTES)
        assert await each.read(0, PAGE_BYTES) == block("\0")
    assert device.faults.struck == {"read error for ever": 3}


async def test_writing_cures_what_it_covers() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    device.faults.fail("read", 0, 4 * PAGE_BYTES, times=None, until_rewritten=True)
    await device.write(PAGE_BYTES, [block("a", 2)])
    assert await device.read(PAGE_BYTES, 2 * PAGE_BYTES) == block("a", 2)
    for offset in (0, 3 * PAGE_BYTES):
        with pytest.raises(DeviceError):
            await device.read(offset, PAGE_BYTES)
        await device.write(offset, [block("b")])
    assert await device.read(0, 4 * PAGE_BYTES) == block("b") + block("a", 2) + block("b")


async def test_a_lost_write_is_acknowledged_and_not_there() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    device.faults.lose_write(0, PAGE_BYTES, skip=1)
    await device.write(0, [block("b")])
    await device.write(0, [block("c")])
    await device.flush()
    assert await device.read(0, PAGE_BYTES) == block("b")
    assert await device.power_cut().read(0, PAGE_BYTES) == block("b")
    await device.write(0, [block("d")])
    assert await device.read(0, 1) == b"d"


async def test_a_lost_write_in_a_zone_moves_the_pointer_all_the_same() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    device.faults.lose_write()
    await device.write(0, [block("a")])
    await device.write(PAGE_BYTES, [block("b")])
    await device.flush()
    after = device.power_cut()
    assert await after.read(0, 2 * PAGE_BYTES) == block("\0") + block("b")
    assert after.write_pointer(0) == 2 * PAGE_BYTES


@pytest.mark.parametrize(("distance", "lands"), [(8, 10), (-1, 1), (62, 0), (61, 62)])
async def test_a_misdirected_write_lands_elsewhere(distance: int, lands: int) -> None:
    device = SimulatedDevice(SIZE_BYTES)
    device.faults.misdirect_write(distance * PAGE_BYTES)
    await device.write(2 * PAGE_BYTES, [block("a"), block("b")])
    await device.flush()
    expected = bytearray(SIZE_BYTES)
    expected[lands * PAGE_BYTES : (lands + 2) * PAGE_BYTES] = block("a") + block("b")
    assert device.image() == device.power_cut().image() == bytes(expected)


def test_a_zone_takes_no_misdirected_write() -> None:
    device = SimulatedDevice(SIZE_BYTES, zoned_bytes=ZONE_BYTES)
    with pytest.raises(AssertionError, match="pointer"):
        device.faults.misdirect_write(PAGE_BYTES)


async def test_a_flipped_read_has_one_wrong_bit_in_the_range_once() -> None:
    device = SimulatedDevice(SIZE_BYTES, seed=3)
    await device.write(0, [block("a", 3)])
    device.faults.flip_read(PAGE_BYTES + 5, 2)
    got = await device.read(PAGE_BYTES, PAGE_BYTES)
    different = [index for index in range(PAGE_BYTES) if got[index] != ord("a")]
    assert different in ([5], [6])
    assert (got[different[0]] ^ ord("a")).bit_count() == 1
    assert await device.read(0, 3 * PAGE_BYTES) == block("a", 3)


async def test_a_vanished_device_fails_every_call_until_it_is_reopened() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    await device.flush()
    await device.write(0, [block("b")])
    device.faults.vanish(skip=1)
    assert await device.read(0, 1) == b"b"
    calls = (
        lambda: device.read(0, 1),
        lambda: device.write(0, [block("c")]),
        device.flush,
        lambda: device.reset(0, PAGE_BYTES),
        lambda: device.discard(0, PAGE_BYTES),
    )
    for call in calls:
        with pytest.raises(DeviceError) as caught:
            await call()
        assert caught.value.errno == errno.ENXIO
    assert await device.power_cut().read(0, 1) == b"a"
    device.close()
    device.reopen(device.power_cut_point().everything())
    assert await device.read(0, 1) == b"b"
    assert await device.power_cut().read(0, 1) == b"b", "what has come back is durable"


async def test_requests_in_flight_fail_when_the_device_vanishes() -> None:
    device = SimulatedDevice(SIZE_BYTES, checkpoints_max={"write": 20}, seed=1)
    failed = []

    async def write(page: int) -> None:
        try:
            await device.write(page * PAGE_BYTES, [block("a")])
        except DeviceError:
            failed.append(page)

    async with trio.open_nursery() as nursery:
        for page in range(4):
            nursery.start_soon(write, page)
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        device.faults.vanish()
        with pytest.raises(DeviceError):
            await device.read(0, 1)
    assert failed and device.counts.writes == 4


async def test_a_path_that_was_down_comes_back_with_everything() -> None:
    device = SimulatedDevice(SIZE_BYTES)
    await device.write(0, [block("a")])
    device.faults.vanish(times=2)
    for _ in range(2):
        with pytest.raises(DeviceError):
            await device.read(0, 1)
    assert await device.read(0, 1) == b"a"
    assert await device.read(0, 1) == b"a"


async def test_what_a_failed_flush_should_have_covered_may_be_gone_without_a_power_cut() -> None:
    found = set()
    for seed in range(20):
        device = SimulatedDevice(SIZE_BYTES, seed=seed)
        await device.write(0, [block("a")])
        device.fail("flush")
        with pytest.raises(DeviceError):
            await device.flush()
        device.close()
        device.reopen()
        await device.flush()
        content = await device.read(0, PAGE_BYTES)
        assert content == await device.power_cut().read(0, PAGE_BYTES)
        found.add("torn" if len(set(content)) > 1 else chr(content[0]))
    assert found == {"a", "\0", "torn"}


async def test_each_kind_of_call_has_its_own_latency() -> None:
    device = SimulatedDevice(SIZE_BYTES, checkpoints_max={"flush": 50}, seed=1)
    order = []

    async def flush() -> None:
        await device.flush()
        order.append("flush")

    async def write() -> None:
        for page in range(3):
            await device.write(page * PAGE_BYTES, [block("a")])
            order.append("write")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flush)
        nursery.start_soon(write)
    assert order == ["write", "write", "write", "flush"]
