"""Memtable, segments, merging and scans of the tree against dictionaries."""

from __future__ import annotations

import itertools
import random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from shardfs import limits
from shardfs.engine.lsm.compaction import choose_runs
from shardfs.engine.lsm.entry import TOMBSTONE
from shardfs.engine.lsm.memtable import Memtable
from shardfs.engine.lsm.merge import Run, load_page, merge_parts
from shardfs.engine.store import Store
from tests.engine.stores import content, formatted, opened

KEYS = st.binary(min_size=1, max_size=3)


@given(st.lists(st.tuples(KEYS, st.binary(max_size=9)), max_size=60), KEYS, KEYS, st.integers(1, 9))
def test_a_memtable_is_a_sorted_dictionary(
    changes: list[tuple[bytes, bytes]], start: bytes, end: bytes, count: int
) -> None:
    table = Memtable()
    model: dict[bytes, bytes] = {}
    for number, (key, value) in enumerate(changes):
        table.set(key, value)
        model[key] = value
        if number % 5 == 0:
            expected = [pair for pair in sorted(model.items()) if start <= pair[0] < end]
            assert table.range(start, end, count) == expected[:count]
    assert list(table.ordered()) == sorted(model)
    assert len(table) == len(model)
    assert all(table.get(key) == value for key, value in model.items())
    overhead = Memtable()
    overhead.set(b"", b"")
    held = sum(len(key) + len(value) for key, value in model.items())
    assert table.bytes_held == held + overhead.bytes_held * len(model)


@given(st.lists(st.tuples(st.dictionaries(KEYS, KEYS, max_size=9), st.booleans()), max_size=5))
def test_a_page_hides_old_versions_and_ends_where_a_source_does(
    sources: list[tuple[dict[bytes, bytes], bool]],
) -> None:
    parts = [(sorted(entries.items()), complete or not entries) for entries, complete in sources]
    page = merge_parts(parts)
    horizons = [entries[-1][0] for entries, complete in parts if not complete]
    assert page.horizon == min(horizons, default=None)
    merged: dict[bytes, bytes] = {}
    for entries, _ in sources:
        merged.update(entries)
    expected = {k: v for k, v in merged.items() if page.horizon is None or k <= page.horizon}
    assert page.entries == expected


def _runs(*levels: int) -> list[Run]:
    return [Run(number, level, ()) for number, level in enumerate(levels)]


@pytest.mark.parametrize(
    ("levels", "chosen"),
    [
        ((), []),
        ((1, 0, 0, 0), []),
        ((1, 0, 0, 0, 0), [1, 2, 3, 4]),
        ((1, 1, 1, 1, 0), [0, 1, 2, 3]),
        ((1, 1, 1, 1, 0, 0, 0, 0), [4, 5, 6, 7]),
        ((limits.LEVEL_COUNT_MAX - 1,) * 5, [0, 1, 2, 3]),
    ],
)
def test_runs_to_merge_are_the_newest_full_level(
    levels: tuple[int, ...], chosen: list[int]
) -> None:
    assert [run.run_id for run in choose_runs(_runs(*levels))] == chosen


async def store_with_runs(store: Store, seed: int, rounds: int) -> dict[bytes, bytes]:
    """Random records in several runs and the memtable; the expected content."""
    rng = random.Random(seed)
    model: dict[bytes, bytes] = {}
    for _ in range(rounds):
        for _ in range(rng.choice((3, 255, 256, 257, 600))):
            key = b"%04d" % rng.randrange(1200)
            if rng.random() < 0.4:
                await store.delete(key)
                model.pop(key, None)
            else:
                model[key] = rng.randbytes(rng.choice((0, 10, 200)))
                await store.put(key, model[key])
        if rng.random() < 0.8:
            await store.checkpoint()
        if rng.random() < 0.5:
            await store.compact()
    return model


