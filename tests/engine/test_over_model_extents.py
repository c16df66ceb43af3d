"""Chunks, shards and runs over the model of extents in place of the engine's: no device at all."""

from __future__ import annotations

import random

import pytest

from shardfs import limits
from shardfs.engine.chunks import locator_bytes
from shardfs.engine.layout import Kind, Stream
from shardfs.engine.lsm.compaction import Below, merge_step, without, write_memtable
from shardfs.engine.lsm.entry import TOMBSTONE
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.lsm.merge import Run, candidates, load_page
from shardfs.engine.lsm.segment import Segment
from shardfs.engine.lsm.segment_writer import SegmentWriter
from shardfs.engine.pieces import Locator
from shardfs.errors import CorruptionError
from tests.engine.model_extents import EXTENT_BYTES, ModelBench

KIB = limits.KIB
STREAMS = (Stream.DATA, Stream.SURVIVORS, Stream.RUNS, Stream.HOT)


@pytest.mark.parametrize("seed", range(4))
async def test_chunks_come_back_whatever_their_sizes_and_streams(seed: int) -> None:
    rng = random.Random(seed)
    bench = ModelBench()
    chunks: list[tuple[Locator, bytes]] = []
    for _ in range(120):
        data = rng.randbytes(max(0, rng.choice((0, 1, 512, 4096, 16 * KIB)) - rng.choice((0, 1))))
        owner = bytes(rng.randrange(limits.KEY_BYTES_MAX))
        locator, persistent = bench.chunks.put(Kind.DATA, rng.choice(STREAMS), owner, 7, (data,))
        assert persistent.is_persistent()
        assert locator.offset + locator_bytes(locator) <= EXTENT_BYTES
        chunks.append((locator, data))
    for locator, data in chunks:
        start = rng.randint(0, len(data))
        length = rng.randint(0, len(data) - start)
        assert bytes(await bench.chunks.get(locator, start, length)) == data[start : start + length]
        place = (locator.extent, locator.epoch, locator.offset)
        assert await bench.chunks.is_whole(*place, locator.sequence)
        assert not await bench.chunks.is_whole(*place, locator.sequence + 1)


async def test_a_chunk_is_gone_with_the_reset_of_its_extent_and_no_other_is_taken_for_it() -> None:
    bench = ModelBench()
    old, _ = bench.chunks.put(Kind.DATA, Stream.DATA, b"key", 0, (b"old",))
    bench.model_extents.reset(old.extent)
    new, _ = bench.chunks.put(Kind.DATA, Stream.DATA, b"key", 0, (b"new",))
    assert (new.extent, new.offset) == (old.extent, old.offset)
    with pytest.raises(CorruptionError, match="has been reset"):
        await bench.chunks.get(old, 0, 3)
    assert not await bench.chunks.is_whole(old.extent, old.epoch, old.offset, old.sequence)
    assert bytes(await bench.chunks.get(new, 0, 3)) == b"new"


@pytest.mark.parametrize("size", [0, 1, 16 * KIB, EXTENT_BYTES - 1, EXTENT_BYTES, 300_000])
async def test_shard_data_of_any_length_fills_extents_and_reads_back(size: int) -> None:
    rng = random.Random(size)
    bench = ModelBench()
    data = rng.randbytes(size)
    cut = size // 3
    pieces = bench.shards.append_pieces(b"owner", 5000, (data[:cut], data[cut:]))
    assert sum(piece.length for piece in pieces) == size
    whole = bytes(5000) + data + bytes(100)
    for _ in range(20):
        start = rng.randrange(len(whole))
        length = rng.randint(0, len(whole) - start)
        assert await bench.shards.read(pieces, start, length) == whole[start : start + length]
    if size > 2 * EXTENT_BYTES:
        extents = {piece.locator.extent for piece in pieces}
        assert len(extents) <= size // EXTENT_BYTES + 2, "filled to their ends"


