"""What the store says of its space is true: the parts add up at every step, holds explain."""

from __future__ import annotations

import random
from dataclasses import asdict

import pytest

from shardfs import limits
from shardfs.engine.collection import Collection, collection_plan
from shardfs.engine.layout import ExtentState
from shardfs.engine.liveness import live_bytes
from shardfs.engine.occupancy import extent_figures, references, tree_contents
from shardfs.engine.pieces import Shard
from shardfs.engine.stats import SpaceParts
from shardfs.engine.store import Store
from shardfs.errors import NoSpaceError, UsageError
from tests.engine.stores import content, formatted, opened, tidy_up

KIB = limits.KIB
EXTENT = 64 * KIB
KEYS = [b"key %03d" % number for number in range(80)]


def check_parts(store: Store) -> SpaceParts:
    """stats.I1, and what df says is what the parts say."""
    parts = store.space_parts()
    assert all(value >= 0 for value in asdict(parts).values()), parts
    assert sum(asdict(parts).values()) == parts.total_bytes == store._parts.device.size_bytes
    assert parts.available_bytes == store.space().free_bytes
    return parts


def check_holds(store: Store) -> None:
    """occupancy.I1 for every extent."""
    committer = store._committer
    dead = store._extents.dead(
        committer.durable_number, committer.persistent_checkpoint, committer.root.log_extent
    )
    for extent in store._extents.all:
        figures = extent_figures(store, extent.index)
        kinds = [hold.kind for hold in figures.holds]
        assert (not kinds) == (extent.state is ExtentState.FREE), figures
        assert (kinds == ["due"]) == (extent in dead), figures
        assert figures.live_bytes + figures.garbage_bytes <= figures.size_bytes
        assert figures.garbage_bytes >= 0


async def live_bytes_by_extent(store: Store) -> dict[int, int]:
    """Bytes of referenced frames, counted from the keys."""
    counted: dict[int, int] = {}
    async for _, value in store.scan(b"\0", b"\xff"):
        if isinstance(value, Shard):
            for (number, _), length in live_bytes(value.pieces).items():
                counted[number] = counted.get(number, 0) + length
    return counted


async def random_step(store: Store, chance: random.Random, values: dict[bytes, bytes]) -> None:
    """One operation of a user, or of the background."""
    kind = chance.choices(
        ("put", "delete", "sync", "checkpoint", "compact", "reclaim", "reserve"),
        (60, 25, 8, 3, 3, 8, 3),
    )[0]
    if kind == "put":
        key = chance.choice(KEYS)
        value = chance.randbytes(chance.choice((10, 300, 5000, 20_000, 70_000)))
        try:
            await store.put(key, value)
            values[key] = value
        except NoSpaceError:
            await store.delete(key)
            values.pop(key, None)
    elif kind == "delete" and values:
        key = chance.choice(sorted(values))
        await store.delete(key)
        del values[key]
    elif kind == "sync":
        await store.sync()
    elif kind == "checkpoint":
        await store.checkpoint()
    elif kind == "compact":
        await store.compact()
    elif kind == "reclaim":
        await store.sync()
        await store.reclaim()
    elif kind == "reserve":
        length = min(30_000, store.space().free_bytes)
        store.reserve(length)
        assert check_parts(store).pending_bytes == length
        store.release(length)


@pytest.mark.parametrize("seed", range(5))
async def test_the_parts_add_up_at_every_step(seed: int) -> None:
    chance = random.Random(seed)
    device = await formatted(chance.choice((2, 3, 4 + 20 / 1024)), extent_bytes=EXTENT)
    values: dict[bytes, bytes] = {}
    for _ in range(3):
        async with opened(device) as store:
            for _ in range(120):
                await random_step(store, chance, values)
                parts = check_parts(store)
                counted = await live_bytes_by_extent(store)
                assert parts.live_bytes == sum(counted.values())
            check_holds(store)
            assert await content(store) == values
        device.reopen()


async def test_an_emptied_store_has_the_room_of_a_fresh_one() -> None:
    device = await formatted(8, extent_bytes=EXTENT)
    async with opened(device) as store:
        fresh = check_parts(store).available_bytes
        for number in range(280):
            await store.put(b"%d" % number, bytes(20_000))
        for number in range(280):
            await store.delete(b"%d" % number)
        await store.sync()
        collection = Collection(store)
        while not (await collection.step()).is_done:
            check_parts(store)
        assert check_parts(store).available_bytes >= 0.99 * fresh


