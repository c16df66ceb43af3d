"""Small reads past the page cache without a thread, and what is read around them; loop devices."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from shardfs.engine import async_reads, kernel_requests
from shardfs.engine.async_reads import READ_BYTES_MAX
from shardfs.engine.block_device import BlockDevice, open_device
from shardfs.engine.neighbours import AHEAD_BYTES_MAX, WINDOW_BYTES, Neighbours, Span
from shardfs.limits import BLOCK_BYTES
from tests.engine.loops import attached

KIB, MIB = 1024, 1024 * 1024
SIZE_BYTES = 32 * MIB
CONTENT = random.Random(1).randbytes(SIZE_BYTES)

pytestmark = pytest.mark.real_clock


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    image = tmp_path / "disk.img"
    image.write_bytes(CONTENT)
    with attached(image) as name:
        yield name


@pytest.fixture
def device(loop: str) -> Iterator[BlockDevice]:
    opened = open_device(loop)
    try:
        yield opened
    finally:
        opened.close()


def forbid_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_thread(*_: object, **__: object) -> None:
        raise AssertionError("a thread was used")

    monkeypatch.setattr(trio.to_thread, "run_sync", no_thread)


def read_by(device: BlockDevice) -> tuple[int, int]:
    """Requests and bytes that the loop device has been asked for."""
    fields = Path("/sys/block", Path(device.path).name, "stat").read_text().split()
    return int(fields[0]), 512 * int(fields[2])


def far_apart(count: int, step: int = 3 * WINDOW_BYTES) -> list[int]:
    return [number * step + 12_345 for number in range(count)]


async def test_a_cold_read_takes_one_request_of_its_blocks_and_no_thread(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid_threads(monkeypatch)
    for offset in far_apart(100):
        requests, length = read_by(device)
        assert await device.read(offset, 4 * KIB) == CONTENT[offset : offset + 4 * KIB]
        after = read_by(device)
        assert (after[0] - requests, after[1] - length) == (1, 4 * KIB + 512)


async def test_any_place_and_length_by_many_at_once(device: BlockDevice) -> None:
    choose = random.Random(2)

    async def read_some() -> None:
        for _ in range(20):
            length = choose.randint(1, READ_BYTES_MAX)
            offset = choose.randrange(SIZE_BYTES - length)
            found = await device.read(offset, length)
            assert found == CONTENT[offset : offset + length]
            assert isinstance(found, memoryview) and found.readonly

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(read_some)
    end = SIZE_BYTES - 100
    assert await device.read(end, 100) == CONTENT[end:]


async def test_others_run_while_the_disk_takes_its_time(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is waited for on the spot: all reads end through the event loop."""
    monkeypatch.setattr(async_reads, "_SOON", async_reads._NOW)
    forbid_threads(monkeypatch)
    found: list[int] = []

    async def read_one(offset: int) -> None:
        assert await device.read(offset, 4 * KIB) == CONTENT[offset : offset + 4 * KIB]
        found.append(offset)

    places = far_apart(async_reads._SLOTS)
    async with trio.open_nursery() as nursery:
        for offset in places:
            nursery.start_soon(read_one, offset)
    assert sorted(found) == places
    with trio.CancelScope() as scope:
        scope.cancel()
        await device.read(SIZE_BYTES // 2, 4 * KIB)
    assert await device.read(SIZE_BYTES // 2, 4 * KIB) == CONTENT[SIZE_BYTES // 2 :][: 4 * KIB]


async def test_a_slow_disk_is_waited_for_on_the_spot_only_now_and_then() -> None:
    trust = async_reads._Trust()
    waited = 0
    for _ in range(1000):
        if trust.is_left():
            waited += 1
            trust.learn(was_right=False)
    assert waited <= 5 + 1000 // 64
    for _ in range(64 * 12):
        if trust.is_left():
            trust.learn(was_right=True)
    assert all(trust.is_left() for _ in range(10)), "it has become fast"


async def test_what_was_just_written_is_read(device: BlockDevice) -> None:
    """Dirty pages of the page cache beside others that it has not."""
    model = bytearray(CONTENT)
    choose = random.Random(3)
    for _ in range(200):
        at = choose.randrange(SIZE_BYTES // BLOCK_BYTES - 4) * BLOCK_BYTES
        data = choose.randbytes(BLOCK_BYTES)
        model[at : at + BLOCK_BYTES] = data
        await device.write(at, [data])
        begin = max(0, at - choose.randint(0, 2 * BLOCK_BYTES))
        length = choose.randint(1, 3 * BLOCK_BYTES)
        assert await device.read(begin, length) == model[begin : begin + length]


async def test_without_such_calls_a_thread_reads(
    device: BlockDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_requests, "NUMBERS", None)
    for offset in far_apart(5):
        assert await device.read(offset, 4 * KIB) == CONTENT[offset : offset + 4 * KIB]


async def test_neighbours_are_read_together(device: BlockDevice) -> None:
    """Files of some 4 KiB that lie one behind the other, from the first to the last and at random:
    the disk is asked once for many of them."""
    length, count = 4200, 2000
    for order in (list(range(count)), random.Random(4).sample(range(count), count)):
        os.posix_fadvise(device._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        device._neighbours = Neighbours()
        before = read_by(device)
        for number in order:
            offset = number * length
            assert await device.read(offset, length) == CONTENT[offset : offset + length]
        requests, read_bytes = (new - old for new, old in zip(read_by(device), before, strict=True))
        assert requests <= count / 2, requests
        assert read_bytes <= 2 * length * count, read_bytes


def test_reads_at_random_places_are_hardly_ever_enlarged() -> None:
    neighbours, choose = Neighbours(), random.Random(5)
    size = 1024 * MIB
    spans = [neighbours.missed(choose.randrange(size - 4096), 4096, size) for _ in range(5000)]
    assert sum(span is not None for span in spans) <= 100


def test_who_goes_on_and_on_gets_more_each_time_and_nothing_behind_the_end() -> None:
    neighbours = Neighbours()
    size = 4 * MIB + 1000
    assert neighbours.missed(100, 50, size) is None
    at, lengths = WINDOW_BYTES, []
    while at < size:
        span = neighbours.missed(at, min(50, size - at), size)
        assert span is not None and span.offset == at
        lengths.append(span.length)
        at += span.length
    assert lengths[:4] == [WINDOW_BYTES, 2 * WINDOW_BYTES, 4 * WINDOW_BYTES, AHEAD_BYTES_MAX]
    assert max(lengths) == AHEAD_BYTES_MAX and sum(lengths) == size - WINDOW_BYTES


def test_a_read_over_the_edge_of_a_window_is_read_whole() -> None:
    neighbours = Neighbours()
    neighbours.missed(0, 1, SIZE_BYTES)
    span = neighbours.missed(WINDOW_BYTES - 10, 100, SIZE_BYTES)
    assert span == Span(0, WINDOW_BYTES + 90)
