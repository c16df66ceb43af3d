"""The reserve holds what it is for: in sum, for every device, and while it is used hardest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shardfs import limits
from shardfs.engine.batch import Batch
from shardfs.engine.layout import MANIFEST_HEADER, USAGE, Stream
from shardfs.engine.mkfs import plan
from shardfs.engine.pieces import Shard
from shardfs.engine.reserve import needs, record_bytes_max, reserve_extents
from shardfs.engine.space import SpaceAccount
from shardfs.engine.store import Store
from shardfs.engine.superblock_record import Identity
from shardfs.engine.superblock_record import log_bytes_max as superblock_log_bytes_max
from shardfs.engine.superblock_record import record_bytes_max as superblock_record_bytes_max
from shardfs.errors import DeviceTooSmallError, LimitError, NoSpaceError
from tests.engine.stores import formatted, opened

KIB, MIB, GIB = limits.KIB, limits.MIB, limits.GIB
TIB = 1024 * GIB
DEVICE_BYTES_MAX = 32 * TIB


def device_sizes() -> Iterator[int]:
    """From the smallest to 32 TiB, each about 5 % larger, and what is just below and above."""
    size = limits.EXTENT_COUNT_MIN * limits.EXTENT_BYTES_MIN
    while size <= DEVICE_BYTES_MAX:
        yield size
        yield size + size // 37 * 2
        size += max(limits.EXTENT_BYTES_MIN, size // 20)


def extent_sizes() -> Iterator[int | None]:
    """What `mkfs` takes; None: what it chooses."""
    yield None
    size = limits.EXTENT_BYTES_MIN
    while size <= limits.EXTENT_BYTES_MAX:
        yield size
        size *= 2


def geometries(extent_bytes: int | None) -> Iterator[Identity]:
    for size in device_sizes():
        try:
            yield plan(size, 512, extent_bytes=extent_bytes)
        except (DeviceTooSmallError, LimitError):
            continue


@pytest.mark.parametrize("extent_bytes", list(extent_sizes()))
def test_the_needs_fit_into_the_reserve_of_every_device(extent_bytes: int | None) -> None:
    count = 0
    for geometry in geometries(extent_bytes):
        reserve = reserve_extents(geometry.extent_count)
        wanted = needs(reserve, geometry.extent_bytes, geometry.chunk_bytes_max)
        assert sum(wanted) <= reserve, (geometry, wanted)
        assert 2 * superblock_record_bytes_max(geometry.extent_count) <= (
            superblock_log_bytes_max(geometry.extent_bytes)
        ), "a superblock extent holds a snapshot, and as much again"
        manifest_bytes = MANIFEST_HEADER.size + geometry.extent_count * USAGE.size
        assert 2 * manifest_bytes <= geometry.chunk_bytes_max + 2 * MANIFEST_HEADER.size, geometry
        count += 1
    assert count > 20


@pytest.mark.parametrize("extent_bytes", list(extent_sizes()))
def test_a_fresh_device_has_room_for_users_and_to_merge(extent_bytes: int | None) -> None:
    for geometry in geometries(extent_bytes):
        reserve = reserve_extents(geometry.extent_count)
        space = SpaceAccount(geometry.extent_count, geometry.extent_bytes, reserve)
        fresh = space.user_bytes()
        assert fresh >= 4 * geometry.extent_bytes, geometry
        free = geometry.extent_count - limits.SUPERBLOCK_EXTENTS
        assert space.ready_extents(free) >= 1, geometry
        # A tree of any size that fits: what is set aside for it holds all of it twice, and a
        # segment that is written beside it.
        for share in range(1, 8):
            space.tree_bytes = fresh * share // 32
            run_extents = -(-space.tree_bytes // geometry.extent_bytes)
            left = free - reserve - space.user_bytes() // geometry.extent_bytes
            assert left * geometry.extent_bytes >= 2 * space.tree_bytes, geometry
            assert left >= run_extents + 1, geometry


async def scatter(store: Store, shards: int, pieces: int) -> None:
    """Shards with so many pieces that their entries are long, of which little is data."""
    limit = record_bytes_max(store.identity.chunk_bytes_max)
    for turn in range(pieces):
        for number in range(shards):
            key = b"shard %03d" % number
            base = await store.get_shard(key)
            old = base.pieces if isinstance(base, Shard) else ()
            batch = store.batch(essential=True)
            (piece,) = store.append_pieces(key, turn * KIB, (bytes(100),))
            try:
                batch.put_shard(key, (*old, piece), base)
            except LimitError:
                assert turn * 50 > limit // 2
                return
            store.apply(batch)
        if turn % 8 == 0:
            await store.sync()
            await store.checkpoint()
            while await store.compact():
                pass
            await store.reclaim_dead()


async def test_moving_pieces_of_shards_with_long_entries_keeps_the_log_short() -> None:
    extent_count, extent_bytes = 64, 64 * KIB
    device = await formatted(extent_count * extent_bytes / MIB, extent_bytes=extent_bytes)
    async with opened(device) as store:
        wanted = needs(reserve_extents(extent_count), extent_bytes, store.identity.chunk_bytes_max)
        await scatter(store, shards=32, pieces=150)
        await store.sync()
        held = [0]
        apply = store._evacuator._apply

        def watched(batch: Batch) -> object:
            held.append(store._extents.space.held_extents(Stream.META))
            return apply(batch)

        store._evacuator._apply = watched
        moved = 0
        for extent in store._extents.sealed_data():
            moved += await store._evacuator.evacuate(extent)
            await store.sync()
            held.append(store._extents.space.held_extents(Stream.META))
            await store.reclaim_dead()
        assert moved > extent_bytes and len(held) > 20
        assert max(held) <= wanted.log, (held, wanted)
        assert store.health.reason == ""


async def test_who_deletes_by_hand_is_not_refused_for_want_of_room_to_reclaim(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with opened(await formatted(4, extent_bytes=64 * KIB)) as store:
        await store.put(b"key", bytes(30_000))
        reclamation = store._maintenance.reclamation
        asked = []

        async def reclaim(*, evacuate: bool = False) -> int:
            asked.append(evacuate)
            raise NoSpaceError("the device is full")

        monkeypatch.setattr(reclamation, "reclaim", reclaim)
        monkeypatch.setattr(store._extents, "ready_user_bytes", lambda: 0)
        await store.admit(0)
        await store.delete(b"key")
        assert asked == [True] * len(asked) and asked
