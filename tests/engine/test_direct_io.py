"""Large requests past the page cache, on real loop devices."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from shardfs.engine import async_reads
from shardfs.engine.async_reads import READ_BYTES_MAX
from shardfs.engine.block_device import (
    DIRECT_WRITE_BYTES_MIN,
    INLINE_READ_BYTES_MAX,
    BlockDevice,
    open_device,
)
from shardfs.engine.direct_io import FOLIO_BYTES, HugePages
from shardfs.engine.images import create_image
from shardfs.limits import BLOCK_BYTES
from tests.engine.loops import attached

MIB = 1024 * 1024
SIZE_BYTES = 16 * MIB

pytestmark = pytest.mark.real_clock


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    image = tmp_path / "disk.img"
    create_image(image, SIZE_BYTES)
    with attached(image) as name:
        yield name


class Counted:
    """How many requests of which kind have gone past the page cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.writes = self.reads = 0
        self.refuse = False
        self._pwrite, self._preadv = os.pwrite, os.preadv
        monkeypatch.setattr(os, "pwrite", self.pwrite)
        monkeypatch.setattr(os, "preadv", self.preadv)

    def pwrite(self, descriptor: int, data: memoryview, offset: int) -> int:
        self._look(descriptor)
        self.writes += 1
        return self._pwrite(descriptor, data, offset)

    def preadv(
        self, descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0
    ) -> int:
        if self._look(descriptor):
            self.reads += 1
        return self._preadv(descriptor, buffers, offset, flags)

    def _look(self, descriptor: int) -> bool:
        with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as file:
            flags = int(file.read().split("flags:")[1].split()[0], 8)
        if flags & os.O_DIRECT and self.refuse:
            raise OSError(errno.EINVAL, "not aligned as this device wants it")
        return bool(flags & os.O_DIRECT)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def cut(data: bytes, choose: random.Random) -> list[bytes | memoryview]:
    """The data as buffers of all kinds."""
    parts: list[bytes | memoryview] = []
    at = 0
    while at < len(data):
        length = choose.choice([1, 300, BLOCK_BYTES, 64 * 1024, 100_000, MIB])
        part = data[at : at + length]
        parts.append(part if choose.random() < 0.5 else memoryview(data)[at : at + len(part)])
        at += len(part)
    return parts


