"""What is overwritten in part is garbage in part: counts are exact, and it is given back."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardfs import limits
from shardfs.engine.framing import frame_bytes
from shardfs.engine.fsck import check_store
from shardfs.engine.liveness import live_bytes, live_changes
from shardfs.engine.pieces import Locator, Piece, overlapped, punch, splice
from shardfs.engine.space import DATA_STREAMS
from shardfs.engine.store import Store
from tests.engine.stores import content, formatted, opened

KIB = limits.KIB
EXTENT = 256 * KIB
CHUNK = 60 * KIB
HEAD_BYTES_MAX = 100
KEY_BYTES = 7


def chunk(sequence: int, length: int, extent: int = 5) -> Locator:
    return Locator(extent, 1, 0, length, sequence, KEY_BYTES, b"")


def key_of(number: int) -> bytes:
    return b"key %03d" % number


async def overwrite(store: Store, key: bytes, start: int, data: bytes) -> None:
    """Overwrite a part of a shard, as the file system does."""
    await store.admit(len(data))
    base = await store.get_shard(key)
    assert base is not None
    pieces = base.pieces
    replaced = overlapped(pieces, start, len(data))
    for piece in store.append_pieces(key, start, (data,), replaced=replaced):
        pieces = splice(pieces, piece.start, piece.locator, piece.length)
    batch = store.batch(essential=True)
    batch.put_shard(key, pieces, base)
    store.apply(batch)


async def filled(store: Store, share: float) -> dict[bytes, bytearray]:
    """A store that is full to a share, with one chunk for each key; what it holds."""
    fresh = store.space().free_bytes
    expected: dict[bytes, bytearray] = {}
    while store.space().free_bytes > (1 - share) * fresh:
        key = key_of(len(expected))
        value = bytes([len(expected) % 251]) * CHUNK
        await store.put(key, value)
        expected[key] = bytearray(value)
    await store.sync()
    return expected


def data_bytes(store: Store) -> int:
    """What counts as live data."""
    return sum(each.live_bytes for each in store._extents.all if each.stream in DATA_STREAMS)


def test_a_whole_chunk_counts_its_frame_and_a_part_what_its_copy_would_take() -> None:
    whole = Piece(0, 40 * KIB, 0, chunk(1, 40 * KIB))
    assert live_bytes((whole,)) == {(5, 1): frame_bytes(KEY_BYTES, 40 * KIB)}
    kept = punch((whole,), 8 * KIB, 30 * KIB)
    assert [piece.length for piece in kept] == [8 * KIB, 2 * KIB]
    parts = frame_bytes(KEY_BYTES, 8 * KIB) + frame_bytes(KEY_BYTES, 2 * KIB)
    assert live_bytes(kept) == {(5, 1): parts}
    assert live_bytes(punch((whole,), 0, 40 * KIB - 1))[5, 1] > 0, "the last byte is live"
    assert live_bytes(punch((whole,), 0, 40 * KIB)) == {}


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 100), st.integers(0, 3), st.booleans()),
        max_size=40,
    )
)
def test_changes_add_up_to_what_is_live(
    steps: list[tuple[int, int, int, bool]],
) -> None:
    pieces: tuple[Piece, ...] = ()
    counted: Counter[tuple[int, int]] = Counter()
    for number, (start, length, extent, is_hole) in enumerate(steps):
        if is_hole:
            changed = punch(pieces, start, length)
        else:
            changed = splice(pieces, start, chunk(number, length, extent), length)
        counted.update(dict(live_changes(pieces, changed)))
        pieces = changed
        assert +counted == live_bytes(pieces)
        assert not -counted


async def test_overwriting_parts_takes_no_space_and_what_it_leaves_is_garbage() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    rng = random.Random(3)
    async with opened(device) as store:
        expected = await filled(store, 0.95)
        free, live = store.space().free_bytes, data_bytes(store)
        written = 0
        while written < 2 * live:
            key = rng.choice(list(expected))
            length = rng.randrange(1, 16) * KIB
            start = rng.randrange(CHUNK - length)
            data = rng.randbytes(length)
            await overwrite(store, key, start, data)
            expected[key][start : start + length] = data
            written += length
            # A shard has some pieces more than before, and each counts a head; nothing else.
            assert data_bytes(store) <= live + len(expected) * CHUNK // 20
        await store.sync()
        await store.checkpoint()
        while await store.compact():
            pass
        assert free - store.space().free_bytes <= len(expected) * CHUNK // 20
        assert (await check_store(store, data=True)).is_clean
        assert await content(store) == expected


@pytest.mark.parametrize("kept_bytes", [1, 4 * KIB])
async def test_chunks_of_which_little_is_left_give_the_rest_back(kept_bytes: int) -> None:
    """The worst case: of each chunk that is old, one byte is live."""
    device = await formatted(12, extent_bytes=EXTENT)
    async with opened(device) as store:
        expected = await filled(store, 0.5)
        old = {
            piece.locator.extent for key in expected for piece in (await shard_pieces(store, key))
        }
        for number, (key, value) in enumerate(expected.items()):
            data = bytes([number % 251 + 1]) * (CHUNK - kept_bytes)
            await overwrite(store, key, 0, data)
            value[: len(data)] = data
        await store.sync()
        # All that was written before is garbage but for these bytes and their heads.
        left = sum(store._extents.all[number].live_bytes for number in old)
        assert left < len(expected) * (kept_bytes + HEAD_BYTES_MAX)
        before = store._evacuator.moved_bytes
        while await store.reclaim():
            pass
        assert store._evacuator.moved_bytes - before < 2 * len(expected) * (kept_bytes + 1)
        assert store.space_parts().garbage_bytes < store.space_parts().live_bytes // 4
        assert await content(store) == expected


async def shard_pieces(store: Store, key: bytes) -> tuple[Piece, ...]:
    shard = await store.get_shard(key)
    assert shard is not None
    return shard.pieces