async def run_of(
    bench: ModelBench, number: int, entries: dict[bytes, bytes], older: list[Run]
) -> Run:
    """A run, written from a memtable and opened again."""
    table = Memtable()
    for key, value in entries.items():
        table.set(key, value)
    writer = SegmentWriter(bench.chunks, bench.extents, bench.cache, number, 0)
    await write_memtable(table, writer, older)
    return await reopened(bench, number, writer)


async def reopened(bench: ModelBench, number: int, writer: SegmentWriter) -> Run:
    """What a writer wrote, with its indexes read from the extents."""
    opened = [await Segment.open(each.meta, bench.chunks, bench.cache) for each in writer.segments]
    return Run(number, 0, tuple(opened))


@pytest.mark.parametrize("seed", range(6))
async def test_older_runs_are_asked_for_rising_keys_as_for_any(seed: int) -> None:
    rng = random.Random(seed)
    bench = ModelBench()
    older = []
    for number in range(1, 4):
        keys = rng.sample(range(100, 1900), 900 if number == 2 else rng.choice((1, 40)))
        writer = SegmentWriter(bench.chunks, bench.extents, bench.cache, number, 0)
        writer.segment_bytes_max = 4 * KIB
        await writer.add([(b"k%04d" % key, bytes(30)) for key in sorted(keys)])
        await writer.finish()
        older.append(Run(number, 0, tuple(writer.segments)))
    assert len(older[1].segments) > 3
    every = [b"k%04d" % number for number in range(2000)]
    ends = [segment.meta.last_key for segment in older[1].segments]
    for keys_asked in (every, every[:: rng.randrange(2, 60)], ends):
        below = Below(older)
        for key in keys_asked:
            for _ in range(2):  # it may come again
                assert below.may_hold(key) is any(True for _ in candidates(older, key)), key


@pytest.mark.parametrize("seed", range(6))
async def test_runs_and_their_merge_agree_with_dictionaries(seed: int) -> None:
    rng = random.Random(seed)
    bench = ModelBench()
    runs: list[Run] = []
    merged: dict[bytes, bytes] = {}
    for number in range(1, 5):
        entries = {
            b"k%04d" % rng.randrange(900): rng.choice(
                (TOMBSTONE, rng.randbytes(rng.choice((9, 900))))
            )
            for _ in range(rng.choice((1, 300, 700)))
        }
        run = await run_of(bench, number, entries, runs)
        below = Below(runs)
        for key, value in sorted(entries.items()):
            found = [await each.get(key) for each in candidates([run], key)]
            if value != TOMBSTONE or below.may_hold(key):
                assert found == [value]
            else:
                assert found in ([], [None]), "a tombstone of nothing is not written"
        runs.append(run)
        merged.update(entries)
    assert bench.model_extents.live_bytes() == sum(run.total_bytes for run in runs)
    page = await load_page(runs, b"", b"\xff", 10_000)
    assert page.horizon is None
    live = {key: each for key, each in merged.items() if each != TOMBSTONE}
    assert {key: each for key, each in page.entries.items() if each != TOMBSTONE} == live
    damaged: set[int] = set()
    horizon: bytes | None = b""
    segments: list[Segment] = []
    while horizon is not None:
        writer = SegmentWriter(bench.chunks, bench.extents, bench.cache, 9, 1)
        writer.segment_bytes_max = 40 * KIB
        horizon = await merge_step(runs, [], writer, damaged)
        segments += (await reopened(bench, 9, writer)).segments
        runs = [without(run, horizon) for run in runs] if horizon is not None else []
        assert horizon is None or len(writer.segments) == 1
        page = await load_page([*runs, Run(9, 1, tuple(segments))], b"", b"\xff", 10_000)
        assert {key: each for key, each in page.entries.items() if each != TOMBSTONE} == live
    assert not damaged
    page = await load_page([Run(9, 1, tuple(segments))], b"", b"\xff", 10_000)
    assert page.entries == live