@pytest.mark.parametrize("seed", range(12))
async def test_scans_and_gets_agree_with_a_dictionary(seed: int) -> None:
    device = await formatted(16, extent_bytes=64 * limits.KIB)
    async with opened(device) as store:
        model = await store_with_runs(store, seed, 8)
        assert await content(store) == model
        for number in range(0, 1200, 7):
            key = b"%04d" % number
            assert await store.get(key) == model.get(key)
        for start, end in itertools.pairwise((b"0", b"0100", b"0356", b"0357", b"1111", b"2")):
            found = {key: value async for key, value in store.scan(start, end)}
            assert found == {key: value for key, value in model.items() if start <= key < end}
    async with opened(device) as store:
        assert await content(store) == model


@pytest.mark.parametrize("count", [255, 256, 257, 511, 512, 513])
@pytest.mark.parametrize("checkpoint", [False, True])
async def test_pages_that_end_in_tombstones(count: int, checkpoint: bool) -> None:
    """A page full of removed keys is not the end of a scan."""
    device = await formatted(16, extent_bytes=64 * limits.KIB)
    async with opened(device) as store:
        for number in range(count):
            await store.put(b"%04d" % number, b"v")
        await store.checkpoint()
        for number in range(count - 1):
            await store.delete(b"%04d" % number)
        if checkpoint:
            await store.checkpoint()
        assert await content(store) == {b"%04d" % (count - 1): b"v"}


@pytest.mark.parametrize("seed", range(6))
async def test_a_scan_sees_what_does_not_change_once_whatever_else_happens(seed: int) -> None:
    device = await formatted(16, extent_bytes=64 * limits.KIB, checkpoints_max=3, seed=seed)
    rng = random.Random(seed)
    async with opened(device) as store:
        steady = [b"s%04d" % number for number in range(0, 1500, 2)]
        for key in steady:
            await store.put(key, b"steady")
        done = False

        async def disturb() -> None:
            while not done:
                key = b"s%04d" % (2 * rng.randrange(750) + 1)
                if rng.random() < 0.3:
                    await store.delete(key)
                else:
                    await store.put(key, b"x" * rng.randrange(200))
                choice = rng.random()
                if choice < 0.05:
                    await store.checkpoint()
                elif choice < 0.1:
                    await store.compact()
                elif choice < 0.15:
                    await store.reclaim()
                else:
                    await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(disturb)
            for _ in range(5):
                seen = []
                async for key, value in store.scan(b"a", b"z"):
                    if value == b"steady":
                        seen.append(key)
                    if rng.random() < 0.05:
                        await trio.lowlevel.checkpoint()
                assert seen == steady
            done = True


async def test_a_page_of_runs_hides_old_versions() -> None:
    device = await formatted(16, extent_bytes=64 * limits.KIB)
    async with opened(device) as store:
        for version in (b"1", b"2", b"3"):
            for number in range(300):
                await store.put(b"%04d" % number, version * 100)
            await store.checkpoint()
        await store.delete(b"0000")
        await store.checkpoint()
        page = await load_page(store._tree.runs, b"0", b"1", 1000)
        assert page.horizon is None
        assert page.entries.pop(b"0000") == TOMBSTONE
        assert {value[1:] for value in page.entries.values()} == {b"3" * 100}


@settings(max_examples=25)
@given(st.lists(st.integers(1, limits.KEY_BYTES_MAX), min_size=1, max_size=40), st.data())
def test_segments_with_keys_of_any_length(lengths: list[int], data: st.DataObject) -> None:
    keys = sorted({b"k" * (length - 1) + b"%c" % (length % 251) for length in lengths})
    size = data.draw(st.sampled_from([0, 100, 4000, 8000]))

    async def run() -> None:
        device = await formatted(8, extent_bytes=64 * limits.KIB)
        async with opened(device) as store:
            batch = store.batch()
            for key in keys:
                batch.put(key, bytes(size))
            store.apply(batch)
            await store.checkpoint()
            expected = dict.fromkeys(keys, bytes(size))
            assert await content(store) == expected
            for run in store._tree.runs:
                for segment in run.segments:
                    assert segment.meta.first_key == segment.index.first_keys[0]
        async with opened(device) as store:
            assert await content(store) == expected

    trio.run(run)