async def test_references_name_the_keys_that_hold_an_extent() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        for number in range(60):
            await store.put(b"%03d" % number, bytes([number]) * 9000)
        for number in range(0, 60, 3):
            await store.delete(b"%03d" % number)
        await store.put(b"001", b"a record now")
        await store.sync()
        named: set[bytes] = set()
        for extent in store._extents.all:
            size = 0
            async for key, pieces, frame_bytes in references(store, extent.index, []):
                assert pieces and all(each.locator.extent == extent.index for each in pieces)
                named.add(key)
                size += frame_bytes
            if extent_figures(store, extent.index).stream in ("data", "survivors", "hot"):
                assert size == extent.live_bytes
        assert named == {b"%03d" % n for n in range(60) if n % 3} - {b"001"}


async def test_references_behind_an_unreadable_head_are_found_all_the_same() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        for number in range(6):
            await store.put(b"%03d" % number, bytes([number]) * 9000)
        await store.sync()
        shard = await store.get_shard(b"002")
        assert shard is not None
        at = shard.pieces[0].locator
        device.rot(store.identity.extent_offset(at.extent) + at.offset + 8, 1)
        found = [key async for key, _, _ in references(store, at.extent, [])]
        assert sorted(found) == [b"%03d" % number for number in range(6)]


async def test_what_holds_an_extent_of_the_tree_and_of_the_log() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        for number in range(40):
            await store.put(b"%03d" % number, b"x" * 200)
        await store.checkpoint()
        runs = store._tree.runs
        manifest = store._committer.root.manifest
        assert manifest is not None
        contents = dict(tree_contents(store, manifest.extent))
        assert set(contents) == {f"run {runs[-1].run_id} of level 0", "the manifest"}
        figures = extent_figures(store, manifest.extent)
        assert sum(contents.values()) == figures.live_bytes
        log = extent_figures(store, store._committer.root.log_extent)
        assert "log" in [hold.kind for hold in log.holds]
        assert [hold.kind for hold in extent_figures(store, 0).holds] == ["superblock"]
        with pytest.raises(UsageError, match="no extent 64"):
            extent_figures(store, 64)
        assert sum(contents.values()) == store.space_parts().index_bytes


async def test_what_is_not_durable_yet_holds_its_extent() -> None:
    device = await formatted(4, extent_bytes=EXTENT)
    async with opened(device) as store:
        await store.put(b"doomed", bytes(50_000))
        await store.put(b"next", bytes(50_000))
        await store.sync()
        shard = await store.get_shard(b"doomed")
        assert shard is not None
        number = shard.pieces[0].locator.extent
        await store.delete(b"doomed")
        kinds = {hold.kind for hold in extent_figures(store, number).holds}
        assert "delta" in kinds
        await store.sync()
        kinds = {hold.kind for hold in extent_figures(store, number).holds}
        assert "delta" not in kinds


async def test_a_plan_is_what_collecting_does() -> None:
    # In smaller extents what is lost to whole blocks, step by step, is itself worth moving.
    device = await formatted(32, extent_bytes=4 * EXTENT)
    async with opened(device) as store:
        for number in range(200):
            await store.put(b"%03d" % number, bytes([number]) * 36_000)
        for number in range(200):
            if number % 4:
                await store.delete(b"%03d" % number)
        await store.sync()
        plan = await collection_plan(store)
        before, expected = store.space_parts(), await content(store)
        assert plan.emptied_extents > 10 and plan.stuck_extents == 0
        collection = Collection(store)
        progress = collection.progress()
        assert progress.left_bytes == plan.moved_bytes
        while not progress.is_done:
            progress = await collection.step()
        assert progress.stopped == ""
        assert progress.freed_extents >= plan.emptied_extents + plan.dead_extents
        assert progress.freed_bytes == progress.freed_extents * 4 * EXTENT
        # Moved bytes are data, live bytes are frames: a little more.
        assert 0.9 * plan.moved_bytes <= progress.moved_bytes <= plan.moved_bytes
        after, left = store.space_parts(), await collection_plan(store)
        assert (left.dead_extents, left.emptied_extents, left.merged_bytes) == (0, 0, 0)
        assert after.garbage_bytes < before.garbage_bytes // 4
        assert before.live_bytes <= after.live_bytes <= 1.01 * before.live_bytes
        assert await content(store) == expected
        again = await Collection(store).step()
        assert (again.moved_bytes, again.freed_extents, again.merged_bytes) == (0, 0, 0)


async def test_tidying_beforehand_does_not_change_what_fits() -> None:
    """space.I1: garbage counts as free."""
    device = await formatted(8, extent_bytes=EXTENT)
    async with opened(device) as store:
        for number in range(200):
            await store.put(b"%03d" % (number % 50), bytes([number]) * 9000)
        await store.sync()
        before = store.space().free_bytes
        await tidy_up(store)
        tree_share = store._extents.space.tree_share_bytes
        assert before - store.space().free_bytes <= tree_share