async def test_large_and_small_requests_see_the_same_bytes(loop: str, counted: Counted) -> None:
    """As an extent is used: one write at a time in each, reads of anything at any time."""
    choose = random.Random(1)
    content = bytearray(SIZE_BYTES)
    device = open_device(loop)
    device.expect_extents(FOLIO_BYTES)
    lengths = [BLOCK_BYTES, 64 * 1024, DIRECT_WRITE_BYTES_MIN, MIB, MIB + BLOCK_BYTES, 2 * MIB]
    for _ in range(60):
        length = choose.choice(lengths)
        offset = choose.randrange((SIZE_BYTES - length) // BLOCK_BYTES + 1) * BLOCK_BYTES
        data = choose.randbytes(length)
        content[offset : offset + length] = data
        await device.write(offset, cut(data, choose))
        for wanted in (1, 5000, INLINE_READ_BYTES_MAX + 1, MIB, 3 * MIB):
            begin = choose.randrange(SIZE_BYTES - wanted + 1)
            found = await device.read(begin, wanted)
            assert found == content[begin : begin + wanted]
            assert found.readonly
    assert counted.writes and counted.reads
    await device.flush()
    device.close()
    assert await trio.Path(loop).read_bytes() == content


async def test_the_last_byte_and_the_first(loop: str, counted: Counted) -> None:
    device = open_device(loop)
    device.expect_extents(FOLIO_BYTES)
    data = random.Random(2).randbytes(SIZE_BYTES)
    await device.write(0, [data])
    for begin, end in ((0, SIZE_BYTES), (1, SIZE_BYTES), (0, SIZE_BYTES - 1), (4095, SIZE_BYTES)):
        assert await device.read(begin, end - begin) == data[begin:end]
    assert counted.writes == SIZE_BYTES // (2 * MIB), "a huge page at a time"
    assert counted.reads >= 4
    device.close()


@pytest.mark.parametrize("extent_bytes", [64 * 1024, FOLIO_BYTES // 2, None])
async def test_small_extents_are_written_through_the_page_cache(
    loop: str, counted: Counted, extent_bytes: int | None
) -> None:
    """Two of them may lie in one folio, which the kernel cannot drop while one is dirtied."""
    device = open_device(loop)
    if extent_bytes is not None:
        device.expect_extents(extent_bytes)
    await device.write(0, [bytes(MIB)])
    assert counted.writes == 0
    device.close()


async def test_a_device_that_refuses_is_used_through_the_page_cache(
    loop: str, counted: Counted
) -> None:
    device = open_device(loop)
    device.expect_extents(FOLIO_BYTES)
    counted.refuse = True
    data = random.Random(3).randbytes(2 * MIB)
    await device.write(MIB, [data])
    assert await device.read(MIB, 2 * MIB) == data
    counted.refuse = False
    await device.write(MIB, [data])
    assert await device.read(MIB, 2 * MIB) == data
    assert counted.writes == counted.reads == 0, "it is not tried again"
    device.close()


async def test_image_files_are_used_through_the_page_cache(
    tmp_path: Path, counted: Counted
) -> None:
    path = tmp_path / "disk.img"
    create_image(path, SIZE_BYTES)
    device: BlockDevice = open_device(path)
    device.expect_extents(FOLIO_BYTES)
    await device.write(0, [bytes(MIB)])
    assert await device.read(0, MIB) == bytes(MIB)
    assert counted.writes == counted.reads == 0
    device.close()


def read_requests(device: BlockDevice) -> int:
    """That the disk has been asked for."""
    return int(Path("/sys/block", Path(device.path).name, "stat").read_text().split()[0])


async def test_a_large_read_is_one_request_of_the_disk(loop: str) -> None:
    """In pages of 4 KiB it would be several: a device takes so many pieces at a time only."""
    device = open_device(loop)
    counts = []
    for number in range(8):
        before = read_requests(device)
        await device.read(number * MIB + 2000, MIB)
        counts.append(read_requests(device) - before)
    assert min(counts) == 1, "there is a huge page at times at least"
    device.close()


async def test_memory_of_a_read_is_used_again_when_nobody_looks_at_it(loop: str) -> None:
    device = open_device(loop)
    data = random.Random(4).randbytes(8 * MIB)
    await device.write(0, [data])
    await device.flush()
    kept = await device.read(5, MIB)
    part = memoryview(kept)[1000:2000]
    del kept
    for number in range(1, 8):
        assert await device.read(number * MIB, MIB) == data[number * MIB :][:MIB]
    assert part == data[1005:2005], "somebody still looked at it"
    del part
    assert not device._pages._lent
    assert len({id(part.memory) for part in device._pages._idle}) == 1, "no more was taken"
    device.close()


async def test_what_is_kept_for_reads_is_bounded(loop: str) -> None:
    device = open_device(loop)
    data = random.Random(6).randbytes(8 * MIB)
    await device.write(0, [data])
    await device.flush()
    for _ in range(2):
        kept = [await device.read(number * 4096 + 7, MIB) for number in range(36)]
        for number, each in enumerate(kept):
            assert each == data[number * 4096 + 7 :][:MIB]
        del kept, each
        parts = device._pages._idle
        assert len({id(part.memory) for part in parts}) == 2 and not device._pages._lent
        assert len(parts) == len(set(parts)) == 32
    device.close()


def test_parts_of_huge_pages_do_not_overlap() -> None:
    pages = HugePages()
    lent: list[memoryview] = []
    while (view := pages.lend()) is not None:
        view[0] = view[-1] = len(lent)
        lent.append(view)
    assert [(view[0], view[-1]) for view in lent] == [(number, number) for number in range(32)]


async def test_large_reads_take_no_thread(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel carries them out, several at a time; what it does not take is left to threads."""
    device = open_device(loop)
    device.expect_extents(FOLIO_BYTES)
    data = random.Random(5).randbytes(SIZE_BYTES)
    await device.write(0, [data])
    await device.flush()
    await device.read(100, MIB)
    with monkeypatch.context() as patch:
        patch.setattr(trio.to_thread, "run_sync", no_thread)
        lengths = (READ_BYTES_MAX + 1, INLINE_READ_BYTES_MAX, INLINE_READ_BYTES_MAX + 1, MIB)
        async with trio.open_nursery() as nursery:
            for number, length in enumerate(2 * lengths):
                nursery.start_soon(read_one, device, data, number * MIB + 4000, length)
    for begin in range(0, SIZE_BYTES - 4 * MIB, MIB):
        await read_one(device, data, begin, 4 * MIB - 1)
    device.close()


@pytest.fixture
def narrow_loop(loop: str) -> Iterator[str]:
    """A disk that takes 256 KiB at once."""
    limit = Path("/sys/block", Path(loop).name, "queue", "max_sectors_kb")
    before = limit.read_text()
    limit.write_text("256")
    yield loop
    limit.write_text(before)


async def test_a_device_that_takes_less_at_once_is_read_by_threads(
    narrow_loop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = open_device(narrow_loop)
    data = random.Random(6).randbytes(SIZE_BYTES)
    await device.write(0, [data])
    await device.flush()
    begun = 0
    begin_request = async_reads._begin

    def counting(*arguments: Any) -> bool:
        nonlocal begun
        begun += 1
        return begin_request(*arguments)

    monkeypatch.setattr(async_reads, "_begin", counting)
    for number in range(12):
        await read_one(device, data, number * MIB + 77, MIB)
    assert begun <= 4, "in the end it is not tried any more"
    device.close()


async def read_one(device: BlockDevice, data: bytes, begin: int, length: int) -> None:
    assert await device.read(begin, length) == data[begin : begin + length]


async def no_thread(*_: object, **__: object) -> None:
    raise AssertionError("a thread was used")
