"""fuse/dirty.py against a plain array of bytes."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from shardfs.fuse import dirty
from shardfs.fuse.dirty import DirtyRanges

SHARD = dirty.SHARD_BYTES
# Offsets cluster around shard boundaries, lengths around the size below which writes are gathered.
OFFSETS = st.one_of(
    st.integers(0, 300),
    st.integers(SHARD - 200, SHARD + 200),
    st.integers(2 * SHARD - 50_000, 2 * SHARD + 10),
)
LENGTHS = st.one_of(st.integers(0, 40), st.integers(32_000, 33_500), st.just(70_000))


class Mirror:
    """The same content as {offset: byte}, kept as ranges of an array and a mask."""

    def __init__(self) -> None:
        self.data = bytearray(3 * SHARD)
        self.mask = bytearray(3 * SHARD)

    def write(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.mask[offset : offset + len(data)] = b"\1" * len(data)

    def forget(self, start: int, end: int) -> None:
        self.mask[start:end] = bytes(end - start)

    def check(self, ranges: DirtyRanges) -> None:
        seen = bytearray(3 * SHARD)
        for offset, data in ranges.read(0, 3 * SHARD):
            assert self.data[offset : offset + len(data)] == data
            assert seen[offset : offset + len(data)].count(1) == 0
            seen[offset : offset + len(data)] = b"\1" * len(data)
        assert seen == self.mask
        assert ranges.bytes == self.mask.count(1)
        assert ranges.segments == sum(len(s) for s in ranges._shards.values())
        assert bool(ranges) == (ranges.bytes > 0)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), OFFSETS, LENGTHS),
        st.tuples(st.just("truncate"), OFFSETS, st.just(0)),
        st.tuples(st.just("flush"), st.integers(0, 2), st.integers(1, 4)),
        st.tuples(st.just("seal"), st.integers(0, 2), st.just(0)),
    ),
    max_size=25,
)


@given(OPERATIONS)
@settings(max_examples=60)
def test_like_an_array(operations: list[tuple[str, int, int]]) -> None:
    ranges, mirror, source = DirtyRanges(), Mirror(), random.Random(7)
    for kind, first, second in operations:
        if kind == "write":
            data = source.randbytes(second)
            expected = second - mirror.mask[first : first + second].count(1)
            assert ranges.cost(first, second) == expected
            ranges.write(first, data)
            mirror.write(first, data)
        elif kind == "truncate":
            before = ranges.bytes
            freed = ranges.truncate(first)
            mirror.forget(first, 3 * SHARD)
            assert before - freed == ranges.bytes
        elif kind == "flush":
            _flush(ranges, mirror, first, second)
        else:
            ranges.seal(first)
    mirror.check(ranges)


def _flush(ranges: DirtyRanges, mirror: Mirror, index: int, count_max: int) -> None:
    runs = ranges.runs(index, 0, count_max)
    assert len(runs) <= count_max
    for run in runs:
        start = index * SHARD + run.start
        assert b"".join(run.buffers) == mirror.data[start : start + run.length]
        assert mirror.mask[start : start + run.length].count(0) == 0
    if runs:
        end = runs[-1].start + runs[-1].length
        ranges.remove(index, runs[0].start, end)
        mirror.forget(index * SHARD + runs[0].start, index * SHARD + end)


def test_sequential_writing_is_one_run_without_copies() -> None:
    ranges = DirtyRanges()
    parts = [bytes([number]) * (1 << 20) for number in range(4)]
    ready = [ranges.write(number << 20, part) for number, part in enumerate(parts)]
    assert ready == [False, False, False, True]
    (run,) = ranges.runs(0, 0, 10)
    assert run.length == SHARD and ranges.segments == 1
    assert all(buffer is part for buffer, part in zip(run.buffers, parts, strict=True))


def test_small_appends_are_gathered() -> None:
    ranges = DirtyRanges()
    for number in range(10_000):
        ranges.write(number * 100, b"x" * 100)
    (run,) = ranges.runs(0, 0, 10)
    assert run.length == 1_000_000 and len(run.buffers) < 10


def test_a_buffer_that_was_handed_out_stays_as_it_is() -> None:
    ranges = DirtyRanges()
    ranges.write(0, b"abc")
    ranges.write(3, b"def")
    (run,) = ranges.runs(0, 0, 10)
    ranges.seal(0)
    before = b"".join(run.buffers)
    ranges.write(6, b"ghi")
    assert b"".join(run.buffers) == before == b"abcdef"


def test_overwritten_buffers_are_let_go() -> None:
    ranges = DirtyRanges()
    ranges.write(0, bytes(1 << 20))
    ranges.write(0, b"y" * ((1 << 20) - 10))
    kept = [buffer for segment in ranges._shards[0] for buffer in segment.buffers]
    bases = [buffer.obj if isinstance(buffer, memoryview) else buffer for buffer in kept]
    assert all(isinstance(base, bytes | bytearray) for base in bases)
    assert sum(memoryview(base).nbytes for base in bases) <= 2 * ranges.bytes


def test_growing_shards_are_told_from_finished_ones() -> None:
    ranges = DirtyRanges()
    ranges.write(0, bytes(SHARD + 10))
    assert ranges.shards() == [0, 1]
    assert not ranges.is_growing(0) and ranges.is_growing(1)
